//! The daemon and the baseline, each with its clients; both perform the same deliveries.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use zmq::{Context, Socket, SocketType};

use crate::process::Process;
use crate::table::{median, micros, row};
use crate::tabs::{BrowserTabs, TabSetup};

/// The record that everyone views.
const RECORD: &str = "6b030f5b6b56fd2fd";

/// One of the two servers, with its tabs.
pub struct Server {
    pub process: Process,
    pub tabs: BrowserTabs,
    channel: Channel,
}

/// Identifies one of the two servers.
#[derive(Clone, Copy)]
pub enum ServerKind {
    Daemon,
    Baseline,
}

/// Alternating measurements of both servers.
#[derive(Default)]
pub struct Comparison {
    times: [Vec<Duration>; 2],
}

/// How the server receives messages.
enum Channel {
    Zeromq(Socket),
    Stdin,
}

/// The receivers of a message.
#[derive(Clone, Copy)]
pub enum Audience {
    All,
    /// The first tab.
    One,
}

impl Server {
    /// The daemon. It has no reason to send pings, so it only writes events.
    pub fn daemon(binary: &Path) -> Self {
        let process = Process::demo(binary, &["--ping-interval", "1h"]);
        let socket = socket();
        socket.connect(&process.zeromq).unwrap();
        Self { process, tabs: BrowserTabs::new(), channel: Channel::Zeromq(socket) }
    }

    /// The bare loop, with frames of the same length.
    pub fn baseline(binary: &Path) -> Self {
        let length = Audience::All.frame_length().to_string();
        let process = Process::with_stdin(Command::new(binary).arg(length));
        Self { process, tabs: BrowserTabs::new(), channel: Channel::Stdin }
    }

    /// Connects `count` tabs, all at the same record; returns the processor time per tab.
    pub fn fill(&mut self, count: usize) -> Duration {
        let before = self.process.cpu();
        self.tabs.grow(self.process.address, count, |n| TabSetup::record(user(n), RECORD));
        (self.process.cpu() - before) / u32::try_from(count).unwrap()
    }

    /// Sends messages one by one, each when the last one was received; returns the processor time
    /// per delivery, and appends the duration of each to `latencies`.
    pub fn one_by_one(
        &mut self,
        times: usize,
        to: Audience,
        latencies: &mut Vec<Duration>,
    ) -> Duration {
        let before = self.process.cpu();
        for _ in 0..times {
            let received = self.tabs.received() + self.bytes(1, to);
            let start = Instant::now();
            self.send(1, to);
            let reads = self.tabs.receive(received, || {});
            latencies.extend(reads.iter().map(|read| *read - start));
        }
        self.share(before, times, to)
    }

    /// Sends messages as fast as the server accepts them; returns the processor time per delivery.
    pub fn flood(&mut self, times: usize, to: Audience) -> Duration {
        let before = self.process.cpu();
        let received = self.tabs.received() + self.bytes(times, to);
        self.send(times, to);
        self.tabs.receive(received, || {});
        self.share(before, times, to)
    }

    /// Sends each message over its own connection, as PHP does.
    pub fn like_php(&mut self, times: usize) -> Duration {
        let before = self.process.cpu();
        for _ in 0..times {
            let received = self.tabs.received() + self.bytes(1, Audience::One);
            let socket = socket();
            socket.connect(&self.process.zeromq).unwrap();
            socket.send(Audience::One.message().as_str(), 0).unwrap();
            drop(socket);
            self.tabs.receive(received, || {});
        }
        self.share(before, times, Audience::One)
    }

    fn send(&mut self, times: usize, to: Audience) {
        match &self.channel {
            Channel::Zeromq(socket) => {
                let message = to.message();
                for _ in 0..times {
                    socket.send(message.as_str(), 0).unwrap();
                }
            }
            Channel::Stdin => {
                let receiver = match to {
                    Audience::All => -1_i32,
                    Audience::One => 0,
                };
                let command =
                    [i32::try_from(times).unwrap(), receiver].map(i32::to_ne_bytes).concat();
                self.process.stdin().write_all(&command).unwrap();
            }
        }
    }

    fn deliveries(&self, times: usize, to: Audience) -> usize {
        match to {
            Audience::All => times * self.tabs.len(),
            Audience::One => times,
        }
    }

    fn bytes(&self, times: usize, to: Audience) -> u64 {
        let length = match self.channel {
            Channel::Zeromq(_) => to.frame_length(),
            Channel::Stdin => Audience::All.frame_length(),
        };
        (self.deliveries(times, to) * length) as u64
    }

    fn share(&self, before: Duration, times: usize, to: Audience) -> Duration {
        let deliveries = self.deliveries(times, to);
        (self.process.cpu() - before) / u32::try_from(deliveries).unwrap()
    }
}

impl Comparison {
    /// Measures both alternately, so that other activity of the machine affects both.
    pub fn alternate(rounds: usize, mut turn: impl FnMut(ServerKind) -> Duration) -> Self {
        let mut comparison = Self::default();
        for _ in 0..rounds {
            for kind in [ServerKind::Daemon, ServerKind::Baseline] {
                comparison.push(kind, turn(kind));
            }
        }
        comparison
    }

    pub fn push(&mut self, kind: ServerKind, time: Duration) {
        self.times[kind as usize].push(time);
    }

    /// Prints the medians of the times, and the median of the ratios of the rounds.
    pub fn show(&self, name: &str, reference: &str) {
        let [daemon, baseline] = &self.times;
        let ratios = daemon
            .iter()
            .zip(baseline)
            .map(|(daemon, baseline)| daemon.div_duration_f64(*baseline));
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let ratio = format!("{:.2}", ratios[ratios.len() / 2]);
        let [daemon, baseline] =
            [daemon, baseline].map(|times| micros(median(times.iter().copied())));
        row(name, [&daemon, &baseline, &ratio, reference]);
    }
}

impl Audience {
    fn topic(self) -> String {
        match self {
            Self::All => format!("recordUpdate.Account.{RECORD}"),
            Self::One => "newNotification".to_owned(),
        }
    }

    /// As EspoCRM sends it.
    fn message(self) -> String {
        let topic = self.topic();
        match self {
            Self::All => format!("{{\"topicId\":\"{topic}\"}}"),
            Self::One => format!("{{\"userId\":\"{}\",\"topicId\":\"{topic}\"}}", user(0)),
        }
    }

    /// The length of the frame `[8,"topic",message]` with its header; all are shorter than 126
    /// bytes.
    fn frame_length(self) -> usize {
        format!("..[8,\"{}\",{}]", self.topic(), self.message()).len()
    }
}

/// The user of the `n`-th tab: a distinct id of 17 characters, like those of EspoCRM.
pub fn user(n: usize) -> String {
    format!("6b030ec8{n:09x}")
}

/// A socket with an unlimited queue: the sender must be able to continue with reading.
fn socket() -> Socket {
    let socket = Context::new().socket(SocketType::PUSH).unwrap();
    socket.set_sndhwm(0).unwrap();
    socket.set_linger(-1).unwrap();
    socket
}
