//! The HTTP upgrade: accepted requests and their responses.

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, DEADLINE, Daemon, Frame, GOOD_HEAD, Pusher, Standin, request};

const TARGET: &str = "/?authToken=tok-alice&userId=alice";

/// The largest accepted head, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// The usual request with one of its parts changed.
fn changed(old: &str, new: &str) -> String {
    let request = request(TARGET);
    assert!(request.contains(old), "{old}");
    request.replace(old, new)
}

/// Expects each of these requests to be upgraded and welcomed.
fn expect_upgrades(daemon: &Daemon, requests: &[String]) {
    let ask = |request: &String| {
        let mut client = Client::tcp(daemon.address);
        client.send(request.as_bytes());
        client.response = client.read_head();
        assert!(client.response.starts_with("HTTP/1.1 101 "), "{request}{}", client.response);
        client
    };
    for client in &mut requests.iter().map(ask).collect::<Vec<_>>() {
        client.expect_welcome();
    }
}

/// The values of a header; its name is compared case-insensitively.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let named = lines.filter(|(other, _)| other.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.trim()).collect()
}

#[test]
fn any_path_is_upgraded() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let paths = ["/", "/wss", "/ws", "/crm/wss/", "//", "/%7Ecrm/w's", "http://localhost:8080/ws"];
    expect_upgrades(&daemon, &paths.map(|path| request(&format!("{path}{}", &TARGET[1..]))));
}

#[test]
fn headers_as_sent_by_all_browsers_and_proxies_are_accepted() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let wamp = "Sec-WebSocket-Protocol: wamp";
    expect_upgrades(
        &daemon,
        &[
            changed("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
            changed("Connection: Upgrade", "CONNECTION:upgrade"),
            changed("Connection: Upgrade", "connection: keep-alive\r\nconnection: UPGRADE"),
            changed("Upgrade: websocket", "upgrade: WebSocket"),
            changed("Upgrade: websocket", "Upgrade: h2c, websocket"),
            changed("Sec-WebSocket", "sec-websocket"),
            changed("Host: localhost", "host:crm.example.com:8443"),
            changed("Origin: http://localhost\r\n", ""),
            changed(wamp, "Sec-WebSocket-Protocol: wamp, chat"),
            changed(wamp, "Sec-WebSocket-Protocol: chat,wamp"),
            changed(wamp, "Sec-WebSocket-Protocol: v10.stomp ,\t wamp , chat"),
            changed(wamp, "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: wamp"),
            changed(wamp, "Sec-WebSocket-Protocol: wamp\r\nSec-WebSocket-Protocol: chat"),
        ],
    );
}

#[test]
fn the_response_accepts_wamp_and_no_extension_and_names_no_product() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let client = daemon.connect("alice");
    let head = &client.response;
    assert_eq!(head.lines().next(), Some("HTTP/1.1 101 Switching Protocols"));
    assert_eq!(values(head, "Upgrade"), ["websocket"]);
    assert_eq!(values(head, "Connection"), ["Upgrade"]);
    // The example of RFC 6455, section 1.3.
    assert!(GOOD_HEAD.contains("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(values(head, "Sec-WebSocket-Accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    assert_eq!(values(head, "Sec-WebSocket-Protocol"), ["wamp"]);
    assert!(GOOD_HEAD.contains("permessage-deflate"));
    assert_eq!(head.lines().filter(|line| !line.is_empty()).count(), 5, "{head}");
}

#[test]
fn a_request_may_arrive_in_pieces() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let request = request(TARGET);
    for piece in [1, 7, request.len() - 1, request.len() - 2, request.len() - 3] {
        let mut client = Client::tcp(daemon.address);
        for bytes in request.as_bytes().chunks(piece) {
            client.send(bytes);
        }
        client.response = client.read_head();
        assert!(client.response.starts_with("HTTP/1.1 101 "), "{}", client.response);
        client.expect_welcome();
    }
}

