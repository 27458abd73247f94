//! Random lives of one connection in virtual time: requests, frames and faults of the peer, partial
//! writes, decisions of the caller, pings and deadlines. After each step the connection is compared
//! with what the peer has sent and received.

use std::collections::VecDeque;

use super::tests::{frame, output};
use super::*;
use crate::engine::limits::{MAX_OUTBOX_LASTING, MAX_UNANSWERED_PINGS};
use crate::engine::protocol::http;
use crate::engine::random::Random;
use crate::engine::seeds;

const SEEDS: u64 = 1_000;
const STEPS: usize = 120;
const INTERVAL: Duration = Duration::from_secs(25);

/// Each must end some of the connections.
const REASONS: [End; 16] = [
    End::AddressLimit,
    End::NotWebSocket,
    End::ProxyHeader,
    End::HandshakeTimeout,
    End::PeerClosed,
    End::TokenDenied,
    End::TokenRevoked,
    End::Forbidden,
    End::Protocol,
    End::Malformed,
    End::TooBig,
    End::Flood,
    End::Slow,
    End::PingTimeout,
    End::Incomplete,
    End::Kicked,
];

#[allow(clippy::struct_excessive_bools, reason = "any combination is possible")]
struct World {
    random: Random,
    conn: Connection,
    now: Time,
    incoming: Vec<Incoming>,
    /// What the peer sends next, in pieces.
    unsent: VecDeque<Vec<u8>>,
    /// Texts of complete messages that the connection has not reported.
    messages: VecDeque<String>,
    /// What the peer has received and not parsed.
    received: Vec<u8>,
    /// What the peer has parsed last.
    parsed: Parsed,
    /// Reasons that the peer or the caller has caused.
    causes: Vec<End>,
    phase: Phase,
    reason: Option<End>,
    last_heard: Time,
    pings: usize,
    /// The peer does not send, or does not read.
    is_silent: bool,
    never_reads: bool,
    /// The peer has begun a message that it never completes.
    is_stuck: bool,
    longest: usize,
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parsed {
    Nothing,
    Upgrade,
    Frame,
    /// An HTTP error or a Close frame.
    Last,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let now = Time::from_millis(random.below(5_000) as u64);
        let expects_proxy_header = random.chance(20);
        let handshake = Handshake::new([192, 0, 2, 1].into(), expects_proxy_header);
        let mut head = match random.below(10) {
            0 => "POST / HTTP/1.1\r\n\r\n".to_owned(),
            1 => "nonsense".to_owned(),
            _ => "GET /?authToken=t&userId=u HTTP/1.1\r\nHost: crm\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wamp\r\n\r\n"
                .to_owned(),
        };
        if expects_proxy_header && random.chance(80) {
            head.insert_str(0, "PROXY TCP4 192.0.2.9 192.0.2.1 5 6\r\n");
        }
        let piece = 1 + random.below(head.len());
        let is_silent = random.chance(10);
        Self {
            conn: Connection::new(ConnId::new(0, random.below(1_000) as u32), handshake, now),
            now,
            incoming: Vec::new(),
            unsent: head.as_bytes().chunks(piece).map(<[u8]>::to_vec).collect(),
            messages: VecDeque::new(),
            received: Vec::new(),
            parsed: Parsed::Nothing,
            causes: Vec::new(),
            phase: Phase::Handshake,
            reason: None,
            last_heard: now,
            pings: 0,
            is_silent,
            never_reads: random.chance(20),
            is_stuck: false,
            longest: if random.chance(30) { 50_000 } else { 500 },
            verbose,
            random,
        }
    }

    fn run(mut self) -> End {
        for _ in 0..STEPS {
            let queued = self.conn.outbox().bytes();
            match self.random.below(20) {
                0..4 if !self.is_silent => self.send(),
                0..8 => self.write(),
                8..10 => self.pass(100),
                10..12 if self.phase == Phase::Handshake => self.pass(3_000),
                10..12 => self.pass(30_000),
                12 if self.random.chance(10) => self.is_silent = true,
                13 if self.random.chance(10) => self.never_reads = true,
                14 => self.decide(),
                _ => self.deliver(),
            }
            let was_last = self.phase > Phase::Open;
            assert!(!was_last || self.conn.outbox().bytes() <= queued, "output after the last");
            self.check();
        }
        self.write_all();
        self.check();
        self.abandon()
    }

