//! End-to-end tests of the real binary with real components: PHP with its ZeroMQ extension, raw
//! sockets, proxies, a browser. EspoCRM itself is the stand-in in `tests/standin`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a failing test panics"
)]

mod support;

mod browser;
mod checks;
mod contract;
mod doctor;
mod entity_types;
mod health;
mod hostile;
mod identity;
mod lifecycle;
mod limits;
mod messages;
mod metrics;
mod proxies;
mod revocation;
mod self_check;
mod setup;
mod status;
mod systemd;
mod tls;
mod versions;
mod workers;
