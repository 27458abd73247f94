//! When memory that was needed for a while is given back to the system.

use std::time::Duration;

use super::time::Time;

/// Watches how many bytes are in use. The allocator keeps what is freed between blocks that stay in use,
/// and collections keep their size; so some seconds after the use has fallen, both are to be trimmed,
/// once for each fall.
#[derive(Debug, Default)]
pub struct Trim {
    /// The most bytes in use since the last time.
    peak: usize,
    due: Option<Time>,
}

/// Bytes that are worth the work: some milliseconds.
const WORTHWHILE: usize = 4 * 1024 * 1024;

/// From a fall to trimming: a load that comes and goes is not worth it each time.
const DELAY: Duration = Duration::from_secs(5);

impl Trim {
    /// So many bytes are in use now.
    pub fn update(&mut self, now: Time, used: usize) {
        self.peak = self.peak.max(used);
        if self.due.is_none() && self.has_fallen(used) {
            self.due = Some(now.after(DELAY));
        }
    }

    /// When [`take_due`](Self::take_due) has something to do.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.due
    }

    /// Whether memory is to be trimmed now.
    pub fn take_due(&mut self, now: Time, used: usize) -> bool {
        if self.due.take_if(|due| *due <= now).is_none() || !self.has_fallen(used) {
            return false;
        }
        self.peak = used;
        true
    }

    fn has_fallen(&self, used: usize) -> bool {
        self.peak.saturating_sub(used) >= WORTHWHILE
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
    fn memory_is_trimmed_once_some_seconds_after_the_use_has_fallen() {
        let mut trim = Trim::default();
        trim.update(at(0), 70 * MIB);
        trim.update(at(1), 67 * MIB);
        assert_eq!(trim.next_due(), None);
        trim.update(at(2), 2 * MIB);
        assert_eq!(trim.next_due(), Some(at(7)));
        trim.update(at(3), MIB);
        assert!(!trim.take_due(at(6), MIB));
        assert!(trim.take_due(at(7), MIB));
        // An idle daemon does nothing more.
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
