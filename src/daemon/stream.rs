//! A TCP connection, plain or with TLS.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::net::TcpStream;
use crate::engine::protocol::outbox::Outbox;

/// The byte stream of a connection.
pub enum Stream {
    /// Without TLS, or behind a proxy that does it.
    Plain(TcpStream),
    /// With our own TLS.
    Tls(Box<Tls>),
}

/// A TCP connection and its TLS state, about 8 KiB.
pub struct Tls {
    tcp: TcpStream,
    session: ServerConnection,
    /// Something else comes first.
    waits: bool,
}

/// How far writing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Everything is with the kernel.
    All,
    /// The kernel takes no more for now: go on when the connection becomes writable.
    Blocked,
}

/// Frames that go into one system call.
const BATCH: usize = 64;

impl Stream {
    /// A stream that begins with a TLS handshake if there is a `tls`, unless that `waits` for
    /// [`begin_tls`](Self::begin_tls).
    #[must_use]
    pub fn new(tcp: TcpStream, tls: Option<ServerConnection>, waits: bool) -> Self {
        match tls {
            None => Self::Plain(tcp),
            Some(session) => Self::Tls(Box::new(Tls { tcp, session, waits })),
        }
    }

    /// Has reading and writing reported at once and for good. Readiness is reported when it
    /// changes, and it becomes writable only after it was not: that costs an idle connection
    /// nothing, and a busy one no further system call.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.tcp_mut(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Reads what is there; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing for now; all others are final.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => retry(|| tcp.read(buffer)),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Writes as much of `outbox` as possible.
    ///
    /// # Errors
    /// All are final.
    pub fn write(&mut self, outbox: &mut Outbox) -> io::Result<Written> {
        while !outbox.is_empty() {
            let written = match (&mut *self, outbox.only()) {
                (Self::Plain(tcp), Some(bytes)) => retry(|| tcp.write(bytes)),
                _ => self.write_many(outbox),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => outbox.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Written::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
        match self {
            Self::Plain(_) => Ok(Written::All),
            Self::Tls(stream) => stream.flush(),
        }
    }

    fn write_many(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); BATCH];
        let used = outbox.slices(&mut slices);
        let slices = slices.get(..used).unwrap_or_default();
        match self {
            Self::Plain(tcp) => retry(|| tcp.write_vectored(slices)),
            Self::Tls(stream) => stream.write(slices),
        }
    }

    /// Whether there is TLS, begun or not.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Begins TLS, of which these bytes have arrived. Until then a stream that waits for that is a
    /// plain one.
    ///
    /// # Errors
    /// If they are none of TLS's.
    pub fn begin_tls(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Self::Tls(stream) = self else { return Ok(()) };
        stream.waits = false;
        while !bytes.is_empty() {
            stream.session.read_tls(&mut bytes)?;
            stream.process()?;
        }
        Ok(())
    }

    /// Whether a read that has filled its buffer in part only has left nothing behind. TLS hands
    /// out its records one by one.
    #[must_use]
    pub fn tells_all(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Whether TLS has something to send of its own: a handshake, an alert.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.session.wants_write())
    }

    /// Tells the peer that nothing more will be sent. Errors are ignored: it may be gone.
    pub fn finish(&mut self) {
        if let Self::Tls(stream) = self
            && !stream.waits
        {
            stream.session.send_close_notify();
            let _ = stream.flush();
        }
        let _ = self.tcp_mut().shutdown(Shutdown::Write);
    }

    fn tcp_mut(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => &mut stream.tcp,
        }
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.waits {
            return retry(|| self.tcp.read(buffer));
        }
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // TCP ended without TLS saying so: browsers do that.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if retry(|| self.session.read_tls(&mut self.tcp))? == 0 {
                return Ok(0);
            }
            self.process()?;
        }
    }

    fn process(&mut self) -> io::Result<()> {
        if let Err(error) = self.session.process_new_packets() {
            // The alert that says why.
            let _ = self.flush();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    /// Encrypts as much as its buffer takes, once that has been written.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.flush()? == Written::Blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.session.writer().write_vectored(slices)? {
            // Before the end of the handshake it takes a bufferful and no more.
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<Written> {
        while self.session.wants_write() {
            match retry(|| self.session.write_tls(&mut self.tcp)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Written::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Written::All)
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
