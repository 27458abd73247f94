//! The control socket, and the commands that ask at it: `status`, `kick`, `send`, `tail`.

mod healthz;
mod hostile;
mod numbers;
mod orders;
mod screen;
mod socket;
