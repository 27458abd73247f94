//! A program that starts other processes, such as a proxy or a browser.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process with all processes that it starts; they end with the test.
pub struct ProcessGroup(Child);

/// A command for [`ProcessGroup::start`]; its process ends even if the test is killed.
pub fn program(path: &str) -> Command {
    assert!(
        Path::new(path).exists(),
        "{path} is missing: the tests need what tools/install test installs"
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=TERM", path]);
    command
}

impl ProcessGroup {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).process_group(0);
        Self(command.spawn().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}
