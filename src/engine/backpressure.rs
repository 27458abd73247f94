//! Back-pressure: delays EspoCRM's messages while connections that keep reading catch up.
//!
//! Messages that arrive faster than browsers read them can wait in two places: in libzmq, and in
//! the connections' outbound queues, whose limits close connections. So the daemon receives no
//! messages while a connection has a [backlog](MAX_BACKLOG) and reads at least [`PACE`] bytes in
//! each [`WINDOW`]. A connection that reads more slowly, or not at all, delays the others for at
//! most one window. After that it no longer counts here, and the limits of outbound queues apply.

use std::collections::BTreeMap;

use super::id::ConnId;
use super::limits::{MAX_BACKLOG, PACE, WINDOW};
use super::time::Time;

/// Connections with queued output that the kernel does not accept yet: 48 B each.
#[derive(Debug, Default)]
pub struct Backpressure(BTreeMap<ConnId, Progress>);

#[derive(Debug)]
struct Progress {
    /// More than [`MAX_BACKLOG`] was queued, and never less than half of it since.
    is_behind: bool,
    /// Bytes that the kernel has accepted in the current window.
    taken: usize,
    /// When the current window began.
    since: Time,
}

impl Backpressure {
    /// The kernel accepts no more bytes of a connection for now. It has just accepted `taken`;
    /// `waiting` bytes remain in the outbound queue.
    pub fn blocked(&mut self, id: ConnId, waiting: usize, taken: usize, now: Time) {
        let new = Progress { is_behind: false, taken: 0, since: now };
        let progress = self.0.entry(id).or_insert(new);
        progress.taken = progress.taken.saturating_add(taken);
        let falls_behind = !progress.is_behind && waiting > MAX_BACKLOG;
        if falls_behind || progress.taken >= PACE {
            (progress.taken, progress.since) = (0, now);
        }
        progress.is_behind = falls_behind || (progress.is_behind && waiting > MAX_BACKLOG / 2);
    }

    /// The connection's outbound queue is empty, or the connection has ended.
    pub fn remove(&mut self, id: ConnId) {
        // Usually there is no entry. An empty map keeps a node, which fragments released memory.
        if self.0.remove(&id).is_some() && self.0.is_empty() {
            self.0 = BTreeMap::new();
        }
    }

    /// Whether a connection has queued output and has kept pace so far.
    #[must_use]
    pub fn keeps_pace(&self, id: ConnId, now: Time) -> bool {
        self.0.get(&id).is_some_and(|progress| progress.end() > now)
    }

    /// Until when no messages may be received, unless there is progress before that. If
    /// `memory_is_low`, every connection that keeps pace counts, regardless of its backlog.
    #[must_use]
    pub fn until(&self, now: Time, memory_is_low: bool) -> Option<Time> {
        let counted = self.0.values().filter(|progress| memory_is_low || progress.is_behind);
        counted.map(Progress::end).filter(|end| *end > now).max()
    }

    /// Whether no connection waits for the kernel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connections that wait for the kernel.
    pub fn waiting(&self) -> impl Iterator<Item = ConnId> {
        self.0.keys().copied()
    }
}

impl Progress {
    /// When the connection will no longer keep pace, unless a new window begins before.
    fn end(&self) -> Time {
        self.since.after(WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnId = ConnId::new(0, 1);
    const B: ConnId = ConnId::new(1, 2);

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn window() -> u64 {
        WINDOW.as_millis() as u64
    }

    #[test]
    fn a_short_outbound_queue_delays_nothing() {
        let mut it = Backpressure::default();
        it.blocked(A, MAX_BACKLOG, 0, at(5));
        assert_eq!(it.until(at(5), false), None);
        // Unless memory is low.
        assert_eq!(it.until(at(5), true), Some(at(5 + window())));
        assert!(it.keeps_pace(A, at(5)) && !it.keeps_pace(B, at(5)));
    }

    #[test]
    fn a_reader_delays_messages_until_half_of_the_backlog_is_read() {
        let mut it = Backpressure::default();
        it.blocked(A, MAX_BACKLOG + 1, 0, at(0));
        it.blocked(A, MAX_BACKLOG, 1, at(1));
        it.blocked(A, MAX_BACKLOG / 2 + 1, 1_000, at(2));
        assert_eq!(it.until(at(2), false), Some(at(window())));
        it.blocked(A, MAX_BACKLOG / 2, 1, at(3));
        assert_eq!(it.until(at(3), false), None);
        it.remove(A);
        assert!(it.is_empty());
    }

    #[test]
    fn a_connection_that_does_not_read_delays_messages_for_one_window() {
        let mut it = Backpressure::default();
        it.blocked(A, MAX_BACKLOG + 1, 0, at(0));
        // Neither further output nor slow progress extends the window.
        for millis in 1..window() {
            it.blocked(A, MAX_BACKLOG + 1, 1, at(millis));
            assert!(it.until(at(millis), false).is_some());
        }
        assert_eq!(it.until(at(window()), false), None);
        assert_eq!(it.until(at(window()), true), None);
        assert!(!it.keeps_pace(A, at(window())));
    }

    #[test]
    fn a_steady_reader_delays_messages_as_long_as_needed() {
        let mut it = Backpressure::default();
        it.blocked(A, 100 * PACE, 0, at(0));
        for step in 1..=50 {
            let now = at(step * (window() - 1));
            assert!(it.until(now, false).is_some(), "{step}");
            it.blocked(A, 100 * PACE, PACE, now);
        }
    }

    #[test]
    fn each_backlog_has_its_own_window() {
        let mut it = Backpressure::default();
        it.blocked(A, 1, 0, at(0));
        let later = at(10 * window());
        assert!(!it.keeps_pace(A, later));
        it.blocked(A, MAX_BACKLOG + 1, 0, later);
        assert_eq!(it.until(later, false), Some(at(11 * window())));
    }

    #[test]
    fn a_stuck_reader_does_not_hide_another_that_reads() {
        let mut it = Backpressure::default();
        it.blocked(A, MAX_BACKLOG + 1, 0, at(0));
        it.blocked(B, MAX_BACKLOG + 1, 0, at(0));
        it.blocked(B, MAX_BACKLOG + 1, PACE, at(window() - 1));
        let end = at(2 * window() - 1);
        assert_eq!(it.until(at(window()), false), Some(end));
        assert_eq!(it.until(end, false), None);
    }
}
