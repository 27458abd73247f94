use super::*;
use crate::engine::limits::{
    MAX_CLIENT_MESSAGE, MAX_CONTROL_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND, MAX_OUTBOX,
    MAX_OUTBOX_LASTING, MAX_PINGS_WHILE_INCOMPLETE, MAX_UNANSWERED_PINGS,
};

const ACCEPTED: Time = Time::from_millis(10_000);
const INTERVAL: Duration = Duration::from_secs(25);

const NONE: [Event; 0] = [];

/// A client's frame, with a mask of zeros.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The bytes of the outbound queue.
pub(super) fn output(conn: &Connection) -> Vec<u8> {
    let mut slices = [std::io::IoSlice::new(&[]); 1_000];
    let used = conn.outbox().slices(&mut slices);
    slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect()
}

/// Writes all output and returns it.
fn write(conn: &mut Connection) -> Vec<u8> {
    let bytes = output(conn);
    conn.outbox_mut().advance(bytes.len());
    conn.handle_written(bytes.len());
    bytes
}

fn handshake() -> Connection {
    let handshake = Handshake::new([192, 0, 2, 1].into(), false);
    Connection::new(ConnId::new(0, 1), handshake, ACCEPTED)
}

/// A connection that was accepted, whose response is written.
fn open() -> Connection {
    let mut conn = handshake();
    conn.accept(ACCEPTED, INTERVAL, &Upgrade { accept: "key".into(), credentials: None });
    assert!(write(&mut conn).starts_with(b"HTTP/1.1 101 "));
    assert!(!conn.handle_all_written());
    conn
}

fn long(length: usize) -> SharedFrame {
    SharedFrame::encoded(vec![0; length])
}

/// Receives bytes and handles their items.
fn receive(conn: &mut Connection, now: Time, bytes: &[u8]) -> Vec<Event> {
    let mut incoming = Vec::new();
    let input = conn.handle_input(now, bytes, &mut incoming).unwrap();
    assert!(matches!(input, Input::Frames), "{input:?}");
    let handle = |item| conn.handle_incoming(now, item).unwrap();
    let events = incoming.into_iter().filter_map(handle).collect();
    conn.check_invariants();
    events
}

fn timeout(conn: &mut Connection, now: Time) -> Result<(), End> {
    let result = conn.handle_timeout(now, INTERVAL, &SharedFrame::ping());
    conn.check_invariants();
    result
}

/// Lets the deadline pass, which must not be earlier than `due`.
fn expect_deadline(conn: &mut Connection, due: Time) {
    assert_eq!(conn.poll_timeout(), Some(due));
    let before = Time::from_millis(due.as_millis() - 1);
    assert_eq!(timeout(conn, before), Ok(()));
    assert!(timeout(conn, due).is_err());
}

#[test]
fn a_handshake_has_a_deadline() {
    let mut conn = handshake();
    let due = ACCEPTED.after(HANDSHAKE_DEADLINE);
    let mut incoming = Vec::new();
    // Progress does not extend it.
    assert!(conn.handle_input(ACCEPTED, b"GET ", &mut incoming).is_ok());
    expect_deadline(&mut conn, due);
    assert_eq!(timeout(&mut conn, due), Err(End::HandshakeTimeout));
}

