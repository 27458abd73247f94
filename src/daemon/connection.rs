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

/// A connection's socket, how far it has come, and what it still has to send. While it is idle
/// that is all: what is being read, and what waits to be written, is kept only while there is any.
#[expect(clippy::struct_excessive_bools, reason = "each is of another concern")]
pub struct Connection {
    /// Its name.
    pub id: ConnId,
    /// How far it has come.
    pub phase: Phase,
    /// What waits to be written.
    pub outbox: Outbox,
    /// Whose it counts as, if that is known.
    pub client: Option<ClientKey>,
    /// Why it is refused or ends was counted.
    pub counted: bool,
    /// It counts as a login of that client.
    pub logging_in: bool,
    /// The second in which it has come.
    pub since: u32,
    /// When it has to be looked at: a deadline, or the next ping.
    pub due: Time,
    /// When its timer fires, if it has one.
    armed: Option<Time>,
    /// What it held when that was last added up.
    held: u32,
    /// The second in which `frames` were received.
    second: u32,
    /// Messages and fragments in that second.
    frames: u16,
    /// Other frames in that second.
    control_frames: u16,
    /// Pings since the peer was last heard.
    unanswered_pings: u8,
    /// Pings since no message was incomplete.
    incomplete_pings: u8,
    /// Not 0: at the last ping more than [`MAX_OUTBOX_LASTING`] waited, and has not all been written
    /// since. Then 1 more than the number of [`LAG_UNIT`]s that were written since.
    lagging: u8,
    /// It is in the server's list of those to be flushed.
    pub dirty: bool,
    /// It is in the server's list of those to be read on.
    pub unread: bool,
    /// The kernel took no more; it will say when it does.
    blocked: bool,
    stream: Stream,
}

/// The life of a connection, in this order.
pub enum Phase {
    /// The HTTP request is being read (after the TLS handshake, if there is one).
    Upgrading(Box<Upgrading>),
    /// It is a WebSocket.
    Open(Reader),
    /// Our Close frame is on its way; the peer's is awaited.
    Closing(Reader),
    /// What waits to be written is the last.
    Finishing,
    /// Everything is written; the peer's end is awaited, so that it gets to read it all.
    Draining,
    /// To be freed at the end of this turn.
    Ended,
}

/// Why a connection is ended when it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It has not come far enough in time.
    Deadline,
    /// It does not answer pings.
    Lost,
    /// It does not complete a message.
    Incomplete,
    /// It has had too much waiting for too long.
    Lagging,
}

/// A request that has not arrived completely.
#[derive(Default)]
pub struct Upgrading {
    /// It will be answered 503: there are too many connections.
    pub over_limit: bool,
    /// Where the TCP connection comes from.
    pub peer: Option<IpAddr>,
    /// A proxy's header that tells the client comes first (the PROXY protocol).
    pub introduction: bool,
    bytes: Vec<u8>,
    /// How many bytes there were when it was parsed last.
    parsed: usize,
}

