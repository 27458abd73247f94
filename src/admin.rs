//! The short-lived commands: `setup`, `adopt`, `doctor`, `health`, and the clients of a running daemon.
//! They do not use the event loop.

pub(crate) mod adopt;
pub(crate) mod client;
pub(crate) mod ctl;
pub(crate) mod doctor;
pub(crate) mod health;
pub(crate) mod setup;
mod ws_probe;