    /// The peer sends something.
    fn send(&mut self) {
        if self.phase != Phase::Open || !self.unsent.is_empty() {
            return self.continue_sending();
        }
        if self.is_stuck {
            return self.read(&frame(0x8a, b""));
        }
        let random = &mut self.random;
        let text = format!("[5,\"{}\"]", "x".repeat(random.below(200)));
        let bytes = match random.below(40) {
            0..8 => frame(0x89, b"ping"),
            8..14 => frame(0x8a, b""),
            14 => frame(0x88, &[3, 232]),
            15 => vec![0x83, 0x80, 0, 0, 0, 0],
            16 => frame(0x82, &[255]),
            17 => [&[0x81, 0xff][..], &[1; 8], &[0; 4]].concat(),
            18 => frame(0x81, b"").repeat(1_001),
            19 => frame(0x89, b"").repeat(101),
            20 => {
                self.is_stuck = true;
                frame(1, text.as_bytes())
            }
            21..24 => {
                self.messages.push_back(text.clone() + "2");
                [frame(1, text.as_bytes()), frame(0x80, b"2")].concat()
            }
            _ => {
                self.messages.push_back(text.clone());
                frame(0x81, text.as_bytes())
            }
        };
        self.causes.extend(cause_of(&bytes));
        // They arrive in two pieces.
        let (first, second) = bytes.split_at(self.random.below(bytes.len() + 1));
        self.unsent.extend([first.to_vec(), second.to_vec()]);
        self.continue_sending();
    }

