//! The engine: all decisions, made without sockets, processes, files, threads, a clock or a log.
//!
//! Its inputs are events and the current time, its outputs are actions, so that the same inputs
//! always produce the same actions. `tests/boundary.rs` enforces that it uses no other part of the
//! program.

pub mod admission;
pub mod backpressure;
pub mod checks;
pub mod connection;
pub mod espocrm;
pub mod hub;
pub mod id;
pub mod interner;
pub mod json;
pub mod limits;
pub mod memory;
pub mod printable;
pub mod protocol;
#[cfg(test)]
#[path = "../tests/simulation/random.rs"]
#[allow(unreachable_pub, reason = "shared with tests/simulation")]
pub(crate) mod random;
pub mod rate_limited_log;
pub(crate) mod reload;
#[cfg(test)]
#[path = "../tests/simulation/seeds.rs"]
#[allow(unreachable_pub, reason = "shared with tests/simulation")]
pub(crate) mod seeds;
pub mod telemetry;
pub mod time;
pub mod timers;
