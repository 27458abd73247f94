//! A user whose tab gets notifications: who is there to notice what happens to others.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::{Client, Daemon, Php};

/// A message for the tabs of alice.
pub fn notification(number: usize) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}

/// A tab of alice's that gets notifications.
pub fn alice(daemon: &Daemon) -> Client {
    let mut alice = daemon.connect("alice");
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}

/// Shows that a tab of alice's is still served, and has got nothing else meanwhile.
pub fn expect_alive<S: Read + Write>(daemon: &Daemon, alice: &mut Client<S>, number: usize) {
    alice.expect_silence();
    Php::send(&daemon.zeromq, &[notification(number)]);
    alice.expect_event(&notification(number));
}
