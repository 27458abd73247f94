//! A real-time daemon for EspoCRM, a drop-in for its `websocket.php`.
//!
//! Two layers: [`engine`] makes the decisions, the other modules perform I/O. ARCHITECTURE.md
//! describes the way of a message through them.

#![warn(unreachable_pub)]
#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "numbers in tests are small"))]

// Lets the simulations share code.
#[cfg(test)]
extern crate self as espocrm_websocket;

pub(crate) mod admin;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod espocrm;
pub mod platform;
pub mod settings;
