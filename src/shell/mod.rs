//! The shell: sockets, ZeroMQ, processes, files, the clock. It does what [`crate::core`] decides.

pub mod adopt;
pub mod bus;
pub mod children;
pub mod clock;
pub mod conn;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod espocrm;
pub mod fatal;
pub(crate) mod file_permissions;
pub mod health;
pub mod listener;
pub mod logging;
pub(crate) mod net;
pub mod operate;
pub mod random;
pub mod regular_file;
pub mod run;
#[cfg(test)]
pub(crate) mod script;
pub mod server;
pub mod settings;
pub mod setup;
pub(crate) mod shell_word;
pub mod signals;
pub mod stream;
pub(crate) mod suggest;
pub mod sys;
pub mod systemd;
pub mod tls;
pub mod workers;
