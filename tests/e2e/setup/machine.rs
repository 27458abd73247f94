//! The image of a machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::PathBuf;

use crate::support::{TempDir, command, is_root, run};

/// The files of a machine in a directory, with the packaged units and a few users.
pub struct Machine(TempDir);

/// The result of a command: its output, or its error message.
pub type Outcome = Result<String, String>;

pub const CONFIG: &str = "/etc/espocrm-websocket/config.toml";
pub const DROP_IN: &str = "/etc/systemd/system/espocrm-websocket.service.d/10-setup.conf";

impl Machine {
    pub fn new() -> Self {
        let machine = Self(TempDir::new("machine"));
        for unit in ["espocrm-websocket.service", "espocrm-websocket@.service"] {
            machine.put(&format!("/usr/lib/systemd/system/{unit}"), "[Service]\nType=notify\n");
        }
        let (user, group) = machine.owner();
        machine
            .put("/etc/passwd", &format!("root:x:0:0::/root:/bin/sh\nweb:x:{user}:{group}::/:\n"));
        machine.put("/etc/group", &format!("root:x:0:\nweb:x:{group}:\n"));
        machine
    }

    /// The owner of each EspoCRM: the web server's user, if the current user may change owners.
    pub fn owner(&self) -> (u32, u32) {
        let metadata = self.0.path().metadata().unwrap();
        if is_root() { (33, 33) } else { (metadata.uid(), metadata.gid()) }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    pub fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        symlink(target, self.at(path)).unwrap();
    }

    /// Creates the files that identify an EspoCRM.
    pub fn espocrm(&self, dir: &str) {
        for file in ["bootstrap.php", "command.php", "websocket.php", "data/config.php"] {
            self.put(&format!("{dir}/{file}"), "<?php\n");
        }
        let (user, group) = self.owner();
        chown(self.at(dir).join("data"), Some(user), Some(group)).unwrap();
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn has(&self, path: &str) -> bool {
        self.at(path).symlink_metadata().is_ok()
    }

    /// Every file that does not belong to the initial machine, with its content.
    pub fn written(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut dirs = vec![self.at("/etc"), self.at("/var/lib")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.symlink_metadata().unwrap().is_dir() {
                    dirs.push(path);
                } else {
                    files.push(format!("/{}", path.strip_prefix(self.0.path()).unwrap().display()));
                }
            }
        }
        files.retain(|file| !["/etc/passwd", "/etc/group"].contains(&&**file));
        files.sort();
        files
    }

    /// Runs a command of the program in this image. No systemd may be called.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = command();
        command.args(arguments).arg("--root").arg(self.0.path()).env("PATH", "/nonexistent");
        let output = run(command);
        let [out, complaint] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        match output.status.code() {
            Some(0) => {
                assert_eq!(complaint, "");
                Ok(out)
            }
            Some(1) => Err(complaint),
            _ => panic!("{out}{complaint}"),
        }
    }

    pub fn setup(&self, flags: &[&str]) -> Outcome {
        self.run(&[&["setup"], flags].concat())
    }

    pub fn adopt(&self, flags: &[&str]) -> Outcome {
        self.run(&[&["adopt"], flags].concat())
    }
}

/// Expects that a text contains each of these.
pub fn expect(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
