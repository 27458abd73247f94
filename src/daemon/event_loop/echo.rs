//! With the feature `echo`, the demo sends back each message and requires no login, so that a
//! conformance test suite can test the code that serves browsers.

use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Backend, Server};
use crate::engine::id::ConnId;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::reader::Incoming;

impl Server {
    pub(super) fn echoes(&self) -> bool {
        matches!(self.backend, Backend::Demo(_))
    }

    pub(super) fn echo(&mut self, id: ConnId, message: Incoming) {
        let frame = match message {
            Incoming::Message(text) => SharedFrame::text(&text),
            Incoming::Binary(bytes) => {
                let frame = Frame::message(bytes, OpCode::Data(Data::Binary), true);
                let mut encoded = Vec::with_capacity(frame.len());
                // Writing to a vector cannot fail.
                let _ = frame.format(&mut encoded);
                SharedFrame::encoded(encoded)
            }
            _ => return,
        };
        if let Some(conn) = self.conn(id) {
            conn.completed();
        }
        self.send(id, frame);
    }
}
