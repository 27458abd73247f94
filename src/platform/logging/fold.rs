//! Folds repeated lines: logs a line once, and then how often it was repeated.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

/// The last line and the number of its repeats.
#[derive(Debug)]
pub(super) struct Fold {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    level: Level,
    text: String,
    logged: Instant,
    repeats: u64,
}

/// Repeats of a line that were not logged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeats {
    pub level: Level,
    pub text: String,
    pub count: u64,
}

/// How long repeats are only counted.
const INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of a line; longer lines are not folded.
const MAX_TEXT: usize = 1_024;

static FOLD: Mutex<Fold> = Mutex::new(Fold { last: None });

/// The fold of the process's log.
pub(super) fn fold() -> MutexGuard<'static, Fold> {
    FOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fold {
    /// Takes the next line. Returns the repeats to log before it, and whether to log the line
    /// itself.
    pub(super) fn take(
        &mut self,
        now: Instant,
        level: Level,
        text: &str,
    ) -> (Option<Repeats>, bool) {
        if let Some(last) = &mut self.last
            && last.level == level
            && last.text == text
            && now.saturating_duration_since(last.logged) < INTERVAL
        {
            last.repeats += 1;
            return (None, false);
        }
        let before = self.end();
        if text.len() <= MAX_TEXT {
            self.last = Some(Last { level, text: text.to_owned(), logged: now, repeats: 0 });
        }
        (before, true)
    }

    /// When the repeats of the last line are due; `None` without repeats.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let last = self.last.as_ref().filter(|last| last.repeats > 0)?;
        last.logged.checked_add(INTERVAL)
    }

    /// Returns the repeats that are due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Repeats> {
        self.next_due().filter(|due| *due <= now).and_then(|_| self.end())
    }

    /// Returns the repeats that are not logged yet. The next line is not a repeat.
    pub(super) fn end(&mut self) -> Option<Repeats> {
        let Last { level, text, repeats, .. } = self.last.take()?;
        (repeats > 0).then_some(Repeats { level, text, count: repeats })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold() -> Fold {
        Fold { last: None }
    }

    fn repeats(text: &str, count: u64) -> Repeats {
        Repeats { level: Level::Warn, text: text.to_owned(), count }
    }

    #[test]
    fn repeats_are_counted_until_another_line() {
        let (mut fold, now) = (fold(), Instant::now());
        assert_eq!(fold.take(now, Level::Warn, "a"), (None, true));
        assert_eq!(fold.next_due(), None);
        for _ in 0..3 {
            assert_eq!(fold.take(now, Level::Warn, "a"), (None, false));
        }
        assert_eq!(fold.take(now, Level::Warn, "b"), (Some(repeats("a", 3)), true));
        assert_eq!(fold.take(now, Level::Error, "b"), (None, true));
        assert_eq!(fold.end(), None);
    }

    #[test]
    fn repeats_are_logged_after_a_minute() {
        let (mut fold, start) = (fold(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        fold.take(start, Level::Warn, "a");
        fold.take(at(59), Level::Warn, "a");
        assert_eq!(fold.next_due(), Some(at(60)));
        assert_eq!(fold.take_due(at(59)), None);
        assert_eq!(fold.take_due(at(60)), Some(repeats("a", 1)));
        assert_eq!(fold.next_due(), None);
        assert_eq!(fold.take(at(61), Level::Warn, "a"), (None, true));
        // A line that is repeated once a minute is logged each time.
        assert_eq!(fold.take(at(121), Level::Warn, "a"), (None, true));
    }

    #[test]
    fn very_long_lines_are_not_folded() {
        let (mut fold, now) = (fold(), Instant::now());
        let long = "x".repeat(MAX_TEXT + 1);
        assert_eq!(fold.take(now, Level::Warn, &long), (None, true));
        assert_eq!(fold.take(now, Level::Warn, &long), (None, true));
    }
}
