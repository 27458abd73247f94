//! Checks in warm PHP workers, and in plain commands where workers are unavailable.

mod attacks;
mod fairness;
mod faulty;
mod killed;
mod lifecycle;
mod mode;
mod outage;
mod outcomes;
mod reconnects;
mod secrets;

use serde_json::json;

use crate::support::{Client, Daemon, Php, Standin};

/// A PHP of [`Standin::php`] that counts the started workers.
const COUNT_STARTS: &str = "case $1 in -q) echo >> data/standin/starts;; esac";

/// Logged when workers are disabled.
const WORKERS_DISABLED: &str = "PHP workers cannot be used";

/// The number of workers started with [`COUNT_STARTS`].
fn starts(standin: &Standin) -> usize {
    let starts = std::fs::read_to_string(standin.path().join("data/standin/starts"));
    starts.unwrap_or_default().lines().count()
}

/// The only worker.
fn worker(daemon: &Daemon) -> u32 {
    let workers = daemon.workers();
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0]
}

/// Expects that all runs so far used this mode.
fn expect_mode(standin: &Standin, mode: &str) {
    let all = standin.modes();
    assert!(!all.is_empty() && all.iter().all(|it| it == mode), "{all:?}");
}

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Expects that a tab sees the record and has received nothing else meanwhile.
fn expect_event_of(daemon: &Daemon, tab: &mut Client, id: &str) {
    let event = json!({"topicId": format!("recordUpdate.Account.{id}")});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    tab.expect_event(&event);
}
