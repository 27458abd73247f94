//! Bursts that exceed the outbound queue: a browser that reads receives everything.

use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use super::notified;
use crate::support::{Client, Daemon, Pusher, Standin};
use crate::tls::authority::{Authority, EC};
use crate::tls::{BOTH, alice, secure};

const TABS: usize = 41;
const MESSAGES: usize = 400;
const SIZE: usize = 20_000;

/// Otherwise pings would have to be answered.
const FLAGS: &[&str] = &["--ping-interval", "60s"];

fn message(number: usize) -> Value {
    let text = "x".repeat(SIZE);
    json!({"topicId": "newNotification", "userId": "alice", "number": number, "text": text})
}

/// Sends the burst. The sender must live until everything was read: what it has not written a
/// second after it is dropped is lost.
#[must_use]
fn burst(daemon: &Daemon) -> Pusher {
    let pusher = Pusher::connect(&daemon.zeromq);
    for number in 0..MESSAGES {
        pusher.send(&message(number));
    }
    pusher.send(&json!({"topicId": "newNotification", "userId": "bob", "last": true}));
    pusher
}

/// Reads the whole burst, in order.
fn expect_burst(stream: &mut impl Read) {
    let first = format!("[8,\"newNotification\",{}]", message(0));
    let text = first.split_once("{\"number\":0,").unwrap().1;
    for number in 0..MESSAGES {
        let payload = next(stream);
        let start = format!("[8,\"newNotification\",{{\"number\":{number},");
        let (head, rest) = payload.split_at(start.len());
        assert!(head == start.as_bytes() && rest == text.as_bytes(), "message {number}");
    }
}

/// The payload of the next text frame, faster than with [`Client::next`].
fn next(stream: &mut impl Read) -> Vec<u8> {
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head).unwrap();
        let mut length = usize::from(head[1]);
        if length == 126 {
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes).unwrap();
            length = usize::from(u16::from_be_bytes(bytes));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        if head[0] == 0x81 {
            return payload;
        }
    }
}

fn secure_daemon(authority: &Authority) -> (Standin, Daemon) {
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let daemon = Daemon::start_with(&standin, FLAGS);
    (standin, daemon)
}

/// Lets all tabs read the burst at the same time.
fn expect_burst_for_all<S: Read + Write + Send>(daemon: &Daemon, tabs: Vec<Client<S>>) {
    let _pusher = std::thread::scope(|scope| {
        for mut tab in tabs {
            scope.spawn(move || expect_burst(&mut tab.stream));
        }
        burst(daemon)
    });
    assert_eq!(daemon.count("could not keep up") + daemon.count("buffer more than"), 0);
}

#[test]
fn all_reading_tabs_receive_a_whole_burst() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, FLAGS);
    let tabs = (0..TABS).map(|_| notified(&mut daemon, "alice")).collect();
    expect_burst_for_all(&daemon, tabs);
}

#[test]
fn all_reading_tabs_receive_a_whole_burst_with_little_memory() {
    let standin = Standin::new();
    let flags = [FLAGS, &["--max-buffered", "4 MiB"]].concat();
    let mut daemon = Daemon::start_with(&standin, &flags);
    let tabs = (0..TABS).map(|_| notified(&mut daemon, "alice")).collect();
    expect_burst_for_all(&daemon, tabs);
}

#[test]
fn all_reading_tabs_receive_a_whole_burst_over_tls() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let (_standin, daemon) = secure_daemon(&authority);
    let tabs = (0..TABS).map(|_| alice(&daemon, &client)).collect();
    expect_burst_for_all(&daemon, tabs);
}

#[test]
fn tabs_that_do_not_read_are_disconnected_and_a_reading_tab_receives_everything_over_tls() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let (_standin, mut daemon) = secure_daemon(&authority);
    let stuck: Vec<_> = (1..TABS).map(|_| alice(&daemon, &client)).collect();
    let mut reader = alice(&daemon, &client);
    let _pusher = std::thread::scope(|scope| {
        scope.spawn(|| expect_burst(&mut reader.stream));
        burst(&daemon)
    });
    daemon.wait_for("A browser could not keep up");
    for mut tab in stuck {
        expect_end(&mut tab.stream);
    }
    reader.expect_silence();
}

/// Expects that the connection ends before the burst does.
fn expect_end(stream: &mut StreamOwned<ClientConnection, TcpStream>) {
    let mut all = Vec::new();
    // TLS reports an end of TCP as an error.
    let kind = stream.read_to_end(&mut all).err().map(|error| error.kind());
    assert!(matches!(kind, None | Some(UnexpectedEof | ConnectionReset)), "{kind:?}");
    assert!(all.len() < MESSAGES * SIZE);
}

#[test]
fn a_slow_reader_receives_everything_and_delays_other_clients_only_briefly() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, FLAGS);
    let mut slow = notified(&mut daemon, "alice");
    let mut other = notified(&mut daemon, "bob");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..MESSAGES {
                // About 2 MB/s.
                std::thread::sleep(Duration::from_millis(10));
                let payload = next(&mut slow.stream);
                let start = format!("[8,\"newNotification\",{{\"number\":{number},");
                assert!(payload.starts_with(start.as_bytes()), "message {number}");
            }
        });
        let _pusher = burst(&daemon);
        assert_eq!(other.next_message()[2]["last"], true);
    });
    assert_eq!(daemon.count("could not keep up"), 0);
}
