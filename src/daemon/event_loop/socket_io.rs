//! Moving bytes between sockets and connections, and the end of connections.

use std::io;
use std::time::Duration;

use log::{info, warn};

use super::Server;
use super::bursts::Cause;
use crate::daemon::connection::{Connection, Overdue, Phase};
use crate::daemon::stream::Written;
use crate::engine::id::ConnId;
use crate::engine::limits::{MAX_BUFFERED_AT_PACE, MAX_OUTBOX};
use crate::engine::printable::plural;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::Size;

/// Times that one connection is read in a turn, [`SCRATCH`](super::SCRATCH) bytes each.
const READS: usize = 4;

/// Connections flushed in one turn: after a broadcast to thousands, others are heard in between.
const FLUSHES: usize = 4_096;

/// Until delayed subscriptions are tried again.
const RESUME: Duration = Duration::from_secs(1);

/// After connections that keep pace were found to hold more than all may, before that is looked at
/// again.
const SHED_PAUSE: Duration = Duration::from_millis(100);

/// Connections whose memory is not worth being given back when the last of them has gone.
const FEW: usize = 64;

impl Server {
    /// The connection of this name, unless it has ended.
    pub(super) fn conn(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.conns.get_mut(id.slot()).filter(|conn| conn.id == id && !conn.has_ended())
    }

    /// Has a connection flushed, if it has something to be written.
    pub(super) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !conn.dirty
            && conn.has_output()
        {
            conn.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Writes what waits, for up to this turn's budget of connections.
    pub(super) fn flush(&mut self) {
        for _ in 0..FLUSHES {
            let Some(id) = self.dirty.pop_front() else {
                // After a broadcast to thousands its memory is given back.
                return self.dirty.shrink_to(64);
            };
            if let Some(conn) = self.conn(id) {
                conn.dirty = false;
                self.flush_one(id);
            }
        }
    }

    /// Writes what waits for one connection.
    pub(super) fn flush_one(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let written = conn.write();
        let waiting = conn.outbox.buffered();
        match written {
            Ok((Written::All, _)) => {
                conn.written();
                self.backpressure.remove(id);
            }
            // Only TLS has something to write, of its own.
            Ok((Written::Blocked, _)) if waiting == 0 => self.backpressure.remove(id),
            Ok((Written::Blocked, taken)) => {
                self.backpressure.blocked(id, waiting, taken, self.now);
            }
            Err(_) => return self.end(id, End::PeerClosed),
        }
        self.update_buffered(id);
    }

    /// Adds up anew what a connection holds: after anything that may have changed it.
    pub(super) fn update_buffered(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id.slot()).filter(|conn| conn.id == id) {
            conn.update_buffered(&mut self.held);
        }
    }

    /// Until when messages wait in libzmq, since connections that read have a backlog.
    pub(super) fn held_back_until(&self) -> Option<Time> {
        self.backpressure.until(self.now, self.memory_is_short())
    }

    /// Whether connections together hold more than half of what they may.
    pub(super) fn memory_is_short(&self) -> bool {
        self.held + self.hub.buffered() > self.settings.max_buffered.value / 2
    }

    /// Keeps memory within its limit: ends those who hold the most, until a quarter is free.
    pub(super) fn evict_largest(&mut self) {
        let limit = self.settings.max_buffered.value;
        let is_over = |server: &Self| server.held + server.hub.buffered() > limit;
        if !is_over(self) || self.now < self.next_shed {
            return;
        }
        // What was not yet offered to the kernel does not make a slow reader.
        while !self.dirty.is_empty() {
            self.flush();
        }
        if !is_over(self) {
            return;
        }
        let mut held = self.held + self.hub.buffered();
        let holders = self.conns.iter().map(|(_, conn)| {
            let output = conn.outbox.buffered();
            (conn.held() + self.hub.buffered_by(conn.id), output, conn.id)
        });
        let mut holders: Vec<_> = holders
            .filter(|(holds, output, id)| {
                let is_usual = holds.saturating_sub(*output) <= MAX_BUFFERED_AT_PACE;
                *holds > 0 && !(is_usual && self.backpressure.keeps_pace(*id, self.now))
            })
            .map(|(holds, _, id)| (holds, id))
            .collect();
        holders.sort_unstable();
        while held > limit / 4 * 3
            && let Some((holds, id)) = holders.pop()
        {
            held -= holds;
            if self.bursts.begins(Cause::Memory, self.now) {
                let user = self.hub.user(id).unwrap_or("(not yet logged in)").to_owned();
                warn!(
                    "Connections together hold more than {} of what is incomplete or waits to be \
                     written. Those that hold the most are disconnected, first one of user {user} \
                     with {}. Raise max_buffered if this is said often.",
                    Size::bytes(limit),
                    plural(holds as u64, "byte", "bytes")
                );
            }
            self.end(id, End::Memory);
        }
        if is_over(self) {
            // The rest keep pace. To look again at each read would cost too much.
            self.next_shed = self.now.after(SHED_PAUSE);
        }
    }

    /// Frees the slots of connections that have ended. Not earlier: until a turn is over, events
    /// may name them.
    pub(super) fn free(&mut self) {
        if !self.ended.is_empty() {
            // A descriptor may be what accepting waits for.
            self.accepting.resume();
        }
        for slot in self.ended.drain(..) {
            self.conns.try_remove(slot);
        }
        if self.conns.is_empty() && self.conns.capacity() > FEW {
            self.conns.shrink_to_fit();
            sys::trim_heap();
        }
    }

    /// Gives memory back that is no longer needed, some seconds after the load has fallen.
    pub(super) fn trim_if_due(&mut self) {
        if self.trim.take_due(self.now, self.accounted()) {
            self.conns.shrink_to_fit();
            self.check_queue.shrink();
            self.unread.shrink_to(FEW);
            self.dirty.shrink_to(FEW);
            self.ended.shrink_to(FEW);
            sys::trim_heap();
        }
    }

