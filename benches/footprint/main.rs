//! The daemon's memory, processor time and latency. `cargo bench --bench footprint`
//!
//! It measures the release binary as it is shipped, from outside. Checks are answered in the
//! process (`demo`): the cost of PHP depends on EspoCRM. As a baseline, a bare epoll loop in C that
//! writes prepared frames (`baseline.c`) is measured alternately with the daemon. The ratio of the two
//! shows what the daemon adds to the kernel's work, on any machine.
//!
//! `FOOTPRINT_BINARY=path` measures another build.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::unchecked_time_subtraction,
    reason = "a failing benchmark panics, and its numbers are small"
)]

mod comparison;
mod process;
mod table;
mod tabs;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use comparison::{Audience, Comparison, Server, ServerKind, user};
use espocrm_websocket::platform::sys;
use process::Process;
use table::{count, median, megabytes, micros, millis, percentile, row, title};
use tabs::{BrowserTabs, TabSetup};

/// Number of rounds that alternate between the daemon and the baseline.
const ROUNDS: usize = 15;

/// The same if each round begins with thousands of connections.
const BIG_ROUNDS: usize = 5;

struct Bench {
    binary: PathBuf,
    baseline: PathBuf,
    /// Directory for temporary files.
    dir: PathBuf,
    /// The largest number of connections: 10,000, if the limit of open files permits.
    many: usize,
}

fn main() {
    // `cargo test --all-targets` also runs this, but without this argument.
    if std::env::args().any(|argument| argument == "--bench") {
        let bench = Bench::prepare();
        bench.at_rest();
        bench.idle();
        bench.memory();
        bench.processor_time();
        let _ = fs::remove_dir_all(&bench.dir);
    }
}

