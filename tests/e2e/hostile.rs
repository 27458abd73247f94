//! A hostile environment, or one that lacks what the daemon needs.

mod endpoints;
mod escaping;
mod exhaustion;
mod leaks;
mod log;
mod messages;
mod slow_clients;
mod terminal;
mod zeromq;

use std::time::Duration;

use crate::support::{
    Client, DEADLINE, Daemon, Php, alice, eventually, expect_alive, notification,
};

/// Expects that a message is delivered; one may be lost while the ZeroMQ context is recreated.
fn expect_served(daemon: &Daemon, alice: &mut Client) {
    alice.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut number = 1_000;
    eventually("a message is delivered", || {
        number += 1;
        Php::send(&daemon.zeromq, &[notification(number)]);
        alice.stream.peek(&mut [0]).is_ok()
    });
    alice.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    while alice.next_message()[2]["number"].as_u64().unwrap() < number as u64 {}
    alice.expect_silence();
}

/// Expects that the event loop does not spin: a spinning loop would use a whole core.
fn expect_no_spinning(daemon: &Daemon) {
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let used = daemon.cpu().saturating_sub(before);
    assert!(used < Duration::from_secs(1), "{used:?} in 2 s");
}
