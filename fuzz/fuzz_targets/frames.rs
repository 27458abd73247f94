//! WebSocket frames through the connection's reader into the hub: in any chunking the result is the
//! same. The first byte determines the chunking.
#![no_main]

#[path = "../support/pieces.rs"]
mod pieces;

use espocrm_websocket::engine::checks::check::Ticket;
use espocrm_websocket::engine::checks::verdict::Verdict;
use espocrm_websocket::engine::espocrm::category::Categories;
use espocrm_websocket::engine::hub::{Action, Hub};
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::limits::MAX_CLIENT_MESSAGE;
use espocrm_websocket::engine::protocol::frame::CloseReason;
use espocrm_websocket::engine::protocol::http::Credentials;
use espocrm_websocket::engine::protocol::reader::{Frames, Incoming, Reader};
use libfuzzer_sys::fuzz_target;
use pieces::pieces;

/// Maximum memory of a message: a frame, the fragments before it, and the reader's state.
const MOST_BUFFERED: usize = 2 * (MAX_CLIENT_MESSAGE + 1024);

fuzz_target!(|input: (u8, &[u8])| {
    let (longest, bytes) = input;
    let whole = Browser::receive(std::iter::once(bytes));
    assert_eq!(whole, Browser::receive(pieces(bytes, usize::from(longest))));
    // In the daemon's chunks, too.
    assert_eq!(whole, Browser::receive(bytes.chunks(16 * 1024)));
});

/// The effects of the bytes of an authenticated browser.
#[derive(Debug, Default, PartialEq)]
struct Browser {
    /// Pongs, and the answer to a Close frame.
    answers: Vec<u8>,
    /// The hub's actions.
    actions: Vec<Action>,
    /// Frames with data, and control frames.
    frames: (u32, u32),
    end: Option<Result<(), CloseReason>>,
}

impl Browser {
    fn receive<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Self {
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
                // Some of the frames after the end may have been counted.
                browser.frames = (0, 0);
                break;
            }
        }
        browser.actions.extend(std::iter::from_fn(|| hub.poll()));
        browser
    }

    /// Like the daemon.
    fn take(&mut self, incoming: Incoming, hub: &mut Hub, id: ConnId) {
        if self.end.is_some() {
            return;
        }
        let mut receive = |text: &str| {
            assert!(text.len() <= MAX_CLIENT_MESSAGE);
            hub.receive(id, text);
        };
        match incoming {
            Incoming::Message(text) => receive(&text),
            Incoming::Binary(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => receive(text),
                Err(_) => self.end = Some(Err(CloseReason::Malformed)),
            },
            Incoming::Pong => {}
            Incoming::Answer(frame) => self.answers.extend_from_slice(frame.bytes()),
            Incoming::Closed => self.end = Some(Ok(())),
            Incoming::Violation(reason) => self.end = Some(Err(reason)),
        }
    }
}