    /// Reads a connection, up to this turn's budget. `ended`: the peer will send nothing more.
    pub(super) fn read(&mut self, id: ConnId, ended: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let more = (0..READS).all(|_| self.read_once(id, ended, &mut scratch));
        self.scratch = scratch;
        self.update_buffered(id);
        self.evict_largest();
        // An answer, or the TLS handshake's part.
        self.mark_dirty(id);
        if more {
            self.read_later(id);
        }
    }

    /// Has a connection read on in the next turn.
    pub(super) fn read_later(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !conn.unread
        {
            conn.unread = true;
            self.unread.push_back(id);
        }
    }

    /// Reads on what an earlier turn has not finished.
    pub(super) fn read_on(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.unread = false;
            // It may have ended when that was reported.
            self.read(id, true);
        }
    }

    /// Whether there may be more.
    fn read_once(&mut self, id: ConnId, ended: bool, scratch: &mut [u8]) -> bool {
        let Some(conn) = self.conn(id) else { return false };
        match conn.read(scratch) {
            Ok(0) => {
                // Who says nothing more may still listen.
                self.flush_one(id);
                self.end(id, End::PeerClosed);
            }
            Ok(length) => {
                let more = conn.may_have_more(length, scratch.len(), ended);
                self.receive(id, scratch.get(..length).unwrap_or_default());
                return more;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.count_end(id, End::Tls);
                    self.no_tls(&error);
                }
                self.end(id, End::PeerClosed);
            }
        }
        false
    }

    fn receive(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conn(id) else { return };
        conn.heard();
        match &mut conn.phase {
            Phase::Upgrading(_) => self.receive_request(id, bytes),
            Phase::Open(_) | Phase::Closing(_) => self.receive_frames(id, bytes),
            Phase::Finishing | Phase::Draining | Phase::Ended => {}
        }
    }

    /// Looks at the connections whose time has come.
    pub(super) fn expire_conns(&mut self) {
        let mut fired = Vec::new();
        self.timers.take_due(self.now, &mut fired);
        for id in fired {
            let now = self.now;
            let next_ping = now.after(self.settings.ping_interval.value);
            let Some(conn) = self.conn(id) else { continue };
            if !conn.disarm(now) {
                continue;
            }
            if conn.due <= now {
                match conn.ping(next_ping) {
                    Ok(()) => self.send(id, self.ping.clone()),
                    // Without a Close frame: a browser that was only asleep comes back.
                    Err(why @ (Overdue::Deadline | Overdue::Lost | Overdue::Incomplete)) => {
                        self.end(
                            id,
                            match why {
                                Overdue::Lost => End::PingTimeout,
                                Overdue::Incomplete => End::Incomplete,
                                _ => End::HandshakeTimeout,
                            },
                        );
                        continue;
                    }
                    Err(Overdue::Lagging) => {
                        self.too_slow(id);
                        continue;
                    }
                }
            }
            self.hub.recheck(now, id);
            self.resume_subscriptions(id);
            self.arm(id);
        }
    }

    /// Sets a deadline after which a connection is ended.
    pub(super) fn limit(&mut self, id: ConnId, after: Duration) {
        let due = self.now.after(after);
        if let Some(conn) = self.conn(id) {
            conn.due = due;
            self.arm(id);
        }
    }

    /// Sets a connection's timer: for its deadline or next ping, its next recheck, or another attempt at
    /// its delayed subscriptions, whichever comes first.
    pub(super) fn arm(&mut self, id: ConnId) {
        let resume = self.hub.has_delayed(id).then(|| self.now.after(RESUME));
        let latest = [self.hub.next_recheck(id), resume].into_iter().flatten().min();
        let conn = self.conns.get_mut(id.slot()).filter(|conn| conn.id == id && !conn.has_ended());
        if let Some(conn) = conn {
            conn.arm(&mut self.timers, latest);
        }
    }

    /// Counts why a connection is refused or ends, unless that is known already.
    pub(super) fn count_end(&mut self, id: ConnId, why: End) {
        let conn = self.conns.get_mut(id.slot()).filter(|conn| conn.id == id);
        if let Some(conn) = conn
            && !std::mem::replace(&mut conn.counted, true)
        {
            self.stats.end(why);
        }
    }

    /// Ends TCP, without a Close frame.
    pub(super) fn end(&mut self, id: ConnId, why: End) {
        if self.conn(id).is_some() {
            self.count_end(id, why);
        }
        if let Some(conn) = self.conn(id) {
            conn.phase = Phase::Ended;
            conn.outbox.clear();
            self.backpressure.remove(id);
            self.ended.push(id.slot());
            self.update_buffered(id);
            self.end_handshake(id);
            self.leave(id);
            self.hub.close(id);
        }
    }

    /// A reader that cannot keep up is ended; its tab comes back.
    pub(super) fn too_slow(&mut self, id: ConnId) {
        let waiting = self.conn(id).map_or(0, |conn| conn.outbox.bytes());
        if self.bursts.begins(Cause::Slow, self.now) {
            warn!(
                "A browser could not keep up with what it was sent: {waiting} bytes waited for it, \
                 of at most {MAX_OUTBOX}. It was disconnected and will come back."
            );
        }
        self.end(id, End::Slow);
    }

    pub(super) fn no_tls(&mut self, error: &io::Error) {
        if self.bursts.begins(Cause::Tls, self.now) {
            info!(
                "A TLS handshake failed: {error}. If browsers cannot connect: the port speaks TLS, \
                 so the address must begin with wss://, and the certificate must be valid for the \
                 site's name."
            );
        }
    }
}
