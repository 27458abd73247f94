//! A copy of the stand-in EspoCRM.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::{TempDir, register_secret};

/// Included by each command after it has recorded its run: [`Standin::hold`] holds it here.
const GATE: &str = "<?php
$hold = __DIR__ . '/standin/hold';
$end = time() + 60;
while (defined('STANDIN_COMMAND') && !standinIsSelfCheck() && is_file($hold) && time() < $end) {
    $text = (string) @file_get_contents($hold);
    if ($text !== '' && strpos(implode(' ', $_SERVER['argv']), $text) === false) {
        break;
    }
    usleep(2000);
    clearstatcache();
}
return array();
";

/// A separate EspoCRM for one test, with free ports.
pub struct Standin {
    dir: TempDir,
    config: Map<String, Value>,
}

impl Standin {
    pub fn new() -> Self {
        let dir = TempDir::new("standin");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin/.");
        let copied = Command::new("cp").arg("-r").arg(source).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        let config = json!({
            "useWebSocket": true,
            "webSocketPort": 0,
            "webSocketZeroMQSubscriberDsn": "tcp://127.0.0.1:*",
            "siteUrl": "http://localhost",
        });
        let Value::Object(config) = config else { unreachable!() };
        let standin = Self { dir, config };
        std::fs::create_dir_all(standin.path().join("data/standin")).unwrap();
        standin.write("config.php", &standin.config);
        standin.write_raw("config-override.php", GATE);
        standin.give_to_nobody();
        standin
    }

    /// The same with this version.
    pub fn version(version: &str) -> Self {
        let mut standin = Self::new();
        standin.config("version", version);
        standin
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Sets a parameter of its configuration as EspoCRM does, by replacing the file.
    pub fn config(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        if let Some(text) = value.as_str().filter(|_| name.ends_with("Passphrase")) {
            register_secret(text);
        }
        self.config.insert(name.to_owned(), value);
        self.write("config.php", &self.config);
    }

    /// Changes its owner to a user who is subject to file permissions, if possible: root does not
    /// run the PHP of a site.
    fn give_to_nobody(&self) {
        if super::is_root() {
            let mut chown = Command::new("chown");
            chown.args(["-R", "65534:65534"]).arg(self.path());
            assert!(chown.status().unwrap().success());
        }
    }

    /// Sets the version in the file that EspoCRM uses since 9.3 and that takes precedence over its
    /// other files.
    pub fn state(&self, version: &str) {
        self.write_raw("state.php", &format!("<?php return ['version' => '{version}'];"));
    }

    /// Writes a file of `data/` that returns these values.
    pub fn write(&self, file: &str, values: &Map<String, Value>) {
        let json = Value::Object(values.clone()).to_string();
        let quoted = json.replace('\\', "\\\\").replace('\'', "\\'");
        self.write_raw(file, &format!("<?php\nreturn json_decode('{quoted}', true);\n"));
    }

    /// Writes a file of `data/`.
    pub fn write_raw(&self, file: &str, text: &str) {
        let path = self.path().join("data").join(file);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        if super::is_root() {
            // Some files are also written by PHP.
            let owner = self.path().metadata().unwrap();
            std::os::unix::fs::chown(&temporary, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        std::fs::rename(temporary, path).unwrap();
    }

    /// Adds categories as an extension does, and clears the cache.
    pub fn custom_categories(&self, categories: &Value) {
        let dir = self.path().join("custom/Espo/Custom/Resources/metadata/app");
        std::fs::create_dir_all(&dir).unwrap();
        let json = json!({ "categories": categories }).to_string();
        std::fs::write(dir.join("webSocket.json"), json).unwrap();
        self.clear_cache();
    }

    /// Sets its entity types, and clears the cache.
    pub fn entity_types(&self, names: &[&str]) {
        let dir = self.path().join("custom/Espo/Custom/Resources/metadata");
        std::fs::create_dir_all(&dir).unwrap();
        let types: Map<String, Value> = names.iter().map(|it| ((*it).into(), json!({}))).collect();
        std::fs::write(dir.join("entityDefs.json"), Value::Object(types).to_string()).unwrap();
        self.clear_cache();
    }

    pub fn clear_cache(&self) {
        let cache = self.path().join("data/cache");
        // A running check may write to it meanwhile.
        while let Err(error) = std::fs::remove_dir_all(&cache)
            && error.kind() != ErrorKind::NotFound
        {
            assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
        }
    }

    /// Controls its behavior; see its README.
    pub fn set(&self, name: &str, value: &str) {
        self.write_raw(&format!("standin/{name}"), value);
    }

    /// Reverts [`set`](Self::set).
    pub fn unset(&self, name: &str) {
        let _ = std::fs::remove_file(self.path().join("data/standin").join(name));
    }

    /// Checks whose arguments contain `text` start but do not end before
    /// [`release`](Self::release).
    pub fn hold(&self, text: &str) {
        self.set("hold", text);
    }

    /// Lets the held checks continue.
    pub fn release(&self) {
        self.unset("hold");
    }

    /// Creates a PHP that runs `shell` first, in EspoCRM's root directory, where `$1` is the script
    /// (none if the script comes from standard input). Returns its path.
    pub fn php(&self, name: &str, shell: &str) -> String {
        let (draft, path) = (self.path().join("draft"), self.path().join(name));
        std::fs::write(&draft, format!("#!/bin/sh\n{shell}\nexec php \"$@\"\n")).unwrap();
        // If this process had written it, a child of another test could still hold it open for
        // writing, and it could not be executed.
        let mut install = Command::new("install");
        assert!(install.args(["-m", "755"]).args([&draft, &path]).status().unwrap().success());
        path.to_str().unwrap().to_owned()
    }

    /// Creates a PHP in which no command starts while `data/standin/gate` exists.
    pub fn php_with_gate(&self) -> String {
        let wait = "while [ -e data/standin/gate ] && [ -e /proc/$PPID ]; do sleep 0.02; done";
        self.php("php", &format!("case $1 in command.php) {wait};; esac"))
    }

    /// The argument vector of each run of `command.php` so far.
    pub fn arguments(&self) -> Vec<Vec<String>> {
        let runs = std::fs::read_to_string(self.path().join("data/standin/runs"));
        runs.unwrap_or_default().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The same, one text per run.
    pub fn runs(&self) -> Vec<String> {
        self.arguments().iter().map(|words| words.join(" ")).collect()
    }

    /// The number of runs with these arguments.
    pub fn count(&self, arguments: &str) -> usize {
        self.runs().iter().filter(|run| **run == arguments).count()
    }

    /// How each check was run: `plain` or `worker`.
    pub fn modes(&self) -> Vec<String> {
        let mode = std::fs::read_to_string(self.path().join("data/standin/how"));
        mode.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// How each self-check was answered: `plain` or `worker`.
    pub fn self_checks(&self) -> Vec<String> {
        let mode = std::fs::read_to_string(self.path().join("data/standin/self-checks"));
        mode.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The number of runs of the probe.
    pub fn probes(&self) -> usize {
        let probes = std::fs::read_to_string(self.path().join("data/standin/probes"));
        probes.unwrap_or_default().lines().count()
    }
}
