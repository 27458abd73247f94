//! The clocks: monotonic time for the engine, and the date.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::engine::time::{Date, Time};

/// A monotonic clock, read once per turn of the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The current time.
    #[must_use]
    pub(crate) fn now(self) -> Time {
        Time::default().after(self.0.elapsed())
    }
}

/// Milliseconds since 1970.
#[must_use]
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The date and time in UTC.
#[must_use]
pub(crate) fn date() -> String {
    Date(unix_millis()).to_string()
}
