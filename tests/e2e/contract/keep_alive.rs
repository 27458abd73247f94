//! The daemon's own pings.

use serde_json::json;

use crate::support::{Client, Daemon, Frame, Pusher, Standin};

/// Expects a ping before anything else.
fn expect_ping(client: &mut Client) -> Frame {
    let frame = client.next_raw().expect("a ping, not the end of TCP");
    assert_eq!(frame.opcode, 9, "{frame:?}");
    frame
}

#[test]
fn who_answers_pings_lives_on_and_who_misses_two_is_dropped_without_a_close_frame() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--ping-interval", "1s"]);
    let mut lost = daemon.connect("alice");
    let mut alive = daemon.connect("bob");
    // Far more than the lost one gets.
    for _ in 0..5 {
        let ping = expect_ping(&mut alive);
        alive.send_frame(0x8a, &ping.payload);
    }
    expect_ping(&mut lost);
    expect_ping(&mut lost);
    assert_eq!(lost.next_raw(), None);
    daemon.wait_for("1: close");
    daemon.subscribe(&mut alive, "bob", "newNotification");
    let message = json!({"topicId": "newNotification", "userId": "bob"});
    Pusher::connect(&daemon.zeromq).send(&message);
    alive.expect_event(&message);
    assert!(!daemon.log().iter().any(|line| line.ends_with("2: close")));
}
