//! Counts of the last minute, computed without a timer.

use super::stats::Stats;
use crate::engine::time::Time;

/// Snapshots of the counters at the beginning of each of the last seconds.
#[derive(Debug)]
pub struct Rates {
    /// Indexed by the second, modulo the number of snapshots.
    snapshots: [Counts; SECONDS],
    second: u64,
}

/// One count for each of [`NAMES`].
pub type Counts = [u64; NAMES.len()];

/// The counters for which there are rates.
pub const NAMES: [&str; 4] = ["messages", "deliveries", "connections", "checks"];

const SECONDS: usize = 60;

impl Default for Rates {
    fn default() -> Self {
        Self { snapshots: [Counts::default(); SECONDS], second: 0 }
    }
}

impl Rates {
    /// Takes the snapshots of the seconds since the last call. Call it before counting anything.
    pub fn advance(&mut self, now: Time, stats: &Stats) {
        let second = now.as_millis() / 1_000;
        if second <= self.second {
            return;
        }
        let counts = counts(stats);
        let passed = (second - self.second).min(SECONDS as u64);
        for second in second - passed + 1..=second {
            *snapshot(&mut self.snapshots, second) = counts;
        }
        self.second = second;
    }

    /// Counts of the last minute, or since the start if that is more recent.
    #[must_use]
    pub fn last_minute(&self, stats: &Stats) -> Counts {
        let mut snapshots = self.snapshots;
        let oldest = *snapshot(&mut snapshots, self.second + 1);
        let mut counts = counts(stats);
        for (count, before) in counts.iter_mut().zip(oldest) {
            *count = count.saturating_sub(before);
        }
        counts
    }
}

fn counts(stats: &Stats) -> Counts {
    [stats.messages, stats.deliveries, stats.opened, stats.checked()]
}

fn snapshot(snapshots: &mut [Counts; SECONDS], second: u64) -> &mut Counts {
    let index = usize::try_from(second % SECONDS as u64).unwrap_or(0);
    // In bounds: the remainder is smaller than the length.
    #[expect(clippy::indexing_slicing, reason = "see above")]
    &mut snapshots[index]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000 + 500)
    }

    #[test]
    fn events_of_more_than_a_minute_ago_do_not_count() {
        let mut rates = Rates::default();
        let mut stats = Stats { messages: 7, ..Stats::default() };
        assert_eq!(rates.last_minute(&stats)[0], 7);
        for second in 1..200 {
            rates.advance(at(second), &stats);
            stats.messages += 2;
            stats.opened += 1;
            let expected = if second < 60 { 7 + 2 * second } else { 120 };
            assert_eq!(rates.last_minute(&stats)[0], expected, "{second}");
        }
        rates.advance(at(229), &stats);
        assert_eq!(rates.last_minute(&stats), [60, 0, 30, 0]);
        rates.advance(at(1_000_000), &stats);
        assert_eq!(rates.last_minute(&stats), [0; 4]);
        // A clock that stops or goes back loses nothing.
        stats.messages += 1;
        rates.advance(at(5), &stats);
        assert_eq!(rates.last_minute(&stats)[0], 1);
    }
}
