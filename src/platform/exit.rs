//! Why a command ends without success.

use std::fmt;

use crate::engine::printable::{printable, printable_lines};

/// Why a command ends before it has done what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal ended it while it was starting: not a failure.
    Stopped,
    /// An error: what happened, to what, and what to do about it.
    Failed(String),
}

/// The result of what can end the program.
pub(crate) type Result<T> = std::result::Result<T, Exit>;

impl Exit {
    /// An error in one line, without secrets. Line feeds and other characters that are not printable
    /// are escaped, since they come from outside.
    pub fn error(message: impl AsRef<str>) -> Self {
        Self::Failed(printable(message.as_ref()))
    }

    /// An error in several lines. Text from outside in it must be escaped already.
    pub fn error_lines(message: impl AsRef<str>) -> Self {
        Self::Failed(printable_lines(message.as_ref()))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "A signal ended the start.",
            Self::Failed(message) => message,
        })
    }
}

impl std::error::Error for Exit {}
