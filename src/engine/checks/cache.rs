//! The check cache: recently granted verdicts.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::engine::checks::check::Check;
use crate::engine::limits::MAX_CACHED_VERDICTS;
use crate::engine::time::Time;

/// Recently granted checks. The browser tabs of a user reconnect together and request the same
/// topics.
#[derive(Debug, Default)]
pub(super) struct VerdictCache {
    lifetime: Duration,
    /// When each entry expires.
    granted: HashMap<Rc<Check>, Time>,
    /// In the order of expiry; some have already been removed from `granted`.
    order: VecDeque<(Time, Rc<Check>)>,
}

impl VerdictCache {
    /// A verdict is valid for `lifetime`, counted from the start of its check.
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { lifetime, ..Self::default() }
    }

    /// Changes the lifetime and removes all entries.
    pub(super) fn reset(&mut self, lifetime: Duration) {
        *self = Self::new(lifetime);
    }

    /// Whether this check was recently granted.
    pub(super) fn contains(&self, now: Time, check: &Check) -> bool {
        self.granted.get(check).is_some_and(|until| now < *until)
    }

    /// Adds a granted check that began at `began`.
    pub(super) fn insert(&mut self, now: Time, check: &Rc<Check>, began: Time) {
        self.expire(now);
        let until = began.after(self.lifetime);
        if until <= now || self.order.len() >= MAX_CACHED_VERDICTS {
            return;
        }
        self.granted.insert(Rc::clone(check), until);
        self.order.push_back((until, Rc::clone(check)));
    }

    /// Removes a check, so that the next request runs it.
    pub(super) fn remove(&mut self, check: &Check) {
        self.granted.remove(check);
    }

    /// Removes all checks of a user.
    pub(super) fn remove_user(&mut self, user: &str) {
        self.granted.retain(|check, _| *check.user != *user);
    }

    /// Removes expired entries.
    fn expire(&mut self, now: Time) {
        while let Some((until, check)) = self.order.front()
            && *until <= now
        {
            if self.granted.get(check) == Some(until) {
                self.granted.remove(check);
            }
            self.order.pop_front();
        }
        if self.order.is_empty() {
            // Release the memory of a burst.
            self.reset(self.lifetime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(10_000);

    fn at(millis: u64) -> Time {
        NOW.after(Duration::from_millis(millis))
    }

    fn check(name: &str) -> Rc<Check> {
        Rc::new(Check::topic("u", Box::new([name.into()])))
    }

    #[test]
    fn an_entry_is_valid_from_the_start_of_its_check() {
        let mut cache = VerdictCache::new(Duration::from_secs(3));
        cache.insert(at(1_000), &check("a"), NOW);
        assert!(cache.contains(at(2_999), &check("a")));
        assert!(!cache.contains(at(3_000), &check("a")));
        assert!(!cache.contains(at(1_000), &check("b")));
        // A check that took longer than the lifetime is not cached.
        cache.insert(at(9_000), &check("b"), at(5_000));
        assert!(!cache.contains(at(9_000), &check("b")));
        assert!(cache.granted.is_empty() && cache.order.is_empty());
    }

    #[test]
    fn removed_entries_are_not_used() {
        let mut cache = VerdictCache::new(Duration::from_secs(3));
        cache.insert(NOW, &check("a"), NOW);
        cache.remove(&check("a"));
        assert!(!cache.contains(NOW, &check("a")));
        cache.insert(at(1_000), &check("a"), at(1_000));
        cache.insert(at(1_000), &check("b"), at(1_000));
        // The expiry of the removed entry does not remove the second one.
        cache.insert(at(3_500), &check("c"), at(3_500));
        assert!(cache.contains(at(3_500), &check("a")));
        cache.reset(Duration::from_secs(3));
        assert!(!cache.contains(at(3_500), &check("b")));
        cache.insert(at(3_500), &check("d"), at(3_500));
        cache.remove_user("v");
        assert!(cache.contains(at(3_500), &check("d")));
        cache.remove_user("u");
        assert!(!cache.contains(at(3_500), &check("d")));
        cache.reset(Duration::ZERO);
        cache.insert(NOW, &check("a"), NOW);
        assert!(!cache.contains(NOW, &check("a")));
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = VerdictCache::new(Duration::from_secs(3));
        for number in 0..MAX_CACHED_VERDICTS + 10 {
            cache.insert(NOW, &check(&number.to_string()), NOW);
            cache.remove(&check(&number.to_string()));
        }
        assert_eq!(cache.order.len(), MAX_CACHED_VERDICTS);
        cache.insert(at(3_000), &check("a"), at(3_000));
        assert_eq!(cache.order.len(), 1);
    }
}
