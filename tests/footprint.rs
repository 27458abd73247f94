//! Budgets of the release binary that hold on any machine, as documented for administrators. `cargo
//! test --test footprint -- --nocapture` prints the measurements; `cargo bench --bench footprint`
//! measures more.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unchecked_time_subtraction,
    reason = "a failing test panics"
)]

#[expect(dead_code, reason = "the benchmark uses all of it")]
#[path = "../benches/footprint/process.rs"]
mod process;
#[expect(dead_code, reason = "the benchmark uses all of it")]
#[path = "../benches/footprint/tabs.rs"]
mod tabs;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use espocrm_websocket::platform::sys;
use process::Process;
use tabs::{BrowserTabs, TabSetup};

/// The binary as it is shipped: the budgets do not apply to a debug build.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let tested = PathBuf::from(env!("CARGO_BIN_EXE_espocrm-websocket"));
    let target = tested.ancestors().nth(2).unwrap();
    // Plain cargo lacks the flags of release builds, and would compile all crates again.
    let mut build = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/cargo"));
    build.args(["build", "--release", "--locked", "--bin", "espocrm-websocket", "--target-dir"]);
    // ring's build script depends on these variables, which cargo sets for tests: ring and
    // everything that uses it would be recompiled, here and in the next build.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|it| name.to_string_lossy().starts_with(it))
        {
            build.env_remove(name);
        }
    }
    assert!(build.arg(target).status().unwrap().success());
    // A page of the binary that is not on disk yet would count as allocated by the process.
    assert!(Command::new("sync").status().unwrap().success());
    target.join("release/espocrm-websocket")
});

/// The demo answers checks itself: the memory of running PHP processes is additional.
fn demo() -> Process {
    Process::demo(&*BINARY, &[])
}

#[test]
fn the_binary_is_at_most_3_mb() {
    let size = fs::metadata(&*BINARY).unwrap().len();
    println!("binary: {size} B");
    assert!(size <= 3_000_000, "{size} B");
}

#[test]
fn an_idle_daemon_uses_at_most_5_mb_and_3_threads() {
    let daemon = demo();
    daemon.settle();
    let (memory, threads) = (daemon.memory(), daemon.threads());
    println!("at rest: {memory:?}, {threads} threads");
    assert!(memory.rss <= 5_000_000, "{memory:?}");
    assert!(threads <= 3, "{threads} threads");
}

#[test]
fn without_connections_the_daemon_sleeps() {
    let daemon = demo();
    expect_sleep(&daemon, "without connections");
}

/// Expects that the effects of earlier connections and messages end, and that nothing then wakes
/// the daemon for 4 s.
fn expect_sleep(daemon: &Process, when: &str) {
    let start = Instant::now();
    let (mut woken, mut cpu) = (1, Duration::ZERO);
    while woken > 0 && start.elapsed() < Duration::from_secs(60) {
        let before = (daemon.sleeps(), daemon.cpu());
        std::thread::sleep(Duration::from_secs(4));
        (woken, cpu) = (daemon.sleeps() - before.0, daemon.cpu() - before.1);
    }
    println!("{when}, in 4 s: woken {woken} times, {cpu:?} of processor time");
    assert_eq!(woken, 0);
}

#[test]
fn idle_senders_cause_no_wake_ups() {
    let daemon = demo();
    // Like php-fpm processes: some have sent a message and stay, some have not sent anything yet.
    let context = zmq::Context::new();
    let senders = (0..20).map(|number| {
        let sender = context.socket(zmq::PUSH).unwrap();
        sender.connect(&daemon.zeromq).unwrap();
        if number % 2 == 0 {
            sender.send(r#"{"topicId":"newNotification","userId":"nobody"}"#, 0).unwrap();
        }
        sender
    });
    let senders: Vec<_> = senders.collect();
    expect_sleep(&daemon, &format!("with {} senders", senders.len()));
}

#[test]
fn a_connection_with_four_subscriptions_uses_at_most_2_kib() {
    let files = usize::try_from(sys::raise_open_files()).unwrap();
    let count = files.saturating_sub(512).min(2_000);
    let daemon = demo();
    let mut tabs = BrowserTabs::new();
    let setup = |n: usize| TabSetup::record(format!("user{n}"), &format!("6b030f5b{n:09x}"));
    // The first connections make the process allocate what all of them share.
    tabs.grow(daemon.address, 10, setup);
    daemon.settle();
    let before = daemon.memory().dirty;
    tabs.grow(daemon.address, count, setup);
    daemon.settle();
    let each = daemon.memory().dirty.saturating_sub(before) / (count as u64 - 10);
    println!("{count} connections: {each} B each");
    // No connection can use less than this: then the measurement is wrong.
    assert!((64..=2 * 1024).contains(&each), "{each} B");
    assert_eq!(daemon.threads(), 3);
}
