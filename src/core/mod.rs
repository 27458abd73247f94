//! The pure core: what to do, decided without sockets, processes, files, threads or a clock.
//!
//! Inputs and `now` go in, actions come out. Nothing in here may use the shell; a test keeps
//! the wall.

pub mod access;
pub mod addresses;
pub mod backpressure;
pub mod category;
pub mod check;
pub mod command;
pub mod control;
pub mod entity_types;
pub mod errand;
pub mod frame;
pub mod handshakes;
pub mod hub;
pub mod id;
pub mod interner;
pub mod json;
pub mod limits;
pub mod metrics;
pub mod network;
pub mod origin;
pub mod outbox;
pub mod pool;
pub mod printable;
pub mod proxy_protocol;
pub mod rate;
pub mod reader;
pub mod self_check;
pub mod stats;
pub mod submission;
pub mod time;
pub mod timers;
pub mod trim;
pub mod upgrade;
pub mod verdict;
pub mod version;
pub mod wamp;
