//! All connections of browsers, with the lists and sums that have to agree with them.

use std::collections::VecDeque;
use std::io;

use mio::Registry;
use slab::Slab;

use super::connection::Connection;
use super::stream::{Stream, Written};
use super::token::EventSource;
use crate::engine::backpressure::Backpressure;
use crate::engine::connection::{Connection as State, Handshake, Phase};
use crate::engine::id::ConnId;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::outbox::Full;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::engine::timers::Timers;

/// The connections. An id is valid until [`free`](Self::free) after its connection has ended; each
/// method ignores an id that is no longer valid.
#[derive(Default)]
pub(crate) struct Connections {
    slab: Slab<Connection>,
    /// The serial number of the latest id.
    serial: u32,
    /// Bytes that connections buffer beyond the cost of an idle one.
    buffered: usize,
    timers: Timers,
    /// Connections with output that the kernel does not accept yet.
    backpressure: Backpressure,
    /// Connections with output to write.
    dirty: VecDeque<ConnId>,
    /// Connections with more input than one turn reads.
    unread: VecDeque<ConnId>,
    /// Slots of ended connections.
    ended: Vec<usize>,
}

/// Capacity in connections below which freed memory is not worth returning to the kernel.
const FEW: usize = 64;

impl Connections {
    /// Adds a connection just accepted.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn open(
        &mut self,
        stream: Stream,
        handshake: Handshake,
        now: Time,
        registry: &Registry,
    ) -> io::Result<ConnId> {
        let entry = self.slab.vacant_entry();
        let slot = entry.key();
        let narrow = u32::try_from(slot).map_err(io::Error::other)?;
        self.serial = self.serial.wrapping_add(1);
        let id = ConnId::new(narrow, self.serial);
        let mut conn = Connection::new(State::new(id, handshake, now), stream);
        conn.register(registry, EventSource::Connection(slot).token())?;
        entry.insert(conn);
        self.arm(id, None);
        Ok(id)
    }

    /// A connection that has not ended.
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Connection> {
        find(&mut self.slab, id).filter(|conn| conn.state.phase() != Phase::Ended)
    }

    /// The state of a connection that has not ended.
    pub(crate) fn state(&mut self, id: ConnId) -> Option<&mut State> {
        self.get(id).map(|conn| &mut conn.state)
    }

    /// The id of the connection in a slot.
    pub(crate) fn id(&self, slot: usize) -> Option<ConnId> {
        self.slab.get(slot).map(Connection::id)
    }

    /// All connections, including ended ones that are not freed yet.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> + Clone {
        self.slab.iter().map(|(_, conn)| conn)
    }

    /// The number of slots in use.
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Bytes that connections buffer beyond the cost of an idle one.
    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Recalculates a connection's buffered bytes. To be called after each change.
    pub(crate) fn update_buffered(&mut self, id: ConnId) {
        if let Some(conn) = find(&mut self.slab, id) {
            conn.update_buffered(&mut self.buffered);
        }
    }

    /// Queues a frame for a connection that is open, and schedules its writing.
    ///
    /// # Errors
    /// If the outbound queue is full.
    pub(crate) fn send(&mut self, id: ConnId, frame: SharedFrame) -> Result<(), Full> {
        let Some(conn) = find(&mut self.slab, id) else { return Ok(()) };
        conn.state.send(frame)?;
        conn.update_buffered(&mut self.buffered);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push_back(id);
        }
        Ok(())
    }

    /// Schedules the writing of a connection if it has output.
    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.get(id)
            && !conn.dirty
            && conn.has_output()
        {
            conn.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Whether a connection has output that was not offered to the kernel yet.
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The next connection to write, which is no longer scheduled.
    pub(crate) fn next_dirty(&mut self) -> Option<ConnId> {
        while let Some(id) = self.dirty.pop_front() {
            if let Some(conn) = self.get(id) {
                conn.dirty = false;
                return Some(id);
            }
        }
        // Free the memory used by a broadcast to thousands.
        self.dirty.shrink_to(FEW);
        None
    }

    /// Writes the output of a connection.
    ///
    /// # Errors
    /// All are final.
    pub(crate) fn write(&mut self, id: ConnId, now: Time) -> io::Result<()> {
        let Some(conn) = self.get(id) else { return Ok(()) };
        let written = conn.write();
        let waiting = conn.state.outbox().buffered();
        match written? {
            (Written::All, _) => self.backpressure.remove(id),
            // Only TLS has output left.
            (Written::Blocked, _) if waiting == 0 => self.backpressure.remove(id),
            (Written::Blocked, taken) => self.backpressure.blocked(id, waiting, taken, now),
        }
        self.update_buffered(id);
        Ok(())
    }

    /// Until when messages wait in libzmq because connections that keep reading have a backlog.
    pub(crate) fn backpressure_until(&self, now: Time, memory_is_short: bool) -> Option<Time> {
        self.backpressure.until(now, memory_is_short)
    }

    /// Whether a connection has queued output and has kept pace so far.
    pub(crate) fn keeps_pace(&self, id: ConnId, now: Time) -> bool {
        self.backpressure.keeps_pace(id, now)
    }

    /// Schedules further reading of a connection in the next turn.
    pub(crate) fn schedule_read(&mut self, id: ConnId) {
        if let Some(conn) = self.get(id)
            && !conn.unread
        {
            conn.unread = true;
            self.unread.push_back(id);
        }
    }

    /// The number of connections that are scheduled for reading.
    pub(crate) fn unread(&self) -> usize {
        self.unread.len()
    }

    /// The next connection to read, which is no longer scheduled.
    pub(crate) fn next_unread(&mut self) -> Option<ConnId> {
        let id = self.unread.pop_front()?;
        let conn = self.get(id)?;
        conn.unread = false;
        Some(id)
    }

    /// Sets a connection's timer to its deadline or next ping, or to `latest` if that is earlier.
    pub(crate) fn arm(&mut self, id: ConnId, latest: Option<Time>) {
        if let Some(conn) = find(&mut self.slab, id) {
            conn.arm(&mut self.timers, latest);
        }
    }

    /// When [`take_due`](Self::take_due) has something to return.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.timers.next_due()
    }

    /// The connections whose timers have fired.
    pub(crate) fn take_due(&mut self, now: Time) -> Vec<ConnId> {
        let mut due = Vec::new();
        self.timers.take_due(now, &mut due);
        due.retain(|id| self.get(*id).is_some_and(|conn| conn.disarm(now)));
        due
    }

    /// Ends a connection and returns its state. It is freed at the end of the turn. `None` if it had
    /// ended before.
    pub(crate) fn end(&mut self, id: ConnId, reason: End) -> Option<&mut State> {
        self.state(id)?.end(reason);
        self.backpressure.remove(id);
        self.ended.push(id.slot());
        self.update_buffered(id);
        find(&mut self.slab, id).map(|conn| &mut conn.state)
    }

    /// Frees the slots of ended connections, which events of the same turn may have referred to.
    /// Returns their number.
    pub(crate) fn free(&mut self) -> usize {
        let count = self.ended.len();
        for slot in self.ended.drain(..) {
            self.slab.try_remove(slot);
        }
        count
    }

    /// Whether there are no connections, but memory of many.
    pub(crate) fn has_spare_memory(&self) -> bool {
        self.slab.is_empty() && self.slab.capacity() > FEW
    }

    /// Releases memory that was needed for more connections.
    pub(crate) fn shrink(&mut self) {
        self.slab.shrink_to_fit();
        self.unread.shrink_to(FEW);
        self.dirty.shrink_to(FEW);
        self.ended.shrink_to(FEW);
    }

    /// Closes all connections.
    pub(crate) fn clear(&mut self) {
        self.slab.clear();
    }
}

