//! Where the core's `now` comes from.

use std::time::Instant;

use crate::core::time::Time;

/// A monotonic clock, read once per turn of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The present moment.
    #[must_use]
    pub fn now(self) -> Time {
        Time::default().after(self.0.elapsed())
    }
}
