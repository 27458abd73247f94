//! Rate limit for the log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::time::Duration;

use super::time::Time;

/// Decides which of many equal events are logged, so that the administrator sees each kind without
/// being flooded.
///
/// - [`occurred`](Self::occurred) and [`failed`](Self::failed) take an event and return whether to
///   log it. A key belongs to one of the two.
/// - [`succeeded`](Self::succeeded) ends an outage and returns the number of failures.
/// - [`next_due`](Self::next_due) returns when to call [`take_due`](Self::take_due), which returns
///   how many events were not logged.
#[derive(Debug)]
pub struct RateLimitedLog<K>(BTreeMap<K, Entry>);

#[derive(Debug)]
struct Entry {
    logged_at: Time,
    /// Events that were not logged; of an outage, all failures.
    count: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Events,
    /// An outage, whose beginning was logged.
    Outage,
    /// No outage, or a later one that began too early to be logged.
    Recovered,
}

/// Minimum time between two lines with the same key.
const INTERVAL: Duration = Duration::from_secs(60);

impl<K: Clone + Ord> RateLimitedLog<K> {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Records an event. Returns whether to log it; if not, [`take_due`](Self::take_due) returns
    /// the count later. Call that one first, to log the count before the event.
    pub fn occurred(&mut self, key: &K, now: Time) -> bool {
        if let Some(entry) = self.0.get_mut(key)
            && !entry.is_expired(now)
        {
            entry.count += 1;
            return false;
        }
        self.0.insert(key.clone(), Entry { logged_at: now, count: 0, kind: Kind::Events });
        true
    }

    /// Records a failure. Returns whether to log it: the first one since the last success, but at
    /// most one per interval.
    pub fn failed(&mut self, key: K, now: Time) -> bool {
        match self.0.entry(key) {
            Slot::Vacant(slot) => {
                slot.insert(Entry { logged_at: now, count: 1, kind: Kind::Outage });
                true
            }
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                entry.count += 1;
                let begins = entry.kind == Kind::Recovered && entry.is_expired(now);
                if begins {
                    (entry.logged_at, entry.kind) = (now, Kind::Outage);
                }
                begins
            }
        }
    }

    /// Records a success. Returns the number of failures if one was logged.
    pub fn succeeded(&mut self, key: &K) -> Option<u64> {
        let entry = self.0.get_mut(key)?;
        let kind = std::mem::replace(&mut entry.kind, Kind::Recovered);
        let failures = std::mem::take(&mut entry.count);
        (kind == Kind::Outage).then_some(failures)
    }

    /// When the next count is due, if there is any.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let counted = self.0.values().filter(|entry| entry.kind == Kind::Events && entry.count > 0);
        counted.map(|entry| entry.logged_at.after(INTERVAL)).min()
    }

    /// Returns how many events were not logged, for each key whose interval has ended.
    pub fn take_due(&mut self, now: Time) -> Vec<(K, u64)> {
        self.take(|_, entry| entry.is_expired(now))
    }

    /// Like [`take_due`](Self::take_due), but ends the intervals of all other keys than `key`.
    pub fn take_others(&mut self, key: &K, now: Time) -> Vec<(K, u64)> {
        self.take(|other, entry| other != key || entry.is_expired(now))
    }

    fn take(&mut self, ends: impl Fn(&K, &Entry) -> bool) -> Vec<(K, u64)> {
        let mut counts = Vec::new();
        self.0.retain(|key, entry| {
            let ended = entry.kind == Kind::Events && ends(key, entry);
            if ended && entry.count > 0 {
                counts.push((key.clone(), entry.count));
            }
            !ended
        });
        counts
    }
}

impl Entry {
    fn is_expired(&self, now: Time) -> bool {
        now.since(self.logged_at) >= INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn each_key_is_logged_once_per_minute() {
        let mut log = RateLimitedLog::new();
        let mut occurred = |key, millis| log.occurred(&key, at(millis));
        assert!(occurred('a', 5));
        assert!(!occurred('a', 6));
        assert!(occurred('b', 7));
        assert!(!occurred('a', 60_004));
        assert!(occurred('a', 60_005));
        assert!(!occurred('a', 60_006));
        assert!(occurred('a', 900_000));
        assert!(occurred('b', 900_000));
    }

    #[test]
    fn events_that_were_not_logged_are_counted() {
        let mut log = RateLimitedLog::new();
        assert_eq!(log.next_due(), None);
        log.occurred(&'a', at(1_000));
        log.occurred(&'b', at(2_000));
        assert_eq!(log.next_due(), None);
        log.occurred(&'b', at(3_000));
        assert_eq!(log.next_due(), Some(at(62_000)));
        assert_eq!(log.take_due(at(61_999)), []);
        assert_eq!(log.take_due(at(62_000)), [('b', 1)]);
        assert_eq!(log.next_due(), None);
        // Entries older than the interval are removed; the next event is logged immediately.
        assert!(log.0.is_empty());
        assert!(log.occurred(&'b', at(62_001)));
    }

    #[test]
    fn another_key_can_end_the_interval() {
        let mut log = RateLimitedLog::new();
        for millis in [5, 6, 7] {
            log.occurred(&'a', at(millis));
        }
        assert_eq!(log.take_others(&'a', at(8)), []);
        assert_eq!(log.take_others(&'b', at(8)), [('a', 2)]);
        assert!(log.occurred(&'a', at(9)));
        log.occurred(&'a', at(10));
        assert_eq!(log.take_others(&'a', at(60_009)), [('a', 1)]);
    }

    #[test]
    fn an_outage_is_logged_at_its_beginning_and_its_end() {
        let mut log = RateLimitedLog::new();
        assert_eq!(log.succeeded(&'a'), None);
        assert!(log.failed('a', at(5)));
        assert!(!log.failed('a', at(1_000_000)));
        assert!(log.failed('b', at(1_000_000)));
        // Its failures are not counted as events.
        assert_eq!((log.next_due(), log.take_due(at(2_000_000))), (None, vec![]));
        assert_eq!(log.succeeded(&'a'), Some(2));
        assert_eq!(log.succeeded(&'a'), None);
    }

    #[test]
    fn frequent_short_outages_are_not_all_logged() {
        let mut log = RateLimitedLog::new();
        assert!(log.failed('a', at(1)));
        assert_eq!(log.succeeded(&'a'), Some(1));
        assert!(!log.failed('a', at(60_000)));
        assert_eq!(log.succeeded(&'a'), None);
        assert!(!log.failed('a', at(60_000)));
        // A longer one is, with all its failures.
        assert!(log.failed('a', at(60_001)));
        assert_eq!(log.succeeded(&'a'), Some(2));
    }
}
