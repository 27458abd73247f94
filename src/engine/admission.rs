//! Limits by client address: open connections, pending logins and handshakes.

pub mod addresses;
pub mod handshakes;
