//! Shared helpers of the tests.

mod alice;
mod chromium;
mod client;
mod control;
mod daemon;
mod php;
mod port;
mod process;
mod process_group;
mod proxy;
mod pusher;
mod secrets;
mod standin;
mod unlogged_daemon;

pub use alice::{alice, expect_alive, notification};
pub use chromium::{Chromium, Page};
pub use client::{Client, Frame, GOOD_HEAD, request};
pub use control::{Control, ask_port};
pub use daemon::{Daemon, command, command_as_nobody, is_root, run, serving, serving_by};
pub use php::Php;
pub use port::Port;
pub use process::Process;
pub use process_group::{ProcessGroup, program};
pub use proxy::{Proxy, ProxyKind};
pub use pusher::Pusher;
pub use secrets::{find_leak, readable, register_secret};
pub use standin::Standin;
pub use unlogged_daemon::UnloggedDaemon;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Far more than any operation takes on any machine: reached only if it never completes.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory that lives as long as the test, and is kept if the test fails.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("espocrm-websocket-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
