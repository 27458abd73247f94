//! Valid and invalid input of browsers, and its specified effects.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::daemon::script::{Kernel, Random};

/// The sending side of a browser.
pub(super) struct Browser {
    pub kernel: Rc<RefCell<Kernel>>,
    pub request: Request,
    /// Offset of the request's end in the bytes sent.
    pub request_end: usize,
    /// Frames after the request that the server has not read.
    pub units: VecDeque<Unit>,
    /// Bytes sent that have not reached the server's kernel.
    pub in_transit: VecDeque<u8>,
    /// Number of bytes sent.
    pub sent: usize,
    /// Frames that it may still send.
    pub frames_left: usize,
    pub behavior: Behavior,
    /// It sends no more frames.
    pub silent: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "any combination is possible")]
pub(super) struct Behavior {
    /// At most two of its bytes arrive at a time.
    pub byte_by_byte: bool,
    pub ignores_pings: bool,
    /// It does not answer Close frames.
    pub ignores_close: bool,
    pub never_reads: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// It must be upgraded.
    Good { user: &'static str, token: String },
    /// It must be upgraded and then closed, since its user id is invalid.
    NoUser,
    /// It must be answered with this status.
    Bad(u16),
    /// It is never completed.
    Endless,
}

/// A frame, or as much of an invalid one as the server needs to reject it.
pub(super) struct Unit {
    pub end: usize,
    pub is_control: bool,
    pub effect: Effect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A fragment, or a pong.
    Nothing,
    /// A message without effect.
    Idle,
    Subscribe(&'static str),
    Unsubscribe(&'static str),
    Call,
    Publish,
    Malformed,
    Ping(Vec<u8>),
    /// A Close frame that must be echoed with this code.
    Close(Option<u16>),
    /// A protocol violation that must be answered by a Close frame with this code.
    Violation(u16),
}

pub(super) const USERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
pub(super) const TOPICS: [&str; 8] =
    ["open", "open.more", "maybe", "late", "record.1", "record.2", "record", "nothing"];

/// With the key from the example in RFC 6455.
const HEAD: &str = "Host: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: wamp\r\n";

impl Browser {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, random: &mut Random) -> Self {
        let (request, text) = request(random);
        let silent = request == Request::Endless || matches!(request, Request::Bad(_));
        Self {
            kernel,
            request_end: if request == Request::Endless { usize::MAX } else { text.len() },
            request,
            units: VecDeque::new(),
            sent: text.len(),
            in_transit: text.into(),
            frames_left: random.below(40),
            behavior: Behavior {
                byte_by_byte: random.chance(5),
                ignores_pings: random.chance(10),
                ignores_close: random.chance(20),
                never_reads: random.chance(5),
            },
            silent,
        }
    }

    /// Sends a random message, unless it is silent.
    pub(super) fn send_something(&mut self, random: &mut Random) {
        if self.silent || self.frames_left == 0 {
            return;
        }
        self.frames_left -= 1;
        match random.below(100) {
            0..45 => {
                let topic = *random.pick(&TOPICS);
                self.message(random, &format!("[5,\"{topic}\"]"), Effect::Subscribe(topic));
            }
            45..65 => {
                let topic = *random.pick(&TOPICS);
                self.message(random, &format!("[6,\"{topic}\"]"), Effect::Unsubscribe(topic));
            }
            65..75 => self.message(random, "[7,\"\",\"\"]", Effect::Idle),
            75..78 => self.message(random, "[1,\"p\",\"uri\"]", Effect::Idle),
            78..89 => {
                let payload: Vec<u8> = (0..random.below(126)).map(|byte| byte as u8).collect();
                self.frame(random, 0x89, &payload, Effect::Ping(payload.clone()));
            }
            89..93 => self.frame(random, 0x8a, b"", Effect::Nothing),
            93..95 => {
                let code = *random.pick(&[Some(1000), Some(1001), Some(3000), None, Some(999)]);
                self.close(random, code);
            }
            95 => self.message(random, "[2,\"id\",\"proc\"]", Effect::Call),
            96 => self.message(random, "[7,\"open\",\"x\"]", Effect::Publish),
            97 => self.message(random, "{\"not\":\"wamp\"", Effect::Malformed),
            98 => self.violate(random),
            _ => self.flood(random),
        }
    }

    pub(super) fn pong(&mut self, random: &mut Random) {
        if !self.silent {
            self.frame(random, 0x8a, b"", Effect::Nothing);
        }
    }

    pub(super) fn close(&mut self, random: &mut Random, code: Option<u16>) {
        if !self.silent {
            let payload = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
            let echo = if code == Some(999) { Some(1002) } else { code };
            self.frame(random, 0x88, &payload, Effect::Close(echo));
            self.silent = true;
        }
    }

    /// Shuts down its side and discards bytes in transit.
    pub(super) fn end(&mut self) {
        self.silent = true;
        self.in_transit.clear();
        self.kernel.borrow_mut().end();
    }

    /// Sends a text message, possibly in fragments with pings in between.
    fn message(&mut self, random: &mut Random, text: &str, effect: Effect) {
        let (mut rest, mut first) = (text.as_bytes(), 0x01);
        while !rest.is_empty() && random.chance(15) {
            let (part, others) = rest.split_at(random.below(rest.len() + 1));
            self.frame(random, first, part, Effect::Nothing);
            if random.chance(30) {
                self.frame(random, 0x89, b"between", Effect::Ping(b"between".to_vec()));
            }
            (rest, first) = (others, 0x00);
        }
        self.frame(random, 0x80 | first, rest, effect);
    }

    /// Sends only as much of an invalid frame as the server needs to detect the violation, so that
    /// the time of detection is known.
    fn violate(&mut self, random: &mut Random) {
        let violations: [(u16, &[u8]); 7] = [
            (1002, &[0x81, 0]),
            (1002, &[0xc1, 0x80, 1, 2, 3, 4]),
            (1002, &[0x83, 0x80, 1, 2, 3, 4]),
            (1002, &[0x80, 0x80, 1, 2, 3, 4]),
            (1002, &[0x09, 0x80, 1, 2, 3, 4]),
            (1007, &[0x81, 0x81, 0, 0, 0, 0, 0xff]),
            (1009, &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]),
        ];
        let (code, bytes) = *random.pick(&violations);
        self.in_transit.extend(bytes);
        self.sent += bytes.len();
        let effect = Effect::Violation(code);
        self.units.push_back(Unit { end: self.sent, is_control: false, effect });
        if random.chance(50) {
            self.close(random, Some(code));
        }
        self.silent = true;
    }

