//! Starting, reloading and stopping.

mod mishaps;
mod own_file;
mod pid_one;
mod reloading;
mod said;
mod settings;
mod starting;
mod stopping;

use std::net::TcpListener;

use crate::support::{alice, expect_alive, notification};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
