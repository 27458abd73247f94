//! RFC 6455 frames, valid and invalid.

use std::io::Write;

use serde_json::json;

use crate::support::{Client, Daemon, Frame, Pusher, Standin};

/// The largest accepted message, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    <Client>::frame(first, payload)
}

/// Expects that these bytes subscribe the connection.
fn expect_subscription(daemon: &mut Daemon, user: &str, topic: &str, bytes: &[u8]) {
    let mut client = daemon.connect(user);
    client.send(bytes);
    daemon.wait_for(&format!("add topic {topic} for user {user}"));
    client.expect_silence();
}

#[test]
fn pings_are_answered_with_their_payload() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    for payload in [&b""[..], b"x", &[0xff; 125]] {
        client.send_frame(0x89, payload);
        assert_eq!(client.next(), Some(Frame { opcode: 10, payload: payload.to_vec() }));
    }
    // Unsolicited pongs are ignored.
    client.send_frame(0x8a, b"");
    client.send_frame(0x8a, b"unasked");
    client.expect_silence();
}

#[test]
fn fragments_are_joined_even_with_control_frames_in_between() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    client.send_frame(0x01, b"[5,\"newNoti");
    client.send_frame(0x89, b"between");
    assert_eq!(client.next(), Some(Frame { opcode: 10, payload: b"between".to_vec() }));
    client.send_frame(0x00, b"");
    client.send_frame(0x8a, b"");
    client.send_frame(0x00, b"fication.");
    // Split within a character.
    client.send_frame(0x00, &"ü".as_bytes()[..1]);
    client.expect_silence();
    client.send_frame(0x80, &["ü".as_bytes()[1], b'"', b']']);
    daemon.wait_for("add topic newNotification.ü for user alice");
    let message = json!({"topicId": "newNotification.ü"});
    Pusher::connect(&daemon.zeromq).send(&message);
    client.expect_event(&message);
}

#[test]
fn frames_may_arrive_in_pieces_of_any_size() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let long = format!("[5,\"newNotification\"{}]", " ".repeat(1000));
    for (user, bytes) in
        [("alice", frame(0x81, b"[5,\"newNotification\"]")), ("bob", frame(0x81, long.as_bytes()))]
    {
        let mut client = daemon.connect(user);
        for byte in &bytes {
            client.send(&[*byte]);
        }
        daemon.wait_for(&format!("add topic newNotification for user {user}"));
    }
    let many: Vec<u8> = ["a", "b", "c"]
        .iter()
        .flat_map(|topic| frame(0x81, format!("[5,\"newNotification.{topic}\"]").as_bytes()))
        .collect();
    let mut client = daemon.connect("carol");
    client.send(&many[..many.len() - 3]);
    daemon.wait_for("add topic newNotification.b for user carol");
    client.send(&many[many.len() - 3..]);
    daemon.wait_for("add topic newNotification.c for user carol");
}

#[test]
fn binary_frames_are_treated_as_text() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let bytes = frame(0x82, b"[5,\"newNotification\"]");
    expect_subscription(&mut daemon, "alice", "newNotification", &bytes);
}

#[test]
fn the_message_limit_is_exactly_64_kib() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let subscription = |length: usize| {
        let text = "[5,\"newNotification\"";
        format!("{text}{}]", " ".repeat(length - text.len() - 1)).into_bytes()
    };
    let fragmented = |length: usize| {
        let payload = subscription(length);
        let (first, rest) = payload.split_at(30_000);
        let (second, third) = rest.split_at(30_000);
        [frame(0x01, first), frame(0x00, second), frame(0x80, third)].concat()
    };
    let whole = frame(0x81, &subscription(MAX_MESSAGE));
    expect_subscription(&mut daemon, "alice", "newNotification", &whole);
    expect_subscription(&mut daemon, "bob", "newNotification", &fragmented(MAX_MESSAGE));
    for bytes in [
        frame(0x81, &subscription(MAX_MESSAGE + 1)),
        fragmented(MAX_MESSAGE + 1),
        frame(0x81, &vec![b' '; 1_000_000]),
        // Rejected because of its header: a length that cannot be sent.
        vec![0x81, 0xff, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4],
    ] {
        let mut client = daemon.connect("carol");
        client.send(&bytes);
        client.expect_close(1009);
    }
}

#[test]
fn the_close_frame_of_the_client_is_echoed_and_tcp_closed() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut payloads =
        vec![Vec::new(), [&1000_u16.to_be_bytes()[..], "tschüß".as_bytes()].concat()];
    let codes = [1000_u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999];
    payloads.extend(codes.map(|code| code.to_be_bytes().to_vec()));
    for payload in payloads {
        let mut client = daemon.connect("alice");
        client.send_frame(0x88, &payload);
        let echo = client.next().unwrap();
        let code = payload.get(..2).unwrap_or_default();
        assert_eq!((echo.opcode, echo.payload.get(..2).unwrap_or_default()), (8, code));
        assert_eq!(client.next(), None);
    }
}

