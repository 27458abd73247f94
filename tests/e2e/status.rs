//! The control socket, and the commands that use it: `status`, `kick`, `send`, `tail`, `reload`.

mod healthz;
mod hostile;
mod names;
mod numbers;
mod orders;
mod reload;
mod screen;
mod socket;
