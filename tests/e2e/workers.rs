//! Checks by warm PHP workers, and by plain PHP where there can be none.

mod answers;
mod attacks;
mod fairness;
mod killing;
mod life;
mod mode;
mod no_good;
mod outage;
mod secrets;
mod storms;

use serde_json::json;

use crate::support::{Client, Daemon, Php, Standin};

/// A PHP of [`Standin::php`] that counts the workers that are started.
const COUNT_STARTS: &str = "case $1 in -q) echo >> data/standin/starts;; esac";

/// Said when workers are given up.
const GIVEN_UP: &str = "PHP workers cannot be used";

/// How many workers were started with [`COUNT_STARTS`].
fn starts(standin: &Standin) -> usize {
    let starts = std::fs::read_to_string(standin.path().join("data/standin/starts"));
    starts.unwrap_or_default().lines().count()
}

/// The one worker.
fn worker(daemon: &Daemon) -> u32 {
    let workers = daemon.workers();
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0]
}

/// Expects that all runs so far were done so.
fn expect_mode(standin: &Standin, mode: &str) {
    let all = standin.modes();
    assert!(!all.is_empty() && all.iter().all(|it| it == mode), "{all:?}");
}

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Shows that a tab sees the record and has got nothing else meanwhile.
fn expect_event_of(daemon: &Daemon, tab: &mut Client, id: &str) {
    let event = json!({"topicId": format!("recordUpdate.Account.{id}")});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    tab.expect_event(&event);
}
