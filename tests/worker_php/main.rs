//! Compares a worker (`src/espocrm/php/worker.php`) with `php command.php`: for all requests and
//! after all changes, both give the same result, or the worker reports that it cannot run the
//! command.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail by a panic"
)]

mod changes;
mod outcomes;
mod rejected_requests;
mod standin;
mod worker;
