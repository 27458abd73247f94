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
        self.send_part(bytes, 0);
    }

    /// One multipart message.
    pub fn send_parts(&self, parts: &[&[u8]]) {
        let (last, first) = parts.split_last().unwrap();
        for part in first {
            self.send_part(part, zmq::SNDMORE);
        }
        self.send_part(last, 0);
    }

    fn send_part(&self, part: &[u8], flags: i32) {
        loop {
            match self.0.send(part, flags) {
                Err(zmq::Error::EINTR) => {}
                sent => return sent.unwrap(),
            }
        }
    }
}
