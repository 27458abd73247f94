//! A copy of the stand-in for EspoCRM.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::worker::{Outcome, Worker};

/// A copy of the stand-in, in this directory.
pub struct Standin(pub PathBuf);

impl Standin {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("espocrm-worker-{}-{number}", std::process::id());
        let standin = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&standin.0).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin/.");
        let copied = Command::new("cp").arg("-r").arg(source).arg(&standin.0).status().unwrap();
        assert!(copied.success());
        standin.write("data/config.php", "<?php return ['siteUrl' => 'http://first'];");
        standin.write("data/standin/failure", "");
        standin
    }

    pub fn version(version: &str) -> Self {
        let standin = Self::new();
        standin.write("data/state.php", &format!("<?php return ['version' => '{version}'];"));
        standin
    }

    /// Replaces a file, as EspoCRM does.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    pub fn remove(&self, file: &str) {
        let _ = std::fs::remove_file(self.0.join(file));
    }

    /// Writes the command `Extension`.
    pub fn extension(&self, code: &str) {
        self.write("custom/commands/Extension.php", &format!("<?php {code}"));
    }

    pub fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join("data/standin").join(file));
        text.unwrap_or_default().lines().map(ToOwned::to_owned).collect()
    }

    /// The result of `php command.php`.
    pub fn plain(&self, words: &[&str]) -> Outcome {
        self.plain_with(&[], words)
    }

    /// The same, with settings like those of php.ini.
    pub fn plain_with(&self, ini: &[&str], words: &[&str]) -> Outcome {
        let mut command = Command::new("php");
        for option in ini {
            command.args(["-d", option]);
        }
        command.arg("command.php").args(words).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Outcome { status: output.status.code().unwrap_or(-1), output: text }
    }

    /// Runs a command both ways, expects the same result, and returns it.
    pub fn both(&self, worker: &Worker, words: &[&str]) -> Outcome {
        let warm = worker.run(words);
        let plain = self.plain(words);
        assert_eq!(warm.outcome().as_ref(), Some(&plain), "{words:?} {warm:?}");
        plain
    }

    /// Makes all files as old as those of an installation, so that opcache caches them.
    pub fn age(&self) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        age(&self.0, hour_ago);
    }
}

fn age(dir: &Path, to: SystemTime) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path(), to);
        } else {
            std::fs::File::open(entry.path()).unwrap().set_modified(to).unwrap();
        }
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
