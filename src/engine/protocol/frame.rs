//! Frames that the server sends (RFC 6455, section 5.2): encoded once, shared by all receivers.

use std::rc::Rc;

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

/// An encoded frame, header included. Cloning it copies a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedFrame(Rc<[u8]>);

impl SharedFrame {
    /// A text message in one frame.
    #[must_use]
    pub fn text(payload: &str) -> Self {
        let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
        let length = payload.len() as u64;
        let mut bytes = Vec::with_capacity(header.len(length) + payload.len());
        // Writing to a vector cannot fail.
        let _ = header.format(length, &mut bytes);
        bytes.extend_from_slice(payload.as_bytes());
        Self(bytes.into())
    }

    /// A Ping without payload.
    #[must_use]
    pub fn ping() -> Self {
        Self::control(Frame::ping(Vec::new()))
    }

    /// A Close frame. EspoCRM's client does not reconnect after it until the page is reloaded.
    #[must_use]
    pub fn close(reason: CloseReason) -> Self {
        let (code, reason) = reason.code_and_text();
        Self::control(Frame::close(Some(CloseFrame { code, reason: reason.into() })))
    }

    /// Bytes that are already encoded frames, such as the answers of tungstenite.
    #[must_use]
    pub fn encoded(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn control(frame: Frame) -> Self {
        let mut bytes = Vec::with_capacity(frame.len());
        let _ = frame.format(&mut bytes);
        Self(bytes.into())
    }
}

/// Why a connection is closed **cleanly**, which EspoCRM's client takes as final. Temporary reasons
/// do not belong here: after overload, a restart, a lost peer or a failed check TCP is closed
/// without a Close frame, and the client reconnects after three seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The token is malformed or not valid for that user.
    Refused,
    /// A call or a publication. EspoCRM's daemon offers neither.
    Forbidden,
    /// The client violated RFC 6455.
    Protocol,
    /// Not UTF-8, or not a WAMP v1 message.
    Malformed,
    /// A message over [`MAX_CLIENT_MESSAGE`](crate::engine::limits::MAX_CLIENT_MESSAGE).
    TooBig,
    /// More frames per second than any browser sends.
    Flood,
}

impl CloseReason {
    /// The status code (RFC 6455, section 7.4.1) and the reason in the Close frame.
    #[must_use]
    pub fn code_and_text(self) -> (CloseCode, &'static str) {
        match self {
            Self::Refused => (CloseCode::Policy, "access denied"),
            Self::Forbidden => (CloseCode::Policy, "not allowed"),
            Self::Protocol => (CloseCode::Protocol, "protocol error"),
            Self::Malformed => (CloseCode::Invalid, "malformed message"),
            Self::TooBig => (CloseCode::Size, "message too big"),
            Self::Flood => (CloseCode::Policy, "too many messages"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_use_the_shortest_header() {
        for (length, header) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xff, 0xff]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = "x".repeat(length);
            let frame = SharedFrame::text(&payload);
            assert_eq!(&frame.bytes()[..header.len()], header);
            assert_eq!(&frame.bytes()[header.len()..], payload.as_bytes());
        }
    }

    #[test]
    fn control_frames_conform_to_rfc_6455() {
        assert_eq!(SharedFrame::ping().bytes(), [0x89, 0]);
        let close = SharedFrame::close(CloseReason::Refused);
        assert_eq!(close.bytes()[..4], [0x88, 15, 0x03, 0xf0]);
        assert_eq!(&close.bytes()[4..], b"access denied");
    }
}
