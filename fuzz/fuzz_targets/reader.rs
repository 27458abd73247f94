//! Compares the connection's reader with an independent reference reader: in any chunking both
//! yield the same messages, answers and end.
//!
//! The first byte determines the chunking. Depending on the second byte, the rest are frames, or
//! each four bytes describe a frame, so that long frames occur, too.
#![no_main]

#[path = "../support/pieces.rs"]
mod pieces;
#[path = "../support/reference_reader.rs"]
mod reference_reader;

use std::borrow::Cow;

use espocrm_websocket::engine::limits::MAX_CLIENT_MESSAGE;
use espocrm_websocket::engine::protocol::frame::CloseReason;
use espocrm_websocket::engine::protocol::reader::{Incoming, Reader};
use libfuzzer_sys::fuzz_target;
use pieces::pieces;
use reference_reader::{End, Event, Fault};

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (longest, kind, bytes) = input;
    let (bytes, longest) = match kind % 2 {
        0 => (Cow::Borrowed(bytes), usize::from(longest)),
        _ => (Cow::Owned(described(bytes)), 64 * (1 + usize::from(longest))),
    };
    let (expected, end) = reference_reader::read(&bytes, MAX_CLIENT_MESSAGE);
    let (events, violation) = read(pieces(&bytes, longest));
    assert_eq!(events, expected);
    match (violation, end) {
        // A violation may be reported before the frame is complete.
        (Outcome::Violated(fault), End::Violated(faults) | End::Open(faults)) => {
            assert!(faults.contains(&fault), "{fault:?} of {faults:?}");
        }
        (Outcome::Open, End::Open(_)) | (Outcome::Closed, End::Closed) => {}
        other => panic!("{other:?}"),
    }
});

#[derive(Debug)]
enum Outcome {
    Open,
    Closed,
    Violated(Fault),
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Outcome) {
    let mut reader = Reader::default();
    let mut incoming = Vec::new();
    let mut events = Vec::new();
    for piece in pieces {
        reader.feed(piece, &mut incoming);
        for incoming in incoming.drain(..) {
            match incoming {
                Incoming::Message(text) => events.push(Event::Text(text.as_str().to_owned())),
                Incoming::Binary(bytes) => events.push(Event::Binary(bytes.to_vec())),
                Incoming::Pong => events.push(Event::Pong),
                Incoming::Answer(frame) => add_answers(frame.bytes(), &mut events),
                Incoming::Closed => return (events, Outcome::Closed),
                Incoming::Violation(reason) => return (events, Outcome::Violated(fault(reason))),
            }
        }
    }
    (events, Outcome::Open)
}

fn fault(reason: CloseReason) -> Fault {
    match reason {
        CloseReason::Protocol => Fault::Protocol,
        CloseReason::Malformed => Fault::NotUtf8,
        CloseReason::TooBig => Fault::TooBig,
        other => panic!("{other:?} is not a reason of the reader"),
    }
}

/// The answers are frames of a server: unmasked and short.
fn add_answers(mut bytes: &[u8], events: &mut Vec<Event>) {
    while let [first, length, rest @ ..] = bytes {
        assert!(*length <= 125);
        let (payload, rest) = rest.split_at(usize::from(*length));
        bytes = rest;
        events.push(match first {
            0x8a => Event::AnsweredPing(payload.to_vec()),
            0x88 => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                assert!(std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok());
                Event::AnsweredClose(code)
            }
            _ => panic!("{bytes:?}"),
        });
    }
    assert!(bytes.is_empty());
}

/// Four bytes describe a frame: its first byte, its length, and its fill byte.
fn described(bytes: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0xa4, 0x00, 0xff];
    let mut frames = Vec::new();
    // Enough to exceed the limit of a message, and for another frame after that.
    for frame in bytes.chunks_exact(4).take(5) {
        let &[first, high, low, fill] = frame else { continue };
        let length = u16::from_be_bytes([high, low]);
        // The longest lengths exceed the limit of a message.
        let length = u64::from(length) + if length >= 0xfff0 { 8 } else { 0 };
        frames.push(first);
        match length {
            0..=125 => frames.push(0x80 | length as u8),
            126..=0xffff => {
                frames.push(0x80 | 126);
                frames.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                frames.push(0x80 | 127);
                frames.extend_from_slice(&length.to_be_bytes());
            }
        }
        frames.extend_from_slice(&MASK);
        frames.extend((0..length as usize).map(|index| fill ^ MASK[index % 4]));
    }
    frames
}
