//! WebSocket frames through the connection's own reader, in any chunking: however the bytes are cut
//! into pieces, the same messages come out, and the same end.
#![no_main]

use espocrm_websocket::core::limits::MAX_CLIENT_MESSAGE;
use espocrm_websocket::core::reader::{Incoming, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = read(bytes.len().max(1), bytes);
    let pieces = read(usize::from(step).max(1), bytes);
    assert_eq!(whole, pieces);
});

/// Messages and end, and everything that is to be answered.
fn read(step: usize, bytes: &[u8]) -> (Vec<Incoming>, Vec<u8>) {
    let mut reader = Reader::default();
    let mut incoming = Vec::new();
    for piece in bytes.chunks(step) {
        reader.feed(piece, &mut incoming);
        if matches!(incoming.last(), Some(Incoming::Closed | Incoming::Violation(_))) {
            break;
        }
    }
    let mut answers = Vec::new();
    incoming.retain(|incoming| match incoming {
        Incoming::Answer(frame) => {
            answers.extend_from_slice(frame.bytes());
            false
        }
        Incoming::Message(text) => {
            assert!(text.len() <= MAX_CLIENT_MESSAGE);
            true
        }
        _ => true,
    });
    (incoming, answers)
}
