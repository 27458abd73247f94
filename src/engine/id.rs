//! Connection ids.

use std::fmt;
use std::time::Duration;

/// Identifies a connection for the lifetime of the daemon.
///
/// `slot` is its index in the slab and is reused as soon as the connection has ended; `serial`
/// counts the connections ever accepted. So anything that outlives a connection (a timer, an access
/// check) is never applied to the next connection in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    slot: u32,
    serial: u32,
}

impl ConnId {
    /// The `serial`-th accepted connection, stored in `slot`.
    #[must_use]
    pub const fn new(slot: u32, serial: u32) -> Self {
        Self { slot, serial }
    }

    /// The index in the slab.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    /// The serial number, which is unique.
    #[must_use]
    pub const fn serial(self) -> u32 {
        self.serial
    }

    /// A fraction of `interval` that depends on the serial number; spreads the work of many
    /// connections.
    #[must_use]
    pub fn part_of(self, interval: Duration) -> Duration {
        // Fibonacci hashing: consecutive numbers yield distant results.
        let hash = self.serial.wrapping_mul(0x9e37_79b9);
        interval.mul_f64(f64::from(hash) / f64::from(u32::MAX))
    }
}

/// The serial number only, as in the debug log of EspoCRM's own daemon (`57: open`).
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.fmt(f)
    }
}
