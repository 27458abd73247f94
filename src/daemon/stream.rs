//! A TCP connection, plain or with TLS.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::seam::TcpStream;
use crate::engine::protocol::outbox::Outbox;

/// The byte stream of a connection.
pub(crate) enum Stream {
    /// Without TLS, or behind a proxy that terminates TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<Tls>),
}

/// A TCP connection and its TLS state, about 8 KiB.
pub(crate) struct Tls {
    tcp: TcpStream,
    session: ServerConnection,
    /// TLS has not begun: the bytes before it are plain (a PROXY header).
    is_plain_yet: bool,
}

/// The progress of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The kernel has accepted everything.
    All,
    /// The kernel accepts no more for now: continue when the connection becomes writable.
    Blocked,
}

/// Frames in one system call.
const BATCH: usize = 64;

impl Stream {
    /// With a `tls`, the stream begins with the TLS handshake, unless `is_plain_yet`: then TLS
    /// begins with [`begin_tls`](Self::begin_tls).
    #[must_use]
    pub(crate) fn new(tcp: TcpStream, tls: Option<ServerConnection>, is_plain_yet: bool) -> Self {
        match tls {
            None => Self::Plain(tcp),
            Some(session) => Self::Tls(Box::new(Tls { tcp, session, is_plain_yet })),
        }
    }

    /// Registers for read and write events once, for the whole life of the connection. Events are
    /// edge-triggered: an idle connection costs nothing, and a busy one no further system calls.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.tcp_mut(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Reads available bytes; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is available; all others are final.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => retry(|| tcp.read(buffer)),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Writes as much of `outbox` as possible.
    ///
    /// # Errors
    /// All are final.
    pub(crate) fn write(&mut self, outbox: &mut Outbox) -> io::Result<Written> {
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

    /// Whether the stream uses TLS, even if TLS has not begun yet.
    #[must_use]
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Begins TLS with the bytes that have already arrived.
    ///
    /// # Errors
    /// If the bytes are not valid TLS.
    pub(crate) fn begin_tls(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Self::Tls(stream) = self else { return Ok(()) };
        stream.is_plain_yet = false;
        while !bytes.is_empty() {
            stream.session.read_tls(&mut bytes)?;
            stream.process()?;
        }
        Ok(())
    }

    /// Whether a read that fills its buffer only partly has read everything. With TLS it has not:
    /// each read returns at most one record.
    #[must_use]
    pub(crate) fn short_read_drains(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Whether TLS itself has data to send: handshake messages or an alert.
    #[must_use]
    pub(crate) fn wants_write(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.session.wants_write())
    }

    /// Closes the sending direction. Ignores errors: the peer may have disconnected.
    pub(crate) fn finish(&mut self) {
        if let Self::Tls(stream) = self
            && !stream.is_plain_yet
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
        if self.is_plain_yet {
            return retry(|| self.tcp.read(buffer));
        }
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // TCP ended without a close_notify alert: browsers do that.
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
            // Sends the alert with the reason.
            let _ = self.flush();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    /// Sends encrypted data that is still buffered, then encrypts as much as fits into the buffer.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.flush()? == Written::Blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.session.writer().write_vectored(slices)? {
            // Before the end of the handshake rustls accepts no more than one buffer.
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
