//! One connection of a browser: its socket, and its state in the engine.

use std::io;

use mio::{Registry, Token};

use super::stream::{Stream, Written};
use crate::engine::connection::Connection as State;
use crate::engine::id::ConnId;
use crate::engine::time::Time;
use crate::engine::timers::Timers;

/// A connection: the engine's state, and the socket whose bytes it moves.
pub(crate) struct Connection {
    /// Its phase, deadlines and outbound queue.
    pub(super) state: State,
    /// When its timer fires; [`Time::NEVER`] if it has none.
    armed: Time,
    /// Buffered bytes as counted last.
    buffered: u32,
    /// It is in the list of connections to flush.
    pub(super) dirty: bool,
    /// It is in the list of connections to read further.
    pub(super) unread: bool,
    /// The kernel accepts no more output; it will report when it does.
    blocked: bool,
    stream: Stream,
}

impl Connection {
    /// A connection just accepted.
    #[must_use]
    pub(crate) fn new(state: State, stream: Stream) -> Self {
        Self {
            state,
            armed: Time::NEVER,
            buffered: 0,
            dirty: false,
            unread: false,
            blocked: false,
            stream,
        }
    }

    /// Slot and serial number.
    #[must_use]
    pub(crate) fn id(&self) -> ConnId {
        self.state.id()
    }

    /// Sets its timer to its due time or `latest`, unless it already fires early enough.
    pub(crate) fn arm(&mut self, timers: &mut Timers, latest: Option<Time>) {
        let Some(due) = self.state.poll_timeout() else { return };
        let at = latest.map_or(due, |latest| latest.min(due));
        if self.armed > at {
            self.armed = timers.add(self.id(), at);
        }
    }

    /// Whether a timer that has fired is the current one. Others are obsolete: an earlier deadline
    /// has replaced them.
    pub(crate) fn disarm(&mut self, now: Time) -> bool {
        let is_current = self.armed <= now;
        if is_current {
            self.armed = Time::NEVER;
        }
        is_current
    }

    /// Registers the socket under `token`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.stream.register(registry, token)
    }

    /// Recalculates the bytes it uses beyond the cost of an idle connection, and adjusts the
    /// `total` of all connections.
    pub(crate) fn update_buffered(&mut self, total: &mut usize) {
        let buffered = u32::try_from(self.state.buffered()).unwrap_or(u32::MAX);
        *total = *total - self.buffered() + buffered as usize;
        self.buffered = buffered;
    }

    /// Buffered bytes as counted last.
    #[must_use]
    pub(crate) fn buffered(&self) -> usize {
        self.buffered as usize
    }

    /// Whether the connection uses TLS, started or not.
    #[must_use]
    pub(crate) fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Starts TLS with the bytes that have arrived.
    ///
    /// # Errors
    /// If they are not TLS.
    pub(crate) fn begin_tls(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.begin_tls(bytes)
    }

    /// Reads available bytes; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if there are none; all others are final.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Whether more input may be available after a read of `length` bytes into a buffer of `buffer`
    /// bytes. The kernel reports bytes that arrive later, but no second time an end that it has
    /// reported already (`ended`).
    #[must_use]
    pub(crate) fn may_have_more(&self, length: usize, buffer: usize, ended: bool) -> bool {
        length == buffer || ended || !self.stream.short_read_drains()
    }

    /// Writes queued output unless the kernel accepts none. Also returns the number of bytes
    /// written from the outbound queue.
    ///
    /// # Errors
    /// All are final.
    pub(crate) fn write(&mut self) -> io::Result<(Written, usize)> {
        if self.blocked {
            return Ok((Written::Blocked, 0));
        }
        let outbox = self.state.outbox_mut();
        let before = outbox.bytes();
        let written = self.stream.write(outbox)?;
        let taken = before.saturating_sub(outbox.bytes());
        self.state.handle_written(taken);
        self.blocked = written == Written::Blocked;
        self.finish_if_written();
        Ok((written, taken))
    }

    /// Shuts down the socket for writing if the last output is written.
    pub(crate) fn finish_if_written(&mut self) {
        if !self.has_output() && self.state.handle_all_written() {
            self.stream.finish();
        }
    }

    /// Records that the kernel accepts output again; returns whether there is any.
    pub(crate) fn unblock(&mut self) -> bool {
        self.blocked = false;
        self.has_output()
    }

    /// Whether [`write`](Self::write) has something to do.
    #[must_use]
    pub(crate) fn has_output(&self) -> bool {
        !self.state.outbox().is_empty() || self.stream.wants_write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 144, "{}", size_of::<Connection>());
    }
}
