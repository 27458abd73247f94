//! A Debian container with a booted systemd.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::support::eventually;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    Bookworm,
    Trixie,
}

/// A container that lives as long as the test.
pub struct Container {
    /// `tools/container boot`, which stops the container at the end of its input.
    process: Child,
    /// The process id of its first process outside the container.
    init: u32,
}

impl Container {
    /// Boots the container and moves this thread into its network.
    pub fn boot(release: Release) -> Self {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/container");
        let name = match release {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        };
        let mut command = Command::new(tool);
        command.args(["boot", name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let init = line.trim().parse().expect("the container has booted; see above");
        let network = File::open(format!("/proc/{init}/ns/net")).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        Self { process, init }
    }

    /// Runs a shell command as root, which must succeed, and returns its output.
    pub fn run(&self, shell: &str) -> String {
        let (succeeded, printed) = self.attempt(shell);
        assert!(succeeded, "{shell}\nfailed and printed:\n{printed}");
        printed
    }

    /// The same for a command that must fail.
    pub fn fail(&self, shell: &str) -> String {
        let (succeeded, printed) = self.attempt(shell);
        assert!(!succeeded, "{shell}\ndid not fail and printed:\n{printed}");
        printed
    }

    /// Whether the command succeeds, and its output: standard output and standard error in their
    /// order.
    pub fn attempt(&self, shell: &str) -> (bool, String) {
        let output = self.shell(&format!("exec 2>&1\n{shell}"), b"");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a shell command with this standard input. Questions cannot be answered.
    fn shell(&self, shell: &str, input: &[u8]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]);
        command.args(["timeout", "120", "sh", "-ec", shell]);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().unwrap();
        // The command need not read its input.
        let _ = process.stdin.take().unwrap().write_all(input);
        process.wait_with_output().unwrap()
    }

    /// Writes a file and creates its directory.
    pub fn write(&self, path: &str, text: &str) {
        let shell = format!("mkdir -p \"$(dirname '{path}')\" && cat >'{path}'");
        let output = self.shell(&shell, text.as_bytes());
        assert!(output.status.success(), "{path}");
    }

    pub fn read(&self, path: &str) -> String {
        self.run(&format!("cat '{path}'"))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.attempt(&format!("test -e '{path}' || test -L '{path}'")).0
    }

    /// A property of a unit, as printed by `systemctl show`.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --value -p {name} '{unit}'")).trim().to_owned()
    }

    pub fn is_active(&self, unit: &str) -> bool {
        self.property(unit, "ActiveState") == "active"
    }

    /// `enabled`, `disabled`, …; empty if the unit does not exist.
    pub fn enablement(&self, unit: &str) -> String {
        self.property(unit, "UnitFileState")
    }

    /// Waits until the service is active: with `Type=notify`, that is when it serves.
    pub fn wait_until_active(&self, unit: &str) {
        eventually(&format!("{unit} serves"), || self.is_active(unit));
    }

    /// The process id of its main process inside the container.
    pub fn main_pid(&self, unit: &str) -> u32 {
        self.property(unit, "MainPID").parse().unwrap()
    }

    /// The log lines of a unit, with all journal fields.
    pub fn journal(&self, unit: &str) -> Vec<Value> {
        let lines = self.run(&format!("journalctl --no-pager -o json -u '{unit}'"));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The number of log lines of a unit that contain `text`.
    pub fn logged(&self, unit: &str, text: &str) -> usize {
        let journal = self.journal(unit);
        let messages = journal.iter().filter_map(|line| line["MESSAGE"].as_str());
        messages.filter(|message| message.contains(text)).count()
    }

    /// All files except those of the kernel, systemd's runtime files, logs and caches.
    pub fn files(&self) -> Vec<String> {
        let found = self.run(
            "find / -xdev \\( -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache \
             -o -path /packages -o -path /tests -o -path /root \\) -prune -o -print | sort",
        );
        found.lines().map(str::to_owned).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (_, printed) = self.attempt(
                "systemctl --no-pager --failed
                systemctl --no-pager status 'espocrm-websocket*' || true
                journalctl --no-pager -n 100",
            );
            eprintln!("In the container:\n{printed}");
        }
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The path of a file of this project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
