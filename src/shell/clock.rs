//! Where the core's `now` comes from.

use std::time::Instant;

use crate::core::time::Time;

/// A monotonic clock, read once per turn of the loop.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// It began at this moment.
    Running(Instant),
    /// A test sets it.
    #[cfg(test)]
    Stopped(Time),
}

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        Self::Running(Instant::now())
    }

    /// The present moment.
    #[must_use]
    pub fn now(self) -> Time {
        match self {
            Self::Running(start) => Time::default().after(start.elapsed()),
            #[cfg(test)]
            Self::Stopped(now) => now,
        }
    }
}
