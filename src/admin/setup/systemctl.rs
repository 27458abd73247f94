//! Asking systemd.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use super::files::Files;
use crate::platform::exit::{Exit, Result};

/// The commands `systemctl` and `journalctl`.
pub(crate) struct Systemctl {
    systemctl: Vec<OsString>,
    journalctl: Vec<OsString>,
}

impl Systemctl {
    /// It, if systemd runs this machine.
    pub(crate) fn here() -> Option<Self> {
        Self::of(&Files::below(Path::new("/")))
    }

    /// It, if systemd runs the machine with these files.
    pub(crate) fn of(files: &Files) -> Option<Self> {
        let runs = files.resolve(Path::new("/run/systemd/system")).is_ok();
        runs.then(|| Self {
            systemctl: vec!["systemctl".into()],
            journalctl: vec!["journalctl".into()],
        })
    }

    /// Another command in the place of both.
    #[cfg(test)]
    pub(crate) fn played_by(words: Vec<OsString>) -> Self {
        Self { systemctl: words.clone(), journalctl: words }
    }

    /// Runs it, and tells what it printed.
    ///
    /// # Errors
    /// What it complained of.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let (succeeded, text) = self.ask(arguments);
        if succeeded {
            return Ok(text);
        }
        Err(Exit::error_lines(format!("systemctl {} failed: {text}", arguments.join(" "))))
    }

    /// Whether a unit runs.
    pub(crate) fn is_active(&self, unit: &str) -> bool {
        self.state(unit) == "active"
    }

    /// Whether a unit runs, or would if it did not fail.
    pub(crate) fn is_wanted(&self, unit: &str) -> bool {
        matches!(&*self.state(unit), "active" | "activating" | "reloading")
    }

    fn state(&self, unit: &str) -> String {
        self.ask(&["is-active", unit]).1
    }

    /// Has systemd start a unit now and with the machine.
    ///
    /// # Errors
    /// Why it does not run.
    pub(crate) fn bring_up(&self, unit: &str) -> Result<()> {
        self.run(&["enable", unit])?;
        // It may have failed too often to be started once more.
        self.ask(&["reset-failed", unit]);
        self.start(unit)
    }

    /// Starts a unit, from the beginning if it runs.
    ///
    /// # Errors
    /// Why it does not run, with what it logged last.
    pub(crate) fn start(&self, unit: &str) -> Result<()> {
        let started = self.run(&["restart", unit]).and_then(|_| match &*self.state(unit) {
            "active" => Ok(()),
            state => Err(Exit::error(format!("It did not stay up: systemd says {state}."))),
        });
        started.map_err(|error| Exit::error_lines(format!("{error}{}", self.last_words(unit))))
    }

    /// The last lines that a unit logged, each in a line of its own.
    fn last_words(&self, unit: &str) -> String {
        // What ran under this name before has another id.
        let (_, id) = self.ask(&["show", "--value", "--property=InvocationID", unit]);
        let of_this_start = format!("_SYSTEMD_INVOCATION_ID={id}");
        let arguments = ["--quiet", "--no-pager", "--output=cat", "--lines=5", &of_this_start];
        // The journal may not have written the lines of a process that has just ended.
        ask(&self.journalctl, &["--sync"]);
        let (_, log) = ask(&self.journalctl, &arguments);
        log.lines().flat_map(|line| ["\n  ", line]).collect()
    }

    fn ask(&self, arguments: &[&str]) -> (bool, String) {
        ask(&self.systemctl, arguments)
    }
}

/// Whether a command succeeded, and what it printed: its answer, if it gave one.
fn ask(command: &[OsString], arguments: &[&str]) -> (bool, String) {
    let mut words = command.iter();
    let mut command = Command::new(words.next().cloned().unwrap_or_default());
    command.args(words).args(arguments).stdin(Stdio::null());
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr);
            let text = if said.trim().is_empty() { complaint } else { said };
            (output.status.success(), text.trim().to_owned())
        }
        Err(error) => (false, error.to_string()),
    }
}
