//! Verdicts that are good for a few seconds more.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::engine::checks::check::Check;
use crate::engine::limits::MAX_RECENT_VERDICTS;
use crate::engine::time::Time;

/// What was granted a moment ago. A user's tabs come back together, and want the same.
#[derive(Debug, Default)]
pub(super) struct VerdictCache {
    reuse: Duration,
    /// Until when each counts.
    granted: HashMap<Rc<Check>, Time>,
    /// In the order in which they expire; some are forgotten already.
    order: VecDeque<(Time, Rc<Check>)>,
}

impl VerdictCache {
    /// For how long a verdict counts, from the moment at which its check began.
    pub(super) fn new(reuse: Duration) -> Self {
        Self { reuse, ..Self::default() }
    }

    /// Changes that; what is remembered is forgotten.
    pub(super) fn renew(&mut self, reuse: Duration) {
        *self = Self::new(reuse);
    }

    /// Whether this was granted a moment ago.
    pub(super) fn holds(&self, now: Time, check: &Check) -> bool {
        self.granted.get(check).is_some_and(|until| now < *until)
    }

    /// Remembers what was granted by a check that began at `began`.
    pub(super) fn granted(&mut self, now: Time, check: &Rc<Check>, began: Time) {
        self.expire(now);
        let until = began.after(self.reuse);
        if until <= now || self.order.len() >= MAX_RECENT_VERDICTS {
            return;
        }
        self.granted.insert(Rc::clone(check), until);
        self.order.push_back((until, Rc::clone(check)));
    }

    /// Whoever asks for this again wants to know anew.
    pub(super) fn forget(&mut self, check: &Check) {
        self.granted.remove(check);
    }

    /// The same for all that a user was granted.
    pub(super) fn forget_user(&mut self, user: &str) {
        self.granted.retain(|check, _| *check.user != *user);
    }

    /// Lets go of what counts no longer.
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
            // After a storm its memory is given back.
            self.renew(self.reuse);
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
    fn a_grant_counts_from_the_beginning_of_its_check() {
        let mut recent = VerdictCache::new(Duration::from_secs(3));
        recent.granted(at(1_000), &check("a"), NOW);
        assert!(recent.holds(at(2_999), &check("a")));
        assert!(!recent.holds(at(3_000), &check("a")));
        assert!(!recent.holds(at(1_000), &check("b")));
        // A check that took longer than that is not remembered.
        recent.granted(at(9_000), &check("b"), at(5_000));
        assert!(!recent.holds(at(9_000), &check("b")));
        assert!(recent.granted.is_empty() && recent.order.is_empty());
    }

    #[test]
    fn what_is_forgotten_or_renewed_counts_no_longer() {
        let mut recent = VerdictCache::new(Duration::from_secs(3));
        recent.granted(NOW, &check("a"), NOW);
        recent.forget(&check("a"));
        assert!(!recent.holds(NOW, &check("a")));
        recent.granted(at(1_000), &check("a"), at(1_000));
        recent.granted(at(1_000), &check("b"), at(1_000));
        // The first entry's end is not the second's.
        recent.granted(at(3_500), &check("c"), at(3_500));
        assert!(recent.holds(at(3_500), &check("a")));
        recent.renew(Duration::from_secs(3));
        assert!(!recent.holds(at(3_500), &check("b")));
        recent.granted(at(3_500), &check("d"), at(3_500));
        recent.forget_user("v");
        assert!(recent.holds(at(3_500), &check("d")));
        recent.forget_user("u");
        assert!(!recent.holds(at(3_500), &check("d")));
        recent.renew(Duration::ZERO);
        recent.granted(NOW, &check("a"), NOW);
        assert!(!recent.holds(NOW, &check("a")));
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = VerdictCache::new(Duration::from_secs(3));
        for number in 0..MAX_RECENT_VERDICTS + 10 {
            recent.granted(NOW, &check(&number.to_string()), NOW);
            recent.forget(&check(&number.to_string()));
        }
        assert_eq!(recent.order.len(), MAX_RECENT_VERDICTS);
        recent.granted(at(3_000), &check("a"), at(3_000));
        assert_eq!(recent.order.len(), 1);
    }
}