impl Bench {
    fn prepare() -> Self {
        let files = usize::try_from(sys::raise_open_files()).unwrap();
        let dir = std::env::temp_dir().join(format!("footprint-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let binary = std::env::var_os("FOOTPRINT_BINARY");
        let bench = Self {
            binary: binary.unwrap_or(env!("CARGO_BIN_EXE_espocrm-websocket").into()).into(),
            baseline: build_baseline(&dir),
            dir,
            many: files.saturating_sub(512).min(10_000),
        };
        // A page of a new binary that is not on disk yet would count as allocated by the process.
        let _ = Command::new("sync").status();
        println!("\n{}\nChecks are answered in the process.", bench.binary.display());
        bench
    }

    fn at_rest(&self) {
        title("At rest", ["", "", "", "reference"]);
        row("binary", [&megabytes(fs::metadata(&self.binary).unwrap().len()), "", "", ""]);
        let starts = (0..ROUNDS).map(|_| Process::demo(&self.binary, &[]).startup);
        row("start until browsers can connect", [&millis(median(starts)), "", "", ""]);
        let process = match self.serve_standin() {
            Some(process) => {
                row("  with the PHP probe", [&millis(process.startup), "", "", ""]);
                process
            }
            None => Process::demo(&self.binary, &[]),
        };
        process.settle();
        let memory = process.memory();
        row("RSS", [&megabytes(memory.rss), "", "", "PHP 37 MB"]);
        row("PSS", [&megabytes(memory.pss), "", "", "PHP 26 MB"]);
        row("private", [&megabytes(memory.private), "", "", ""]);
        row("  without the binary's file", [&megabytes(memory.dirty), "", "", ""]);
        row("threads", [&process.threads().to_string(), "", "", "PHP 3"]);
        let (cpu, sleeps) = (process.cpu(), process.sleeps());
        std::thread::sleep(Duration::from_secs(5));
        row("wake-ups in 5 s", [&(process.sleeps() - sleeps).to_string(), "", "", ""]);
        row("processor time in 5 s", [&micros(process.cpu() - cpu), "", "", ""]);
    }

    fn idle(&self) {
        let time = Duration::from_secs(26);
        let process = Process::demo(&self.binary, &[]);
        let mut tabs = BrowserTabs::new();
        tabs.grow(process.address, 1_000, own_record);
        let (cpu, sleeps) = (process.cpu(), process.sleeps());
        tabs.idle(time);
        let woken = (process.sleeps() - sleeps) as f64 / time.as_secs_f64();
        let cpu = (process.cpu() - cpu).mul_f64(60.0 / time.as_secs_f64());
        title("1,000 idle connections, pinged every 25 s", ["", "", "", "reference"]);
        row("wake-ups per second", [&format!("{woken:.1}"), "", "", ""]);
        row("processor time per minute", [&millis(cpu), "", "", "PHP 36 ms, every 60 s"]);
    }

    fn memory(&self) {
        let many = format!("at {}", count(self.many));
        title("Private memory of a connection", ["at 1,000", &many, "", "reference"]);
        let same = |n| TabSetup::record(user(n), "6b030f5b6b56fd2fd");
        let none = |n| TabSetup { user: user(n), topics: Vec::new() };
        self.memory_of("4 subscriptions, each its own record", "PHP 24 KB", own_record);
        self.memory_of("4 subscriptions, all at one record", "PHP 24 KB", same);
        self.memory_of("no subscription", "uWebSockets 458 B", none);
    }

    fn memory_of(&self, name: &str, reference: &str, setup: impl Fn(usize) -> TabSetup) {
        let process = Process::demo(&self.binary, &[]);
        let mut tabs = BrowserTabs::new();
        // The first connections make the process allocate what all of them share.
        tabs.grow(process.address, 10, &setup);
        process.settle();
        let before = process.memory().dirty;
        let [some, many] = [1_000, self.many].map(|count| {
            tabs.grow(process.address, count, &setup);
            process.settle();
            let grown = process.memory().dirty.saturating_sub(before);
            format!("{} B", grown / (count - 10) as u64)
        });
        row(name, [&some, &many, "", reference]);
        drop(tabs);
        std::thread::sleep(Duration::from_secs(1));
        process.settle();
        let kept = process.memory().dirty.saturating_sub(before);
        row("  after all have disconnected", ["", &megabytes(kept), "", ""]);
    }

    fn processor_time(&self) {
        title("Processor time", ["daemon", "baseline", "ratio", "reference"]);
        let mut connections = Comparison::default();
        let full = Comparison::alternate(BIG_ROUNDS, |kind| {
            let mut server = self.server(kind);
            connections.push(kind, server.fill(self.many));
            server.one_by_one(10, Audience::All, &mut Vec::new())
        });
        connections.show("connection: upgrade, login, 4 subscriptions", "");
        full.show(&format!("delivery, a message to {}", count(self.many)), "");

        let mut both = [ServerKind::Daemon, ServerKind::Baseline].map(|kind| self.server(kind));
        for server in &mut both {
            server.fill(100);
        }
        let saturated = Comparison::alternate(ROUNDS, |kind| {
            let server = &mut both[kind as usize];
            server.flood(2_000, Audience::All)
        });
        for server in &mut both {
            server.fill(1_000);
        }
        let mut to_all = [Vec::new(), Vec::new()];
        let broadcast = Comparison::alternate(ROUNDS, |kind| {
            let (server, times) = (&mut both[kind as usize], &mut to_all[kind as usize]);
            server.one_by_one(15, Audience::All, times)
        });
        let mut to_one = [Vec::new(), Vec::new()];
        let single = Comparison::alternate(ROUNDS, |kind| {
            let (server, times) = (&mut both[kind as usize], &mut to_one[kind as usize]);
            server.one_by_one(100, Audience::One, times)
        });
        let php = median((0..ROUNDS).map(|_| both[0].like_php(20)));
        broadcast.show("delivery, a message to 1,000", "uWebSockets 1.2, PHP 16.5 µs");
        saturated.show("delivery, a flood of messages to 100", "uWebSockets 0.31, PHP 1.2 µs");
        single.show("message to 1 of 1,000", "");
        row("  each over a new connection, as PHP sends", [&micros(php), "", "", ""]);

        title("From sending to receipt", ["daemon", "baseline", "", ""]);
        for (name, mut times) in [("message to 1 of 1,000", to_one), ("message to 1,000", to_all)] {
            for rank in [50, 99] {
                let [daemon, baseline] =
                    times.each_mut().map(|times| micros(percentile(times, rank)));
                row(&format!("{name}, p{rank}"), [&daemon, &baseline, "", ""]);
            }
        }
    }

    fn server(&self, kind: ServerKind) -> Server {
        match kind {
            ServerKind::Daemon => Server::daemon(&self.binary),
            ServerKind::Baseline => Server::baseline(&self.baseline),
        }
    }

    /// The daemon for the stand-in of the tests, if PHP is installed.
    fn serve_standin(&self) -> Option<Process> {
        Command::new("php").arg("-v").stdout(Stdio::null()).status().ok()?;
        let root = self.dir.join("standin");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin");
        assert!(Command::new("cp").arg("-r").arg(source).arg(&root).status().unwrap().success());
        fs::write(root.join("data/config.php"), "<?php return ['useWebSocket' => true];").unwrap();
        let mut command = Command::new(&self.binary);
        // Root does not run the PHP of a site.
        if root.metadata().unwrap().uid() == 0 {
            let mut chown = Command::new("chown");
            assert!(chown.args(["-R", "65534:65534"]).arg(&root).status().unwrap().success());
        }
        command.arg("run").arg("--espocrm").arg(root).args(["--config", "/dev/null"]);
        Some(Process::daemon(&mut command))
    }
}

fn own_record(n: usize) -> TabSetup {
    TabSetup::record(user(n), &format!("6b030f5b{n:09x}"))
}

fn build_baseline(dir: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/footprint/baseline.c");
    let binary = dir.join("baseline");
    assert!(
        Command::new("cc").args(["-O2", source, "-o"]).arg(&binary).status().unwrap().success()
    );
    binary
}
