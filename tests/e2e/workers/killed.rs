//! Workers that are killed at any moment.

use serde_json::json;

use super::{WORKERS_DISABLED, expect_event_of, expect_mode, worker};
use crate::support::{Client, Daemon, Process, Standin, eventually, is_root};

/// Pseudo-random numbers that are repeatable with the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn no_check_is_lost_when_workers_are_killed_at_any_moment() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(u64::from(std::process::id()) | 1 << 40);
    eprintln!("SEED={seed}");
    let mut random = Random(seed);
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tabs: Vec<(String, Client)> = Vec::new();
    let (mut killed, mut disabled) = (0, 0);
    for round in 0..40 {
        let user = format!("u{}", random.below(4));
        let mut tab = Client::open(daemon.address, &user, &format!("tok-{user}"));
        tab.subscribe(&format!("recordUpdate.Account.{round}"));
        tabs.push((user, tab));
        for _ in 0..random.below(6) {
            let number = usize::try_from(random.below(tabs.len() as u64)).unwrap();
            tabs[number].1.subscribe(&format!("streamUpdate.Account.{round}"));
        }
        for _ in 0..random.below(4) {
            std::thread::sleep(std::time::Duration::from_micros(random.below(15_000)));
            let signal =
                ["KILL", "KILL", "TERM", "SEGV"][usize::try_from(random.below(4)).unwrap()];
            for worker in daemon.workers() {
                Process::signal(worker, signal);
                killed += 1;
            }
        }
        // After two consecutive failures, workers are disabled until something changes.
        if daemon.count(WORKERS_DISABLED) > disabled {
            disabled = daemon.count(WORKERS_DISABLED);
            standin.custom_categories(&json!({ format!("news{round}"): {} }));
            daemon.reload("settings have changed");
        }
    }
    eprintln!("{killed} killed, workers disabled {disabled} times");
    assert!(killed > 10, "{killed}");
    for (number, (user, tab)) in tabs.iter_mut().enumerate() {
        tab.expect_welcome();
        let granted = format!("add topic recordUpdate.Account.{number} for user {user}");
        eventually(&granted, || daemon.count(&granted) == 1);
        tab.expect_silence();
    }
    for (number, (_, tab)) in tabs.iter_mut().enumerate().step_by(7) {
        expect_event_of(&daemon, tab, &number.to_string());
    }
    assert_eq!(daemon.count("The access check of a"), 0);
    assert_eq!(daemon.count(": close"), 0);
    eventually("only workers are left", || daemon.children().len() == daemon.workers().len());
}

#[test]
fn a_worker_killed_while_idle_is_replaced_without_a_warning() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    for _ in 0..5 {
        daemon.connect("alice");
        let worker = worker(&daemon);
        Process::signal(worker, "KILL");
        eventually("the worker is reaped", || Process::find(worker).is_none());
    }
    expect_mode(&standin, "worker");
    // Only root gets a warning, about running as root.
    assert_eq!(
        (daemon.count(WORKERS_DISABLED), daemon.count("[WARN ]")),
        (0, usize::from(is_root()))
    );
}

#[test]
fn a_check_whose_worker_was_killed_is_run_again() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    standin.hold("AclCheck");
    for topic in ["recordUpdate.Account.1", "recordUpdate.Account.deny1"] {
        tab.subscribe(topic);
    }
    eventually("the check runs", || standin.modes().len() == 2);
    Process::signal(worker(&daemon), "KILL");
    standin.release();
    daemon.wait_for("add topic recordUpdate.Account.1");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1");
    // The other check need not wait for that: the next worker runs it.
    let mut mode = standin.modes();
    mode.sort();
    assert_eq!(mode, ["plain", "worker", "worker", "worker"]);
    let check = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
    assert_eq!(standin.count(check), 2);
    expect_event_of(&daemon, &mut tab, "1");
}

#[test]
fn checks_that_a_worker_does_not_start_run_as_plain_commands_and_two_disable_workers() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    for round in 0..2 {
        daemon.connect("alice");
        let paused = worker(&daemon);
        Process::signal(paused, "STOP");
        let runs = standin.modes().len();
        daemon.connect("alice");
        assert_eq!(standin.modes()[runs..], ["plain"]);
        eventually("it is killed", || !Process::is_running(paused));
        eventually("it is logged", || daemon.count("it did not begin a check") == round + 1);
        assert_eq!(daemon.count(WORKERS_DISABLED), round);
        daemon.connect("alice");
    }
    assert_eq!(daemon.workers().len(), 0);
    assert_eq!(daemon.count("The access check of a"), 0);
}

#[test]
fn a_slow_check_stays_with_the_worker_that_started_it() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    let first = worker(&daemon);
    // Longer than the time in which a worker must start a check.
    standin.set("delay", "6000");
    daemon.connect("alice");
    expect_mode(&standin, "worker");
    assert_eq!((worker(&daemon), standin.runs().len()), (first, 2));
}

#[test]
fn a_paused_worker_is_replaced_when_its_check_times_out() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-timeout", "3s", "--check-cache", "0"]);
    let mut first = daemon.connect("alice");
    let paused = worker(&daemon);
    Process::signal(paused, "STOP");
    Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    eventually("it is killed", || !Process::is_running(paused));
    daemon.connect("alice");
    assert_ne!(worker(&daemon), paused);
    assert_eq!(daemon.count(WORKERS_DISABLED), 0);
    first.expect_silence();
}
