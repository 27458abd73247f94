//! Somebody at a door.

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

/// How far one has come, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The request is being read.
    Asking,
    /// The answer is being written.
    Answered,
    /// The answer follows when a reload has ended.
    Reloading,
    /// Messages are shown as they pass.
    Watching,
    /// All is written; the end is awaited, so that it is read before.
    Leaving,
}

pub(super) struct Client {
    stream: Stream,
    pub door: Listener,
    pub stage: State,
    /// When it has taken too long; never, if it watches.
    pub deadline: Option<Time>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of the output that are written.
    written: usize,
    /// Lines that it has missed and does not know of.
    lost: u64,
}

/// Bytes that are read of one who has nothing more to say.
const MAX_REST: usize = 256 * 1024;

impl Stream {
    /// As whom the other side runs, if that can be told.
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
        // Who is gone already needs no end.
        let _ = match self {
            Self::Unix(unix) => unix.shutdown(Shutdown::Write),
            Self::Tcp(tcp) => tcp.shutdown(Shutdown::Write),
        };
    }
}

impl Client {
    pub(super) fn new(stream: Stream, door: Listener, deadline: Time) -> Self {
        Self {
            stream,
            door,
            stage: State::Asking,
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

    /// Says something at once, or not at all.
    pub(super) fn turn_away(&mut self, response: &str) {
        let _ = self.stream.write(response.as_bytes());
    }

    /// Reads what is there; the request, if that is complete now. A bad one is answered.
    ///
    /// # Errors
    /// If it is to be forgotten.
    pub(super) fn read(&mut self) -> io::Result<Option<Request>> {
        let mut buffer = [0; 4_096];
        let mut rest = 0;
        loop {
            let length = match self.stream.read(&mut buffer) {
                // Who asks and says nothing more may still listen, but one who watches is gone.
                Ok(0) if matches!(self.stage, State::Answered | State::Reloading) => {
                    return Ok(None);
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.stage != State::Asking {
                rest += length;
                if rest > MAX_REST {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                continue;
            }
            // A request that is longer than it may be is refused before this many have arrived.
            let most = MAX_CONTROL_HEAD + MAX_CONTROL_BODY + buffer.len();
            if self.input.len() + length > most {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.input.extend_from_slice(buffer.get(..length).unwrap_or_default());
            match control::parse(&self.input, self.door) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    self.input = Vec::new();
                    self.stage = State::Answered;
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
        self.stage = State::Answered;
        self.output.extend_from_slice(response.as_bytes());
    }

    /// The answer follows later; until then nothing is written.
    pub(super) fn wait_for_reload(&mut self, deadline: Time) {
        self.stage = State::Reloading;
        self.deadline = Some(deadline);
    }

    pub(super) fn watch(&mut self) {
        self.stage = State::Watching;
        self.deadline = None;
        self.output.extend_from_slice(control::STREAM_HEAD.as_bytes());
    }

    /// Whether there is something to be written after that.
    pub(super) fn show(&mut self, line: &str) -> bool {
        if self.stage != State::Watching {
            return false;
        }
        let waiting = self.output.len() - self.written;
        if self.lost > 0 || waiting + line.len() > MAX_TAIL {
            self.lost += 1;
            return false;
        }
        self.output.extend_from_slice(line.as_bytes());
        true
    }

    /// Writes what the kernel takes.
    ///
    /// # Errors
    /// If it is to be forgotten.
    pub(super) fn write(&mut self) -> io::Result<()> {
        loop {
            let waiting = self.output.get(self.written..).unwrap_or_default();
            if waiting.is_empty() {
                (self.output, self.written) = (Vec::new(), 0);
                if self.stage == State::Answered {
                    self.stream.finish();
                    self.stage = State::Leaving;
                }
                if self.lost == 0 {
                    return Ok(());
                }
                let lost = std::mem::take(&mut self.lost);
                self.output.extend_from_slice(format!("{{\"lost\":{lost}}}\n").as_bytes());
                continue;
            }
            match self.stream.write(waiting) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // What is written needs no memory while the rest waits.
        self.output.drain(..self.written.min(self.output.len()));
        self.written = 0;
        Ok(())
    }
}
