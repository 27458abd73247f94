//! What the daemon costs: memory, processor time, latency. `cargo bench --bench footprint`
//!
//! It measures the release binary as it is shipped, from outside. Checks are answered in the
//! process (`demo`): what PHP costs is EspoCRM's. Beside each delivery stands a floor measured in
//! the same minute, a bare epoll loop in C that writes ready-made frames (`floor.c`): the ratio
//! says what the daemon adds, on any machine. Both take turns; medians are shown.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark that cannot go on shall say so, and its numbers are small"
)]

mod contest;
mod crowd;
mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use contest::{Audience, Contestant, user};
use crowd::{Crowd, Visit};
use espocrm_websocket::shell::sys;
use process::Process;

const BINARY: &str = env!("CARGO_BIN_EXE_espocrm-websocket");

/// How often the daemon and the floor take turns.
const ROUNDS: usize = 7;

fn main() {
    // `cargo test --all-targets` runs this too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let files = usize::try_from(sys::raise_open_files()).unwrap();
    let many = files.saturating_sub(512).min(10_000);
    let dir = std::env::temp_dir().join(format!("footprint-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let floor = build_floor(&dir);
    // A page of the binary that is not on disk yet would count as private.
    let _ = Command::new("sync").status();

    println!("\nespocrm-websocket {}, checks answered in the process", env!("CARGO_PKG_VERSION"));
    title("At rest", ["", "", "", "to beat"]);
    at_rest(&dir);
    title("With 1,000 idle connections, pinged every 25 s", ["", "", "", "to beat"]);
    idle();
    title("Private memory per connection", ["at 1,000", &format!("at {many}"), "", "to beat"]);
    memory(many);
    title("Processor time", ["ours", "floor", "ratio", "to beat"]);
    processor_time(&floor, many);
    let _ = fs::remove_dir_all(dir);
}

fn at_rest(dir: &Path) {
    let flags = ["--listen", "127.0.0.1:0", "--zeromq", "tcp://127.0.0.1:*"];
    row("binary", [mb(fs::metadata(BINARY).unwrap().len()), nothing(), nothing(), nothing()]);
    let mut run = Command::new(BINARY);
    run.arg("run").arg("--espocrm").arg(standin(dir)).args(["--config", "/dev/null"]).args(flags);
    let has_php = Command::new("php").arg("-v").stdout(Stdio::null()).status().is_ok();
    let process = if has_php {
        Process::daemon(&mut run)
    } else {
        println!("  (no php here: the demo instead)");
        Process::demo(BINARY, &[])
    };
    std::thread::sleep(Duration::from_millis(500));
    let memory = process.memory();
    let sleeps = process.sleeps();
    let cpu = process.cpu();
    std::thread::sleep(Duration::from_secs(5));
    let woken = process.sleeps() - sleeps;
    let demo = median((0..ROUNDS).map(|_| Process::demo(BINARY, &[]).startup).collect());
    single("start until browsers can connect", ms(demo), "");
    single("  the same with PHP telling the settings", ms(process.startup), "");
    single("RSS", mb(memory.rss), "PHP 37 MB");
    single("PSS", mb(memory.pss), "PHP 26 MB");
    single("private memory", mb(memory.private), "");
    single("threads", process.threads().to_string(), "PHP 3");
    single("wake-ups in 5 s", woken.to_string(), "0");
    single("processor time in 5 s", us(process.cpu() - cpu), "0");
}

fn idle() {
    let process = Process::demo(BINARY, &[]);
    let mut crowd = Crowd::new();
    crowd.grow(process.address, 1_000, |n| Visit::record(user(n), &format!("6b030f5b{n:09x}")));
    let (cpu, sleeps) = (process.cpu(), process.sleeps());
    let time = Duration::from_secs(26);
    crowd.idle(time);
    let per_minute = 60.0 / time.as_secs_f64();
    let woken = (process.sleeps() - sleeps) as f64 / time.as_secs_f64();
    let cpu = (process.cpu() - cpu).mul_f64(per_minute);
    single("wake-ups per second", format!("{woken:.1}"), "");
    single("processor time per minute", ms(cpu), "PHP 36 ms");
}

fn memory(many: usize) {
    let record = |n: usize| Visit::record(user(n), &format!("6b030f5b{n:09x}"));
    let same = |n: usize| Visit::record(user(n), "6b030f5b6b56fd2fd");
    let bare = |n: usize| Visit { user: user(n), topics: Vec::new() };
    let variants: [(&str, &str, &dyn Fn(usize) -> Visit); 3] = [
        ("4 subscriptions, each tab at its own record", "PHP 24 KB", &record),
        ("4 subscriptions, all at the same record", "", &same),
        ("no subscription", "uWebSockets 458 B", &bare),
    ];
    for (name, to_beat, visit) in variants {
        let process = Process::demo(BINARY, &[]);
        let mut crowd = Crowd::new();
        // The first ones make the process touch what it then has for all.
        crowd.grow(process.address, 10, visit);
        let before = process.memory().private;
        let mut per_tab = |count: usize| {
            crowd.grow(process.address, count, visit);
            process.settle();
            let grown = process.memory().private.saturating_sub(before);
            format!("{} B", grown / (count as u64 - 10))
        };
        row(name, [per_tab(1_000), per_tab(many), nothing(), to_beat.to_owned()]);
    }
}

fn processor_time(floor: &Path, many: usize) {
    let mut connect = Duel::default();
    let mut broadcast = Duel::default();
    for _ in 0..3 {
        for side in [&mut connect.ours, &mut connect.floor].into_iter().zip([
            (Contestant::daemon(BINARY), &mut broadcast.ours),
            (Contestant::floor(floor), &mut broadcast.floor),
        ]) {
            let (connects, (mut contestant, broadcasts)) = side;
            connects.push(contestant.fill(many));
            broadcasts.push(contestant.one_by_one(10, Audience::Everybody, &mut Vec::new()));
        }
    }
    connect.show("connection: upgrade, login, 4 subscriptions", "");
    broadcast.show(&format!("delivery, a message to {many}"), "");

    let mut ours = Contestant::daemon(BINARY);
    let mut bare = Contestant::floor(floor);
    for contestant in [&mut ours, &mut bare] {
        contestant.fill(100);
    }
    let flood =
        Duel::fight(|side| side.pick(&mut ours, &mut bare).flood(5_000, Audience::Everybody));
    for contestant in [&mut ours, &mut bare] {
        contestant.fill(1_000);
    }
    let mut times = [Vec::new(), Vec::new()];
    let mut alone = [Vec::new(), Vec::new()];
    let broadcast = Duel::fight(|side| {
        let contestant = side.pick(&mut ours, &mut bare);
        contestant.one_by_one(30, Audience::Everybody, &mut times[side as usize])
    });
    let single = Duel::fight(|side| {
        let contestant = side.pick(&mut ours, &mut bare);
        contestant.one_by_one(300, Audience::One, &mut alone[side as usize])
    });
    let php = median((0..3).map(|_| ours.like_php(100)).collect());
    broadcast.show("delivery, a message to 1,000", "uWebSockets 1.2, PHP 16.5 µs");
    flood.show("delivery, a flood of messages to 100", "uWebSockets 0.31, PHP 1.2 µs");
    single.show("message to 1 of 1,000", "");
    row("  the same by a new connection, as PHP sends", [us(php), nothing(), nothing(), nothing()]);

    title("Time from sending to receipt", ["ours", "floor", "", ""]);
    for (name, mut times) in [("message to 1 of 1,000", alone), ("message to 1,000", times)] {
        for (percentile, of) in [("p50", 50), ("p99", 99)] {
            let [ours, floor] = times.each_mut().map(|times| {
                times.sort_unstable();
                us(times[times.len() * of / 100])
            });
            row(&format!("{name}, {percentile}"), [ours, floor, nothing(), nothing()]);
        }
    }
}

/// Measurements of the daemon and of the floor, in turn.
#[derive(Default)]
struct Duel {
    ours: Vec<Duration>,
    floor: Vec<Duration>,
}

#[derive(Clone, Copy)]
enum Side {
    Ours,
    Floor,
}

impl Side {
    fn pick<T>(self, ours: T, floor: T) -> T {
        match self {
            Self::Ours => ours,
            Self::Floor => floor,
        }
    }
}

impl Duel {
    fn fight(mut round: impl FnMut(Side) -> Duration) -> Self {
        let mut duel = Self::default();
        for _ in 0..ROUNDS {
            duel.ours.push(round(Side::Ours));
            duel.floor.push(round(Side::Floor));
        }
        duel
    }

    fn show(self, name: &str, to_beat: &str) {
        let (ours, floor) = (median(self.ours), median(self.floor));
        let ratio = ours.as_secs_f64() / floor.as_secs_f64();
        row(name, [us(ours), us(floor), format!("{ratio:.2}"), to_beat.to_owned()]);
    }
}

fn build_floor(dir: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/footprint/floor.c");
    let binary = dir.join("floor");
    let built = Command::new("cc").args(["-O2", source, "-o"]).arg(&binary).status().unwrap();
    assert!(built.success());
    binary
}

/// A copy of the tests' EspoCRM.
fn standin(dir: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin");
    let root = dir.join("standin");
    assert!(Command::new("cp").arg("-r").arg(source).arg(&root).status().unwrap().success());
    fs::write(root.join("data/config.php"), "<?php return ['useWebSocket' => true];").unwrap();
    root
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

fn title(name: &str, columns: [&str; 4]) {
    println!();
    row(name, columns.map(str::to_owned));
}

fn single(name: &str, value: String, to_beat: &str) {
    row(name, [value, nothing(), nothing(), to_beat.to_owned()]);
}

fn row(name: &str, [a, b, ratio, to_beat]: [String; 4]) {
    println!("{name:<46}{a:>11}{b:>11}{ratio:>8}   {to_beat}");
}

fn nothing() -> String {
    String::new()
}

fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn us(time: Duration) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6)
}
