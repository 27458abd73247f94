//! The long-running process: sockets, ZeroMQ, the event loop. It carries out the decisions of
//! [`crate::engine`] and does not use the short-lived commands.

pub(crate) mod checks;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod control;
pub mod demo;
pub(crate) mod event_loop;
pub(crate) mod listener;
pub(crate) mod reload;
pub(crate) mod run;
#[cfg(test)]
pub(crate) mod script;
pub(crate) mod seam;
pub(crate) mod settings_reader;
pub(crate) mod stream;
pub(crate) mod systemd;
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod zmq;
