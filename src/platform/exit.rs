//! The reasons for which a command ends without success.

use std::fmt;

use crate::engine::printable::{printable, printable_lines};

/// Why a command ends without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal stopped it during startup; this is not a failure.
    Stopped,
    /// An error: what happened, to what, and what to do about it.
    Failed(String),
}

/// The result of operations whose failure ends the command.
pub(crate) type Result<T> = std::result::Result<T, Exit>;

impl Exit {
    /// An error in one line, without secrets. Escapes line feeds and other characters that are not
    /// printable, since they come from outside.
    pub fn error(message: impl AsRef<str>) -> Self {
        Self::Failed(printable(message.as_ref()))
    }

    /// An error in several lines. Text from outside must already be escaped.
    pub fn error_lines(message: impl AsRef<str>) -> Self {
        Self::Failed(printable_lines(message.as_ref()))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "A signal stopped the program during startup.",
            Self::Failed(message) => message,
        })
    }
}

impl std::error::Error for Exit {}
