//! The daemon and the floor under it, each with a crowd: both do the same deliveries.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use zmq::{Context, Socket, SocketType};

use crate::crowd::{Crowd, Visit};
use crate::process::Process;
use crate::table::{median, micros, row};

/// The record that everybody looks at.
const RECORD: &str = "6b030f5b6b56fd2fd";

/// One of the two, with its tabs.
pub struct Contestant {
    pub process: Process,
    pub crowd: Crowd,
    channel: Channel,
}

/// Which of the two.
#[derive(Clone, Copy)]
pub enum Side {
    Ours,
    Floor,
}

/// Measurements of both, in turns.
#[derive(Default)]
pub struct Duel {
    times: [Vec<Duration>; 2],
}

/// How it is told to deliver.
enum Channel {
    Zeromq(Socket),
    Stdin,
}

/// Whom a message reaches.
#[derive(Clone, Copy)]
pub enum Audience {
    Everybody,
    /// The first tab.
    One,
}

impl Contestant {
    /// The daemon. It is given no reason to ping, so that all that is written are events.
    pub fn daemon(binary: &Path) -> Self {
        let process = Process::demo(binary, &["--ping-interval", "1h"]);
        let socket = socket();
        socket.connect(&process.zeromq).unwrap();
        Self { process, crowd: Crowd::new(), channel: Channel::Zeromq(socket) }
    }

    /// The bare loop, with frames of the same length.
    pub fn floor(binary: &Path) -> Self {
        let length = Audience::Everybody.frame_length().to_string();
        let process = Process::with_stdin(Command::new(binary).arg(length));
        Self { process, crowd: Crowd::new(), channel: Channel::Stdin }
    }

    /// Has `count` tabs come, all at the same record; returns the processor time for each.
    pub fn fill(&mut self, count: usize) -> Duration {
        let before = self.process.cpu();
        self.crowd.grow(self.process.address, count, |n| Visit::record(user(n), RECORD));
        (self.process.cpu() - before) / u32::try_from(count).unwrap()
    }

    /// Sends messages one by one, each when the last has been received; returns the processor time
    /// for each delivery, and appends to `latencies` how long each took.
    pub fn one_by_one(
        &mut self,
        times: usize,
        to: Audience,
        latencies: &mut Vec<Duration>,
    ) -> Duration {
        let before = self.process.cpu();
        for _ in 0..times {
            let received = self.crowd.received() + self.bytes(1, to);
            let start = Instant::now();
            self.send(1, to);
            let reads = self.crowd.receive(received, || {});
            latencies.extend(reads.iter().map(|read| *read - start));
        }
        self.share(before, times, to)
    }

    /// Sends messages as fast as it takes them; returns the processor time for each delivery.
    pub fn flood(&mut self, times: usize, to: Audience) -> Duration {
        let before = self.process.cpu();
        let received = self.crowd.received() + self.bytes(times, to);
        self.send(times, to);
        self.crowd.receive(received, || {});
        self.share(before, times, to)
    }

    /// Sends each message by a connection of its own, as PHP does.
    pub fn like_php(&mut self, times: usize) -> Duration {
        let before = self.process.cpu();
        for _ in 0..times {
            let received = self.crowd.received() + self.bytes(1, Audience::One);
            let socket = socket();
            socket.connect(&self.process.zeromq).unwrap();
            socket.send(Audience::One.message().as_str(), 0).unwrap();
            drop(socket);
            self.crowd.receive(received, || {});
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
                let whom = match to {
                    Audience::Everybody => -1_i32,
                    Audience::One => 0,
                };
                let order = [i32::try_from(times).unwrap(), whom].map(i32::to_ne_bytes).concat();
                self.process.stdin().write_all(&order).unwrap();
            }
        }
    }

    fn deliveries(&self, times: usize, to: Audience) -> usize {
        match to {
            Audience::Everybody => times * self.crowd.len(),
            Audience::One => times,
        }
    }

    fn bytes(&self, times: usize, to: Audience) -> u64 {
        let length = match self.channel {
            Channel::Zeromq(_) => to.frame_length(),
            Channel::Stdin => Audience::Everybody.frame_length(),
        };
        (self.deliveries(times, to) * length) as u64
    }

    fn share(&self, before: Duration, times: usize, to: Audience) -> Duration {
        let deliveries = self.deliveries(times, to);
        (self.process.cpu() - before) / u32::try_from(deliveries).unwrap()
    }
}

impl Duel {
    /// Both in turns, so that what else the machine does meets both.
    pub fn fight(rounds: usize, mut turn: impl FnMut(Side) -> Duration) -> Self {
        let mut duel = Self::default();
        for _ in 0..rounds {
            for side in [Side::Ours, Side::Floor] {
                duel.push(side, turn(side));
            }
        }
        duel
    }

    pub fn push(&mut self, side: Side, time: Duration) {
        self.times[side as usize].push(time);
    }

    /// Shows the medians of the times, and that of the ratios of each round.
    pub fn show(&self, name: &str, to_beat: &str) {
        let [ours, floor] = &self.times;
        let ratios = ours.iter().zip(floor).map(|(ours, floor)| ours.div_duration_f64(*floor));
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let ratio = format!("{:.2}", ratios[ratios.len() / 2]);
        let [ours, floor] = [ours, floor].map(|times| micros(median(times.iter().copied())));
        row(name, [&ours, &floor, &ratio, to_beat]);
    }
}

impl Audience {
    fn topic(self) -> String {
        match self {
            Self::Everybody => format!("recordUpdate.Account.{RECORD}"),
            Self::One => "newNotification".to_owned(),
        }
    }

    /// As EspoCRM sends it.
    fn message(self) -> String {
        let topic = self.topic();
        match self {
            Self::Everybody => format!("{{\"topicId\":\"{topic}\"}}"),
            Self::One => format!("{{\"userId\":\"{}\",\"topicId\":\"{topic}\"}}", user(0)),
        }
    }

    /// Of the frame `[8,"topic",message]` with its header; all are shorter than 126 bytes.
    fn frame_length(self) -> usize {
        format!("..[8,\"{}\",{}]", self.topic(), self.message()).len()
    }
}

/// The `n`-th tab's user, each another one: an id of 17 characters, as EspoCRM's are.
pub fn user(n: usize) -> String {
    format!("6b030ec8{n:09x}")
}

/// A socket that queues without limit: the sender must be able to go on to reading.
fn socket() -> Socket {
    let socket = Context::new().socket(SocketType::PUSH).unwrap();
    socket.set_sndhwm(0).unwrap();
    socket.set_linger(-1).unwrap();
    socket
}
