//! The control socket, and the commands that use it: `status`, `kick`, `send`, `tail`, `reload`.

mod commands;
mod counters;
mod healthz;
mod invalid_requests;
mod reload;
mod screen;
mod socket;
mod user_names;
