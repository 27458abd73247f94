//! The daemon's own pings.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Daemon, Pusher, Standin, eventually};

#[test]
fn clients_that_miss_two_pings_are_disconnected_without_a_close_frame() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--ping-interval", "1s"]);
    let mut lost = daemon.connect("alice");
    eventually("a connection is not dropped", || {
        let mut alive = daemon.connect("bob");
        // More pings than the unresponsive client gets.
        if !answer(&mut alive, 4) {
            return false;
        }
        daemon.subscribe(&mut alive, "bob", "newNotification");
        let message = json!({"topicId": "newNotification", "userId": "bob"});
        Pusher::connect(&daemon.zeromq).send(&message);
        alive.expect_event(&message);
        true
    });
    for _ in 0..2 {
        assert_eq!(lost.next_raw().expect("a ping, not the end of TCP").opcode, 9);
    }
    assert_eq!(lost.next_raw(), None);
    daemon.wait_for("1: close");
}

#[test]
fn the_first_ping_is_sent_within_the_interval() {
    let standin = Standin::new();
    let daemon = Daemon::start_with(&standin, &["--ping-interval", "1s"]);
    eventually("a ping was observed before the handshake deadline", || {
        // Disconnected after 10 s, long after that ping.
        let silent = Client::tcp(daemon.address);
        let mut client = daemon.connect("alice");
        assert_eq!(client.next_raw().unwrap().opcode, 9);
        client.expect_silence();
        silent.stream.set_nonblocking(true).unwrap();
        let read = (&silent.stream).read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
}

/// Answers this many pings immediately. Returns false if the machine was so busy that two pings
/// could have been missed.
fn answer(client: &mut Client, pings: usize) -> bool {
    for _ in 0..pings {
        let waiting = Instant::now();
        let Some(ping) = client.next_raw() else {
            assert!(
                waiting.elapsed() > Duration::from_millis(2_500),
                "closed although it answers pings"
            );
            return false;
        };
        assert_eq!(ping.opcode, 9, "{ping:?}");
        client.send_frame(0x8a, &ping.payload);
    }
    true
}
