//! An EspoCRM installation, seen from outside: its settings, its commands, its files.

mod espo_settings;
pub mod identity;
mod installation;
pub(crate) mod ownership;
pub(crate) mod process;
mod router;
mod task;
mod watch;
pub(crate) mod workers;

pub use espo_settings::EspoSettings;
pub use identity::{Identity, RunAs};
pub use installation::{Installation, PROBE_TIMEOUT, WORKER_OPTIONS};
pub use router::Router;
pub use task::Script;
pub use watch::Watch;