    fn continue_sending(&mut self) {
        if let Some(bytes) = self.unsent.pop_front() {
            self.read(&bytes);
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        (self.last_heard, self.pings) = (self.now, 0);
        let input = self.conn.handle_input(self.now, bytes, &mut self.incoming);
        match input {
            Ok(Input::Nothing) => {}
            Ok(Input::ProxyHeader(client, rest)) => {
                assert_eq!(client, Some([192, 0, 2, 9].into()));
                if !rest.is_empty() {
                    self.read(&rest);
                }
            }
            Ok(Input::InvalidProxyHeader) => self.end(End::ProxyHeader),
            Ok(Input::Request(request)) => self.answer(request),
            Ok(Input::Frames) => self.handle_incoming(),
            Ok(Input::Flood) => {
                assert!(self.causes.contains(&End::Flood));
                self.messages.clear();
            }
            Err(Full) => self.end_slow(),
        }
    }

    fn answer(&mut self, request: Handshake) {
        let mut headers = http::no_headers();
        let head = http::parse(request.bytes(), &mut headers);
        match head.map(|head| head.map(|head| head.upgrade())) {
            Ok(None) => self.conn.resume(request),
            Ok(Some(Ok(_))) if self.conn.is_rejected() => {
                self.conn.refuse(self.now, Refusal::Unavailable);
            }
            Ok(Some(Ok(upgrade))) => {
                self.conn.accept(self.now, INTERVAL, &upgrade);
                self.conn.replace_logging_in(true);
            }
            Ok(Some(Err(refusal))) | Err(refusal) => {
                self.causes.push(End::NotWebSocket);
                self.conn.refuse(self.now, refusal);
            }
        }
    }

    fn handle_incoming(&mut self) {
        for item in std::mem::take(&mut self.incoming) {
            match self.conn.handle_incoming(self.now, item) {
                Ok(None) => {}
                Ok(Some(Event::Message(text))) => {
                    assert_eq!(self.messages.pop_front().as_deref().unwrap_or_default(), &*text);
                }
                Ok(Some(Event::Closed)) => assert!(self.conn.phase() > Phase::Open),
                Err(Full) => self.end_slow(),
            }
        }
    }

    /// Decisions of the caller.
    fn decide(&mut self) {
        let (reason, cause) = match self.random.below(40) {
            0 => (Some(CloseReason::Forbidden), End::Forbidden),
            1..4 if self.conn.is_logging_in() => (Some(CloseReason::Refused), End::TokenDenied),
            1..4 => (Some(CloseReason::Refused), End::TokenRevoked),
            4 => (None, End::Kicked),
            5 if self.phase == Phase::Handshake => {
                self.causes.push(End::AddressLimit);
                return self.conn.reject(End::AddressLimit);
            }
            6..16 => {
                self.conn.replace_logging_in(false);
                return;
            }
            _ => return,
        };
        self.causes.push(cause);
        match reason.map(|reason| self.conn.close(self.now, reason)) {
            None => self.end(cause),
            Some(Ok(())) => {}
            Some(Err(Full)) => self.end_slow(),
        }
    }

    /// An event is delivered.
    fn deliver(&mut self) {
        let text = "e".repeat(self.random.below(self.longest));
        if self.conn.send(SharedFrame::text(&text)).is_err() {
            self.end_slow();
        }
    }

    /// The kernel accepts some of the output.
    fn write(&mut self) {
        let queued = self.conn.outbox().bytes();
        let (many, few) = (self.random.below(queued + 1), self.random.below(200));
        match self.random.below(4) {
            _ if self.never_reads => {}
            0 => self.write_some(many),
            1 => self.write_some(few),
            _ => self.write_all(),
        }
    }

    fn write_all(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        while !self.conn.outbox().is_empty() {
            self.write_some(usize::MAX);
        }
        let is_last = self.conn.handle_all_written();
        assert_eq!(is_last, self.phase == Phase::Finishing);
        assert!(!is_last || self.parsed == Parsed::Last, "shut down after {:?}", self.parsed);
        assert!(self.received.is_empty(), "a partial frame");
    }

    fn write_some(&mut self, most: usize) {
        let bytes = output(&self.conn);
        let count = bytes.len().min(most);
        self.conn.outbox_mut().advance(count);
        self.conn.handle_written(count);
        self.received.extend_from_slice(&bytes[..count]);
        while let Some(length) = self.parse() {
            self.received.drain(..length);
        }
    }

    /// Parses the next part of the output and returns its length.
    fn parse(&mut self) -> Option<usize> {
        let bytes = &self.received[..];
        bytes.first()?;
        let (parsed, length) = match self.parsed {
            Parsed::Nothing => response(bytes)?,
            Parsed::Upgrade | Parsed::Frame => server_frame(bytes)?,
            Parsed::Last => panic!("output after the last: {bytes:?}"),
        };
        self.parsed = parsed;
        Some(length)
    }

    fn pass(&mut self, millis: usize) {
        self.now = self.now.after(Duration::from_millis(self.random.below(millis) as u64));
        let due = self.conn.poll_timeout();
        let before = self.conn.outbox().bytes();
        match self.conn.handle_timeout(self.now, INTERVAL, &SharedFrame::ping()) {
            Ok(()) if self.conn.poll_timeout() != due => {
                assert!(due.is_some_and(|due| due <= self.now), "a ping before its time");
                assert_eq!(self.conn.outbox().bytes(), before + 2);
                self.pings += 1;
                assert!(self.pings <= usize::from(MAX_UNANSWERED_PINGS));
            }
            Ok(()) => assert!(due.is_none_or(|due| due > self.now), "a timeout without effect"),
            Err(End::Slow) => self.end_slow(),
            Err(reason) => {
                let silence = self.now.since(self.last_heard);
                match reason {
                    End::PingTimeout => {
                        assert_eq!(self.pings, usize::from(MAX_UNANSWERED_PINGS));
                        assert!(silence >= INTERVAL);
                    }
                    End::HandshakeTimeout => assert_ne!(self.phase, Phase::Open),
                    _ => {
                        assert_eq!(reason, End::Incomplete);
                        assert!(self.is_stuck || !self.unsent.is_empty());
                    }
                }
                self.causes.push(reason);
                self.end(reason);
            }
        }
    }

    fn end_slow(&mut self) {
        assert!(self.conn.outbox().buffered() > MAX_OUTBOX_LASTING);
        self.causes.push(End::Slow);
        self.end(End::Slow);
    }

    fn end(&mut self, reason: End) {
        self.causes.push(reason);
        self.conn.end(reason);
    }

    /// The connection agrees with the history.
    fn check(&mut self) {
        self.conn.check_invariants();
        let phase = self.conn.phase();
        let step = format_args!("{phase:?}, {} B queued", self.conn.outbox().bytes());
        seeds::print_step(self.verbose, self.now.as_millis(), step);
        assert!(phase >= self.phase, "from {:?} to {phase:?}", self.phase);
        if phase != self.phase {
            (self.phase, self.pings) = (phase, 0);
        }
        if let Some(reason) = self.conn.poll_end() {
            assert_eq!(self.reason, None, "a second reason: {reason:?}");
            let is_closed_by_peer = reason == End::PeerClosed;
            assert!(is_closed_by_peer || self.causes.contains(&reason), "{reason:?}: no cause");
            self.reason = Some(reason);
        }
        assert_eq!(self.conn.is_end_reported(), self.reason.is_some());
        assert_eq!(self.conn.reason, self.reason, "the reason has changed");
        assert!(phase <= Phase::Open || self.reason.is_some(), "{phase:?} without a reason");
        let longest = match phase {
            Phase::Handshake => HANDSHAKE_DEADLINE,
            Phase::Open => INTERVAL,
            _ => CLOSE_DEADLINE,
        };
        let due = self.conn.poll_timeout();
        assert_eq!(due.is_none(), phase == Phase::Ended);
        assert!(due.is_none_or(|due| due <= self.now.after(longest)), "{phase:?} until {due:?}");
    }

    /// The peer and the caller do nothing more: the connection ends by its deadlines.
    fn abandon(mut self) -> End {
        for _ in 0..10 {
            if self.phase == Phase::Ended {
                break;
            }
            self.pass(26_000);
            self.now = self.now.after(INTERVAL);
            self.pass(1);
            self.check();
        }
        assert_eq!(self.phase, Phase::Ended, "it never ends");
        self.reason.expect("a reason")
    }
}

/// The reason that these bytes cause if the connection is open.
fn cause_of(bytes: &[u8]) -> Option<End> {
    match bytes[..2] {
        [0x83, _] => Some(End::Protocol),
        [0x82, _] => Some(End::Malformed),
        [0x81, 0xff] => Some(End::TooBig),
        _ if bytes.len() > 600 => Some(End::Flood),
        _ => None,
    }
}

/// The length of an HTTP response.
fn response(bytes: &[u8]) -> Option<(Parsed, usize)> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    if bytes.starts_with(b"HTTP/1.1 101 ") {
        return Some((Parsed::Upgrade, head));
    }
    let text = std::str::from_utf8(&bytes[..head]).unwrap();
    let length = text.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
    let length = head + length.unwrap().parse::<usize>().unwrap();
    (bytes.len() >= length).then_some((Parsed::Last, length))
}

/// The length of a frame.
fn server_frame(bytes: &[u8]) -> Option<(Parsed, usize)> {
    let length = match bytes.get(1)? {
        126 => 4 + usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())),
        length @ 0..126 => 2 + usize::from(*length),
        length => panic!("{length}: a mask, or a length that never occurs here"),
    };
    let parsed = match bytes[0] {
        0x81 | 0x89 | 0x8a => Parsed::Frame,
        0x88 => Parsed::Last,
        first => panic!("{first:#x}: not a frame of the server"),
    };
    (bytes.len() >= length).then_some((parsed, length))
}

#[test]
fn in_any_order_of_events_a_connection_ends_once_with_its_reason() {
    seeds::run(SEEDS, &REASONS, 3, |seed, verbose| [(World::new(seed, verbose).run(), 1)]);
}
