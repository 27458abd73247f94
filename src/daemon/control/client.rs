//! A client of the control socket or the metrics port.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::engine::limits::{MAX_CONTROL_BODY, MAX_CONTROL_HEAD, MAX_TAIL};
use crate::engine::protocol::control;
use crate::engine::protocol::control::{Listener, Request};
use crate::engine::time::Time;
use crate::platform::sys;

pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The states of a client, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The request is being read.
    Reading,
    /// The response is being written.
    Answered,
    /// The response follows at the end of a reload.
    Reloading,
    /// Messages are sent as they are delivered.
    Watching,
    /// The response is written. The connection stays open until the client closes it, so that the
    /// client can read the response first.
    Closing,
}

pub(super) struct Client {
    stream: Stream,
    pub listener: Listener,
    pub state: State,
    /// When the client is closed; `None` while it watches messages.
    pub deadline: Option<Time>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of the output that are written.
    written: usize,
    /// Lines that were dropped and not yet reported to the client.
    lost: u64,
}

/// Bytes that are read and ignored after the request.
const MAX_REST: usize = 256 * 1024;

impl Stream {
    /// The user of the client's process; `None` for TCP.
    pub(super) fn user(&self) -> Option<u32> {
        match self {
            Self::Unix(unix) => Some(sys::peer_user(unix.as_raw_fd()).unwrap_or(u32::MAX)),
            Self::Tcp(_) => None,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(unix) => unix.read(buffer),
            Self::Tcp(tcp) => tcp.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(unix) => unix.write(bytes),
            Self::Tcp(tcp) => tcp.write(bytes),
        }
    }

    fn finish(&self) {
        // Fails if the client has already closed the connection.
        let _ = match self {
            Self::Unix(unix) => unix.shutdown(Shutdown::Write),
            Self::Tcp(tcp) => tcp.shutdown(Shutdown::Write),
        };
    }
}

impl Client {
    pub(super) fn new(stream: Stream, listener: Listener, deadline: Time) -> Self {
        Self {
            stream,
            listener,
            state: State::Reading,
            deadline: Some(deadline),
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            lost: 0,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match &mut self.stream {
            Stream::Unix(unix) => registry.register(unix, token, interests),
            Stream::Tcp(tcp) => registry.register(tcp, token, interests),
        }
    }

    /// Tries to send a response once, without waiting.
    pub(super) fn reject(&mut self, response: &str) {
        let _ = self.stream.write(response.as_bytes());
    }

    /// Reads available bytes and returns the request when it is complete. Answers an invalid
    /// request itself.
    ///
    /// # Errors
    /// If the client must be removed.
    pub(super) fn read(&mut self) -> io::Result<Option<Request>> {
        let mut buffer = [0; 4_096];
        let mut rest = 0;
        loop {
            let length = match self.stream.read(&mut buffer) {
                // The client may close its sending direction and still read the response. A client
                // that watches messages does not do that: it has disconnected.
                Ok(0) if matches!(self.state, State::Answered | State::Reloading) => {
                    return Ok(None);
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.state != State::Reading {
                rest += length;
                if rest > MAX_REST {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                continue;
            }
            // The parser rejects a request that is too long before so many bytes have arrived.
            let limit = MAX_CONTROL_HEAD + MAX_CONTROL_BODY + buffer.len();
            if self.input.len() + length > limit {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.input.extend_from_slice(buffer.get(..length).unwrap_or_default());
            match control::parse(&self.input, self.listener) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    self.input = Vec::new();
                    self.state = State::Answered;
                    return Ok(Some(request));
                }
                Err(refusal) => {
                    self.input = Vec::new();
                    self.answer(&refusal.response());
                }
            }
        }
    }

    pub(super) fn answer(&mut self, response: &str) {
        self.state = State::Answered;
        self.output.extend_from_slice(response.as_bytes());
    }

    /// Defers the response; until then nothing is written.
    pub(super) fn wait_for_reload(&mut self, deadline: Time) {
        self.state = State::Reloading;
        self.deadline = Some(deadline);
    }

    pub(super) fn watch(&mut self) {
        self.state = State::Watching;
        self.deadline = None;
        self.output.extend_from_slice(control::STREAM_HEAD.as_bytes());
    }

    /// Queues a line if the client watches messages. Returns whether there is output to write.
    pub(super) fn show(&mut self, line: &str) -> bool {
        if self.state != State::Watching {
            return false;
        }
        let queued = self.output.len() - self.written;
        if self.lost > 0 || queued + line.len() > MAX_TAIL {
            self.lost += 1;
            return false;
        }
        self.output.extend_from_slice(line.as_bytes());
        true
    }

    /// Writes as much as the kernel accepts.
    ///
    /// # Errors
    /// If the client must be removed.
    pub(super) fn write(&mut self) -> io::Result<()> {
        loop {
            let queued = self.output.get(self.written..).unwrap_or_default();
            if queued.is_empty() {
                (self.output, self.written) = (Vec::new(), 0);
                if self.state == State::Answered {
                    self.stream.finish();
                    self.state = State::Closing;
                }
                if self.lost == 0 {
                    return Ok(());
                }
                let lost = std::mem::take(&mut self.lost);
                self.output.extend_from_slice(format!("{{\"lost\":{lost}}}\n").as_bytes());
                continue;
            }
            match self.stream.write(queued) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // Free the written part while the rest waits.
        self.output.drain(..self.written.min(self.output.len()));
        self.written = 0;
        Ok(())
    }
}
