//! Counts events, to make sure that each of them occurs.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Seen {
    pub counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}
