//! The name of a connection.

use std::fmt;
use std::time::Duration;

/// Names one connection for as long as the daemon runs.
///
/// `slot` is its place in the server's slab and is used again as soon as the connection is gone;
/// `serial` counts the connections ever accepted, so that whatever outlives one (a timer, an access
/// check) is never mistaken for a message to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    slot: u32,
    serial: u32,
}

impl ConnId {
    /// The `serial`-th connection accepted, kept in `slot`.
    #[must_use]
    pub const fn new(slot: u32, serial: u32) -> Self {
        Self { slot, serial }
    }

    /// The place in the server's slab.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    /// The number that no other connection has.
    #[must_use]
    pub const fn serial(self) -> u32 {
        self.serial
    }

    /// Somewhere between nothing and all of `interval`: spreads what many connections want.
    #[must_use]
    pub fn part_of(self, interval: Duration) -> Duration {
        // Fibonacci hashing: neighbouring numbers come out far apart.
        let hash = self.serial.wrapping_mul(0x9e37_79b9);
        interval.mul_f64(f64::from(hash) / f64::from(u32::MAX))
    }
}

/// The serial number alone, as EspoCRM's administrators know it from the debug log (`57: open`).
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.fmt(f)
    }
}
