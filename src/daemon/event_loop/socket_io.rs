//! Moving bytes between sockets and connections, and the end of connections.

use std::io;
use std::time::Duration;

use log::{info, warn};

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::connection::{Connection, Overdue, Phase};
use crate::engine::id::ConnId;
use crate::engine::limits::{MAX_BUFFERED_AT_PACE, MAX_OUTBOX};
use crate::engine::printable::plural;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::Size;

/// Reads per connection in one turn, [`SCRATCH`](super::SCRATCH) bytes each.
const READS: usize = 4;

/// Connections flushed in one turn, so that a broadcast to thousands does not delay input.
const FLUSHES: usize = 4_096;

/// Delay before delayed subscriptions are retried.
const RESUME: Duration = Duration::from_secs(1);

/// Pause between evictions when connections that keep pace exceed the limit.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// The connection with this id, unless it has ended.
    pub(super) fn conn(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.conns.get(id)
    }

    /// Writes the output of scheduled connections, up to this turn's budget.
    pub(super) fn flush(&mut self) {
        for _ in 0..FLUSHES {
            let Some(id) = self.conns.next_dirty() else { return };
            self.flush_one(id);
        }
    }

    /// Writes the output of one connection.
    pub(super) fn flush_one(&mut self, id: ConnId) {
        if self.conns.write(id, self.now).is_err() {
            self.end(id, End::PeerClosed);
        }
    }

    /// Until when messages wait in libzmq because connections that keep reading have a backlog.
    pub(super) fn backpressure_until(&self) -> Option<Time> {
        self.conns.backpressure_until(self.now, self.memory_is_short())
    }

    /// Whether buffered bytes exceed half of the limit.
    pub(super) fn memory_is_short(&self) -> bool {
        self.conns.buffered() + self.hub.buffered() > self.settings.max_buffered.value / 2
    }

    /// Enforces the limit of buffered bytes: ends the largest connections until a quarter is free.
    pub(super) fn evict_largest(&mut self) {
        let limit = self.settings.max_buffered.value;
        let is_over = |server: &Self| server.conns.buffered() + server.hub.buffered() > limit;
        if !is_over(self) || self.now < self.next_eviction {
            return;
        }
        // Output that was not yet offered to the kernel does not count as slow reading.
        while self.conns.has_dirty() {
            self.flush();
        }
        if !is_over(self) {
            return;
        }
        let mut total = self.conns.buffered() + self.hub.buffered();
        let sizes = self.conns.iter().map(|conn| {
            let output = conn.outbox.buffered();
            (conn.buffered() + self.hub.buffered_by(conn.id), output, conn.id)
        });
        let mut candidates: Vec<_> = sizes
            .filter(|(size, output, id)| {
                let is_usual = size.saturating_sub(*output) <= MAX_BUFFERED_AT_PACE;
                *size > 0 && !(is_usual && self.conns.keeps_pace(*id, self.now))
            })
            .map(|(size, _, id)| (size, id))
            .collect();
        candidates.sort_unstable();
        while total > limit / 4 * 3
            && let Some((size, id)) = candidates.pop()
        {
            total -= size;
            if self.log_limiter.should_log(Cause::Memory, self.now) {
                let user = self.hub.user(id).unwrap_or("(not yet logged in)").to_owned();
                warn!(
                    "Connections buffer more than {} of partial input and queued output. The \
                     largest are ended, first one of user {user} with {}; browsers will retry. \
                     Raise max_buffered if this is logged often.",
                    Size::bytes(limit),
                    plural(size as u64, "byte", "bytes")
                );
            }
            self.end(id, End::Memory);
        }
        if is_over(self) {
            // The others keep pace. Repeating this at each read would cost too much.
            self.next_eviction = self.now.after(EVICTION_PAUSE);
        }
    }

    /// Frees the slots of ended connections at the end of a turn, since events of the same turn may
    /// refer to them.
    pub(super) fn free(&mut self) {
        if self.conns.free() > 0 {
            // Accepting may be paused for lack of descriptors.
            self.accepting.resume();
        }
        if self.conns.has_spare_memory() {
            self.conns.shrink();
            sys::trim_heap();
        }
    }

    /// Returns unused memory to the kernel some seconds after the load has dropped.
    pub(super) fn trim_if_due(&mut self) {
        if self.trim.take_due(self.now, self.accounted()) {
            self.conns.shrink();
            self.checks.shrink();
            sys::trim_heap();
        }
    }

    /// Reads a connection, up to this turn's budget. `ended`: the kernel has reported the end of
    /// input.
    pub(super) fn read(&mut self, id: ConnId, ended: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let more = (0..READS).all(|_| self.read_once(id, ended, &mut scratch));
        self.scratch = scratch;
        self.conns.update_buffered(id);
        self.evict_largest();
        // Answers, or output of the TLS handshake.
        self.conns.mark_dirty(id);
        if more {
            self.conns.schedule_read(id);
        }
    }

    /// Reads once; returns whether more input may be available.
    fn read_once(&mut self, id: ConnId, ended: bool, scratch: &mut [u8]) -> bool {
        let Some(conn) = self.conn(id) else { return false };
        match conn.read(scratch) {
            Ok(0) => {
                // A peer that has shut down its side may still read.
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
                    self.log_tls_failure(&error);
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

    /// Handles connections with expired timers.
    pub(super) fn expire_conns(&mut self) {
        let now = self.now;
        for id in self.conns.take_due(now) {
            let next_ping = now.after(self.settings.ping_interval.value);
            let Some(conn) = self.conn(id) else { continue };
            if conn.due <= now {
                match conn.ping(next_ping) {
                    Ok(()) => self.send(id, self.ping.clone()),
                    // Without a Close frame, so that a browser that was suspended reconnects.
                    Err(reason @ (Overdue::Deadline | Overdue::Lost | Overdue::Incomplete)) => {
                        self.end(
                            id,
                            match reason {
                                Overdue::Lost => End::PingTimeout,
                                Overdue::Incomplete => End::Incomplete,
                                _ => End::HandshakeTimeout,
                            },
                        );
                        continue;
                    }
                    Err(Overdue::Lagging) => {
                        self.end_slow(id);
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
    pub(super) fn set_deadline(&mut self, id: ConnId, after: Duration) {
        let due = self.now.after(after);
        if let Some(conn) = self.conn(id) {
            conn.due = due;
            self.arm(id);
        }
    }

    /// Sets a connection's timer to the earliest of its deadline or next ping, its next recheck,
    /// and the next retry of its delayed subscriptions.
    pub(super) fn arm(&mut self, id: ConnId) {
        let resume = self.hub.has_delayed(id).then(|| self.now.after(RESUME));
        let latest = [self.hub.next_recheck(id), resume].into_iter().flatten().min();
        self.conns.arm(id, latest);
    }

    /// Counts the reason for a connection's rejection or end. Only the first reason counts.
    pub(super) fn count_end(&mut self, id: ConnId, reason: End) {
        if self.conns.count_once(id) {
            self.stats.end(reason);
        }
    }

    /// Ends a connection without a Close frame.
    pub(super) fn end(&mut self, id: ConnId, reason: End) {
        if self.conn(id).is_some() {
            self.count_end(id, reason);
        }
        if self.conns.end(id) {
            self.end_handshake(id);
            self.hub.close(id);
        }
    }

    /// Ends the connection of a slow reader; its browser reconnects.
    pub(super) fn end_slow(&mut self, id: ConnId) {
        let waiting = self.conn(id).map_or(0, |conn| conn.outbox.bytes());
        if self.log_limiter.should_log(Cause::Slow, self.now) {
            warn!(
                "A browser could not keep up: {waiting} bytes are queued for it, the limit is \
                 {MAX_OUTBOX}. Its connection was ended; the browser will retry."
            );
        }
        self.end(id, End::Slow);
    }

    pub(super) fn log_tls_failure(&mut self, error: &io::Error) {
        if self.log_limiter.should_log(Cause::Tls, self.now) {
            info!(
                "A TLS handshake failed: {error}. If browsers cannot connect, check that the \
                 address starts with wss://, since this port requires TLS, and that the \
                 certificate is valid for the site's name."
            );
        }
    }
}