/// Bytes in which the progress of a lagging connection is counted, each write rounded down. The
/// kernel takes more at a time.
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
            held: 0,
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

    /// Adds a timer for it, at `latest`, unless the one that it has fires early enough.
    pub fn arm(&mut self, timers: &mut Timers, latest: Option<Time>) {
        let at = latest.map_or(self.due, |latest| latest.min(self.due));
        if self.armed.is_none_or(|armed| armed > at) {
            self.armed = Some(timers.add(self.id, at));
        }
    }

    /// Whether a timer that has fired is the one that it has. Any other is of an earlier deadline,
    /// for which a later one was overtaken.
    pub fn disarm(&mut self, now: Time) -> bool {
        self.armed.take_if(|armed| *armed <= now).is_some()
    }

    /// Has `token` reported when there is something to be read, or room to write.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.stream.register(registry, token)
    }

    /// Whether it is to be pinged, and looked at again at `next`; what is to be done with it
    /// otherwise.
    ///
    /// # Errors
    /// [`Overdue`]
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
        let lags = self.outbox.buffered() > MAX_OUTBOX_LASTING;
        let lagged = std::mem::replace(&mut self.lagging, u8::from(lags));
        let taken = usize::from(lagged.saturating_sub(1)) * LAG_UNIT;
        if lags && lagged > 0 && taken < MAX_OUTBOX_LASTING {
            return Err(Overdue::Lagging);
        }
        self.unanswered_pings += 1;
        self.due = next;
        Ok(())
    }

    /// The peer is alive.
    pub fn heard(&mut self) {
        self.unanswered_pings = 0;
    }

    /// A message was completed.
    pub fn completed(&mut self) {
        self.incomplete_pings = 0;
    }

    /// Counts frames that were received; false if there are too many in this second.
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

    /// Adds up anew what it holds beyond what an idle connection costs, in bytes, and corrects the
    /// `total` of all connections.
    pub fn update_buffered(&mut self, total: &mut usize) {
        let incomplete = match &self.phase {
            Phase::Upgrading(upgrading) => upgrading.bytes.capacity(),
            Phase::Open(reader) | Phase::Closing(reader) => reader.buffered(),
            Phase::Finishing | Phase::Draining | Phase::Ended => 0,
        };
        let held = u32::try_from(incomplete + self.outbox.buffered()).unwrap_or(u32::MAX);
        *total = *total - self.held() + held as usize;
        self.held = held;
    }

    /// What it held when that was last added up.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// Whether there is TLS, begun or not.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Begins TLS, of which these bytes have arrived.
    ///
    /// # Errors
    /// If they are none of TLS's.
    pub fn begin_tls(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.begin_tls(bytes)
    }

    /// Reads what is there; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing for now; all others are final.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Whether there may be more after a read of this length into a buffer of that one. What comes
    /// later is reported anew; of the end of TCP the kernel has reported already, if it `ended`.
    #[must_use]
    pub fn may_have_more(&self, length: usize, buffer: usize, ended: bool) -> bool {
        length == buffer || ended || !self.stream.tells_all()
    }

    /// Writes what waits, unless the kernel has said that it takes no more. Also returns how many
    /// bytes of the outbox were written.
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

    /// The kernel takes more. Whether there is anything to be written.
    pub fn unblock(&mut self) -> bool {
        self.blocked = false;
        self.has_output()
    }

    /// Whether [`write`](Self::write) has something to do.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() || self.stream.wants_write()
    }

    /// Everything is written. If that was the last, the peer is told so.
    pub fn written(&mut self) {
        self.lagging = 0;
        if matches!(self.phase, Phase::Finishing) {
            self.stream.finish();
            self.phase = Phase::Draining;
        }
    }

    /// Whether it is over, but for freeing it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }
}

impl Upgrading {
    /// Of a connection from `peer`.
    #[must_use]
    pub fn new(peer: IpAddr, introduction: bool, over_limit: bool) -> Self {
        Self { peer: Some(peer), introduction, over_limit, ..Self::default() }
    }

    /// Takes the next bytes. Whether it is worth parsing: at the first bytes, at the blank line,
    /// and whenever the length has doubled, so that a peer that sends byte by byte costs no more
    /// than one that sends all at once.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        // The blank line may have begun before.
        let from = self.bytes.len().saturating_sub(2);
        self.bytes.extend_from_slice(bytes);
        let new = self.bytes.get(from..).unwrap_or_default();
        let blank = new.windows(2).any(|pair| pair == b"\n\n")
            || new.windows(3).any(|triple| triple == b"\n\r\n");
        let worth = blank || self.bytes.len() >= (2 * self.parsed).min(MAX_HEAD);
        if worth {
            self.parsed = self.bytes.len();
        }
        worth
    }

    /// What has arrived.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The proxy's header is complete: what has arrived after it.
    pub fn introduced(&mut self, length: usize) -> Vec<u8> {
        self.introduction = false;
        self.parsed = 0;
        let rest = self.bytes.get(length..).unwrap_or_default().to_vec();
        self.bytes = Vec::new();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parses(request: &[u8], step: usize) -> (usize, bool) {
        let mut upgrading = Upgrading::default();
        let mut worth = Vec::new();
        for piece in request.chunks(step) {
            worth.push(upgrading.feed(piece));
        }
        assert_eq!(upgrading.bytes(), request);
        (worth.iter().filter(|worth| **worth).count(), *worth.last().unwrap())
    }

    #[test]
    fn a_request_is_parsed_when_it_is_complete_and_rarely_before() {
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
