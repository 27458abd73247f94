//! How much has happened in the last minute, without a timer.

use super::stats::Stats;
use crate::engine::time::Time;

/// Counters as they were at the beginning of each of the last seconds.
#[derive(Debug)]
pub struct Rates {
    /// By the second, modulo their number.
    then: [Counts; SECONDS],
    second: u64,
}

/// What is looked at: [`NAMES`].
pub type Counts = [u64; NAMES.len()];

/// Of what there are rates.
pub const NAMES: [&str; 4] = ["messages", "deliveries", "connections", "checks"];

const SECONDS: usize = 60;

impl Default for Rates {
    fn default() -> Self {
        Self { then: [Counts::default(); SECONDS], second: 0 }
    }
}

impl Rates {
    /// Time has passed, in which nothing was counted: to be called before anything is.
    pub fn advance(&mut self, now: Time, stats: &Stats) {
        let second = now.as_millis() / 1_000;
        if second <= self.second {
            return;
        }
        let counts = counts(stats);
        let passed = (second - self.second).min(SECONDS as u64);
        for second in second - passed + 1..=second {
            *place(&mut self.then, second) = counts;
        }
        self.second = second;
    }

    /// What has been counted in the last minute, or since the start if that was later.
    #[must_use]
    pub fn last_minute(&self, stats: &Stats) -> Counts {
        let mut then = self.then;
        let oldest = *place(&mut then, self.second + 1);
        let mut counts = counts(stats);
        for (count, then) in counts.iter_mut().zip(oldest) {
            *count = count.saturating_sub(then);
        }
        counts
    }
}

fn counts(stats: &Stats) -> Counts {
    [stats.messages, stats.deliveries, stats.opened, stats.checked()]
}

fn place(then: &mut [Counts; SECONDS], second: u64) -> &mut Counts {
    let number = usize::try_from(second % SECONDS as u64).unwrap_or(0);
    // There is always one: the remainder is smaller than their number.
    #[expect(clippy::indexing_slicing, reason = "see above")]
    &mut then[number]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000 + 500)
    }

    #[test]
    fn what_happened_a_minute_ago_counts_no_longer() {
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
        // A clock that stands still, or goes back, loses nothing.
        stats.messages += 1;
        rates.advance(at(5), &stats);
        assert_eq!(rates.last_minute(&stats)[0], 1);
    }
}
