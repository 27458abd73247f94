//! Starting, reloading and stopping.

mod config_file;
mod faults;
mod logging;
mod pid_one;
mod reload;
mod settings;
mod shutdown;
mod startup;

use std::net::TcpListener;

use crate::support::{alice, expect_alive, notification};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
