//! A simple model of the self-check: when it runs, and what its verdict means.

use std::time::Duration;

use crate::engine::checks::verdict::Verdict;
use crate::engine::time::Time;

#[derive(Default)]
pub(crate) struct SelfCheck {
    trust: Trust,
    is_running: bool,
    /// It was requested while it was running.
    again: bool,
    due: Option<Time>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Trusted,
    /// EspoCRM may have changed.
    Unknown,
    /// EspoCRM accepts any token.
    LockedDown,
}

impl SelfCheck {
    pub(crate) fn request(&mut self, now: Time) {
        if self.trust != Trust::LockedDown {
            self.trust = Trust::Unknown;
        }
        (self.again, self.due) = (self.is_running, Some(now));
    }

    pub(crate) fn start(&mut self, now: Time) {
        assert!(self.is_due(now), "a self-check was started too early");
        (self.is_running, self.again, self.due) = (true, false, None);
    }

    pub(crate) fn finish(&mut self, now: Time, verdict: &Verdict) {
        self.is_running = false;
        let again = std::mem::take(&mut self.again);
        if !again {
            self.due = (*verdict != Verdict::Denied).then(|| now.after(Duration::from_secs(10)));
        }
        self.trust = match verdict {
            Verdict::Granted => Trust::LockedDown,
            _ if again => return,
            Verdict::Failed(_) if self.trust == Trust::LockedDown => return,
            Verdict::Denied | Verdict::Failed(_) => Trust::Trusted,
        };
    }

    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    pub(crate) fn is_due(&self, now: Time) -> bool {
        !self.is_running && self.due.is_some_and(|due| due <= now)
    }

    pub(crate) fn allows_checks(&self) -> bool {
        self.trust == Trust::Trusted
    }

    pub(crate) fn is_locked_down(&self) -> bool {
        self.trust == Trust::LockedDown
    }
}
