//! WebSocket frames through the connection's own reader into the hub, in any chunking: however the
//! bytes are cut into pieces, the same comes of them. The first byte tells how they are cut.
#![no_main]

#[path = "../support/pieces.rs"]
mod pieces;

use espocrm_websocket::engine::espocrm::category::Categories;
use espocrm_websocket::engine::checks::check::Ticket;
use espocrm_websocket::engine::protocol::frame::CloseReason;
use espocrm_websocket::engine::hub::{Action, Hub};
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::limits::MAX_CLIENT_MESSAGE;
use espocrm_websocket::engine::protocol::reader::{Frames, Incoming, Reader};
use espocrm_websocket::engine::protocol::http::Credentials;
use espocrm_websocket::engine::checks::verdict::Verdict;
use libfuzzer_sys::fuzz_target;
use pieces::pieces;

/// What is kept at most of a message: a frame, the fragments before it, and what reads them.
const MOST_BUFFERED: usize = 2 * (MAX_CLIENT_MESSAGE + 1024);

fuzz_target!(|input: (u8, &[u8])| {
    let (longest, bytes) = input;
    let whole = Browser::say(std::iter::once(bytes));
    assert_eq!(whole, Browser::say(pieces(bytes, usize::from(longest))));
    // And as the daemon reads: as much as fits.
    assert_eq!(whole, Browser::say(bytes.chunks(16 * 1024)));
});

/// What a browser that is logged in gets.
#[derive(Debug, Default, PartialEq)]
struct Browser {
    /// Answers to pings and to a Close frame.
    answers: Vec<u8>,
    /// What its messages mean.
    actions: Vec<Action>,
    /// Whole messages or fragments, and others.
    frames: (u32, u32),
    end: Option<Result<(), CloseReason>>,
}

impl Browser {
    fn say<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Self {
        let json = r#"{"open": {}, "asked": {"accessCheckCommand": "Check :userId"}}"#;
        let mut hub = Hub::new(Categories::from_json(&serde_json::from_str(json).unwrap()));
        let id = ConnId::new(0, 1);
        hub.open(id, &Credentials { user: "u".into(), token: "t".into() });
        let authentication = Ticket { conn: id, serial: Ticket::AUTHENTICATION };
        hub.verdict(authentication, &Verdict::Granted);
        let mut browser = Self::default();
        let mut reader = Reader::default();
        let mut incoming = Vec::new();
        for piece in pieces {
            let Frames { data, control } = reader.feed(piece, &mut incoming);
            browser.frames.0 += data;
            browser.frames.1 += control;
            assert!(reader.buffered() <= MOST_BUFFERED);
            assert_eq!(reader.is_idle(), reader.buffered() == 0);
            for incoming in incoming.drain(..) {
                browser.take(incoming, &mut hub, id);
            }
            if browser.end.is_some() {
                // Of those after the end some may have been counted.
                browser.frames = (0, 0);
                break;
            }
        }
        browser.actions.extend(std::iter::from_fn(|| hub.poll()));
        browser
    }

    /// As the server does.
    fn take(&mut self, incoming: Incoming, hub: &mut Hub, id: ConnId) {
        if self.end.is_some() {
            return;
        }
        let mut say = |text: &str| {
            assert!(text.len() <= MAX_CLIENT_MESSAGE);
            hub.receive(id, text);
        };
        match incoming {
            Incoming::Message(text) => say(&text),
            Incoming::Binary(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => say(text),
                Err(_) => self.end = Some(Err(CloseReason::Malformed)),
            },
            Incoming::Pong => {}
            Incoming::Answer(frame) => self.answers.extend_from_slice(frame.bytes()),
            Incoming::Closed => self.end = Some(Ok(())),
            Incoming::Violation(reason) => self.end = Some(Err(reason)),
        }
    }
}
