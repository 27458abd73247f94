//! A user whose tab receives notifications, to see whether other clients are affected.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::{Client, Daemon, Php};

/// A message for the tabs of alice.
pub fn notification(number: usize) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}

/// A tab of alice that receives notifications.
pub fn alice(daemon: &Daemon) -> Client {
    let mut alice = daemon.connect("alice");
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}

/// Expects that a tab of alice is still served and has received nothing else meanwhile.
pub fn expect_alive<S: Read + Write>(daemon: &Daemon, alice: &mut Client<S>, number: usize) {
    alice.expect_silence();
    Php::send(&daemon.zeromq, &[notification(number)]);
    alice.expect_event(&notification(number));
}
