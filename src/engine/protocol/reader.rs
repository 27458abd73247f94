//! The incoming half of a WebSocket connection (RFC 6455): bytes in, messages out.

use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Error, Message, Utf8Bytes};

use super::frame::{CloseReason, SharedFrame};
use crate::engine::limits::MAX_CLIENT_MESSAGE;

/// Reads frames with tungstenite, which keeps the protocol state in a context of 256 B and a
/// buffer. Between two messages that state is empty. So a reader keeps a context only from the
/// first to the last fragment of a message, and the bytes of a frame only until it is complete: the
/// reader of an idle connection is a null pointer.
#[derive(Debug, Default)]
pub struct Reader(Option<Box<Incomplete>>);

/// A result of [`Reader::feed`].
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A complete text message.
    Message(Utf8Bytes),
    /// A complete binary message.
    Binary(Bytes),
    /// A pong, solicited or not.
    Pong,
    /// Frames to be sent: pongs for the peer's pings, or the echo of its Close frame.
    Answer(SharedFrame),
    /// The peer has closed the connection. Nothing follows.
    Closed,
    /// The peer has violated the protocol; close the connection with this reason. Nothing follows.
    Violation(CloseReason),
}

/// Number of completed frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Messages, or fragments of a message.
    pub data: u32,
    /// Pings, pongs and the Close frame.
    pub control: u32,
}

#[derive(Debug, Default)]
struct Incomplete {
    /// The beginning of a frame.
    bytes: Vec<u8>,
    /// The fragments of a message received so far.
    fragments: Option<WebSocketContext>,
    /// Bytes of these fragments.
    fragments_length: usize,
}

/// Memory of a context without the fragments: the context itself and its read buffer.
const CONTEXT: usize = 256 + READ_BUFFER;

/// Allocated for each batch of frames: EspoCRM's frames have some 50 B.
const READ_BUFFER: usize = 1024;

impl Reader {
    /// Takes the next bytes of the connection, appends what they complete to `incoming`, and
    /// returns the number of completed frames. Must not be called again after [`Incoming::Closed`]
    /// or [`Incoming::Violation`].
    pub fn feed(&mut self, bytes: &[u8], incoming: &mut Vec<Incoming>) -> Frames {
        let mut incomplete = self.0.take().unwrap_or_default();
        let mut kept = std::mem::take(&mut incomplete.bytes);
        let bytes = if kept.is_empty() {
            bytes
        } else {
            append(&mut kept, bytes);
            &kept
        };
        let fragments = incomplete.fragments.is_some().then_some(incomplete.fragments_length);
        let whole = whole_frames(bytes, fragments);
        let (frames, rest) = bytes.split_at_checked(whole.length).unwrap_or((bytes, &[]));
        if !frames.is_empty() {
            let mut context = incomplete.fragments.take().unwrap_or_else(context);
            let open = read_frames(&mut context, frames, incoming);
            if !open {
                return whole.frames;
            }
            incomplete.fragments = whole.fragments.map(|_| context);
            incomplete.fragments_length = whole.fragments.unwrap_or(0);
        }
        if !rest.is_empty() || incomplete.fragments.is_some() {
            let is_kept = frames.is_empty() && !kept.is_empty();
            incomplete.bytes = if is_kept { kept } else { rest.to_vec() };
            self.0 = Some(incomplete);
        }
        whole.frames
    }

    /// Memory in bytes of incomplete frames and messages.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.0.as_ref().map_or(0, |incomplete| {
            let fragments = incomplete.fragments.as_ref().map_or(0, |_| CONTEXT);
            size_of::<Incomplete>()
                + incomplete.bytes.capacity()
                + fragments
                + incomplete.fragments_length
        })
    }

    /// Whether there is no incomplete frame or message.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }
}

/// Appends to an incomplete frame. The capacity doubles, so that a frame that arrives byte by byte
/// is not copied for each byte, but never exceeds the size of the longest frame.
fn append(kept: &mut Vec<u8>, bytes: &[u8]) {
    if kept.capacity() - kept.len() < bytes.len() {
        let room = kept.len().min(LONGEST_FRAME.saturating_sub(kept.len()));
        kept.reserve_exact(room.max(bytes.len()));
    }
    kept.extend_from_slice(bytes);
}

