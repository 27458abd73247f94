//! PHP processes that send messages, one thread for each.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::sent_log::{Channel, Stream, message};
use crate::site::Site;
use crate::support::{Process, program};
use crate::tally::Tally;

/// A sender that runs until it is stopped.
pub struct Sender {
    end: Arc<AtomicBool>,
    pid: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

struct SenderThread {
    sites: Arc<Vec<Site>>,
    site: usize,
    stream: Stream,
    serial: u64,
    channels: Vec<Vec<Channel>>,
    random: Random,
    tally: Arc<Mutex<Tally>>,
}

struct Php {
    process: Child,
    input: BufWriter<ChildStdin>,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

/// A PHP process that opens a connection per message is replaced after this time.
const AGE: Duration = Duration::from_secs(60);

impl Sender {
    pub fn start(
        sites: &Arc<Vec<Site>>,
        site: usize,
        stream: Stream,
        tally: &Arc<Mutex<Tally>>,
        random: &mut Random,
    ) -> Self {
        let (end, pid) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut sender = SenderThread {
            sites: Arc::clone(sites),
            site,
            stream,
            serial: 0,
            channels: sites[site].channels(),
            random: random.fork(),
            tally: Arc::clone(tally),
        };
        let (ended, number) = (Arc::clone(&end), Arc::clone(&pid));
        let thread = std::thread::spawn(move || sender.run(&ended, &number));
        Self { end, pid, thread: Some(thread) }
    }

    /// Requests its end, which follows after a last message to each channel.
    pub fn end(&self) {
        self.end.store(true, Ordering::Relaxed);
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end();
        let pid = self.pid.load(Ordering::Relaxed);
        if !self.has_ended() && pid != 0 {
            Process::signal(pid, "KILL");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl SenderThread {
    fn run(&mut self, end: &AtomicBool, pid: &AtomicU32) {
        while !end.load(Ordering::Relaxed) {
            let mut php = self.start();
            pid.store(php.process.id(), Ordering::Relaxed);
            let began = Instant::now();
            while !end.load(Ordering::Relaxed) && (self.stream.in_order || began.elapsed() < AGE) {
                let lines = self.burst();
                if !php.send(&lines) {
                    break;
                }
                std::thread::sleep(self.random.millis(50, 600));
            }
            if end.load(Ordering::Relaxed) {
                let all: Vec<Channel> = self.channels.iter().flatten().cloned().collect();
                let lines: Vec<String> = all.iter().map(|channel| self.line(channel, 0)).collect();
                php.send(&lines);
            }
            pid.store(0, Ordering::Relaxed);
            drop(php.input);
            let status = php.process.wait().unwrap();
            if !status.success() {
                let what = format!("a PHP sender of {:?} exited: {status}", self.stream);
                self.tally.lock().unwrap().violation(what);
                return;
            }
        }
    }

    fn start(&self) -> Php {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/soak/sender.php");
        let mut command: Command = program("/usr/bin/php");
        let how = if self.stream.in_order { "stay" } else { "each" };
        let zeromq = &self.sites[self.site].daemon.zeromq;
        command.args([script, zeromq, how]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let input = BufWriter::new(process.stdin.take().unwrap());
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        self.tally.lock().unwrap().count("PHP senders started", 1);
        Php { process, input, output }
    }

    /// The next messages: mostly a few, sometimes hundreds, rarely long or invalid ones.
    fn burst(&mut self) -> Vec<String> {
        let random = &mut self.random;
        let kind = if self.stream.in_order { random.below(100) } else { random.below(80) };
        let count = match kind {
            0..75 => random.between(1, 5),
            75..80 => return self.invalid_messages(),
            80..93 => random.between(20, 60),
            93..97 => random.between(150, 400),
            _ => {
                let bulk = Site::bulk();
                let length = random.between(20_000, 200_000);
                return (0..12).map(|_| self.line(&bulk, length)).collect();
            }
        };
        let lines = (0..count).map(|_| {
            let class = self.random.choose(&self.channels);
            let channel = self.random.choose(class).clone();
            let length = self.random.below(120);
            self.line(&channel, length)
        });
        lines.collect()
    }

    fn line(&mut self, channel: &Channel, length: usize) -> String {
        let number = self.sites[self.site].sent_log.record(self.stream, channel);
        self.serial += 1;
        format!("m{}", message(channel, self.stream, self.serial, number, length))
    }

    /// Invalid messages.
    fn invalid_messages(&mut self) -> Vec<String> {
        let deep = "[".repeat(2_000);
        let bad: [&[u8]; 9] = [
            b"",
            b"not JSON",
            b"[1,2]",
            b"{\"topicId\":7}",
            b"{\"topicId\":\"unknownTopic\"}",
            b"{\"topicId\":\"newNotification\",\"userId\":[]}",
            b"{\"topicId\":\"newNotification\",\"x\":\"\xff\xfe\"}",
            b"\0\0\0",
            deep.as_bytes(),
        ];
        let count = self.random.between(1, 6);
        self.tally.lock().unwrap().count("malformed messages sent", count as u64);
        let line = |bytes: &[u8]| {
            let add = |line: String, byte: &u8| line + &format!("{byte:02x}");
            bytes.iter().fold("b".to_owned(), add)
        };
        (0..count).map(|_| line(self.random.choose::<&[u8]>(&bad))).collect()
    }
}

impl Php {
    /// Sends lines and waits until ZeroMQ has all of them. Returns whether the process still runs.
    fn send(&mut self, lines: &[String]) -> bool {
        // In parts, so that neither side waits for the other to read.
        for part in lines.chunks(100) {
            let written = part.iter().try_for_each(|line| writeln!(self.input, "{line}"));
            if written.and_then(|()| self.input.flush()).is_err() {
                return false;
            }
            for _ in part {
                if !matches!(self.output.next(), Some(Ok(_))) {
                    return false;
                }
            }
        }
        true
    }
}
