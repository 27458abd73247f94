//! The behavior that EspoCRM's client relies on, line by line, over raw sockets.

mod debug_log;
mod disconnects;
mod frames;
mod keep_alive;
mod login;
mod rejected_requests;
mod topics;
mod upgrade;
mod wamp;
