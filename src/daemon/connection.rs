//! One connection of a browser.

use std::io;
use std::net::IpAddr;

use mio::{Registry, Token};

use super::stream::{Stream, Written};
use crate::engine::id::ConnId;
use crate::engine::limits::{
    MAX_CONTROL_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND, MAX_HEAD, MAX_OUTBOX_LASTING,
    MAX_PINGS_WHILE_INCOMPLETE, MAX_UNANSWERED_PINGS,
};
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::outbox::Outbox;
use crate::engine::protocol::reader::{Frames, Reader};
use crate::engine::time::Time;
use crate::engine::timers::Timers;

/// A connection's socket, phase and outbound queue. An idle connection has no buffers: partial
/// input and queued output are allocated only while they exist.
#[expect(clippy::struct_excessive_bools, reason = "each is of another concern")]
pub struct Connection {
    /// Slot and serial number.
    pub id: ConnId,
    /// Phase of the connection's life.
    pub phase: Phase,
    /// Outbound queue.
    pub outbox: Outbox,
    /// The client it counts for, if that is known.
    pub client: Option<ClientKey>,
    /// The reason for its rejection or end has been counted.
    pub counted: bool,
    /// It counts as a waiting login of its client.
    pub logging_in: bool,
    /// The second in which it was accepted.
    pub since: u32,
    /// Its deadline or next ping.
    pub due: Time,
    /// When its timer fires, if it has one.
    armed: Option<Time>,
    /// Buffered bytes as counted last.
    buffered: u32,
    /// The second that `frames` and `control_frames` belong to.
    second: u32,
    /// Data frames received in that second.
    frames: u16,
    /// Control frames received in that second.
    control_frames: u16,
    /// Pings sent since the peer last sent anything.
    unanswered_pings: u8,
    /// Pings sent since no message was incomplete.
    incomplete_pings: u8,
    /// Nonzero if more than [`MAX_OUTBOX_LASTING`] was queued at the last ping and the queue has
    /// not been empty since: 1 plus the number of [`LAG_UNIT`]s written since.
    lagging: u8,
    /// It is in the server's list of connections to flush.
    pub dirty: bool,
    /// It is in the server's list of connections to read further.
    pub unread: bool,
    /// The kernel accepts no more output; it will report when it does.
    blocked: bool,
    stream: Stream,
}

/// Phases of a connection, in this order.
pub enum Phase {
    /// The HTTP request is being read (after the TLS handshake, if there is one).
    Upgrading(Box<Upgrading>),
    /// It is a WebSocket.
    Open(Reader),
    /// A Close frame has been queued; the peer's is awaited.
    Closing(Reader),
    /// The queued output is the last.
    Finishing,
    /// All output is written and the socket shut down; the peer's end is awaited, so that the peer
    /// can read everything.
    Draining,
    /// It is freed at the end of this turn.
    Ended,
}

/// Why a connection whose time is due is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Its phase has lasted too long.
    Deadline,
    /// It does not answer pings.
    Lost,
    /// It does not complete a message.
    Incomplete,
    /// Its outbound queue has been too long for too much time.
    Lagging,
}

/// An HTTP request that is not complete.
#[derive(Default)]
pub struct Upgrading {
    /// It will be answered with 503, because a limit of connections is reached.
    pub over_limit: bool,
    /// Remote address of the TCP connection.
    pub peer: Option<IpAddr>,
    /// A PROXY protocol header precedes the request.
    pub expects_proxy_header: bool,
    bytes: Vec<u8>,
    /// Length of `bytes` at the latest attempt to parse them.
    parsed: usize,
}

/// Unit for counting the progress of a lagging connection in bytes; each write is rounded down. The
/// kernel accepts more at a time.
const LAG_UNIT: usize = 8 * 1024;

