//! An EspoCRM installation, seen from outside: its settings, its commands, its files.

mod facts;
mod installation;
mod router;
mod watch;

pub use facts::Facts;
pub use installation::{Installation, PROBE_TIMEOUT, WORKER_OPTIONS};
pub use router::Router;
pub use watch::Watch;
