//! Another program uses the daemon's ports, or the daemon does not respond.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::Site;
use crate::support::{Daemon, Port, command, eventually};

/// Listens on a reserved port.
fn listen_on(port: &Port) -> TcpListener {
    TcpListener::bind(port.address()).unwrap()
}

/// EspoCRM's own daemon, reduced to its listening sockets.
struct OriginalDaemon(Child);

impl OriginalDaemon {
    fn start(site: &Site, port: &Port) -> Self {
        let path = site.standin.path().join("websocket.php");
        let script = format!(
            "<?php $server = stream_socket_server('tcp://{}'); sleep(600);",
            port.address()
        );
        std::fs::write(&path, script).unwrap();
        let mut php = Command::new("php");
        let child = php.arg(path).stdin(Stdio::null()).spawn().unwrap();
        let original = Self(child);
        eventually("the port accepts connections", || {
            std::net::TcpStream::connect(port.address()).is_ok()
        });
        original
    }
}

impl Drop for OriginalDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_daemon_is_reported() {
    let mut site = Site::healthy();
    site.daemon.take().unwrap().stop("TERM");
    let diagnosis = site.examine();
    diagnosis.first_failure("daemon", &["is not running", "systemctl start"]);
    diagnosis.good("port", "is free");
    diagnosis.good("zeromq-port", "is free");
    diagnosis.unknown("control", &["does not answer"]);
    diagnosis.unknown("message", &["does not answer"]);
    diagnosis.failure("public-url", &["502", "cannot reach the daemon"]);
    diagnosis.good("loop", "arrives");
    diagnosis.unknown("open-files", &["no running daemon"]);
}

#[test]
fn a_hanging_daemon_is_reported() {
    let site = Site::healthy();
    let daemon = site.daemon.as_ref().unwrap();
    daemon.signal("STOP");
    let diagnosis = site.examine();
    daemon.signal("CONT");
    diagnosis.first_failure("daemon", &["does not answer correctly", "systemctl restart"]);
    diagnosis.good("port", "espocrm-websocket");
}

#[test]
fn another_program_on_the_browser_port_is_reported() {
    let site = Site::without_proxy();
    let _other = listen_on(&site.port);
    let diagnosis = site.examine();
    diagnosis.first_failure("port", &["e2e", "webSocketPort", "ss -ltnp"]);
    diagnosis.failure("daemon", &["not espocrm-websocket"]);
}

#[test]
fn a_daemon_binary_with_another_name_is_recognized() {
    let mut site = Site::without_proxy();
    let binary = site.at("/renamed");
    // A hard link has the same inode; across file systems a copy is made.
    let original = env!("CARGO_BIN_EXE_espocrm-websocket");
    let is_link = std::fs::hard_link(original, &binary).is_ok();
    if !is_link {
        let install = Command::new("install").args(["-m", "755", original]).arg(&binary).status();
        assert!(install.unwrap().success());
    }
    let mut renamed = Command::new(&binary);
    renamed.args(["run", "--config"]).arg(site.config());
    renamed.arg("--espocrm").arg(site.standin.path());
    site.daemon = Some(Daemon::spawn(renamed));
    let diagnosis = site.examine();
    diagnosis.good("port", "/renamed");
    diagnosis.good("zeromq-port", "/renamed");
    diagnosis.good("control", "0 connections");
    // Recognized by its inode alone.
    if is_link {
        std::fs::write(site.config(), "listen = '127.0.0.1'\ncontrol = 'off'\n").unwrap();
        site.examine().good("port", "/renamed");
    }
}

#[test]
fn another_program_on_the_message_port_is_reported() {
    let site = Site::without_proxy();
    let _other = listen_on(&site.zeromq);
    let diagnosis = site.examine();
    diagnosis.first_failure("zeromq-port", &["e2e", "webSocketZeroMQSubmissionDsn"]);
    diagnosis.unknown("message", &[]);
}

#[test]
fn a_running_original_daemon_is_reported() {
    let site = Site::without_proxy();
    let _original = OriginalDaemon::start(&site, &site.port);
    let diagnosis = site.examine();
    diagnosis.first_failure("port", &["EspoCRM's own daemon", "espocrm-websocket adopt"]);
}