#[test]
fn a_request_in_pieces_is_completed() {
    let mut conn = handshake();
    let mut incoming = Vec::new();
    let mut receive = |conn: &mut Connection, bytes: &[u8]| {
        conn.handle_input(ACCEPTED, bytes, &mut incoming).unwrap()
    };
    let Input::Request(request) = receive(&mut conn, b"GET / HTTP/1.1\r\n") else { panic!() };
    conn.resume(request);
    assert!(matches!(receive(&mut conn, b"A: b\r\n\r"), Input::Nothing));
    let Input::Request(request) = receive(&mut conn, b"\nrest") else { panic!() };
    assert_eq!(request.bytes(), b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest");
    assert_eq!(request.peer(), IpAddr::from([192, 0, 2, 1]));
    assert_eq!((conn.phase(), conn.buffered()), (Phase::Handshake, 0));
}

#[test]
fn a_proxy_header_precedes_the_request() {
    let receive = |bytes: &[u8]| {
        let handshake = Handshake::new([192, 0, 2, 1].into(), true);
        let mut conn = Connection::new(ConnId::new(0, 1), handshake, ACCEPTED);
        let input = conn.handle_input(ACCEPTED, bytes, &mut Vec::new()).unwrap();
        (conn, input)
    };
    let (mut conn, input) = receive(b"PROXY TCP4 192.0.2.9 192.0.2.1 5 6\r\nGET");
    let Input::ProxyHeader(client, rest) = input else { panic!("{input:?}") };
    assert_eq!((client, &*rest), (Some([192, 0, 2, 9].into()), &b"GET"[..]));
    let input = conn.handle_input(ACCEPTED, &rest, &mut Vec::new()).unwrap();
    assert!(matches!(input, Input::Request(request) if request.bytes() == b"GET"));
    assert!(matches!(receive(b"PROXY UNKNOWN\r\n").1, Input::ProxyHeader(None, _)));
    assert!(matches!(receive(b"PROX").1, Input::Nothing));
    assert!(matches!(receive(b"GET ").1, Input::InvalidProxyHeader));
}

#[test]
fn a_refused_request_is_answered_and_then_shut_down() {
    let mut conn = handshake();
    conn.refuse(ACCEPTED, Refusal::Method);
    assert_eq!((conn.phase(), conn.poll_end()), (Phase::Finishing, Some(End::NotWebSocket)));
    conn.check_invariants();
    // Nothing else is sent, and input is ignored.
    assert_eq!(conn.send(SharedFrame::ping()), Ok(()));
    assert_eq!(conn.close(ACCEPTED, CloseReason::Refused), Ok(()));
    let input = conn.handle_input(ACCEPTED, &frame(0x81, b"[5]"), &mut Vec::new());
    assert!(matches!(input, Ok(Input::Nothing)));
    let response = write(&mut conn);
    assert!(response.starts_with(b"HTTP/1.1 405 ") && response.ends_with(b"allowed.\n"));
    assert!(conn.handle_all_written());
    assert_eq!(conn.phase(), Phase::Draining);
    assert!(!conn.handle_all_written());
    expect_deadline(&mut conn, ACCEPTED.after(CLOSE_DEADLINE));
    conn.end(End::HandshakeTimeout);
    conn.check_invariants();
    assert_eq!((conn.phase(), conn.poll_end()), (Phase::Ended, None));
}

#[test]
fn the_first_reason_is_reported_once() {
    let mut conn = handshake();
    assert!(conn.poll_end().is_none() && !conn.is_end_reported() && !conn.is_rejected());
    conn.reject(End::ConnectionLimit);
    conn.reject(End::AddressLimit);
    assert!(conn.is_rejected());
    conn.refuse(ACCEPTED, Refusal::Unavailable);
    assert_eq!(conn.poll_end(), Some(End::ConnectionLimit));
    conn.end(End::PeerClosed);
    assert!(conn.poll_end().is_none() && conn.is_end_reported());
    assert_eq!(conn.poll_timeout(), None);
    assert_eq!(timeout(&mut conn, ACCEPTED.after(INTERVAL)), Ok(()));
}

#[test]
fn a_connection_that_ends_discards_its_output() {
    let mut conn = open();
    conn.send(long(1_000)).unwrap();
    conn.end(End::Kicked);
    conn.check_invariants();
    assert_eq!((conn.buffered(), conn.poll_end()), (0, Some(End::Kicked)));
    assert_eq!(conn.send(long(1)), Ok(()));
    let input = conn.handle_input(ACCEPTED, b"bytes", &mut Vec::new());
    assert!(matches!(input, Ok(Input::Nothing)));
    assert!(conn.outbox().is_empty());
}

#[test]
fn an_open_connection_is_pinged_until_the_peer_is_lost() {
    let mut conn = open();
    let mut now = conn.poll_timeout().unwrap();
    assert!(now >= ACCEPTED.after(INTERVAL / 2) && now <= ACCEPTED.after(INTERVAL));
    for round in 0..5 {
        let before = Time::from_millis(now.as_millis() - 1);
        assert_eq!(timeout(&mut conn, before), Ok(()));
        assert!(conn.outbox().is_empty());
        for _ in 0..MAX_UNANSWERED_PINGS {
            assert_eq!(timeout(&mut conn, now), Ok(()));
            assert_eq!(write(&mut conn), [0x89, 0], "{round}");
            now = now.after(INTERVAL);
            assert_eq!(conn.poll_timeout(), Some(now));
        }
        // Anything that arrives counts as an answer.
        assert_eq!(receive(&mut conn, now, &[0x8a]), NONE);
        assert_eq!(receive(&mut conn, now, &[0x80, 0, 0, 0, 0]), NONE);
    }
    for _ in 0..MAX_UNANSWERED_PINGS {
        assert_eq!(timeout(&mut conn, now), Ok(()));
        now = now.after(INTERVAL);
    }
    assert_eq!(timeout(&mut conn, now), Err(End::PingTimeout));
}

#[test]
fn a_message_must_be_completed_in_time() {
    let half = (vec![0x81], vec![0x80, 0, 0, 0, 0]);
    for (begin, end) in [half, (frame(1, b"a"), frame(0x80, b""))] {
        let mut conn = open();
        let mut now = ACCEPTED;
        let mut timeouts = |conn: &mut Connection, bytes: &[u8]| {
            let mut count = 0;
            loop {
                now = now.after(INTERVAL);
                // Another byte, or a control frame between fragments.
                let more = if begin.len() > 1 { frame(0x8a, b"") } else { Vec::new() };
                assert_eq!(receive(conn, now, &more), NONE);
                match timeout(conn, now) {
                    Ok(()) if count == MAX_PINGS_WHILE_INCOMPLETE - 1 && !bytes.is_empty() => {
                        return receive(conn, now, bytes);
                    }
                    Ok(()) => count += 1,
                    Err(reason) => {
                        assert_eq!((reason, count), (End::Incomplete, MAX_PINGS_WHILE_INCOMPLETE));
                        return Vec::new();
                    }
                }
            }
        };
        assert_eq!(receive(&mut conn, ACCEPTED, &begin), NONE);
        for _ in 0..3 {
            assert!(matches!(timeouts(&mut conn, &end)[..], [Event::Message(_)]));
            assert_eq!(receive(&mut conn, ACCEPTED, &begin), NONE);
        }
        timeouts(&mut conn, &[]);
    }
}

#[test]
fn a_queue_that_stays_long_ends_the_connection() {
    let mut conn = open();
    conn.send(long(MAX_OUTBOX_LASTING)).unwrap();
    let now = conn.poll_timeout().unwrap();
    assert_eq!(timeout(&mut conn, now), Ok(()));
    assert_eq!(receive(&mut conn, now, &frame(0x8a, b"")), NONE);
    assert_eq!(timeout(&mut conn, now.after(INTERVAL)), Err(End::Slow));
}

#[test]
fn a_full_queue_at_a_ping_ends_the_connection() {
    let mut conn = open();
    conn.send(long(MAX_OUTBOX)).unwrap();
    assert_eq!(conn.send(long(1)), Err(Full));
    let now = conn.poll_timeout().unwrap();
    assert_eq!(conn.handle_timeout(now, INTERVAL, &SharedFrame::ping()), Err(End::Slow));
    // The reason of a Close frame that does not fit counts.
    assert_eq!(conn.close(now, CloseReason::Forbidden), Err(Full));
    conn.end(End::Slow);
    assert_eq!(conn.poll_end(), Some(End::Forbidden));
}

#[test]
fn too_many_frames_in_a_second_close_the_connection() {
    for (first, most) in [(0x81, MAX_FRAMES_PER_SECOND), (0x8a, MAX_CONTROL_FRAMES_PER_SECOND)] {
        let mut conn = open();
        let all = frame(first, b"").repeat(usize::from(most));
        let mut incoming = Vec::new();
        for second in [10, 11] {
            let now = Time::from_millis(second * 1_000);
            let input = conn.handle_input(now, &all, &mut incoming);
            assert!(matches!(input, Ok(Input::Frames)));
            assert_eq!(incoming.drain(..).len(), usize::from(most));
        }
        let now = Time::from_millis(11_999);
        let input = conn.handle_input(now, &frame(first, b""), &mut incoming);
        assert!(matches!(input, Ok(Input::Flood)));
        assert!(incoming.is_empty());
        assert_eq!((conn.phase(), conn.poll_end()), (Phase::Closing, Some(End::Flood)));
        assert_eq!(write(&mut conn)[..4], [0x88, 19, 3, 240]);
        expect_deadline(&mut conn, now.after(CLOSE_DEADLINE));
    }
}

#[test]
fn nothing_follows_a_close_frame() {
    let mut conn = open();
    conn.close(ACCEPTED, CloseReason::Forbidden).unwrap();
    conn.check_invariants();
    let close = SharedFrame::close(CloseReason::Forbidden);
    conn.send(long(10)).unwrap();
    conn.close(ACCEPTED, CloseReason::Flood).unwrap();
    let bytes = [frame(0x89, b"ping"), frame(0x81, b"[5]"), frame(0x82, &[255])].concat();
    assert_eq!(receive(&mut conn, ACCEPTED, &bytes), NONE);
    assert_eq!(write(&mut conn), close.bytes());
    assert!(!conn.handle_all_written());
    assert_eq!((conn.phase(), conn.poll_end()), (Phase::Closing, Some(End::Forbidden)));
    // The peer answers; its deadline starts again.
    let now = ACCEPTED.after(Duration::from_secs(1));
    assert_eq!(receive(&mut conn, now, &frame(0x88, &[3, 240])), [Event::Closed]);
    assert_eq!(conn.phase(), Phase::Finishing);
    assert!(conn.handle_all_written() && conn.outbox().is_empty());
    expect_deadline(&mut conn, now.after(CLOSE_DEADLINE));
}

#[test]
fn the_close_frame_of_the_peer_is_echoed() {
    let mut conn = open();
    let bytes = [frame(0x81, b"[6]"), frame(0x88, &[3, 232])].concat();
    let message = Event::Message("[6]".into());
    assert_eq!(receive(&mut conn, ACCEPTED, &bytes), [message, Event::Closed]);
    assert_eq!((conn.phase(), conn.poll_end()), (Phase::Finishing, Some(End::PeerClosed)));
    conn.send(long(10)).unwrap();
    assert_eq!(write(&mut conn), [0x88, 2, 3, 232]);
    expect_deadline(&mut conn, ACCEPTED.after(CLOSE_DEADLINE));
}

#[test]
fn a_violation_closes_without_awaiting_an_answer() {
    let too_big = [&[0x81, 0xff][..], &(MAX_CLIENT_MESSAGE as u64 + 1).to_be_bytes()].concat();
    for (bytes, code, reason) in [
        (frame(0x83, b""), 1002_u16, End::Protocol),
        (frame(0x81, &[255]), 1007, End::Malformed),
        ([too_big, vec![0; 4]].concat(), 1009, End::TooBig),
    ] {
        let mut conn = open();
        let pong = frame(0x89, b"1");
        let events = receive(&mut conn, ACCEPTED, &[pong, bytes].concat());
        assert_eq!(events, [Event::Closed]);
        assert_eq!((conn.phase(), conn.poll_end()), (Phase::Finishing, Some(reason)));
        let output = write(&mut conn);
        assert_eq!(output[..4], [0x8a, 1, b'1', 0x88]);
        assert_eq!(output[5..7], code.to_be_bytes());
    }
}

#[test]
fn a_binary_message_is_text_or_malformed() {
    let mut conn = open();
    let text = Event::Message("é".into());
    assert_eq!(receive(&mut conn, ACCEPTED, &frame(0x82, "é".as_bytes())), [text]);
    assert_eq!(receive(&mut conn, ACCEPTED, &frame(0x82, &[255])), [Event::Closed]);
    assert_eq!((conn.phase(), conn.poll_end()), (Phase::Closing, Some(End::Malformed)));
}

#[test]
fn a_refused_token_was_denied_or_revoked() {
    for (is_logging_in, reason) in [(true, End::TokenDenied), (false, End::TokenRevoked)] {
        let mut conn = open();
        conn.replace_logging_in(is_logging_in);
        conn.close(ACCEPTED, CloseReason::Refused).unwrap();
        assert_eq!(conn.poll_end(), Some(reason));
    }
}
