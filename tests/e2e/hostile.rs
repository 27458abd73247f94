//! An environment that means harm, or has run out of what the daemon needs.

mod drips;
mod exhaustion;
mod leaks;
mod log;
mod messages;
mod zeromq;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Php};

/// A message for the tabs of alice.
fn notification(number: usize) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}

/// A tab of alice's that gets notifications.
fn alice(daemon: &Daemon) -> Client {
    let mut alice = daemon.connect("alice");
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}

/// Shows that a tab of alice's is still served, and gets what EspoCRM sends.
fn expect_alive(daemon: &Daemon, alice: &mut Client, number: usize) {
    alice.expect_silence();
    Php::send(&daemon.zeromq, &[notification(number)]);
    alice.expect_event(&notification(number));
}

/// Shows that the daemon does nothing in vain: a loop that did would use a whole core.
fn expect_no_spinning(daemon: &Daemon) {
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let used = daemon.cpu().saturating_sub(before);
    assert!(used < Duration::from_secs(1), "{used:?} in 2 s");
}