/// The longest header has 14 bytes.
const LONGEST_FRAME: usize = 14 + MAX_CLIENT_MESSAGE;

/// How far `bytes` consist of complete frames.
struct Whole {
    length: usize,
    frames: Frames,
    /// The length so far of a fragmented message that is incomplete after these frames.
    fragments: Option<usize>,
}

/// Finds the frames that have arrived completely. A frame that tungstenite will reject counts as
/// complete, so that it is rejected as soon as its header has arrived.
fn whole_frames(bytes: &[u8], fragments: Option<usize>) -> Whole {
    let mut whole = Whole { length: 0, frames: Frames::default(), fragments };
    loop {
        let rest = bytes.get(whole.length..).unwrap_or_default();
        let mut cursor = Cursor::new(rest);
        let (header, payload) = match FrameHeader::parse(&mut cursor) {
            Ok(Some((header, payload))) if payload <= MAX_CLIENT_MESSAGE as u64 => {
                (header, usize::try_from(payload).unwrap_or(usize::MAX))
            }
            Ok(None) => return whole,
            Ok(Some(_)) | Err(_) => {
                whole.length = bytes.len();
                return whole;
            }
        };
        let length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let length = length.saturating_add(payload);
        if length > rest.len() {
            return whole;
        }
        whole.length += length;
        match header.opcode {
            OpCode::Data(_) => {
                whole.frames.data += 1;
                let so_far = whole.fragments.unwrap_or(0) + payload;
                whole.fragments = (!header.is_final).then_some(so_far);
            }
            OpCode::Control(_) => whole.frames.control += 1,
        }
    }
}

fn context() -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Answers are written straight into the pipe's buffer.
        .write_buffer_size(0)
        .max_message_size(Some(MAX_CLIENT_MESSAGE))
        .max_frame_size(Some(MAX_CLIENT_MESSAGE));
    WebSocketContext::new(Role::Server, Some(config))
}

/// Reads complete frames; false if the connection has ended.
fn read_frames(
    context: &mut WebSocketContext,
    frames: &[u8],
    incoming: &mut Vec<Incoming>,
) -> bool {
    let mut pipe = Pipe { input: frames, output: Vec::new() };
    let end = loop {
        let message = match context.read(&mut pipe) {
            Ok(Message::Text(text)) => Incoming::Message(text),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Pong(_)) => Incoming::Pong,
            // Tungstenite answers it during the next call.
            Ok(Message::Ping(_) | Message::Frame(_)) => continue,
            Ok(Message::Close(_)) => {
                // The echo is written to the pipe; the error only means that it is the last frame.
                let _ = context.flush(&mut pipe);
                break Some(Incoming::Closed);
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break None,
            Err(Error::Utf8(_)) => break Some(Incoming::Violation(CloseReason::Malformed)),
            Err(Error::Capacity(_)) => break Some(Incoming::Violation(CloseReason::TooBig)),
            Err(_) => break Some(Incoming::Violation(CloseReason::Protocol)),
        };
        // Pings that precede the message are answered first.
        pipe.hand_over_answers(incoming);
        incoming.push(message);
    };
    pipe.hand_over_answers(incoming);
    let open = end.is_none();
    incoming.extend(end);
    open
}