#[test]
fn a_head_of_16_kib_is_accepted() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let cookie = |length: usize| {
        let rest = changed("Origin", "Cookie: sso=\r\nOrigin");
        let padding = "c".repeat(length - rest.len());
        rest.replace("sso=", &format!("sso={padding}"))
    };
    let lines = |count: usize| {
        let more = count - (GOOD_HEAD.lines().count() - 1);
        changed("Origin", &format!("{}Origin", "X-A: b\r\n".repeat(more)))
    };
    assert_eq!(cookie(MAX_HEAD).len(), MAX_HEAD);
    expect_upgrades(&daemon, &[cookie(5_000), cookie(MAX_HEAD), lines(100)]);
    for request in [cookie(MAX_HEAD + 1), lines(101), cookie(4 * MAX_HEAD)] {
        let mut client = Client::tcp(daemon.address);
        client.send(request.as_bytes());
        assert!(client.read_head().starts_with("HTTP/1.1 431 "));
    }
}

#[test]
fn bytes_after_the_blank_line_are_websocket_data() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut bytes = request(TARGET).into_bytes();
    bytes.extend(<Client>::frame(0x81, b"[5,\"newNotification\"]"));
    bytes.extend(<Client>::frame(0x89, b"at once"));
    let rest = <Client>::frame(0x89, b"in two parts");
    bytes.extend(&rest[..9]);
    let mut client = Client::tcp(daemon.address);
    client.send(&bytes);
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.next(), Some(Frame { opcode: 10, payload: b"at once".to_vec() }));
    client.send(&rest[9..]);
    // The welcome may be sent before the second response.
    let frames = [client.next().unwrap(), client.next().unwrap()];
    assert!(frames.iter().any(|frame| frame.payload == b"in two parts"), "{frames:?}");
    assert!(frames.iter().any(|frame| frame.payload.starts_with(b"[0,")), "{frames:?}");
    daemon.wait_for("add topic newNotification for user alice");
    let message = json!({"userId": "alice", "topicId": "newNotification"});
    Pusher::connect(&daemon.zeromq).send(&message);
    client.expect_event(&message);
}

#[test]
fn the_upgrade_does_not_wait_for_the_access_check() {
    let standin = Standin::new();
    standin.hold("");
    let daemon = Daemon::start(&standin);
    let mut clients = ["alice", "bob", "wrong"].map(|user| {
        let token = if user == "wrong" { "bad".to_owned() } else { format!("tok-{user}") };
        Client::open(daemon.address, user, &token)
    });
    for client in &mut clients {
        client.expect_silence();
    }
    standin.release();
    let [alice, bob, wrong] = &mut clients;
    alice.expect_welcome();
    bob.expect_welcome();
    wrong.expect_close(1008);
}

/// All cases are in one test so that the suite waits for the deadline only once.
#[test]
fn a_slow_upgrade_times_out_and_other_connections_do_not() {
    let standin = Standin::new();
    standin.hold("bob");
    let daemon = Daemon::start_with(&standin, &["--check-timeout", "1h"]);
    let start = Instant::now();
    let mut welcomed = daemon.connect("alice");
    let mut checking = Client::open(daemon.address, "bob", "tok-bob");
    let mut silent = Client::tcp(daemon.address);
    let mut blank = Client::tcp(daemon.address);
    blank.send(b"\r\n\r\n");
    let mut almost = Client::tcp(daemon.address);
    let request = request(TARGET);
    almost.send(&request.as_bytes()[..request.len() - 1]);
    let dripping = Client::tcp(daemon.address);
    let lived = drip(&dripping, start);
    for cut in [&mut silent, &mut blank, &mut almost] {
        assert_eq!(cut.read_to_end(), b"");
    }
    for lived in [lived, start.elapsed()] {
        assert!(lived >= Duration::from_millis(9_900), "closed after {lived:?}");
    }
    welcomed.expect_silence();
    checking.expect_silence();
    standin.release();
    checking.expect_welcome();
}

/// Sends a head byte by byte until the connection is closed, and returns how long that took.
fn drip(client: &Client, start: Instant) -> Duration {
    let mut stream = &client.stream;
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    for byte in b"GET /".iter().chain(std::iter::repeat(&b'x')) {
        assert!(start.elapsed() < DEADLINE, "the connection was not closed");
        match stream.write(&[*byte]).and_then(|_| stream.read(&mut [0])) {
            Ok(0) => break,
            Ok(_) => panic!("unexpected response"),
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {}
            Err(_) => break,
        }
    }
    start.elapsed()
}
