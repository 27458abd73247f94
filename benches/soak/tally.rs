//! Counters and violations.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::client::Plan;

pub struct Tally {
    start: Instant,
    /// Number of connections by purpose and endpoint.
    pub opened: BTreeMap<String, u64>,
    pub counts: BTreeMap<String, u64>,
    pub delivered: u64,
    /// Bytes of the delivered messages.
    pub bytes: u64,
    pub violations: Vec<String>,
    /// Number of violations without a description.
    pub more_violations: u64,
}

/// Number of violations with a description: the first ones show the cause.
const MAX_VIOLATIONS: usize = 50;

impl Tally {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            opened: BTreeMap::new(),
            counts: BTreeMap::new(),
            delivered: 0,
            bytes: 0,
            violations: Vec::new(),
            more_violations: 0,
        }
    }

    pub fn opened(&mut self, plan: Plan, endpoint: &str) {
        let plan = format!("{plan:?}");
        let kind = plan.split('(').next().unwrap_or_default();
        for name in [format!("to {kind}"), format!("at {endpoint}")] {
            *self.opened.entry(name).or_default() += 1;
        }
    }

    pub fn count(&mut self, what: &str, number: u64) {
        *self.counts.entry(what.to_owned()).or_default() += number;
    }

    pub fn violation(&mut self, mut what: String) {
        if self.violations.len() == MAX_VIOLATIONS {
            self.more_violations += 1;
            return;
        }
        what.insert_str(0, &format!("{:7.2} s: ", self.start.elapsed().as_secs_f64()));
        eprintln!("VIOLATION {what}");
        self.violations.push(what);
    }
}
