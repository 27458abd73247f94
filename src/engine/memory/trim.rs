//! Decides when freed memory is returned to the system.

use std::time::Duration;

use crate::engine::time::Time;

/// Tracks the number of bytes in use. The allocator keeps freed memory between blocks that are in
/// use, and collections keep their capacity; so some seconds after memory use has dropped, both
/// must be trimmed, once for each drop.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// The maximum of bytes in use since the last trim.
    peak: usize,
    due: Option<Time>,
}

/// Smallest drop in bytes that justifies a trim, which takes some milliseconds.
const MIN_DROP: usize = 4 * 1024 * 1024;

/// Delay from a drop to the trim, so that fluctuating load does not cause a trim each time.
const DELAY: Duration = Duration::from_secs(5);

impl Trim {
    /// Updates the number of bytes in use.
    pub(super) fn update(&mut self, now: Time, used: usize) {
        self.peak = self.peak.max(used);
        if self.due.is_none() && self.has_dropped(used) {
            self.due = Some(now.after(DELAY));
        }
    }

    /// When [`take_due`](Self::take_due) must be called.
    #[must_use]
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due
    }

    /// Whether memory must be trimmed now.
    pub(super) fn take_due(&mut self, now: Time, used: usize) -> bool {
        if self.due.take_if(|due| *due <= now).is_none() || !self.has_dropped(used) {
            return false;
        }
        self.peak = used;
        true
    }

    fn has_dropped(&self, used: usize) -> bool {
        self.peak.saturating_sub(used) >= MIN_DROP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    #[test]
    fn memory_is_trimmed_once_some_seconds_after_its_use_has_dropped() {
        let mut trim = Trim::default();
        trim.update(at(0), 70 * MIB);
        trim.update(at(1), 67 * MIB);
        assert_eq!(trim.next_due(), None);
        trim.update(at(2), 2 * MIB);
        assert_eq!(trim.next_due(), Some(at(7)));
        trim.update(at(3), MIB);
        assert!(!trim.take_due(at(6), MIB));
        assert!(trim.take_due(at(7), MIB));
        // An idle daemon does not trim again.
        for second in 8..1_000 {
            trim.update(at(second), MIB);
            assert_eq!(trim.next_due(), None);
            assert!(!trim.take_due(at(second), MIB));
        }
        trim.update(at(1_000), 6 * MIB);
        trim.update(at(1_001), MIB);
        assert_eq!(trim.next_due(), Some(at(1_006)));
    }

    #[test]
    fn memory_that_is_in_use_again_is_not_trimmed() {
        let mut trim = Trim::default();
        trim.update(at(0), 70 * MIB);
        trim.update(at(1), 0);
        assert!(!trim.take_due(at(6), 69 * MIB));
        assert_eq!(trim.next_due(), None);
        trim.update(at(7), 0);
        assert!(trim.take_due(at(12), 0));
    }
}
