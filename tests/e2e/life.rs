//! Starting, reloading, stopping.

mod mishaps;
mod reloading;
mod settings;
mod starting;
mod stopping;

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Php};

/// A message for the tabs of alice.
fn notification(number: u32) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}

/// A tab of alice's that gets notifications.
fn alice(daemon: &Daemon) -> Client {
    let mut alice = daemon.connect("alice");
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}

/// Shows that a tab of alice's still lives and has got nothing else meanwhile.
fn expect_alive(daemon: &Daemon, alice: &mut Client, number: u32) {
    Php::send(&daemon.zeromq, &[notification(number)]);
    alice.expect_event(&notification(number));
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
