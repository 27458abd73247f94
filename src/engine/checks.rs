//! Access checks: queueing, assignment to processes, and the meaning of their outcome.

mod cache;
pub mod check;
pub mod command;
pub mod queue;
pub mod self_check;
pub mod verdict;
pub mod worker_pool;
pub mod worker_protocol;
