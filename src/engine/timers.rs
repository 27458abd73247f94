//! The connections' timers: a ring of one-second buckets.

use std::time::Duration;

use super::id::ConnId;
use super::time::Time;

/// Connections by the second in which they are due. Adding a timer and taking a due one take
/// constant time; each entry costs 8 B.
///
/// A timer fires at the end of its second: up to a second late, never early. A timer beyond the end
/// of the ring fires at the ring's end; the caller then compares it with the connection's actual
/// deadline and adds it again.
#[derive(Debug)]
pub struct Timers {
    buckets: [Vec<ConnId>; BUCKETS],
    /// A bit set of non-empty buckets.
    occupied: u64,
    /// The first second that has not been taken; its bucket is `next % BUCKETS`.
    next: u64,
}

/// The number of bits of a `u64`. The longest deadline in use, a ping's 25 s, fits.
const BUCKETS: usize = 64;

/// The same as a `u64`.
const ROUND: u64 = BUCKETS as u64;

const SECOND: u64 = 1_000;

impl Default for Timers {
    fn default() -> Self {
        Self { buckets: [const { Vec::new() }; BUCKETS], occupied: 0, next: 0 }
    }
}

impl Timers {
    /// Adds a timer: [`take_due`](Self::take_due) returns `conn` once `due` has passed. Returns
    /// when it will be returned, which is earlier than `due` if that is beyond the ring.
    pub fn add(&mut self, conn: ConnId, due: Time) -> Time {
        let second = (due.as_millis() / SECOND).clamp(self.next, self.next + ROUND - 1);
        let bucket = second % ROUND;
        self.bucket(bucket).push(conn);
        self.occupied |= 1 << bucket;
        due.min(Time::from_millis((second + 1) * SECOND))
    }

    /// Appends every connection that has become due to `due`.
    pub fn take_due(&mut self, now: Time, due: &mut Vec<ConnId>) {
        let end = now.as_millis() / SECOND;
        // More than one round need not be scanned.
        let last = end.min(self.next.saturating_add(ROUND));
        while self.next < last {
            let bucket = self.next % ROUND;
            if self.occupied & (1 << bucket) != 0 {
                self.occupied &= !(1 << bucket);
                // The bucket is replaced, not drained, to release the memory of a burst.
                due.append(&mut std::mem::take(self.bucket(bucket)));
            }
            self.next += 1;
        }
        self.next = self.next.max(end);
    }

    /// When [`take_due`](Self::take_due) will return a connection; `None` without timers.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        if self.occupied == 0 {
            return None;
        }
        let ahead = self.occupied.rotate_right((self.next % ROUND) as u32).trailing_zeros();
        Some(Time::from_millis((self.next + u64::from(ahead) + 1) * SECOND))
    }

    /// Number of entries, including those of connections that have ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.iter().map(Vec::len).sum()
    }

    /// Whether there are no timers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder below the number of buckets")]
    fn bucket(&mut self, second: u64) -> &mut Vec<ConnId> {
        &mut self.buckets[(second % ROUND) as usize]
    }
}

/// The delay of the first ping: in the second half of `interval`, spread by connection, so that
/// browser tabs that reconnect together after a restart are not always pinged together.
#[must_use]
pub fn spread(interval: Duration, conn: ConnId) -> Duration {
    let half = interval / 2;
    half + conn.part_of(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(number: u32) -> ConnId {
        ConnId::new(number, number)
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn due(timers: &mut Timers, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        timers.take_due(at(now), &mut due);
        due.iter().map(|conn| conn.serial()).collect()
    }

    #[test]
    fn a_timer_fires_within_a_second_and_never_early() {
        let mut timers = Timers::default();
        assert_eq!(timers.add(conn(1), at(10_400)), at(10_400));
        timers.add(conn(2), at(12_000));
        assert_eq!(timers.next_due(), Some(at(11_000)));
        assert_eq!(due(&mut timers, 10_999), [] as [u32; 0]);
        assert_eq!(due(&mut timers, 11_000), [1]);
        assert_eq!(timers.next_due(), Some(at(13_000)));
        assert_eq!(due(&mut timers, 13_000), [2]);
        assert_eq!(timers.next_due(), None);
        assert!(timers.is_empty());
    }

    #[test]
    fn an_overdue_timer_fires_next() {
        let mut timers = Timers::default();
        assert_eq!(due(&mut timers, 100_500), [] as [u32; 0]);
        timers.add(conn(1), at(3_000));
        assert_eq!(timers.next_due(), Some(at(101_000)));
        assert_eq!(due(&mut timers, 101_000), [1]);
    }

    #[test]
    fn a_timer_beyond_the_ring_fires_at_its_end() {
        let mut timers = Timers::default();
        assert_eq!(timers.add(conn(1), at(1_000_000)), at(64_000));
        assert_eq!(timers.next_due(), Some(at(64_000)));
        assert_eq!(due(&mut timers, 64_000), [1]);
    }

    #[test]
    fn after_a_long_sleep_all_timers_fire_once() {
        let mut timers = Timers::default();
        for number in 0..200 {
            timers.add(conn(number), at(u64::from(number) * 300));
        }
        let mut all = due(&mut timers, 10_000_000);
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
        assert_eq!(due(&mut timers, 10_000_000), [] as [u32; 0]);
        timers.add(conn(1), at(10_000_000));
        assert_eq!(due(&mut timers, 10_001_000), [1]);
    }

    #[test]
    fn in_any_sequence_each_timer_fires_once_in_its_second() {
        let mut timers = Timers::default();
        let mut waiting = std::collections::BTreeMap::new();
        let mut random = 1_u64;
        let mut now = 0;
        for number in 0..20_000_u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let delay = (random >> 33) % 60_000;
            timers.add(conn(number), at(now + delay));
            waiting.insert(number, now + delay);
            now += (random >> 50) % 40;
            for fired in due(&mut timers, now) {
                assert!(waiting.remove(&fired).is_some_and(|due| due <= now));
            }
            assert!(waiting.values().all(|due| now < due + 1_000));
        }
    }

    #[test]
    fn pings_are_spread_over_half_of_the_interval() {
        let interval = Duration::from_secs(24);
        let mut seconds = [0; 24];
        for number in 0..12_000 {
            seconds[spread(interval, conn(number)).as_secs() as usize] += 1;
        }
        assert_eq!(seconds[..12], [0; 12]);
        assert!(seconds[12..].iter().all(|count| (900..1_100).contains(count)), "{seconds:?}");
    }
}
