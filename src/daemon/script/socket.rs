//! A scripted TCP connection: the kernel's side and the server's socket.

use std::cell::{RefCell, RefMut};
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::rc::Rc;

use mio::Token;

use super::{Entry, Journal, Number, Random};

/// The server's socket.
pub(crate) struct Socket(Rc<RefCell<Kernel>>);

/// The kernel's state of a connection.
///
/// It reports events like an edge-triggered epoll: once after bytes, the end or an error have
/// arrived, and once when there is room again after a write was blocked. A read that returns less
/// than is available, or nothing, simulates bytes that arrive a moment later and are reported
/// again.
#[allow(clippy::struct_excessive_bools, reason = "TCP has many independent flags")]
pub(crate) struct Kernel {
    pub(crate) number: Number,
    pub(crate) token: Option<Token>,
    /// Bytes that the server has not read.
    pub(crate) incoming: Vec<u8>,
    /// The peer has shut down its side.
    pub(crate) fin: bool,
    pub(crate) reset: bool,
    /// Bytes that the server has written.
    pub(crate) outgoing: Vec<u8>,
    /// Free space of the send buffer, in bytes.
    pub(crate) room: usize,
    /// A readiness event is due.
    pub(crate) edge: bool,
    /// The server has shut down its side.
    pub(crate) finished: bool,
    /// The server has closed it.
    pub(crate) dropped: bool,
    /// Share of calls with a fault or a partial result, in percent.
    pub(crate) fault_percent: usize,
    wants_room: bool,
    /// A write has ever been blocked.
    pub(crate) was_blocked: bool,
    random: Random,
    journal: Journal,
}

impl Kernel {
    pub(crate) fn new(number: Number, journal: &Journal, random: Random) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            number,
            token: None,
            incoming: Vec::new(),
            fin: false,
            reset: false,
            outgoing: Vec::new(),
            room: usize::MAX,
            edge: false,
            finished: false,
            dropped: false,
            fault_percent: 0,
            wants_room: false,
            was_blocked: false,
            random,
            journal: Rc::clone(journal),
        }))
    }

    pub(crate) fn arrive(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        self.edge = true;
    }

    pub(crate) fn end(&mut self) {
        self.fin = true;
        self.edge = true;
    }

    pub(crate) fn abort(&mut self) {
        self.reset = true;
        self.incoming.clear();
        self.edge = true;
    }

    pub(crate) fn make_room(&mut self, bytes: usize) {
        self.room = self.room.saturating_add(bytes);
        if bytes > 0 && std::mem::take(&mut self.wants_room) {
            self.edge = true;
        }
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.incoming.is_empty() || self.fin || self.reset
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.room > 0 || self.reset
    }

    /// Whether a write was blocked and room has not been reported since.
    pub(crate) fn is_blocked(&self) -> bool {
        self.wants_room
    }

    fn note(&mut self, entry: Entry) {
        self.journal.borrow_mut().push_back(entry);
    }

    fn inject_fault(&mut self) -> bool {
        self.random.chance(self.fault_percent)
    }

    /// A part of `most`, at least one.
    fn some(&mut self, most: usize) -> usize {
        if most > 1 && self.inject_fault() { 1 + self.random.below(most - 1) } else { most }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "a read into an empty buffer");
        if self.inject_fault() {
            return Err(ErrorKind::Interrupted.into());
        }
        if self.reset {
            self.note(Entry::ReadFailed(self.number));
            return Err(ErrorKind::ConnectionReset.into());
        }
        if self.incoming.is_empty() && self.fin {
            self.note(Entry::Read(self.number, 0));
            return Ok(0);
        }
        if self.incoming.is_empty() || self.inject_fault() {
            self.edge |= !self.incoming.is_empty();
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.some(self.incoming.len().min(buffer.len()));
        buffer[..count].copy_from_slice(&self.incoming[..count]);
        self.incoming.drain(..count);
        if count < buffer.len() && !self.incoming.is_empty() {
            self.edge = true;
        }
        self.note(Entry::Read(self.number, count));
        Ok(count)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(!self.finished, "a write after the end");
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(length > 0, "a write of nothing");
        if self.inject_fault() {
            return Err(ErrorKind::Interrupted.into());
        }
        if self.reset {
            self.note(Entry::WriteFailed(self.number));
            return Err(ErrorKind::BrokenPipe.into());
        }
        if self.room == 0 || self.inject_fault() {
            // If there is room, it is reported as if freed a moment later.
            self.edge |= self.room > 0;
            self.wants_room = self.room == 0;
            self.was_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.some(length.min(self.room));
        let mut rest = count;
        for slice in slices {
            let (taken, _) = slice.split_at(rest.min(slice.len()));
            self.outgoing.extend_from_slice(taken);
            rest -= taken.len();
        }
        self.room -= count;
        self.note(Entry::Wrote(self.number, count));
        Ok(count)
    }
}

impl Socket {
    pub(crate) fn new(kernel: &Rc<RefCell<Kernel>>) -> Self {
        Self(Rc::clone(kernel))
    }

    pub(crate) fn kernel(&self) -> RefMut<'_, Kernel> {
        self.0.borrow_mut()
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.kernel().read(buffer)
    }

    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.kernel().write(slices)
    }

    /// Reports the current readiness, as epoll does for a new registration.
    pub(crate) fn register(&self, token: Token) {
        let mut kernel = self.kernel();
        assert_eq!(kernel.token.replace(token), None, "registered twice");
        kernel.edge = true;
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        assert_eq!(how, Shutdown::Write);
        let mut kernel = self.kernel();
        kernel.finished = true;
        let number = kernel.number;
        kernel.note(Entry::Finished(number));
        if kernel.reset { Err(ErrorKind::NotConnected.into()) } else { Ok(()) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut kernel = self.kernel();
        kernel.dropped = true;
        let number = kernel.number;
        kernel.note(Entry::Dropped(number));
    }
}
