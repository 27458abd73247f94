//! The short-lived commands: `setup`, `adopt`, `doctor`, `health`, and those that ask a running daemon.
//! They do not use the event loop.

pub mod adopt;
pub mod client;
pub mod ctl;
pub mod doctor;
pub mod health;
pub mod setup;
