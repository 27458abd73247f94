//! A sender of messages over one ZeroMQ connection: in order, of any content, and fast.

use serde_json::Value;
use zmq::{Context, Socket, SocketType};

use super::DEADLINE;

pub struct Pusher(Socket);

impl Pusher {
    pub fn connect(zeromq: &str) -> Self {
        let socket = Context::new().socket(SocketType::PUSH).unwrap();
        let deadline = i32::try_from(DEADLINE.as_millis()).unwrap();
        socket.set_sndtimeo(deadline).unwrap();
        socket.set_linger(1000).unwrap();
        socket.connect(zeromq).unwrap();
        Self(socket)
    }

    pub fn send(&self, message: &Value) {
        self.send_bytes(message.to_string().as_bytes());
    }

    pub fn send_all<'a>(&self, messages: impl IntoIterator<Item = &'a Value>) {
        for message in messages {
            self.send(message);
        }
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        self.0.send(bytes, 0).unwrap();
    }

    /// One message of several parts.
    pub fn send_parts(&self, parts: &[&[u8]]) {
        self.0.send_multipart(parts, 0).unwrap();
    }
}
