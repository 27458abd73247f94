//! Counters, rates and their exposition to Prometheus.

pub mod prometheus;
pub mod rates;
pub mod stats;