impl Connection {
    /// A connection just accepted.
    #[must_use]
    pub fn new(
        id: ConnId,
        stream: Stream,
        upgrading: Upgrading,
        now: Time,
        deadline: Time,
    ) -> Self {
        let now = u32::try_from(now.as_millis() / 1_000).unwrap_or(u32::MAX);
        Self {
            id,
            phase: Phase::Upgrading(upgrading.into()),
            outbox: Outbox::default(),
            client: None,
            counted: false,
            logging_in: false,
            since: now,
            due: deadline,
            armed: None,
            buffered: 0,
            second: 0,
            frames: 0,
            control_frames: 0,
            unanswered_pings: 0,
            incomplete_pings: 0,
            lagging: 0,
            dirty: false,
            unread: false,
            blocked: false,
            stream,
        }
    }

    /// Sets its timer to its due time or `latest`, unless it already fires early enough.
    pub fn arm(&mut self, timers: &mut Timers, latest: Option<Time>) {
        let at = latest.map_or(self.due, |latest| latest.min(self.due));
        if self.armed.is_none_or(|armed| armed > at) {
            self.armed = Some(timers.add(self.id, at));
        }
    }

    /// Whether a timer that has fired is the current one. Others are obsolete: an earlier deadline
    /// has replaced them.
    pub fn disarm(&mut self, now: Time) -> bool {
        self.armed.take_if(|armed| *armed <= now).is_some()
    }

    /// Registers the socket under `token`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.stream.register(registry, token)
    }

    /// Counts a ping and schedules the next one at `next`; the caller sends it.
    ///
    /// # Errors
    /// [`Overdue`] if the connection is to be ended instead.
    pub fn ping(&mut self, next: Time) -> Result<(), Overdue> {
        let Phase::Open(reader) = &self.phase else { return Err(Overdue::Deadline) };
        if self.unanswered_pings >= MAX_UNANSWERED_PINGS {
            return Err(Overdue::Lost);
        }
        if reader.is_idle() {
            self.incomplete_pings = 0;
        } else if self.incomplete_pings >= MAX_PINGS_WHILE_INCOMPLETE {
            return Err(Overdue::Incomplete);
        } else {
            self.incomplete_pings += 1;
        }
        let lags = self.outbox.held() > MAX_OUTBOX_LASTING;
        let lagged = std::mem::replace(&mut self.lagging, u8::from(lags));
        let taken = usize::from(lagged.saturating_sub(1)) * LAG_UNIT;
        if lags && lagged > 0 && taken < MAX_OUTBOX_LASTING {
            return Err(Overdue::Lagging);
        }
        self.unanswered_pings += 1;
        self.due = next;
        Ok(())
    }

    /// Records that the peer has sent something.
    pub fn heard(&mut self) {
        self.unanswered_pings = 0;
    }

    /// Records that a message is complete.
    pub fn completed(&mut self) {
        self.incomplete_pings = 0;
    }

    /// Counts received frames; returns false if there are too many in this second.
    pub fn count(&mut self, now: Time, frames: Frames) -> bool {
        let second = u32::try_from(now.as_millis() / 1_000).unwrap_or(u32::MAX);
        if second != self.second {
            (self.second, self.frames, self.control_frames) = (second, 0, 0);
        }
        let add =
            |count: u16, more: u32| count.saturating_add(u16::try_from(more).unwrap_or(u16::MAX));
        self.frames = add(self.frames, frames.data);
        self.control_frames = add(self.control_frames, frames.control);
        self.frames <= MAX_FRAMES_PER_SECOND && self.control_frames <= MAX_CONTROL_FRAMES_PER_SECOND
    }

    /// Recalculates the bytes it uses beyond the cost of an idle connection, and adjusts the
    /// `total` of all connections.
    pub fn update_buffered(&mut self, total: &mut usize) {
        let incomplete = match &self.phase {
            Phase::Upgrading(upgrading) => upgrading.bytes.capacity(),
            Phase::Open(reader) | Phase::Closing(reader) => reader.held(),
            Phase::Finishing | Phase::Draining | Phase::Ended => 0,
        };
        let buffered = u32::try_from(incomplete + self.outbox.held()).unwrap_or(u32::MAX);
        *total = *total - self.buffered() + buffered as usize;
        self.buffered = buffered;
    }

    /// Buffered bytes as counted last.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered as usize
    }

    /// Whether the connection uses TLS, started or not.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Starts TLS with the bytes that have arrived.
    ///
    /// # Errors
    /// If they are not TLS.
    pub fn begin_tls(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.begin_tls(bytes)
    }

    /// Reads available bytes; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if there are none; all others are final.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Whether more input may be available after a read of `length` bytes into a buffer of `buffer`
    /// bytes. The kernel reports bytes that arrive later, but no second time an end that it has
    /// reported already (`ended`).
    #[must_use]
    pub fn may_have_more(&self, length: usize, buffer: usize, ended: bool) -> bool {
        length == buffer || ended || !self.stream.tells_all()
    }

    /// Writes queued output unless the kernel accepts none. Also returns the number of bytes
    /// written from the outbound queue.
    ///
    /// # Errors
    /// All are final.
    pub fn write(&mut self) -> io::Result<(Written, usize)> {
        if self.blocked {
            return Ok((Written::Blocked, 0));
        }
        let before = self.outbox.bytes();
        let written = self.stream.write(&mut self.outbox)?;
        self.blocked = written == Written::Blocked;
        let taken = before.saturating_sub(self.outbox.bytes());
        if self.lagging > 0 {
            let units = u8::try_from(taken / LAG_UNIT).unwrap_or(u8::MAX);
            self.lagging = self.lagging.saturating_add(units);
        }
        Ok((written, taken))
    }

    /// Records that the kernel accepts output again; returns whether there is any.
    pub fn unblock(&mut self) -> bool {
        self.blocked = false;
        self.has_output()
    }

    /// Whether [`write`](Self::write) has something to do.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() || self.stream.wants_write()
    }

    /// Records that all output is written. If it was the last, shuts down the socket for writing.
    pub fn written(&mut self) {
        self.lagging = 0;
        if matches!(self.phase, Phase::Finishing) {
            self.stream.finish();
            self.phase = Phase::Draining;
        }
    }

    /// Whether it has ended and waits to be freed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }
}

