//! The PHP that answers checks (`src/espocrm/php/worker.php`) beside `php command.php`: whatever is asked
//! and whatever has changed, both say the same, or the worker says that it cannot tell.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail by a panic"
)]

mod changes;
mod refusals;
mod sameness;
mod standin;
mod worker;
