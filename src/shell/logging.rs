//! The log, on standard error.

use std::io::{LineWriter, stderr};

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};
use time::macros::format_description;

use crate::core::time::Time;

/// Starts the log: time in UTC, level, text. Later calls do nothing.
pub fn start() {
    let config = ConfigBuilder::new()
        .set_time_format_custom(format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        ))
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_level_padding(LevelPadding::Right)
        // Libraries know nothing that an administrator could use, and may know secrets.
        .add_filter_allow_str("espocrm_websocket")
        .build();
    // One write per line: without the buffer simplelog does ten.
    let _ = WriteLogger::init(LevelFilter::Debug, config, LineWriter::new(stderr()));
    set_debug(false);
}

/// Whether each event is logged.
pub fn set_debug(debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Keeps a line that a peer can cause at will from filling the log.
#[derive(Debug, Default)]
pub struct Burst {
    last: Option<Time>,
    unsaid: u64,
}

impl Burst {
    /// Counts an event; says how many there were since the last time if it is to be logged now.
    /// That is at once, and then once a minute.
    pub fn count(&mut self, now: Time) -> Option<u64> {
        self.unsaid += 1;
        if self.last.is_some_and(|last| now.since(last).as_secs() < 60) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Says once that something has begun to fail, and once that it works again.
#[derive(Debug, Default)]
pub struct Outage {
    last: Option<Time>,
    failures: u64,
    said: bool,
}

impl Outage {
    /// It has failed. Whether that is to be said now: if it was not since it worked last, and at
    /// most once a minute.
    pub fn failed(&mut self, now: Time) -> bool {
        self.failures += 1;
        let lately = self.last.is_some_and(|last| now.since(last).as_secs() < 60);
        if self.said || lately {
            return false;
        }
        self.last = Some(now);
        self.said = true;
        true
    }

    /// It works. If its failing was said, how often it has failed meanwhile.
    pub fn worked(&mut self) -> Option<u64> {
        let failures = std::mem::take(&mut self.failures);
        std::mem::take(&mut self.said).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_when_it_begins_and_when_it_ends() {
        let mut outage = Outage::default();
        assert_eq!(outage.worked(), None);
        assert!(outage.failed(Time::from_millis(5)));
        assert!(!outage.failed(Time::from_millis(1_000_000)));
        assert_eq!(outage.worked(), Some(2));
        assert_eq!(outage.worked(), None);
        // What fails now and then is not said each time.
        assert!(outage.failed(Time::from_millis(1_000_001)));
        assert_eq!(outage.worked(), Some(1));
        assert!(!outage.failed(Time::from_millis(1_060_000)));
        assert_eq!(outage.worked(), None);
        assert!(outage.failed(Time::from_millis(1_060_001)));
    }

    #[test]
    fn a_burst_is_said_once_a_minute() {
        let mut burst = Burst::default();
        let mut count = |millis| burst.count(Time::from_millis(millis));
        assert_eq!(count(5), Some(1));
        assert_eq!(count(6), None);
        assert_eq!(count(60_004), None);
        assert_eq!(count(60_005), Some(3));
        assert_eq!(count(60_006), None);
        assert_eq!(count(900_000), Some(2));
    }
}
