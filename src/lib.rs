//! The real-time daemon of EspoCRM, a drop-in for its `websocket.php`.
//!
//! Two storeys: [`core`] decides, [`shell`] does. ARCHITECTURE.md shows how a message walks
//! through them.

#![cfg_attr(
    test,
    allow(clippy::cast_possible_truncation, reason = "a test's numbers are small and its own")
)]

// The simulations share what they have in common.
#[cfg(test)]
extern crate self as espocrm_websocket;

pub mod cli;
pub mod core;
pub mod shell;
