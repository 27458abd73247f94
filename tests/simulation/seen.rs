//! Counts events, to make sure that each of them occurs.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub fn expect_everything(&self) {
        for what in [
            "answered",
            "delayed",
            "no room for a login",
            "no room for a recheck",
            "resumed",
            "no longer granted",
            "rechecked",
            "revoked",
            "still granted",
            "still logged in",
            "token not rechecked",
            "topic not rechecked",
            "requested",
            "closed",
            "delivered",
            "login denied",
            "login failed",
            "denied",
            "granted",
            "misbehaved",
            "no receivers",
            "pinged",
            "reloaded",
            "stale verdict",
            "subscription failed",
            "unknown topic",
            "welcomed",
        ] {
            let count = self.counts.get(what).copied().unwrap_or(0);
            assert!(count > 50, "{what}: only {count} times");
        }
    }
}
