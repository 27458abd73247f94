//! Moving bytes between sockets and connections, and the end of connections.

use std::io;
use std::time::Duration;

use log::{info, warn};

use super::Server;
use super::log_limiter::Cause;
use crate::engine::connection::{Connection as State, Input};
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_OUTBOX;
use crate::engine::memory::Usage;
use crate::engine::printable::plural;
use crate::engine::protocol::outbox::Full;
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

impl Server {
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

    /// Bytes that all connections buffer: partial input, queued output, subscriptions, prefixes.
    pub(super) fn buffered(&self) -> usize {
        self.conns.buffered() + self.hub.buffered()
    }

    /// Whether buffered bytes exceed half of the limit.
    pub(super) fn memory_is_short(&self) -> bool {
        self.memory.is_short(self.buffered())
    }

    /// Enforces the limit of buffered bytes: ends the largest connections until a quarter is free.
    pub(super) fn evict_largest(&mut self) {
        if !self.memory.is_exceeded(self.now, self.buffered()) {
            return;
        }
        // Output that was not yet offered to the kernel does not count as slow reading.
        while self.conns.has_dirty() {
            self.flush();
        }
        let buffered = self.buffered();
        let usage = self.conns.iter().map(|conn| Usage {
            id: conn.id(),
            total: conn.buffered() + self.hub.buffered_by(conn.id()),
            output: conn.state.outbox().buffered(),
        });
        let keeps_pace = |id| self.conns.keeps_pace(id, self.now);
        for Usage { id, total, .. } in self.memory.evict(self.now, buffered, usage, keeps_pace) {
            if self.log_limiter.should_log(Cause::Memory, self.now) {
                let user = self.hub.user(id).unwrap_or("(not yet logged in)").to_owned();
                warn!(
                    "Connections buffer more than {} of partial input and queued output. The \
                     largest are ended, first one of user {user} with {}; browsers will retry. \
                     Raise max_buffered if this is logged often.",
                    Size::bytes(self.settings.max_buffered.value),
                    plural(total as u64, "byte", "bytes")
                );
            }
            self.end(id, End::Memory);
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
        if self.memory.take_trim(self.now, self.accounted()) {
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
        // Answers, or output of the TLS handshake.
        self.conns.mark_dirty(id);
        self.evict_largest();
        if more {
            self.conns.schedule_read(id);
        }
    }

    /// Reads once; returns whether more input may be available.
    fn read_once(&mut self, id: ConnId, ended: bool, scratch: &mut [u8]) -> bool {
        let Some(conn) = self.conns.get(id) else { return false };
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
                    self.log_tls_failure(&error);
                    self.end(id, End::Tls);
                } else {
                    self.end(id, End::PeerClosed);
                }
            }
        }
        false
    }

    /// Processes bytes that were read.
    pub(super) fn receive(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.state(id) else { return };
        match conn.handle_input(self.now, bytes, &mut self.incoming) {
            Ok(Input::Nothing) => {}
            Ok(Input::ProxyHeader(client, rest)) => self.receive_proxy_header(id, client, &rest),
            Ok(Input::InvalidProxyHeader) => self.reject_proxy_header(id),
            Ok(Input::Request(request)) => self.receive_request(id, request),
            Ok(Input::Frames) => self.receive_frames(id),
            Ok(Input::Flood) => self.closed_for_flood(id),
            Err(Full) => self.end_slow(id),
        }
    }

    /// Handles connections with expired timers.
    pub(super) fn expire_conns(&mut self) {
        let now = self.now;
        for id in self.conns.take_due(now) {
            let Some(conn) = self.conns.state(id) else { continue };
            match conn.handle_timeout(now, self.settings.ping_interval.value, &self.ping) {
                Ok(()) => {
                    self.conns.update_buffered(id);
                    self.conns.mark_dirty(id);
                }
                Err(End::Slow) => {
                    self.end_slow(id);
                    continue;
                }
                Err(reason) => {
                    self.end(id, reason);
                    continue;
                }
            }
            self.hub.recheck(now, id);
            self.resume_subscriptions(id);
            self.arm(id);
        }
    }

    /// Completes a change of a connection's phase: schedules its output, sets its timer, and counts
    /// the reason for its end.
    pub(super) fn phase_changed(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(id) {
            conn.finish_if_written();
            self.conns.update_buffered(id);
            self.conns.mark_dirty(id);
            self.count_end(id);
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

    /// Counts the reason for a connection's rejection or end, if it is known now.
    pub(super) fn count_end(&mut self, id: ConnId) {
        if let Some(reason) = self.conns.state(id).and_then(State::poll_end) {
            self.telemetry.stats.end(reason);
        }
    }

    /// Ends a connection without a Close frame.
    pub(super) fn end(&mut self, id: ConnId, reason: End) {
        let Some(conn) = self.conns.end(id, reason) else { return };
        self.admission.end(conn);
        if let Some(reason) = conn.poll_end() {
            self.telemetry.stats.end(reason);
        }
        self.hub.close(id);
    }

    /// Ends the connection of a slow reader; its browser reconnects.
    pub(super) fn end_slow(&mut self, id: ConnId) {
        let waiting = self.conns.state(id).map_or(0, |conn| conn.outbox().bytes());
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