impl Upgrading {
    /// A request from `peer` with no bytes yet.
    #[must_use]
    pub fn new(peer: IpAddr, expects_proxy_header: bool, over_limit: bool) -> Self {
        Self { peer: Some(peer), expects_proxy_header, over_limit, ..Self::default() }
    }

    /// Adds bytes and returns whether to parse now: at the first bytes, at the blank line, and
    /// whenever the length has doubled, so that a peer that sends byte by byte costs no more than
    /// one that sends all at once.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        // The blank line may have started in earlier bytes.
        let from = self.bytes.len().saturating_sub(2);
        self.bytes.extend_from_slice(bytes);
        let new = self.bytes.get(from..).unwrap_or_default();
        let blank = new.windows(2).any(|pair| pair == b"\n\n")
            || new.windows(3).any(|triple| triple == b"\n\r\n");
        let due = blank || self.bytes.len() >= (2 * self.parsed).min(MAX_HEAD);
        if due {
            self.parsed = self.bytes.len();
        }
        due
    }

    /// The bytes received so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Removes a complete PROXY header and returns the bytes after it.
    pub fn skip_proxy_header(&mut self, length: usize) -> Vec<u8> {
        self.expects_proxy_header = false;
        self.parsed = 0;
        let rest = self.bytes.get(length..).unwrap_or_default().to_vec();
        self.bytes = Vec::new();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a request in pieces of `step` bytes is parsed, and whether the last piece is.
    fn parses(request: &[u8], step: usize) -> (usize, bool) {
        let mut upgrading = Upgrading::default();
        let mut due = Vec::new();
        for piece in request.chunks(step) {
            due.push(upgrading.feed(piece));
        }
        assert_eq!(upgrading.bytes(), request);
        (due.iter().filter(|due| **due).count(), *due.last().unwrap())
    }

    #[test]
    fn a_request_is_parsed_when_complete_and_rarely_before() {
        for end in ["\r\n\r\n", "\n\n", "\r\n\n", "\n\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nCookie: {}{end}", "x".repeat(10_000));
            for step in [1, 2, 3, 1_000, 20_000] {
                let (count, last) = parses(request.as_bytes(), step);
                assert!(last && count <= 17, "{step}: {count}");
            }
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 144, "{}", size_of::<Connection>());
    }
}
