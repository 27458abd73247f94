//! How connections end. EspoCRM's client does not reconnect after a Close frame; without one it
//! reconnects after three seconds, which is right whenever the cause may be temporary. (Clean
//! closes are tested where their causes are: denied tokens, forbidden messages, protocol
//! violations.)

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::{Client, DEADLINE, Daemon, Pusher, Standin, eventually, request};

#[test]
fn stopping_the_daemon_ends_every_connection_without_a_close_frame() {
    for signal in ["TERM", "INT"] {
        let standin = Standin::new();
        standin.hold("carol");
        let mut daemon = Daemon::start(&standin);
        let idle = daemon.connect("alice");
        let mut subscribed = daemon.connect("bob");
        daemon.subscribe(&mut subscribed, "bob", "newNotification");
        let mut checking = Client::open(daemon.address, "carol", "tok-carol");
        checking.expect_silence();
        let mut within_a_message = daemon.connect("dave");
        within_a_message.send_frame(0x01, b"[5,\"new");
        let mut upgrading = Client::tcp(daemon.address);
        upgrading.send(b"GET / HTTP/1.1\r\n");
        within_a_message.expect_silence();
        daemon.signal(signal);
        for client in &mut [idle, subscribed, checking, within_a_message, upgrading] {
            client.expect_drop();
        }
        assert!(daemon.wait().success());
    }
}

#[test]
fn a_login_whose_check_fails_ends_without_a_close_frame() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut other = daemon.connect("alice");
    for failure in ["exit255", "error", "killed", "crash", "flood"] {
        standin.set("failure", failure);
        let mut client = Client::open(daemon.address, "bob", "tok-bob");
        client.subscribe("newNotification");
        client.expect_drop();
        other.expect_silence();
    }
    daemon.wait_for("The access check of a login failed");
    standin.unset("failure");
    daemon.connect("bob");
}

#[test]
fn a_login_whose_check_times_out_ends_without_a_close_frame() {
    let standin = Standin::new();
    standin.set("failure", "hang");
    let mut daemon = Daemon::start_with(&standin, &["--check-timeout", "1s"]);
    let mut client = Client::open(daemon.address, "alice", "tok-alice");
    client.subscribe("newNotification");
    client.expect_drop();
    daemon.wait_for("PHP did not finish in time");
}

#[test]
fn a_login_without_php_ends_without_a_close_frame() {
    let answer = response_without_php();
    let (_, frames) = answer.split_once("\r\n\r\n").unwrap_or_default();
    assert_eq!(frames, "", "{answer}");
}

#[test]
fn a_login_without_php_is_upgraded_before_it_ends() {
    let answer = response_without_php();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"), "{answer:?}");
}

/// Everything that a browser receives if PHP is missing.
fn response_without_php() -> String {
    let standin = Standin::new();
    let php = standin.path().join("php");
    std::os::unix::fs::symlink("/usr/bin/php", &php).unwrap();
    let mut daemon = Daemon::start_with(&standin, &["--php", php.to_str().unwrap()]);
    daemon.connect("alice");
    std::fs::remove_file(&php).unwrap();
    let mut client = Client::tcp(daemon.address);
    client.send(request("/?authToken=tok-bob&userId=bob").as_bytes());
    let answer = client.read_to_end();
    daemon.wait_for("PHP could not be started");
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_client_that_never_reads_is_disconnected_and_others_miss_nothing() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut slow = with_small_buffers(&daemon);
    slow.upgrade("/?authToken=tok-alice&userId=alice");
    slow.expect_welcome();
    let mut good = daemon.connect("alice");
    for client in [&mut slow, &mut good] {
        daemon.subscribe(client, "alice", "newNotification");
    }
    let pusher = Pusher::connect(&daemon.zeromq);
    let text = "x".repeat(50_000);
    let mut number = 0;
    eventually("the connection is closed", || {
        let message =
            json!({"topicId": "newNotification", "userId": "alice", "n": number, "text": text});
        pusher.send(&message);
        good.expect_event(&message);
        number += 1;
        daemon.log().iter().any(|line| line.contains("A browser could not keep up"))
    });
    good.expect_silence();
    let seen = opcodes(&slow.read_to_end());
    assert!(!seen.is_empty() && seen.iter().all(|opcode| *opcode == 1), "{seen:?}");
    // The client reconnects and is served again.
    let mut back = daemon.connect("alice");
    daemon.subscribe(&mut back, "alice", "newNotification");
    let message = json!({"topicId": "newNotification", "userId": "alice"});
    pusher.send(&message);
    back.expect_event(&message);
    good.expect_event(&message);
}

#[test]
fn a_client_that_floods_pings_or_messages_is_disconnected() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut other = daemon.connect("bob");
    for flood in
        [<Client>::frame(0x89, b"").repeat(5_000), <Client>::frame(0x81, KEEP_ALIVE).repeat(5_000)]
    {
        let mut client = daemon.connect("alice");
        // Another thread writes the flood, since it may be cut off in the middle.
        let mut writing = client.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || writing.write_all(&flood).is_ok());
        let last = std::iter::from_fn(|| client.next()).find(|frame| frame.opcode == 8);
        assert_eq!(last.unwrap().payload[..2], 1008_u16.to_be_bytes());
        drop(client);
        let _ = writer.join();
    }
    daemon.wait_for("A tab of user alice sent more than 1000 messages or 100 pings in a second");
    other.expect_silence();
}

/// What EspoCRM's client sends every minute.
const KEEP_ALIVE: &[u8] = br#"[7,"",""]"#;

/// A connection with small kernel buffers.
fn with_small_buffers(daemon: &Daemon) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&daemon.address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    Client::over(stream)
}

/// The opcodes of these frames; the last frame may be truncated.
fn opcodes(bytes: &[u8]) -> Vec<u8> {
    let mut opcodes = Vec::new();
    let mut rest = bytes;
    while let [first, second, tail @ ..] = rest {
        opcodes.push(first & 0x0f);
        let (header, length) = match (second, tail) {
            (126, [a, b, ..]) => (2, usize::from(u16::from_be_bytes([*a, *b]))),
            (126 | 127, _) => break,
            (length, _) => (0, usize::from(*length)),
        };
        rest = tail.get(header + length..).unwrap_or_default();
    }
    opcodes
}
