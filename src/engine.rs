//! The engine: what to do, decided without sockets, processes, files, threads, a clock or a log.
//!
//! Inputs and the current time go in, actions come out, so that the same inputs always lead to the
//! same actions. The engine uses no other part of the program; `tests/boundary.rs` enforces that.

pub mod admission;
pub mod backpressure;
pub mod checks;
pub mod espocrm;
pub mod hub;
pub mod id;
pub mod interner;
pub mod json;
pub mod limits;
pub mod printable;
pub mod protocol;
pub mod telemetry;
pub mod time;
pub mod timers;
pub mod trim;
