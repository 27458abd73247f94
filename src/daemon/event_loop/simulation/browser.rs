//! What browsers send, right and wrong, and what each piece of it must mean.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::daemon::script::{Kernel, Random};

/// The sending side of a browser.
pub(super) struct Browser {
    pub kernel: Rc<RefCell<Kernel>>,
    pub request: Request,
    /// Where the request ends, in the bytes that it sends.
    pub request_end: usize,
    /// What follows, as far as the server has not read it.
    pub units: VecDeque<Unit>,
    /// Sent, but not with the server's kernel yet.
    pub travelling: VecDeque<u8>,
    /// How many bytes it has sent.
    pub sent: usize,
    /// Frames that it may still send.
    pub appetite: usize,
    pub manners: Manners,
    /// It sends nothing more.
    pub silent: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "each comes with any other")]
pub(super) struct Manners {
    /// Its bytes arrive one by one.
    pub slow: bool,
    /// It never answers a ping.
    pub deaf: bool,
    /// It never answers a Close frame.
    pub rude: bool,
    /// It does not read.
    pub stuck: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// It must become a WebSocket.
    Good { user: &'static str, token: String },
    /// The same, and then be closed: it names no user.
    Nameless,
    /// It must be answered by this status.
    Bad(u16),
    /// It never comes to its end.
    Endless,
}

/// A frame, or as much of one as the server needs to refuse it.
pub(super) struct Unit {
    pub end: usize,
    pub is_control: bool,
    pub effect: Effect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A part of something.
    Nothing,
    /// A message that changes nothing.
    Idle,
    Subscribe(&'static str),
    Unsubscribe(&'static str),
    Call,
    Publish,
    Malformed,
    Ping(Vec<u8>),
    /// A Close frame, to be echoed with this code.
    Close(Option<u16>),
    /// To be answered by a Close frame with this code.
    Violation(u16),
}

pub(super) const USERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
pub(super) const TOPICS: [&str; 8] =
    ["open", "open.more", "maybe", "late", "record.1", "record.2", "record", "nothing"];

/// The key of RFC 6455's example.
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
            travelling: text.into(),
            appetite: random.below(40),
            manners: Manners {
                slow: random.chance(5),
                deaf: random.chance(10),
                rude: random.chance(20),
                stuck: random.chance(5),
            },
            silent,
        }
    }

    /// Sends something more, or nothing.
    pub(super) fn say(&mut self, random: &mut Random) {
        if self.silent || self.appetite == 0 {
            return;
        }
        self.appetite -= 1;
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

    /// It sends nothing more, not even what is on its way.
    pub(super) fn end(&mut self) {
        self.silent = true;
        self.travelling.clear();
        self.kernel.borrow_mut().end();
    }

    /// A text message, perhaps in fragments with pings in between.
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

    /// Of each as much as the server needs to see it, so that it is clear when it does.
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
        self.travelling.extend(bytes);
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
        self.travelling.extend([first, 0x80 | payload.len() as u8]);
        self.travelling.extend(mask);
        self.travelling.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
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
        0 => (Request::Nameless, good.replace(user, "a.b")),
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
