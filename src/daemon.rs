//! The long-running process: sockets, ZeroMQ, the event loop. It does what [`crate::engine`] decides,
//! and uses nothing of the short-lived commands.

pub mod connection;
pub mod control;
pub mod demo;
pub mod event_loop;
pub mod listener;
pub(crate) mod net;
pub mod run;
#[cfg(test)]
pub(crate) mod script;
pub mod stream;
pub mod systemd;
pub mod tls;
pub mod zmq;
