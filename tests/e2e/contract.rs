//! The behavior that EspoCRM's client relies on, line by line, over raw sockets.

mod authentication;
mod debug_log;
mod endings;
mod frames;
mod keep_alive;
mod refusals;
mod topics;
mod upgrade;
mod wamp;
