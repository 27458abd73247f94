//! When which connection has to be looked at: a ring of one-second buckets.

use std::time::Duration;

use super::id::ConnId;
use super::time::Time;

/// Connections by the second in which they are due. Adding one and taking a due one cost the same
/// however many there are; each entry costs 8 B.
///
/// A timer fires at the end of its second, so up to a second late and never early. One that lies
/// further ahead than the ring reaches fires at the ring's end: whoever takes it looks at what the
/// connection is really waiting for, and adds it again.
#[derive(Debug)]
pub struct Timers {
    buckets: [Vec<ConnId>; BUCKETS],
    /// Which buckets hold something.
    occupied: u64,
    /// The first second that has not been taken; its bucket is `next % BUCKETS`.
    next: u64,
}

/// As many as a `u64` has bits. The longest deadline in use, a ping's 25 s, fits.
const BUCKETS: usize = 64;

/// The same, to reckon with.
const ROUND: u64 = BUCKETS as u64;

const SECOND: u64 = 1_000;

impl Default for Timers {
    fn default() -> Self {
        Self { buckets: [const { Vec::new() }; BUCKETS], occupied: 0, next: 0 }
    }
}

impl Timers {
    /// Has `conn` taken by [`take_due`](Self::take_due) once `due` has come. Returns the moment
    /// from which on it is: an earlier one, if that lies beyond the ring.
    pub fn add(&mut self, conn: ConnId, due: Time) -> Time {
        let second = (due.as_millis() / SECOND).clamp(self.next, self.next + ROUND - 1);
        let bucket = second % ROUND;
        self.bucket(bucket).push(conn);
        self.occupied |= 1 << bucket;
        due.min(Time::from_millis((second + 1) * SECOND))
    }

    /// Moves every connection that has become due to `due`.
    pub fn take_due(&mut self, now: Time, due: &mut Vec<ConnId>) {
        let end = now.as_millis() / SECOND;
        // Whole rounds need not be walked.
        let last = end.min(self.next.saturating_add(ROUND));
        while self.next < last {
            let bucket = self.next % ROUND;
            if self.occupied & (1 << bucket) != 0 {
                self.occupied &= !(1 << bucket);
                // Taken, not drained: after a rush the bucket does not keep its size.
                due.append(&mut std::mem::take(self.bucket(bucket)));
            }
            self.next += 1;
        }
        self.next = self.next.max(end);
    }

    /// When [`take_due`](Self::take_due) will next find something; never, if nothing is waiting.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        if self.occupied == 0 {
            return None;
        }
        let ahead = self.occupied.rotate_right((self.next % ROUND) as u32).trailing_zeros();
        Some(Time::from_millis((self.next + u64::from(ahead) + 1) * SECOND))
    }

    /// How many entries there are, those of connections that are gone included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.iter().map(Vec::len).sum()
    }

    /// Whether nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder below the number of buckets")]
    fn bucket(&mut self, second: u64) -> &mut Vec<ConnId> {
        &mut self.buckets[(second % ROUND) as usize]
    }
}

/// The first ping's delay: somewhere in the second half of `interval`, so that the tabs that came
/// back together after a restart are not pinged together for ever after.
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
    fn what_is_overdue_when_added_fires_next() {
        let mut timers = Timers::default();
        assert_eq!(due(&mut timers, 100_500), [] as [u32; 0]);
        timers.add(conn(1), at(3_000));
        assert_eq!(timers.next_due(), Some(at(101_000)));
        assert_eq!(due(&mut timers, 101_000), [1]);
    }

    #[test]
    fn what_lies_beyond_the_ring_fires_at_its_end() {
        let mut timers = Timers::default();
        assert_eq!(timers.add(conn(1), at(1_000_000)), at(64_000));
        assert_eq!(timers.next_due(), Some(at(64_000)));
        assert_eq!(due(&mut timers, 64_000), [1]);
    }

    #[test]
    fn a_long_sleep_takes_everything_once() {
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
    fn any_sequence_fires_each_once_in_its_second() {
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
    fn pings_are_spread_over_half_the_interval() {
        let interval = Duration::from_secs(24);
        let mut seconds = [0; 24];
        for number in 0..12_000 {
            seconds[spread(interval, conn(number)).as_secs() as usize] += 1;
        }
        assert_eq!(seconds[..12], [0; 12]);
        assert!(seconds[12..].iter().all(|count| (900..1_100).contains(count)), "{seconds:?}");
    }
}
