//! Lines that come again and again: told once, and then how often.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

/// The last line, and how often it has come again since.
#[derive(Debug)]
pub(super) struct Fold {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    level: Level,
    text: String,
    told: Instant,
    again: u64,
}

/// A line that came again and was not told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub level: Level,
    pub text: String,
    pub times: u64,
}

/// For how long the same line is only counted.
const INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of a line that are kept; longer ones are not folded.
const MAX_TEXT: usize = 1_024;

static FOLD: Mutex<Fold> = Mutex::new(Fold { last: None });

/// The only one there is: that of the log.
pub(super) fn fold() -> MutexGuard<'static, Fold> {
    FOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fold {
    /// A line is to be logged: what is to be told before it, and whether it is told itself.
    pub(super) fn take(&mut self, now: Instant, level: Level, text: &str) -> (Option<Again>, bool) {
        if let Some(last) = &mut self.last
            && last.level == level
            && last.text == text
            && now.saturating_duration_since(last.told) < INTERVAL
        {
            last.again += 1;
            return (None, false);
        }
        let before = self.end();
        if text.len() <= MAX_TEXT {
            self.last = Some(Last { level, text: text.to_owned(), told: now, again: 0 });
        }
        (before, true)
    }

    /// When it is to be told how often the last line has come; never, if it has not.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let last = self.last.as_ref().filter(|last| last.again > 0)?;
        last.told.checked_add(INTERVAL)
    }

    /// What is to be told by now.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Again> {
        self.next_due().filter(|due| *due <= now).and_then(|_| self.end())
    }

    /// What has not been told, if anything; the next line is a new one.
    pub(super) fn end(&mut self) -> Option<Again> {
        let Last { level, text, again, .. } = self.last.take()?;
        (again > 0).then_some(Again { level, text, times: again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold() -> Fold {
        Fold { last: None }
    }

    fn again(text: &str, times: u64) -> Again {
        Again { level: Level::Warn, text: text.to_owned(), times }
    }

    #[test]
    fn what_comes_again_is_counted_until_something_else_comes() {
        let (mut fold, now) = (fold(), Instant::now());
        assert_eq!(fold.take(now, Level::Warn, "a"), (None, true));
        assert_eq!(fold.next_due(), None);
        for _ in 0..3 {
            assert_eq!(fold.take(now, Level::Warn, "a"), (None, false));
        }
        assert_eq!(fold.take(now, Level::Warn, "b"), (Some(again("a", 3)), true));
        assert_eq!(fold.take(now, Level::Error, "b"), (None, true));
        assert_eq!(fold.end(), None);
    }

    #[test]
    fn it_is_told_after_a_minute_at_the_latest() {
        let (mut fold, start) = (fold(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        fold.take(start, Level::Warn, "a");
        fold.take(at(59), Level::Warn, "a");
        assert_eq!(fold.next_due(), Some(at(60)));
        assert_eq!(fold.take_due(at(59)), None);
        assert_eq!(fold.take_due(at(60)), Some(again("a", 1)));
        assert_eq!(fold.next_due(), None);
        assert_eq!(fold.take(at(61), Level::Warn, "a"), (None, true));
        // One that comes once a minute is told each time.
        assert_eq!(fold.take(at(121), Level::Warn, "a"), (None, true));
    }

    #[test]
    fn what_is_very_long_is_not_kept() {
        let (mut fold, now) = (fold(), Instant::now());
        let long = "x".repeat(MAX_TEXT + 1);
        assert_eq!(fold.take(now, Level::Warn, &long), (None, true));
        assert_eq!(fold.take(now, Level::Warn, &long), (None, true));
    }
}
