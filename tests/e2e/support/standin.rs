//! A copy of the stand-in EspoCRM.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::{TempDir, keep_secret};

/// Included by each command after it has noted its run: where [`Standin::hold`] holds it.
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

/// An EspoCRM of its own for one test, with ports that are free.
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

    /// The same with a version that it claims.
    pub fn version(version: &str) -> Self {
        let mut standin = Self::new();
        standin.config("version", version);
        standin
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Sets a parameter of its configuration, as EspoCRM does: by another file in the place of
    /// the old one.
    pub fn config(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        if let Some(text) = value.as_str().filter(|_| name.ends_with("Passphrase")) {
            keep_secret(text);
        }
        self.config.insert(name.to_owned(), value);
        self.write("config.php", &self.config);
    }

    /// Has it belong to a user to whom permissions mean something, if that can be had: root does not
    /// run the PHP of a site.
    fn give_to_nobody(&self) {
        if super::is_root() {
            let mut chown = Command::new("chown");
            chown.args(["-R", "65534:65534"]).arg(self.path());
            assert!(chown.status().unwrap().success());
        }
    }

    /// States the version where EspoCRM does since 9.3, which wins over its other files.
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
            // Some are written by PHP as well.
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

    /// States the entity types that it has, and clears the cache.
    pub fn entity_types(&self, names: &[&str]) {
        let dir = self.path().join("custom/Espo/Custom/Resources/metadata");
        std::fs::create_dir_all(&dir).unwrap();
        let types: Map<String, Value> = names.iter().map(|it| ((*it).into(), json!({}))).collect();
        std::fs::write(dir.join("entityDefs.json"), Value::Object(types).to_string()).unwrap();
        self.clear_cache();
    }

    pub fn clear_cache(&self) {
        let cache = self.path().join("data/cache");
        // A check that runs may write into it meanwhile.
        while let Err(error) = std::fs::remove_dir_all(&cache)
            && error.kind() != ErrorKind::NotFound
        {
            assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
        }
    }

    /// Steers it; see its README.
    pub fn set(&self, name: &str, value: &str) {
        self.write_raw(&format!("standin/{name}"), value);
    }

    /// Takes back what [`set`](Self::set) has set.
    pub fn unset(&self, name: &str) {
        let _ = std::fs::remove_file(self.path().join("data/standin").join(name));
    }

    /// Lets the checks whose arguments hold `text` begin, but not end before
    /// [`release`](Self::release).
    pub fn hold(&self, text: &str) {
        self.set("hold", text);
    }

    /// Lets them go on.
    pub fn release(&self) {
        self.unset("hold");
    }

    /// Makes a PHP that does `shell` first, in EspoCRM's root, where `$1` is the script to be run
    /// (none, if it comes on standard input). Returns its path.
    pub fn php(&self, name: &str, shell: &str) -> String {
        let (draft, path) = (self.path().join("draft"), self.path().join(name));
        std::fs::write(&draft, format!("#!/bin/sh\n{shell}\nexec php \"$@\"\n")).unwrap();
        // Had this process written it, a child of another test could still hold it open for
        // writing, and then it cannot be run.
        let mut install = Command::new("install");
        assert!(install.args(["-m", "755"]).args([&draft, &path]).status().unwrap().success());
        path.to_str().unwrap().to_owned()
    }

    /// The argument vector of each run of `command.php` so far.
    pub fn arguments(&self) -> Vec<Vec<String>> {
        let runs = std::fs::read_to_string(self.path().join("data/standin/runs"));
        runs.unwrap_or_default().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The same, in one text each.
    pub fn runs(&self) -> Vec<String> {
        self.arguments().iter().map(|words| words.join(" ")).collect()
    }

    /// How often it was run with these arguments.
    pub fn count(&self, arguments: &str) -> usize {
        self.runs().iter().filter(|run| **run == arguments).count()
    }

    /// By what each run was done: `plain` or `worker`.
    pub fn modes(&self) -> Vec<String> {
        let mode = std::fs::read_to_string(self.path().join("data/standin/how"));
        mode.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// By what each self-check was answered: `plain` or `worker`.
    pub fn self_checks(&self) -> Vec<String> {
        let mode = std::fs::read_to_string(self.path().join("data/standin/self-checks"));
        mode.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// How often it was asked for its settings.
    pub fn probes(&self) -> usize {
        let probes = std::fs::read_to_string(self.path().join("data/standin/probes"));
        probes.unwrap_or_default().lines().count()
    }
}
