//! A WebSocket client at byte level: it sends whatever a test specifies, valid or invalid.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::DEADLINE;
use super::secrets::register_token;

/// The upgrade request of Chromium without its request line.
pub const GOOD_HEAD: &str = "Host: localhost\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Origin: http://localhost\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    Sec-WebSocket-Protocol: wamp\r\n\r\n";

/// A complete upgrade request.
pub fn request(target: &str) -> String {
    register_token(target);
    format!("GET {target} HTTP/1.1\r\n{GOOD_HEAD}")
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// A connection over any stream.
pub struct Client<S = TcpStream> {
    pub stream: S,
    /// Bytes that were read but not used yet.
    buffer: VecDeque<u8>,
    /// The head of the upgrade response.
    pub response: String,
}

impl Client {
    /// A TCP connection on which nothing has been sent.
    pub fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// An upgraded connection with these credentials.
    pub fn open(address: SocketAddr, user: &str, token: &str) -> Self {
        let mut client = Self::tcp(address);
        client.upgrade(&format!("/?authToken={token}&userId={user}"));
        client
    }

    /// A tab of alice that received its welcome; `None` if the daemon does not listen, rejects the
    /// client, or ends meanwhile.
    pub fn attempt(address: SocketAddr) -> Option<Self> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(request("/?authToken=tok-alice&userId=alice").as_bytes()).ok()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.extend(byte);
        }
        let mut tab = Self::over(stream);
        (head.starts_with(b"HTTP/1.1 101 ") && tab.next()?.opcode == 1).then_some(tab)
    }

    /// Shuts down the sending side.
    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: VecDeque::new(), response: String::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Upgrades the connection, which must succeed.
    pub fn upgrade(&mut self, target: &str) {
        self.send(request(target).as_bytes());
        self.response = self.read_head();
        assert!(self.response.starts_with("HTTP/1.1 101 "), "{}", self.response);
    }

    /// Reads up to and including a blank line.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.byte().expect("the connection ended within a head"));
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads until the server closes the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.byte()).collect()
    }

    /// Sends one masked frame; `first` is its first byte.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&Self::frame(first, payload));
    }

    /// A masked frame.
    pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=0xffff => {
                frame.push(0xfe);
                frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0xff);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(0x81, text.as_bytes());
    }

    pub fn send_json(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    pub fn subscribe(&mut self, topic: &str) {
        self.send_json(&json!([5, topic]));
    }

    pub fn unsubscribe(&mut self, topic: &str) {
        self.send_json(&json!([6, topic]));
    }

    /// The next frame; `None` if TCP has ended. Pings are answered, as browsers do.
    pub fn next(&mut self) -> Option<Frame> {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "only pings were received");
            let frame = self.next_raw()?;
            if frame.opcode != 9 {
                return Some(frame);
            }
            assert!(start.elapsed() < DEADLINE, "only pings were received");
            self.send_frame(0x8a, &frame.payload);
        }
    }

    /// The next frame, pings included.
    pub fn next_raw(&mut self) -> Option<Frame> {
        let first = self.byte()?;
        assert_eq!(first & 0xf0, 0x80, "the daemon does not fragment frames");
        let second = self.byte()?;
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let bytes = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut length = u64::from(second);
        if bytes > 0 {
            length = (0..bytes).fold(0, |length, _| length << 8 | u64::from(self.byte().unwrap()));
        }
        let payload = (0..length).map(|_| self.byte().expect("within a frame")).collect();
        Some(Frame { opcode: first & 0x0f, payload })
    }

    /// The next message, which must be text, as JSON.
    pub fn next_message(&mut self) -> Value {
        let frame = self.next().expect("a message, not the end of TCP");
        assert_eq!(frame.opcode, 1, "{frame:?}");
        serde_json::from_slice(&frame.payload).unwrap()
    }

    /// Expects the welcome and returns the session id.
    pub fn expect_welcome(&mut self) -> String {
        let welcome = self.next_message();
        let welcome = welcome.as_array().unwrap();
        assert_eq!((welcome.len(), &welcome[0], &welcome[2]), (3, &json!(0), &json!(1)));
        welcome[1].as_str().unwrap().to_owned()
    }

    /// Expects this message of EspoCRM.
    pub fn expect_event(&mut self, message: &Value) {
        assert_eq!(self.next_message(), json!([8, message["topicId"], message]));
    }

    /// Expects these messages of EspoCRM, in this order.
    pub fn expect_events<'a>(&mut self, messages: impl IntoIterator<Item = &'a Value>) {
        for message in messages {
            self.expect_event(message);
        }
    }

    /// Expects that nothing has been sent: the answer to a ping comes first.
    pub fn expect_silence(&mut self) {
        self.send_frame(0x89, b"silence?");
        let pong = Frame { opcode: 10, payload: b"silence?".to_vec() };
        assert_eq!(self.next(), Some(pong));
    }

    /// Expects a clean close with this code, answers it, and expects TCP to end.
    pub fn expect_close(&mut self, code: u16) {
        let frame = self.next().expect("a Close frame, not the end of TCP");
        assert_eq!(frame.opcode, 8, "{frame:?}");
        assert_eq!(frame.payload[..2], code.to_be_bytes(), "{frame:?}");
        self.send_frame(0x88, &frame.payload[..2]);
        assert_eq!(self.next(), None);
    }

    /// Expects TCP to end without a Close frame.
    pub fn expect_drop(&mut self) {
        assert_eq!(self.next(), None);
    }

    fn byte(&mut self) -> Option<u8> {
        while self.buffer.is_empty() {
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend(&buffer[..length]),
                Err(error) => match error.kind() {
                    // TLS reports the end of TCP as the latter.
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => return None,
                    // Pausing a machine interrupts reads that have a deadline.
                    io::ErrorKind::Interrupted => {}
                    _ => panic!("{error}"),
                },
            }
        }
        self.buffer.pop_front()
    }
}
