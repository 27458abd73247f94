//! The last warnings and errors, for the status in the control socket.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use log::Level;

use crate::platform::clock;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was logged, in milliseconds since 1970.
    pub at: u64,
    /// Its level.
    pub level: Level,
    /// Its text, which may be truncated.
    pub text: String,
}

/// The number of lines.
const LINES: usize = 10;

/// Bytes of a line.
const MAX_TEXT: usize = 300;

static LAST: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// The last lines, oldest first.
#[must_use]
pub fn last() -> Vec<Line> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

pub(super) fn keep(level: Level, text: String) {
    let line = Line { at: clock::unix_millis(), level, text: truncate(text) };
    let mut lines = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() >= LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// Truncates a text that is too long.
fn truncate(mut text: String) -> String {
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
    fn the_last_lines_are_kept_and_truncated() {
        assert_eq!(truncate("x".repeat(300)).len(), 300);
        assert_eq!(truncate("ä".repeat(300)), "ä".repeat(148) + " ...");
        for number in 0..15 {
            keep(Level::Warn, number.to_string());
        }
        let texts: Vec<_> = last().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["5", "6", "7", "8", "9", "10", "11", "12", "13", "14"]);
    }
}
