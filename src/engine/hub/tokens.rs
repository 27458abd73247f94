//! The tokens of the sessions.

use std::collections::BTreeMap;
use std::fmt;

use crate::engine::interner::{Interner, Key};

/// Kept for rechecks; the browser tabs of a user share one token, which is stored once.
#[derive(Default)]
pub(super) struct Tokens(Interner<()>);

impl Tokens {
    /// Adds a reference to a token.
    pub(super) fn intern(&mut self, token: &str) -> Key {
        self.0.intern(token)
    }

    /// Removes a reference.
    pub(super) fn release(&mut self, key: Key) {
        self.0.release(key);
    }

    /// The token of a key.
    pub(super) fn name(&self, key: Key) -> &str {
        self.0.name(key)
    }

    /// Checks that each token has as many references as sessions. For tests.
    pub(super) fn check_refs(&self, refs: &BTreeMap<Key, u32>) {
        self.0.check_refs(refs);
    }

    /// Whether there are no tokens.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Omits the tokens.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("len", &self.0.len()).finish_non_exhaustive()
    }
}