/// The stream that tungstenite reads from and writes to.
struct Pipe<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Pipe<'_> {
    fn hand_over_answers(&mut self, incoming: &mut Vec<Incoming>) {
        if !self.output.is_empty() {
            let answers = std::mem::take(&mut self.output);
            incoming.push(Incoming::Answer(SharedFrame::encoded(answers)));
        }
    }
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame, masked.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0xa4, 0x00, 0xff];
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                bytes.push(0x80 | 0x7e);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 0x7f);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    fn message(text: &str) -> Incoming {
        Incoming::Message(text.into())
    }

    fn answer(bytes: &[u8]) -> Incoming {
        Incoming::Answer(SharedFrame::encoded(bytes.to_vec()))
    }

    /// Feeds `bytes` in pieces of `step`, joining the answers to pings.
    fn read_in_steps_of(step: usize, bytes: &[u8]) -> (Vec<Incoming>, Reader) {
        let mut reader = Reader::default();
        let mut incoming = Vec::new();
        for piece in bytes.chunks(step) {
            reader.feed(piece, &mut incoming);
            if matches!(incoming.last(), Some(Incoming::Closed | Incoming::Violation(_))) {
                break;
            }
        }
        (incoming, reader)
    }

    #[test]
    fn messages_are_read_in_any_chunking() {
        let long = "é".repeat(20_000);
        let bytes = [
            frame(0x81, b"[5,\"a\"]"),
            frame(0x81, b""),
            frame(0x01, b"[5,"),
            frame(0x00, b"\"b\""),
            frame(0x80, b"]"),
            frame(0x8a, b"pong"),
            frame(0x82, b"binary \xff"),
            frame(0x81, long.as_bytes()),
        ]
        .concat();
        for step in [1, 2, 3, 7, 100, 4_096, bytes.len()] {
            let (incoming, reader) = read_in_steps_of(step, &bytes);
            let expected = [
                message("[5,\"a\"]"),
                message(""),
                message("[5,\"b\"]"),
                Incoming::Pong,
                Incoming::Binary(Bytes::from_static(b"binary \xff")),
                message(&long),
            ];
            assert_eq!(incoming, expected, "{step}");
            assert!(reader.is_idle());
        }
    }

    #[test]
    fn pings_are_answered_immediately_even_within_a_fragmented_message() {
        let mut reader = Reader::default();
        let mut incoming = Vec::new();
        reader.feed(&frame(0x01, b"a"), &mut incoming);
        reader.feed(&[frame(0x89, b"1"), frame(0x89, b"")].concat(), &mut incoming);
        assert_eq!(incoming, [answer(&[0x8a, 1, b'1', 0x8a, 0])]);
        assert!(!reader.is_idle());
        incoming.clear();
        reader.feed(&frame(0x80, b"b"), &mut incoming);
        assert_eq!(incoming, [message("ab")]);
        assert!(reader.is_idle());
    }

    #[test]
    fn pings_are_answered_before_the_message_that_follows_them() {
        let bytes = [
            frame(0x01, b"a"),
            frame(0x89, b"1"),
            frame(0x89, b"2"),
            frame(0x80, b"b"),
            frame(0x89, b"3"),
        ];
        let (incoming, _) = read_in_steps_of(1_000, &bytes.concat());
        let pongs = answer(&[0x8a, 1, b'1', 0x8a, 1, b'2']);
        assert_eq!(incoming, [pongs, message("ab"), answer(&[0x8a, 1, b'3'])]);
    }

    #[test]
    fn a_close_frame_is_echoed_and_nothing_is_read_after_it() {
        let bytes = [frame(0x88, &[0x03, 0xe8]), frame(0x81, b"late")].concat();
        let (incoming, _) = read_in_steps_of(bytes.len(), &bytes);
        assert_eq!(incoming, [answer(&[0x88, 2, 0x03, 0xe8]), Incoming::Closed]);
        let (incoming, _) = read_in_steps_of(1, &frame(0x88, b""));
        assert_eq!(incoming, [answer(&[0x88, 0]), Incoming::Closed]);
    }

    #[test]
    fn violations_have_the_right_close_reason() {
        use CloseReason::{Malformed, Protocol, TooBig};
        let unmasked = vec![0x81, 1, b'a'];
        let fragments =
            [frame(0x01, &b"a".repeat(60_000)), frame(0x80, &b"a".repeat(60_000))].concat();
        let mut huge = vec![0x81, 0xff];
        huge.extend_from_slice(&u64::MAX.to_be_bytes());
        huge.extend_from_slice(&[0; 4]);
        let mut over = vec![0x81, 0xff];
        over.extend_from_slice(&(MAX_CLIENT_MESSAGE as u64 + 1).to_be_bytes());
        over.extend_from_slice(&[0; 4]);
        for (bytes, reason) in [
            (unmasked, Protocol),
            (frame(0xc1, b"rsv1"), Protocol),
            (frame(0xa1, b"rsv2"), Protocol),
            (frame(0x91, b"rsv3"), Protocol),
            (frame(0x83, b"opcode"), Protocol),
            (frame(0x8b, b"opcode"), Protocol),
            (frame(0x80, b"continuation of nothing"), Protocol),
            ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), Protocol),
            (frame(0x09, b"fragmented ping"), Protocol),
            (frame(0x89, &[0; 126]), Protocol),
            (frame(0x88, &[0x03]), Protocol),
            (frame(0x81, b"\xff"), Malformed),
            (frame(0x88, b"\x03\xe8\xff"), Malformed),
            ([frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat(), Malformed),
            (huge, TooBig),
            (over, TooBig),
            (fragments, TooBig),
        ] {
            for step in [1, 5, bytes.len()] {
                let (incoming, _) = read_in_steps_of(step, &bytes);
                assert_eq!(incoming, [Incoming::Violation(reason)], "{:?}", &bytes[..4]);
            }
        }
    }

    #[test]
    fn an_invalid_close_code_is_answered_with_a_protocol_error() {
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999] {
            let (incoming, _) = read_in_steps_of(100, &frame(0x88, &code.to_be_bytes()));
            let [Incoming::Answer(frame), Incoming::Closed] = &incoming[..] else {
                panic!("{code}: {incoming:?}");
            };
            assert_eq!(frame.bytes()[2..4], 1002_u16.to_be_bytes(), "{code}");
        }
    }

    #[test]
    fn the_longest_message_fits() {
        let text = "x".repeat(MAX_CLIENT_MESSAGE);
        let (incoming, reader) = read_in_steps_of(1_000, &frame(0x81, text.as_bytes()));
        assert_eq!(incoming, [message(&text)]);
        assert!(reader.is_idle());
    }

    #[test]
    fn frames_are_counted_when_they_are_complete() {
        let bytes =
            [frame(0x01, b"a"), frame(0x89, b""), frame(0x80, b"b"), frame(0x8a, b"")].concat();
        for step in [1, 3, 5, bytes.len()] {
            let mut reader = Reader::default();
            let mut all = Frames::default();
            for piece in bytes.chunks(step) {
                let frames = reader.feed(piece, &mut Vec::new());
                all.data += frames.data;
                all.control += frames.control;
            }
            assert_eq!(all, Frames { data: 2, control: 2 }, "{step}");
        }
    }

    #[test]
    fn buffered_bytes_of_an_incomplete_message_are_counted() {
        let mut reader = Reader::default();
        let long = vec![b'a'; 60_000];
        let first = frame(0x01, &long);
        reader.feed(&first[..50_000], &mut Vec::new());
        assert!((50_000..51_000).contains(&reader.buffered()), "{}", reader.buffered());
        reader.feed(&first[50_000..], &mut Vec::new());
        reader.feed(&frame(0x00, &[b'a'; 1_000])[..900], &mut Vec::new());
        assert!((60_900..63_000).contains(&reader.buffered()), "{}", reader.buffered());
        reader.feed(&frame(0x00, &[b'a'; 1_000])[900..], &mut Vec::new());
        reader.feed(&frame(0x80, b""), &mut Vec::new());
        assert_eq!(reader.buffered(), 0);
    }

    #[test]
    fn a_frame_that_arrives_byte_by_byte_needs_no_extra_memory() {
        let bytes = frame(0x81, &b"x".repeat(MAX_CLIENT_MESSAGE));
        for step in [1, 100, 16_384] {
            let (incoming, reader) = read_in_steps_of(step, &bytes[..bytes.len() - 1]);
            assert_eq!(incoming, []);
            let needed = size_of::<Incomplete>() + LONGEST_FRAME;
            assert!(reader.buffered() <= needed, "{step}: {}", reader.buffered());
        }
    }

    #[test]
    fn the_state_of_an_idle_reader_is_one_pointer() {
        assert_eq!(size_of::<Reader>(), size_of::<usize>());
    }
}
