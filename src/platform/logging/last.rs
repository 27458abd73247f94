//! The last warnings and errors, for an administrator who asks the daemon and not its log.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use log::Level;

use crate::platform::clock;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was logged, in milliseconds since 1970.
    pub at: u64,
    /// How bad it is.
    pub level: Level,
    /// Its beginning.
    pub text: String,
}

/// So many are kept.
const LINES: usize = 10;

/// Bytes of each that are kept.
const MAX_TEXT: usize = 300;

static LAST: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// The last ones, in their order.
#[must_use]
pub fn last() -> Vec<Line> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

pub(super) fn keep(level: Level, text: String) {
    let line = Line { at: clock::unix_millis(), level, text: cut(text) };
    let mut lines = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() >= LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// The beginning of a text that is too long.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT - 4).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_cut() {
        assert_eq!(cut("x".repeat(300)).len(), 300);
        assert_eq!(cut("ä".repeat(300)), "ä".repeat(148) + " ...");
        for number in 0..15 {
            keep(Level::Warn, number.to_string());
        }
        let texts: Vec<_> = last().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["5", "6", "7", "8", "9", "10", "11", "12", "13", "14"]);
    }
}
