//! The tokens by which sessions have logged in.

use std::collections::BTreeMap;
use std::fmt;

use crate::engine::interner::{Interner, Key};

/// Kept to be checked again; those of a user's tabs are the same, and stored once.
#[derive(Default)]
pub(super) struct Tokens(Interner<()>);

impl Tokens {
    /// Takes hold of a token.
    pub(super) fn intern(&mut self, token: &str) -> Key {
        self.0.intern(token)
    }

    /// Gives it up.
    pub(super) fn release(&mut self, key: Key) {
        self.0.release(key);
    }

    /// The token behind a key.
    pub(super) fn name(&self, key: Key) -> &str {
        self.0.name(key)
    }

    /// Checks that each token is used as often as it was interned.
    pub(super) fn check_uses(&self, uses: &BTreeMap<Key, u32>) {
        self.0.check_uses(uses);
    }

    /// Whether none is held.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Never shows a token.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("len", &self.0.len()).finish_non_exhaustive()
    }
}