#[test]
fn a_manually_started_daemon_of_another_espocrm_is_reported() {
    let site = Site::without_proxy();
    let another = crate::support::Standin::new();
    site.put("/another.toml", &format!("espocrm = '{}'", another.path().display()));
    let config = site.at("/another.toml");
    for (option, path) in [("--espocrm", another.path()), ("--config", &config)] {
        let mut other = command();
        other.arg("run").arg(option).arg(path).arg("--control").arg(site.at("/another.sock"));
        other.args(["--listen", &site.port.address().to_string()]);
        let other = Daemon::spawn(other);
        let diagnosis = site.examine();
        let process = format!("process {}", other.pid());
        diagnosis.first_failure("port", &["held by the daemon of another EspoCRM", &process]);
        diagnosis.failure("daemon", &["serves another EspoCRM"]);
    }
}

#[test]
fn mismatched_message_endpoints_are_reported() {
    let mut site = Site::healthy();
    let port = site.zeromq.address().port();
    let mut submission = |dsn: &str| {
        site.standin.config("webSocketZeroMQSubmissionDsn", dsn);
        site.examine()
    };
    let diagnosis = submission("tcp://localhost:1");
    diagnosis.only_failure("zeromq", &["the ports differ", "webSocketZeroMQSubmissionDsn"]);
    diagnosis.unknown("message", &["a different endpoint"]);
    submission("ipc:///tmp/none").only_failure("zeromq", &["transports differ"]);
    submission(&format!("tcp://*:{port}")).only_failure("zeromq", &["needs a host name"]);
    submission(&format!("tcp://192.0.2.1:{port}")).only_failure("zeromq", &["another machine"]);
    submission(&format!("tcp://127.0.0.2:{port}")).only_failure("zeromq", &["addresses differ"]);
    submission(&format!("tcp://0.0.0.0:{port}")).only_warning("zeromq", &["127.0.0.1"]);
    site.standin.config("webSocketMessager", "Redis");
    site.examine().only_failure("zeromq", &["webSocketMessager is Redis"]);
}

#[test]
fn the_zeromq_setting_of_the_daemon_takes_precedence() {
    let site = Site::healthy();
    site.settings("zeromq = 'tcp://127.0.0.1:1'");
    site.examine().only_failure("zeromq", &["the ports differ", "tcp://127.0.0.1:1"]);
}

#[test]
fn a_message_port_reachable_from_other_machines_is_reported() {
    let mut site = Site::without_proxy();
    let port = site.zeromq.address().port();
    site.standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://*:{port}"));
    let diagnosis = site.examine();
    diagnosis.failure("zeromq-exposure", &["Other machines", "tcp://127.0.0.1:5555"]);
    site.put("/.dockerenv", "");
    let diagnosis = site.examine();
    diagnosis.warning("zeromq-exposure", &["do not publish"]);
}

#[test]
fn a_daemon_with_different_settings_or_without_a_control_socket_is_reported() {
    let mut site = Site::healthy();
    let listen = site.port.address().port();
    site.settings("check_cache = '0'");
    let diagnosis = site.examine();
    diagnosis.good("control", "0 connections");
    let other = Port::reserve();
    site.standin.config("webSocketPort", other.address().port());
    let diagnosis = site.examine();
    diagnosis.warning("control", &[&format!("listens at 127.0.0.1:{listen}"), "restart it"]);
    site.standin.config("webSocketPort", listen);
    let another = crate::support::Standin::new();
    let mut other = command();
    other.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
    other.arg(another.path()).arg("--control").arg(site.at("/other.sock"));
    let _other = Daemon::spawn(other);
    std::fs::write(
        site.config(),
        format!("listen = '127.0.0.1'\ncontrol = '{}'\n", site.at("/other.sock").display()),
    )
    .unwrap();
    site.examine().warning("control", &["it serves the EspoCRM in", "--name"]);
    // The daemon runs, but its control socket has another path.
    let pid = site.daemon.as_ref().unwrap().pid();
    let none = site.at("/none.sock");
    let output = site.run(&["--json", "--control", none.to_str().unwrap()]);
    let diagnosis = super::site::Diagnosis::of(&output);
    diagnosis.unknown("control", &[&format!("process {pid} is running, but"), "--control PATH"]);
    // The doctor still sees that the message is accepted.
    std::fs::write(site.config(), "listen = '127.0.0.1'\ncontrol = 'off'\n").unwrap();
    let diagnosis = site.examine();
    diagnosis.unknown("control", &["control is off"]);
    diagnosis.good("message", "is received");
    assert_eq!(diagnosis.status, 0);
}
