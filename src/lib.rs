//! The real-time daemon of EspoCRM, a drop-in for its `websocket.php`.
//!
//! Two layers: [`engine`] decides, the other modules do the input and output. ARCHITECTURE.md
//! describes how a message passes through them.

#![warn(unreachable_pub)]
#![cfg_attr(
    test,
    allow(clippy::cast_possible_truncation, reason = "a test's numbers are small and its own")
)]

// The simulations share what they have in common.
#[cfg(test)]
extern crate self as espocrm_websocket;

pub(crate) mod admin;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod espocrm;
pub mod platform;
pub mod settings;