/// The connection with this id: the one place that compares serial numbers.
fn find(slab: &mut Slab<Connection>, id: ConnId) -> Option<&mut Connection> {
    slab.get_mut(id.slot()).filter(|conn| conn.id() == id)
}

#[cfg(test)]
impl Connections {
    /// Whether no connection waits to be freed.
    pub(crate) fn is_settled(&self) -> bool {
        self.ended.is_empty()
    }

    /// Whether all timers have fired by then. They are gone afterwards.
    pub(crate) fn has_no_timers_after(&mut self, now: Time) -> bool {
        self.take_due(now);
        self.timers.is_empty()
    }

    /// Checks that lists and sums agree with the connections.
    pub(crate) fn check_invariants(&mut self) {
        use std::collections::BTreeSet;

        fn set<T: Ord>(items: impl Iterator<Item = T>) -> BTreeSet<T> {
            let mut set = BTreeSet::new();
            for item in items {
                assert!(set.insert(item), "twice in a list");
            }
            set
        }
        let dirty = set(self.dirty.iter().copied());
        let unread = set(self.unread.iter().copied());
        let ended = set(self.ended.iter().copied());
        let mut buffered = 0;
        for (slot, conn) in &mut self.slab {
            conn.state.check_invariants();
            assert_eq!(conn.id().slot(), slot);
            let has_ended = conn.state.phase() == Phase::Ended;
            assert_eq!(ended.contains(&slot), has_ended, "{slot} is to be freed");
            if !has_ended {
                assert_eq!(dirty.contains(&conn.id()), conn.dirty, "{slot} is to be written");
                assert_eq!(unread.contains(&conn.id()), conn.unread, "{slot} is to be read on");
            }
            let before = conn.buffered();
            buffered += before;
            conn.update_buffered(&mut buffered);
            assert_eq!(before, conn.buffered(), "buffered bytes of {slot}");
        }
        assert_eq!(self.buffered, buffered);
        for id in self.backpressure.waiting() {
            let conn = self.slab.get(id.slot()).filter(|conn| conn.id() == id);
            assert!(conn.is_some_and(|conn| !conn.state.outbox().is_empty()), "{id} does not wait");
        }
        assert!(ended.iter().all(|slot| self.slab.contains(*slot)));
        if self.slab.is_empty() {
            assert!(self.backpressure.is_empty());
        }
    }
}
