//! Runs `systemctl` and `journalctl`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::files::Files;
use crate::platform::exit::{Exit, Result};

/// The commands `systemctl` and `journalctl`.
pub(crate) struct Systemctl {
    systemctl: Vec<OsString>,
    journalctl: Vec<OsString>,
}

/// Reads of a log, one every 100 ms, until two of them agree.
const LOG_READS: usize = 20;

impl Systemctl {
    /// The commands, if systemd runs this machine.
    pub(crate) fn here() -> Option<Self> {
        Self::of(&Files::below(Path::new("/")))
    }

    /// The commands, if systemd runs the machine with these files.
    pub(crate) fn of(files: &Files) -> Option<Self> {
        let runs = files.resolve(Path::new("/run/systemd/system")).is_ok();
        runs.then(|| Self {
            systemctl: vec!["systemctl".into()],
            journalctl: vec!["journalctl".into()],
        })
    }

    /// Runs `systemctl` and returns its output.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&self.systemctl, arguments).map_err(|text| {
            Exit::error_lines(format!("systemctl {} failed: {text}", arguments.join(" ")))
        })
    }

    /// Whether a unit runs.
    pub(crate) fn is_active(&self, unit: &str) -> bool {
        self.state(unit) == "active"
    }

    /// Whether a unit runs or is being restarted.
    pub(crate) fn is_wanted(&self, unit: &str) -> bool {
        matches!(&*self.state(unit), "active" | "activating" | "reloading")
    }

    fn state(&self, unit: &str) -> String {
        self.either(&["is-active", unit])
    }

    /// Enables and starts a unit.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn bring_up(&self, unit: &str) -> Result<()> {
        self.run(&["enable", unit])?;
        // systemd does not start a unit that has failed too often.
        self.either(&["reset-failed", unit]);
        self.start(unit)
    }

    /// Starts or restarts a unit.
    ///
    /// # Errors
    /// If it does not run. The message contains the last lines of its log.
    pub(crate) fn start(&self, unit: &str) -> Result<()> {
        let started = self.run(&["restart", unit]).and_then(|_| match &*self.state(unit) {
            "active" => Ok(()),
            state => Err(Exit::error(format!("It did not stay active: systemd reports {state}."))),
        });
        started.map_err(|error| Exit::error_lines(format!("{error}{}", self.last_log_lines(unit))))
    }

    /// The last lines that a unit logged, each preceded by a line break.
    fn last_log_lines(&self, unit: &str) -> String {
        // An earlier process of this unit has another id.
        let id = self.either(&["show", "--value", "--property=InvocationID", unit]);
        let of_this_start = format!("_SYSTEMD_INVOCATION_ID={id}");
        let arguments = ["--quiet", "--no-pager", "--output=cat", "--lines=5", &of_this_start];
        // The journal may not yet contain all lines of a process that has just ended, even after
        // --sync: journald may handle that request before lines that it has not read yet.
        let mut log = String::new();
        for _ in 0..LOG_READS {
            let _ = output(&self.journalctl, &["--sync"]);
            let now = output(&self.journalctl, &arguments).unwrap_or_else(|error| error);
            let is_complete = !now.is_empty() && now == log;
            log = now;
            if is_complete {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        log.lines().flat_map(|line| ["\n  ", line]).collect()
    }

    /// The output of `systemctl`, whether it succeeds or fails.
    fn either(&self, arguments: &[&str]) -> String {
        output(&self.systemctl, arguments).unwrap_or_else(|error| error)
    }
}

/// Runs a command. Returns its standard output, or its error output if there is none.
fn output(command: &[OsString], arguments: &[&str]) -> std::result::Result<String, String> {
    let mut words = command.iter();
    let mut command = Command::new(words.next().cloned().unwrap_or_default());
    command.args(words).args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let text = if stdout.trim().is_empty() { stderr } else { stdout };
    let text = text.trim().to_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

#[cfg(test)]
impl Systemctl {
    /// Replaces both with another command.
    pub(crate) fn fake(words: Vec<OsString>) -> Self {
        Self { systemctl: words.clone(), journalctl: words }
    }
}
