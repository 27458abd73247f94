//! The cost of access checks: in warm workers, in one PHP process each, and in one PHP process each
//! without a limit, as EspoCRM's own daemon runs them. `cargo bench --bench checks`
//!
//! EspoCRM is the stand-in of the tests, made as expensive as the real one: it loads and compiles
//! so many classes that a plain check takes about 80 ms of processor time. `CHECKS_ALL=1` also runs
//! plain checks for 2,000 reconnecting tabs, which takes minutes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::unchecked_time_subtraction,
    reason = "a failing benchmark panics, and its numbers are small"
)]

mod daemon;
mod tree;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, Tab};

/// Number of classes of the stand-in.
const CLASSES: &str = "700";

/// Number of consecutive checks.
const CHECKS: usize = 40;

const WORKER: &[&str] = &[];
const PLAIN: &[&str] = &["--no-worker"];
const UNBOUND: &[&str] = &["--no-worker", "--max-checks", "100000", "--check-timeout", "10m"];

fn main() {
    // `cargo test --all-targets` also runs this, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("espocrm-websocket-checks-{}", std::process::id()));
    prepare(&dir);
    let cores = std::thread::available_parallelism().unwrap();
    println!("\n{}, {cores} cores\n", binary().display());

    println!("{:<44}{:>10}{:>10}", "One login, sequentially", "CPU", "wall");
    let [plain, worker] = [PLAIN, WORKER].map(|mode| one_by_one(&dir, mode));
    for (name, (cpu, wall)) in [("plain", plain), ("by a worker", worker)] {
        println!("{name:<44}{:>10}{:>10}", millis(cpu), millis(wall));
    }
    println!("{:<44}{:>9.1}×{:>9.1}×", "", ratio(plain.0, worker.0), ratio(plain.1, worker.1));

    println!(
        "\n{:<44}{:>10}{:>10}{:>10}{:>6}",
        "Reconnecting tabs, each with four topics", "served", "CPU", "memory", "PHP"
    );
    let unbound = storm(&dir, "500, plain without a limit (the original)", UNBOUND, 500, 1, None);
    storm(&dir, "500, plain", PLAIN, 500, 1, Some(&unbound));
    storm(&dir, "500, workers", WORKER, 500, 1, Some(&unbound));
    storm(&dir, "500 of 100 users, workers", WORKER, 500, 5, Some(&unbound));
    storm(&dir, "2,000, workers", WORKER, 2_000, 1, None);
    if std::env::var_os("CHECKS_ALL").is_some() {
        storm(&dir, "2,000, plain", PLAIN, 2_000, 1, None);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The cost of a storm.
struct Storm {
    served: Duration,
    cpu: Duration,
    /// Peak memory of the daemon and its children, in bytes.
    memory: u64,
    /// Peak number of PHP processes.
    php: usize,
}

fn one_by_one(dir: &Path, mode: &[&str]) -> (Duration, Duration) {
    let daemon = Daemon::start(&binary(), dir, mode);
    // The first login starts the worker.
    daemon.log_in("first");
    let (before, start) = (tree::cpu(daemon.pid()), Instant::now());
    for number in 0..CHECKS {
        daemon.log_in(&format!("user{number}"));
    }
    let count = u32::try_from(CHECKS).unwrap();
    ((tree::cpu(daemon.pid()) - before) / count, start.elapsed() / count)
}

fn storm(
    dir: &Path,
    name: &str,
    mode: &[&str],
    tabs: usize,
    of_each_user: usize,
    reference: Option<&Storm>,
) -> Storm {
    let daemon = Daemon::start(&binary(), dir, mode);
    let peak = tree::Peak::watch(daemon.pid());
    let (before, start) = (tree::cpu(daemon.pid()), Instant::now());
    let tabs: Vec<Tab> = (0..tabs).map(|tab| daemon.open(tab / of_each_user)).collect();
    daemon.wait_for_topics(4 * tabs.len());
    let served = start.elapsed();
    let cpu = tree::cpu(daemon.pid()) - before;
    let (memory, php) = peak.end();
    let storm = Storm { served, cpu, memory, php };
    println!(
        "{name:<44}{:>10}{:>10}{:>10}{php:>6}",
        format!("{:.1} s", served.as_secs_f64()),
        format!("{:.1} s", cpu.as_secs_f64()),
        format!("{:.0} MB", memory as f64 / 1e6),
    );
    if let Some(reference) = reference {
        println!(
            "{:<44}{:>9.1}×{:>9.1}×{:>9.1}×{:>5.0}×",
            "",
            ratio(reference.served, storm.served),
            ratio(reference.cpu, storm.cpu),
            reference.memory as f64 / storm.memory as f64,
            reference.php as f64 / storm.php as f64
        );
    }
    storm
}

fn prepare(dir: &Path) {
    let standin = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin");
    let run = |command: &mut Command| assert!(command.status().unwrap().success());
    run(Command::new("cp").arg("-r").arg(standin).arg(dir));
    std::fs::write(dir.join("data/config.php"), "<?php return ['useWebSocket' => true];").unwrap();
    run(Command::new("php").arg(dir.join("generate_classes.php")).arg(dir).arg(CLASSES));
    // Root does not run the PHP of a site.
    if dir.metadata().unwrap().uid() == 0 {
        run(Command::new("chown").args(["-R", "65534:65534"]).arg(dir));
    }
    // opcache does not store files that are younger.
    std::thread::sleep(Duration::from_secs(3));
}

fn binary() -> PathBuf {
    std::env::var_os("FOOTPRINT_BINARY")
        .map_or(env!("CARGO_BIN_EXE_espocrm-websocket").into(), PathBuf::from)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
