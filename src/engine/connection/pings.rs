//! What the pings of a connection show: a lost peer, a message that stays incomplete, an outbound
//! queue that stays long.

use crate::engine::limits::{MAX_OUTBOX_LASTING, MAX_PINGS_WHILE_INCOMPLETE, MAX_UNANSWERED_PINGS};
use crate::engine::telemetry::stats::End;

#[derive(Debug, Default)]
pub(super) struct Pings {
    /// Pings sent since the peer last sent anything.
    unanswered: u8,
    /// Pings sent since no message was incomplete.
    incomplete: u8,
    /// Nonzero if more than [`MAX_OUTBOX_LASTING`] was queued at the last ping and the queue has
    /// not been empty since: 1 plus the number of [`LAG_UNIT`]s written since.
    lag: u8,
}

/// Unit for counting the progress of a lagging connection in bytes; each write is rounded down. The
/// kernel accepts more at a time.
const LAG_UNIT: usize = 8 * 1024;

impl Pings {
    /// Counts a ping of a connection that has `queued` bytes in its outbound queue.
    ///
    /// # Errors
    /// The reason if the connection is to be ended instead.
    pub(super) fn count(&mut self, has_incomplete: bool, queued: usize) -> Result<(), End> {
        if self.unanswered >= MAX_UNANSWERED_PINGS {
            return Err(End::PingTimeout);
        }
        if !has_incomplete {
            self.incomplete = 0;
        } else if self.incomplete >= MAX_PINGS_WHILE_INCOMPLETE {
            return Err(End::Incomplete);
        } else {
            self.incomplete += 1;
        }
        let lags = queued > MAX_OUTBOX_LASTING;
        let lagged = std::mem::replace(&mut self.lag, u8::from(lags));
        let taken = usize::from(lagged.saturating_sub(1)) * LAG_UNIT;
        if lags && lagged > 0 && taken < MAX_OUTBOX_LASTING {
            return Err(End::Slow);
        }
        self.unanswered += 1;
        Ok(())
    }

    /// The peer has sent something.
    pub(super) fn heard(&mut self) {
        self.unanswered = 0;
    }

    /// A message is complete.
    pub(super) fn completed(&mut self) {
        self.incomplete = 0;
    }

    /// Bytes of the outbound queue have been written.
    pub(super) fn written(&mut self, bytes: usize) {
        if self.lag > 0 {
            let units = u8::try_from(bytes / LAG_UNIT).unwrap_or(u8::MAX);
            self.lag = self.lag.saturating_add(units);
        }
    }

    /// The outbound queue has been written completely.
    pub(super) fn all_written(&mut self) {
        self.lag = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_sends_nothing_is_lost() {
        let mut pings = Pings::default();
        for _ in 0..MAX_UNANSWERED_PINGS {
            assert_eq!(pings.count(false, 0), Ok(()));
        }
        assert_eq!(pings.count(false, 0), Err(End::PingTimeout));
        pings.heard();
        assert_eq!(pings.count(false, 0), Ok(()));
    }

    #[test]
    fn a_message_may_stay_incomplete_for_some_pings() {
        let mut pings = Pings::default();
        let mut ping = |has_incomplete, completes| {
            pings.heard();
            if completes {
                pings.completed();
            }
            pings.count(has_incomplete, 0)
        };
        for _ in 0..10 {
            for _ in 0..MAX_PINGS_WHILE_INCOMPLETE {
                assert_eq!(ping(true, false), Ok(()));
            }
            // Either the message is complete, or another one has begun.
            assert_eq!(ping(false, false), Ok(()));
            assert_eq!(ping(true, false), Ok(()));
            assert_eq!(ping(true, true), Ok(()));
            assert_eq!(ping(false, false), Ok(()));
        }
        for _ in 0..MAX_PINGS_WHILE_INCOMPLETE {
            assert_eq!(ping(true, false), Ok(()));
        }
        assert_eq!(ping(true, false), Err(End::Incomplete));
    }

    /// Whether a connection may stay that had `before` bytes queued at one ping, of which it then
    /// took `taken`, in writes of `step` bytes, and has `after` bytes queued at the next ping.
    fn may_lag(before: usize, taken: usize, step: usize, after: usize) -> bool {
        let mut pings = Pings::default();
        assert_eq!(pings.count(false, before), Ok(()));
        for _ in 0..taken / step {
            pings.written(step);
        }
        pings.count(false, after) == Ok(())
    }

    #[test]
    fn a_long_outbound_queue_must_shrink_or_move_on() {
        const LONG: usize = MAX_OUTBOX_LASTING + 1;
        assert!(!may_lag(LONG, 0, 1, LONG));
        assert!(!may_lag(LONG, MAX_OUTBOX_LASTING - LAG_UNIT, LAG_UNIT, LONG));
        assert!(may_lag(LONG, MAX_OUTBOX_LASTING, LAG_UNIT, LONG));
        assert!(may_lag(LONG, 100 * MAX_OUTBOX_LASTING, 10 * MAX_OUTBOX_LASTING, LONG));
        assert!(may_lag(LONG, 0, 1, MAX_OUTBOX_LASTING));
        assert!(may_lag(MAX_OUTBOX_LASTING, 0, 1, LONG));
    }

    #[test]
    fn an_outbound_queue_that_was_empty_does_not_lag() {
        let mut pings = Pings::default();
        for _ in 0..10 {
            pings.heard();
            assert_eq!(pings.count(false, MAX_OUTBOX_LASTING + 1), Ok(()));
            pings.all_written();
        }
        pings.heard();
        pings.count(false, MAX_OUTBOX_LASTING + 1).unwrap();
        assert_eq!(pings.count(false, MAX_OUTBOX_LASTING + 1), Err(End::Slow));
    }
}
