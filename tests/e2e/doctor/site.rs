//! An EspoCRM with its daemon, a proxy in front of it, and the relevant parts of its machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::{Daemon, Port, Proxy, ProxyKind, Standin, TempDir, command, run};

pub struct Site {
    pub standin: Standin,
    pub daemon: Option<Daemon>,
    pub proxy: Option<Proxy>,
    pub port: Port,
    pub zeromq: Port,
    /// Files of the machine, and scripts that replace its programs.
    dir: TempDir,
    /// The trusted certificates.
    trusted: Option<PathBuf>,
}

/// The report on one step.
#[derive(Debug)]
pub struct Step {
    pub name: String,
    pub state: String,
    pub found: String,
    pub fix: String,
}

pub struct Diagnosis {
    pub status: i32,
    pub steps: Vec<Step>,
}

const UNIT: &str = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n\
    SubState=running\nResult=success\nNRestarts=0\nConditionResult=yes\n";

impl Site {
    /// A site without any problem.
    pub fn healthy() -> Self {
        let mut site = Self::without_proxy();
        site.serve();
        let daemon = site.port.address();
        site.put_proxy(Proxy::start(ProxyKind::Nginx, daemon));
        site
    }

    /// The same, but without a daemon and a proxy.
    pub fn without_proxy() -> Self {
        let mut standin = Standin::new();
        let (port, zeromq) = (Port::reserve(), Port::reserve());
        standin.config("webSocketPort", port.address().port());
        let number = zeromq.address().port();
        standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://127.0.0.1:{number}"));
        standin.config("webSocketZeroMQSubmissionDsn", format!("tcp://localhost:{number}"));
        standin.config("siteUrl", "https://localhost");
        let dir = TempDir::new("site");
        let site = Self { standin, daemon: None, proxy: None, port, zeromq, dir, trusted: None };
        site.settings("");
        site.put("/run/systemd/system/here", "");
        site.put("/etc/passwd", "root:x:0:0::/:\nnobody:x:65534:65534::/:\n");
        site.put("/etc/php/8.2/fpm/conf.d/20-zmq.ini", "extension=zmq.so\n");
        site.unit("espocrm-websocket.service", UNIT);
        let units = site.path("units").display().to_string();
        site.program(
            "systemctl",
            &format!("cat {units}/\"$2\" 2>/dev/null || echo LoadState=not-found"),
        );
        site.program("timedatectl", "echo yes");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// Settings of the daemon in addition to the usual ones.
    pub fn settings(&self, more: &str) {
        let control = self.path("control.sock");
        let text = format!(
            "listen = '127.0.0.1'\nmax_checks = 2\ncontrol = '{}'\n{more}\n",
            control.display()
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Starts the daemon.
    pub fn serve(&mut self) {
        let mut command = command();
        command.args(["run", "--debug", "--config"]).arg(self.config());
        command.arg("--espocrm").arg(self.standin.path());
        command.env("TMPDIR", self.standin.path());
        self.daemon = Some(Daemon::spawn(command));
    }

    /// Makes browsers use this proxy and trusts its certificate.
    pub fn put_proxy(&mut self, proxy: Proxy) {
        self.trusted = Some(proxy.certificate());
        self.distrust(proxy);
    }

    /// The same, but without trusting the certificate.
    pub fn distrust(&mut self, proxy: Proxy) {
        self.url(&format!("wss://localhost:{}/wss", proxy.address().port()));
        self.put("/etc/nginx/nginx.conf", &format!("http {{\n{}\n}}\n", proxy.site()));
        self.proxy = Some(proxy);
    }

    /// Trusts these certificates.
    pub fn trust(&mut self, certificates: PathBuf) {
        self.trusted = Some(certificates);
    }

    /// Sets the address that browsers connect to.
    pub fn url(&mut self, url: &str) {
        self.standin.config("webSocketUrl", url);
    }

    /// Writes a file of the machine.
    pub fn put(&self, path: &str, text: &str) {
        let path = self.path("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path("root").join(path.trim_start_matches('/'))).unwrap();
    }

    /// Sets what systemd reports about a unit.
    pub fn unit(&self, name: &str, text: &str) {
        let dir = self.path("units");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    /// Replaces a part of what systemd reports about the daemon's unit.
    pub fn our_unit(&self, from: &str, to: &str) {
        assert!(UNIT.contains(from));
        self.unit("espocrm-websocket.service", &UNIT.replace(from, to));
    }

    /// Adds a program to the machine, as a shell script.
    pub fn program(&self, name: &str, script: &str) {
        shell_script(&self.path("bin").join(name), script);
    }

    /// The path of a file of the machine.
    pub fn at(&self, path: &str) -> PathBuf {
        self.path("root").join(path.trim_start_matches('/'))
    }

    pub fn run(&self, flags: &[&str]) -> Output {
        self.run_with(&["--espocrm", self.standin.path().to_str().unwrap()], flags)
    }

    pub fn run_with(&self, espocrm: &[&str], flags: &[&str]) -> Output {
        let mut command = command();
        command.arg("doctor").args(espocrm).arg("--config").arg(self.config());
        command.arg("--root").arg(self.path("root")).args(flags);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("TMPDIR", self.standin.path());
        command.env_remove("SSL_CERT_FILE").env("SSL_CERT_DIR", "/nonexistent");
        if let Some(trusted) = &self.trusted {
            command.env("SSL_CERT_FILE", trusted);
        }
        run(command)
    }

    /// The output for people.
    pub fn text_output(&self, flags: &[&str]) -> String {
        String::from_utf8(self.run(flags).stdout).unwrap()
    }

    /// The output for programs.
    pub fn examine(&self) -> Diagnosis {
        Diagnosis::of(&self.run(&["--json"]))
    }
}

impl Diagnosis {
    pub fn of(output: &Output) -> Self {
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        let list: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
        let steps = list.as_array().unwrap().iter().map(|step| Step {
            name: text(step, "step"),
            state: text(step, "state"),
            found: text(step, "found"),
            fix: text(step, "fix"),
        });
        let steps: Vec<_> = steps.collect();
        let status = output.status.code().unwrap();
        let fails = steps.iter().any(|step| step.state == "failure");
        assert_eq!(status, i32::from(fails), "{printed}");
        assert_eq!(printed.contains("At least one step failed"), fails, "{printed}");
        for step in &steps {
            let needs_fix = ["failure", "warning"].contains(&&*step.state);
            assert_eq!(!step.fix.is_empty(), needs_fix, "{step:?}");
        }
        let mut names: Vec<_> = steps.iter().map(|step| &step.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 32, "each step is reported once: {steps:#?}");
        Self { status, steps }
    }

    pub fn step(&self, name: &str) -> &Step {
        let step = self.steps.iter().find(|step| step.name == name);
        step.unwrap_or_else(|| panic!("no step {name}: {:#?}", self.steps))
    }

    fn expect(&self, name: &str, state: &str, parts: &[&str]) {
        let step = self.step(name);
        assert_eq!(step.state, state, "{step:#?}");
        let text = format!("{}\n{}", step.found, step.fix);
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {step:#?}");
        }
    }

    /// The step is the first to fail and is reported with these words.
    pub fn first_failure(&self, name: &str, parts: &[&str]) {
        self.expect(name, "failure", parts);
        let first = self.steps.iter().find(|step| step.state == "failure").unwrap();
        assert_eq!(first.name, name, "{:#?}", self.steps);
        assert_eq!(self.status, 1);
    }

    /// The step is the only one to fail.
    pub fn only_failure(&self, name: &str, parts: &[&str]) {
        self.first_failure(name, parts);
        let count = self.steps.iter().filter(|step| step.state == "failure").count();
        assert_eq!(count, 1, "{:#?}", self.steps);
    }

    pub fn failure(&self, name: &str, parts: &[&str]) {
        self.expect(name, "failure", parts);
    }

    pub fn warning(&self, name: &str, parts: &[&str]) {
        self.expect(name, "warning", parts);
    }

    /// No step fails, and the only warning is about this step.
    pub fn only_warning(&self, name: &str, parts: &[&str]) {
        self.warning(name, parts);
        assert_eq!(self.status, 0, "{:#?}", self.steps);
    }

    pub fn unknown(&self, name: &str, parts: &[&str]) {
        self.expect(name, "unknown", parts);
    }

    pub fn good(&self, name: &str, part: &str) {
        self.expect(name, "ok", &[part]);
    }
}

/// Writes a program that is a shell script.
pub fn shell_script(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