#[test]
fn nothing_is_sent_or_processed_after_a_close_frame() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut other = daemon.connect("bob");
    let mut client = daemon.connect("alice");
    daemon.subscribe(&mut client, "alice", "newNotification");
    // Both in one write: bytes after the Close frame are ignored.
    let close = frame(0x88, &1000_u16.to_be_bytes());
    let rest = [frame(0x89, b"ping"), frame(0x81, b"[5,\"appParamsUpdate\"]")].concat();
    client.send(&[close, rest].concat());
    Pusher::connect(&daemon.zeromq).send(&json!({"topicId": "newNotification"}));
    let mut opcodes = Vec::new();
    while let Some(frame) = client.next_raw() {
        opcodes.push(frame.opcode);
    }
    // The message may have been sent first.
    assert!(opcodes == [8] || opcodes == [1, 8], "{opcodes:?}");
    other.expect_silence();
    assert!(!daemon.log().iter().any(|line| line.contains("add topic appParamsUpdate")));
}

#[test]
fn each_violation_has_its_close_code() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut other = daemon.connect("bob");
    let close = |code: u16| frame(0x88, &code.to_be_bytes());
    let mut violations = vec![
        ("an unmasked frame", 1002, vec![0x81, 2, b'[', b']']),
        ("an unmasked ping", 1002, vec![0x89, 0]),
        ("RSV1", 1002, frame(0xc1, b"[7,\"\",\"\"]")),
        ("RSV2", 1002, frame(0xa1, b"[7,\"\",\"\"]")),
        ("RSV3", 1002, frame(0x91, b"[7,\"\",\"\"]")),
        ("RSV1 of a ping", 1002, frame(0xc9, b"")),
        ("a continuation of nothing", 1002, frame(0x80, b"[7,\"\",\"\"]")),
        ("a continuation of nothing that goes on", 1002, frame(0x00, b"[7,")),
        ("a message within another", 1002, [frame(0x01, b"[7,"), frame(0x81, b"[]")].concat()),
        ("a fragment within another", 1002, [frame(0x01, b"[7,"), frame(0x01, b"[]")].concat()),
        ("a fragmented ping", 1002, frame(0x09, b"")),
        ("a fragmented close", 1002, frame(0x08, b"")),
        ("a ping of 126 bytes", 1002, frame(0x89, &[b'x'; 126])),
        ("a pong of 60,000 bytes", 1002, frame(0x8a, &vec![b'x'; 60_000])),
        ("half a close code", 1002, frame(0x88, &[3])),
        ("text that is no UTF-8", 1007, frame(0x81, b"[7,\"\",\"\xff\"]")),
        ("text that ends within a character", 1007, frame(0x81, b"[7,\"\",\"\xc3")),
        ("an overlong character", 1007, frame(0x81, b"[7,\"\",\"\xc0\xaf\"]")),
        ("a surrogate", 1007, frame(0x81, b"[7,\"\",\"\xed\xa0\x80\"]")),
        ("binary that is no UTF-8", 1007, frame(0x82, b"[7,\"\",\"\xff\"]")),
        (
            "fragments that are no UTF-8",
            1007,
            [frame(0x01, b"[7,\"\",\"\xc3"), frame(0x80, b"x\"]")].concat(),
        ),
        ("a close reason that is no UTF-8", 1007, frame(0x88, b"\x03\xe8\xff")),
    ];
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        violations.push(("a reserved opcode", 1002, frame(0x80 | opcode, b"")));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        violations.push(("a bad close code", 1002, close(code)));
    }
    let open = |_: &_| Client::open(daemon.address, "alice", "tok-alice");
    let mut clients: Vec<Client> = violations.iter().map(open).collect();
    for client in &mut clients {
        client.expect_welcome();
    }
    for (client, (what, code, bytes)) in clients.iter_mut().zip(&violations) {
        client.send(bytes);
        let frame = client.next().expect(what);
        let got = frame.payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
        assert_eq!((frame.opcode, got), (8, Some(*code)), "{what}: {bytes:x?}");
    }
    for client in &mut clients {
        // The connection may have been closed already: some of these are Close frames themselves.
        let close = frame(0x88, &1002_u16.to_be_bytes());
        let _ = client.stream.write_all(&close);
        assert_eq!(client.next(), None);
    }
    other.expect_silence();
}

#[test]
fn a_client_that_shuts_down_its_sending_side_is_disconnected() {
    let standin = Standin::new();
    standin.hold("carol");
    let mut daemon = Daemon::start(&standin);
    let mut idle = daemon.connect("alice");
    let mut within = daemon.connect("bob");
    within.send_frame(0x01, b"[5,\"new");
    within.expect_silence();
    let mut checking = Client::open(daemon.address, "carol", "tok-carol");
    checking.expect_silence();
    let mut upgrading = Client::tcp(daemon.address);
    upgrading.send(b"GET / HTTP/1.1\r\n");
    for client in [&mut idle, &mut within, &mut checking, &mut upgrading] {
        client.half_close();
        assert_eq!(client.next(), None);
    }
    for id in 1..=3 {
        daemon.wait_for(&format!("{id}: close"));
    }
}
