//! Why the daemon cannot go on.

use std::fmt;

use crate::engine::printable::{printable, printable_lines};

/// An error that ends the program: what happened, to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal(Option<String>);

/// The result of what can end the program.
pub(crate) type Result<T> = std::result::Result<T, Fatal>;

impl Fatal {
    /// For the administrator's eyes: never with a secret in it. Line feeds in it come from outside
    /// and are escaped, as is everything else that is not printable.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self(Some(printable(message.as_ref())))
    }

    /// The same for a message of several lines. Text from outside in it must be escaped already.
    pub fn lines(message: impl AsRef<str>) -> Self {
        Self(Some(printable_lines(message.as_ref())))
    }

    /// A signal has ended the start.
    #[must_use]
    pub fn stopped() -> Self {
        Self(None)
    }

    /// Whether that is what was wanted.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("A signal has ended the start."))
    }
}

impl std::error::Error for Fatal {}