    fn flood(&mut self, random: &mut Random) {
        if random.chance(80) {
            for _ in 0..110 {
                self.frame(random, 0x89, b"", Effect::Ping(Vec::new()));
            }
        } else {
            for _ in 0..1_010 {
                self.frame(random, 0x81, b"[7,\"\"]", Effect::Idle);
            }
        }
        self.silent = true;
    }

    fn frame(&mut self, random: &mut Random, first: u8, payload: &[u8], effect: Effect) {
        let mask = [0; 4].map(|_: u8| random.below(256) as u8);
        assert!(payload.len() < 126);
        self.in_transit.extend([first, 0x80 | payload.len() as u8]);
        self.in_transit.extend(mask);
        self.in_transit.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        self.sent += 6 + payload.len();
        self.units.push_back(Unit { end: self.sent, is_control: first & 0x08 != 0, effect });
    }
}

fn request(random: &mut Random) -> (Request, Vec<u8>) {
    let user = *random.pick(&USERS);
    let token = match random.below(20) {
        0 => "bad".to_owned(),
        1 => format!("other{user}"),
        _ => format!("good{user}"),
    };
    let target = format!("/wss?authToken={token}&userId={user}");
    let cookie = format!("Cookie: {}\r\n", "c".repeat(1 + random.below(400)));
    let good = format!("GET {target} HTTP/1.1\r\n{HEAD}{cookie}\r\n");
    let (request, text) = match random.below(80) {
        0 => (Request::NoUser, good.replace(user, "a.b")),
        1 => (Request::Bad(405), good.replace("GET", "POST")),
        2 => (Request::Bad(505), good.replace("HTTP/1.1", "HTTP/1.0")),
        3 => (Request::Bad(426), good.replace("wamp", "soap")),
        4 => (Request::Bad(426), good.replace("Version: 13", "Version: 8")),
        5 => (Request::Bad(400), good.replace("Host: h\r\n", "")),
        6 => (Request::Bad(400), "\x16\x03\x01 hello".to_owned()),
        7 => {
            let cookies = "Cookie: x\r\n".repeat(1 + random.below(98));
            let long = format!("{cookies}Cookie: {}\r\n", "c".repeat(16_500));
            (Request::Bad(431), good.replace("Cookie: c", &format!("{long}Cookie: c")))
        }
        8 => (Request::Endless, good[..random.below(good.len())].to_owned()),
        _ => (Request::Good { user, token }, good),
    };
    (request, text.into_bytes())
}
