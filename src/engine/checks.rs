//! Access checks: which ones are needed, in which order they run, on which process, and what their
//! outcome means.

mod cache;
pub mod check;
pub mod command;
pub mod queue;
pub mod self_check;
pub mod verdict;
pub mod worker_pool;
pub mod worker_protocol;
