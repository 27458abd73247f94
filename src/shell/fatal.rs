//! Why the daemon cannot go on.

use std::fmt;

/// An error that ends the program: what happened, to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal(String);

/// The result of what can end the program.
pub type Result<T> = std::result::Result<T, Fatal>;

impl Fatal {
    /// For the administrator's eyes: never with a secret in it.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Fatal {}
