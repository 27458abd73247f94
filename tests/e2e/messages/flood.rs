//! Messages never starve the sockets, and sockets never starve the messages.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::notified;
use crate::support::{Client, Daemon, Pusher, Standin, eventually};

/// An action that is repeated as fast as possible in its own thread.
struct Flood {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    steps: AtomicU64,
    stop: AtomicBool,
}

impl Flood {
    /// Starts, and waits until it is under way. `step` returns whether it can continue.
    fn start(mut step: impl FnMut() -> bool + Send + 'static) -> Self {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) && step() {
                shared.steps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let flood = Self { state, thread: Some(thread) };
        flood.expect_steps(10);
        flood
    }

    /// Connections that send the same frame repeatedly until they are closed for it, and then
    /// reconnect.
    fn of_frames(daemon: &Daemon, frame: &[u8]) -> Self {
        let (address, frames) = (daemon.address, frame.repeat(1_000));
        let connect = move || Client::open(address, "bob", "tok-bob");
        let mut client = connect();
        Self::start(move || {
            if client.stream.write_all(&frames).is_err() {
                client = connect();
            }
            true
        })
    }

    /// Expects that the flood continues for at least this many steps.
    fn expect_steps(&self, steps: u64) {
        let now = || self.state.steps.load(Ordering::Relaxed);
        let until = now() + steps;
        eventually("the flood goes on", || now() >= until);
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Expects that messages are delivered to this user.
fn expect_messages(daemon: &Daemon, client: &mut Client, user: &str) {
    let pusher = Pusher::connect(&daemon.zeromq);
    for number in 0..10 {
        let message = json!({"topicId": "newNotification", "userId": user, "n": number});
        pusher.send(&message);
        client.expect_event(&message);
    }
}

#[test]
fn a_flood_of_messages_does_not_delay_browsers() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let pusher = Pusher::connect(&daemon.zeromq);
    // Reading it takes longer than sending it, so that there is always more.
    let list = vec![json!({"id": "6b030f5b450565077"}); 200];
    let message = json!({"topicId": "newNotification", "userId": "nobody", "list": list});
    let message = message.to_string();
    let flood = Flood::start(move || {
        pusher.send_bytes(message.as_bytes());
        true
    });
    // More than the queues of both sides can hold.
    flood.expect_steps(4_000);
    let mut client = notified(&mut daemon, "alice");
    daemon.subscribe(&mut client, "alice", "recordUpdate.Account.1");
    client.expect_silence();
    expect_messages(&daemon, &mut client, "alice");
    Client::open(daemon.address, "bob", "wrong").expect_close(1008);
    flood.expect_steps(1_000);
}

#[test]
fn a_flood_of_invalid_messages_does_not_delay_browsers() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let pusher = Pusher::connect(&daemon.zeromq);
    let flood = Flood::start(move || {
        pusher.send_parts(&[b"{", b"}"]);
        true
    });
    let mut client = notified(&mut daemon, "alice");
    expect_messages(&daemon, &mut client, "alice");
    flood.expect_steps(1_000);
    assert_eq!(super::warnings(&daemon), 1);
}

#[test]
fn a_flood_of_messages_to_one_user_does_not_delay_others() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut flooded = notified(&mut daemon, "bob");
    let pusher = Pusher::connect(&daemon.zeromq);
    let flood = Flood::start(move || {
        let message = |n| json!({"topicId": "newNotification", "userId": "bob", "n": n});
        let messages: Vec<Value> = (0..200).map(message).collect();
        pusher.send_all(&messages);
        // In order and without a gap, at any speed.
        flooded.expect_events(&messages);
        true
    });
    let mut client = notified(&mut daemon, "alice");
    expect_messages(&daemon, &mut client, "alice");
    flood.expect_steps(1);
}

#[test]
fn a_flood_of_frames_does_not_delay_messages_or_other_clients() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let keep_alive = <Client>::frame(0x81, b"[7,\"\",\"\"]");
    let floods = [&keep_alive, &keep_alive].map(|frame| Flood::of_frames(&daemon, frame));
    expect_messages(&daemon, &mut client, "alice");
    let mut late = notified(&mut daemon, "carol");
    expect_messages(&daemon, &mut late, "carol");
    for flood in &floods {
        flood.expect_steps(10);
    }
}

#[test]
fn a_flood_of_pings_does_not_delay_messages() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let flood = Flood::of_frames(&daemon, &<Client>::frame(0x89, b"x"));
    expect_messages(&daemon, &mut client, "alice");
    flood.expect_steps(10);
}
