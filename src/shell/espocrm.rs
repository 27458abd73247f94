//! An EspoCRM installation, seen from outside: its settings, its commands, its files.

mod facts;
mod identity;
mod installation;
pub mod ownership;
mod router;
mod watch;

pub use facts::Facts;
pub use identity::{Identity, RunAs};
pub use installation::{Installation, PROBE_TIMEOUT, WORKER_OPTIONS};
pub use router::Router;
pub use watch::Watch;
