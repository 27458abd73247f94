//! A connection that never blocks, with TLS or without, at byte level.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{Client, GOOD_HEAD};

pub struct Wire {
    stream: Stream,
    /// Read, but not processed yet.
    inbox: Vec<u8>,
    /// To be written.
    outbox: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A received item.
#[derive(Debug)]
pub enum Item {
    /// The status of an HTTP response.
    Response(u16),
    Frame(u8, Vec<u8>),
}

impl Wire {
    /// Connects; on loopback this takes no time, even if the server does not accept.
    pub fn connect(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        small_buffers: bool,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if small_buffers {
            socket.set_recv_buffer_size(8 * 1024)?;
        }
        socket.connect(&address.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let tcp = TcpStream::from_std(socket.into());
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some(config) => {
                let name = ServerName::try_from("localhost").unwrap();
                let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
                Stream::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        };
        Ok(Self { stream, inbox: Vec::new(), outbox: Vec::new() })
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.tcp(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// An upgrade request as a browser sends it.
    pub fn upgrade(&mut self, path: &str, user: &str, token: &str) {
        let target = format!("{path}?authToken={token}&userId={user}");
        self.send(format!("GET {target} HTTP/1.1\r\n{GOOD_HEAD}").as_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&Client::<std::net::TcpStream>::frame(first, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(0x81, text.as_bytes());
    }

    /// Writes as much as possible, up to `most` bytes.
    pub fn flush(&mut self, most: usize) -> io::Result<()> {
        let mut rest = most.min(self.outbox.len());
        while rest > 0 {
            match self.stream.writer().write(&self.outbox[..rest]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    self.outbox.drain(..length);
                    rest -= length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match self.stream.writer().flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads the available bytes. Returns whether TCP has ended.
    pub fn fill(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.stream.reader().read(buffer) {
                Ok(0) => return true,
                Ok(length) => self.inbox.extend_from_slice(&buffer[..length]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    io::ErrorKind::Interrupted => {}
                    _ => return true,
                },
            }
        }
    }

    /// Parses all complete items; `upgraded` is true if the head of the response was parsed
    /// already.
    pub fn take(&mut self, mut upgraded: bool) -> Result<Vec<Item>, String> {
        let (mut items, mut at) = (Vec::new(), 0);
        loop {
            let rest = &self.inbox[at..];
            let taken = if upgraded { frame(rest)? } else { response(rest)? };
            let Some((item, length)) = taken else { break };
            upgraded |= matches!(item, Item::Response(101));
            at += length;
            let is_error = matches!(item, Item::Response(status) if status != 101);
            items.push(item);
            if is_error {
                // The rest is a page.
                at = self.inbox.len();
                break;
            }
        }
        self.inbox.drain(..at);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        Ok(items)
    }

    /// Discards what was read.
    pub fn discard(&mut self) {
        self.inbox.clear();
    }

    /// Shuts down the sending side.
    pub fn half_close(&mut self) {
        let _ = self.tcp().shutdown(Shutdown::Write);
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        let _ = SockRef::from(&*self.tcp()).set_linger(Some(std::time::Duration::ZERO));
    }

    fn tcp(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &mut tls.sock,
        }
    }
}

impl Stream {
    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls,
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls,
        }
    }
}

fn response(bytes: &[u8]) -> Result<Option<(Item, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| format!("the response is {head:?}"))?;
    Ok(Some((Item::Response(status), end + 4)))
}

fn frame(bytes: &[u8]) -> Result<Option<(Item, usize)>, String> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(format!("no frame of a server begins with {first:02x} {second:02x}"));
    }
    let (header, length) = match second {
        126 => (4, 2),
        127 => (10, 8),
        short => (2, usize::from(short)),
    };
    if bytes.len() < header {
        return Ok(None);
    }
    let length = match header {
        2 => length,
        _ => bytes[2..header].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
    };
    let payload = bytes.get(header..header + length);
    Ok(payload.map(|payload| (Item::Frame(first & 0x0f, payload.to_vec()), header + length)))
}
