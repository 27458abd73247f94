//! Counters, their rates, and the statistics that the daemon reports.

pub mod rates;
pub mod statistics;
pub mod stats;

use std::time::Duration;

use super::time::Time;
use rates::Rates;
use statistics::Figures;
use stats::Stats;

/// What the daemon counts.
///
/// - Input: [`advance`](Self::advance) at the beginning of each turn, then the methods and fields
///   of [`Stats`] where something happens.
/// - Output: [`complete`](Self::complete) adds the counters to the other figures;
///   [`statistics`] renders them.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// The counters.
    pub stats: Stats,
    rates: Rates,
    /// CPU time of PHP as exported last.
    php_cpu: Duration,
}

impl Telemetry {
    /// Takes the time of a turn. Call it before anything is counted in that turn.
    pub fn advance(&mut self, now: Time) {
        self.rates.advance(now, &self.stats);
    }

    /// Completes figures of the current state.
    #[must_use]
    pub fn complete(&mut self, figures: Figures) -> Figures {
        // The kernel's sum covers reaped children only. The maximum keeps the counter from
        // decreasing.
        self.php_cpu = self.php_cpu.max(figures.php_cpu);
        let last_minute = self.rates.last_minute(&self.stats);
        Figures { stats: self.stats.clone(), last_minute, php_cpu: self.php_cpu, ..figures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_contain_the_counters_and_php_cpu_time_never_decreases() {
        let mut telemetry = Telemetry::default();
        telemetry.advance(Time::from_millis(61_000));
        telemetry.stats.messages += 2;
        for (seconds, exported) in [(3, 3), (2, 3), (4, 4)] {
            let php_cpu = Duration::from_secs(seconds);
            let figures = telemetry.complete(Figures { php_cpu, users: 5, ..Figures::default() });
            assert_eq!(figures.php_cpu, Duration::from_secs(exported));
            assert_eq!((figures.stats.messages, figures.last_minute[0], figures.users), (2, 2, 5));
        }
    }
}
