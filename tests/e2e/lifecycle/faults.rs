//! Faults in the environment of the daemon.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{alice, expect_alive, free_port};
use crate::support::{
    Client, Daemon, Port, Process, Standin, command, eventually, is_root, request, run,
};

#[test]
fn connections_that_are_reset_immediately_leave_nothing_behind() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    for number in 1..=50 {
        let mut client = Client::tcp(daemon.address);
        client.send(request(&format!("/?authToken=tok-u{number}&userId=u{number}")).as_bytes());
        // Makes closing the connection reset it.
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    }
    let count = |daemon: &Daemon, what: &str| {
        daemon.log().iter().filter(|line| line.ends_with(what)).count()
    };
    daemon.connect("bob");
    eventually("every opened connection is closed", || {
        count(&daemon, ": open") == count(&daemon, ": close")
    });
    eventually("no check is left", || daemon.children().is_empty());
    daemon.signal("TERM");
    daemon.wait_for("with 0 connections open");
}

#[test]
fn a_signal_during_startup_is_handled() {
    for signal in ["HUP", "TERM", "INT"] {
        let standin = Standin::new();
        let gate = "while [ -e data/standin/gate ]; do sleep 0.02; done";
        let php = standin.php("php", gate);
        standin.set("gate", "");
        let mut command = command();
        command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--php", &php]);
        command.arg("--espocrm").arg(standin.path()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut children = Vec::new();
        eventually("the probe runs", || {
            children = Process::children_of(process.id());
            children.len() == 1
        });
        // The process is PHP by now or becomes it soon: signals are handled before PHP is started.
        let pid = process.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        if signal == "HUP" {
            standin.unset("gate");
            eventually("it serves", || Process::children_of(process.id()).is_empty());
            assert!(process.try_wait().unwrap().is_none());
            assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        }
        assert!(process.wait().unwrap().success(), "{signal}");
        assert!(children.iter().all(|child| !Process::is_running(child.pid)));
    }
}

#[test]
fn child_processes_of_a_check_end_with_it() {
    let standin = Standin::new();
    let php = standin.php("php", "case $1 in command.php) sleep 1000 & echo $! > data/left;; esac");
    let daemon = Daemon::start_with(&standin, &["--php", &php]);
    daemon.connect("alice");
    let left = std::fs::read_to_string(standin.path().join("data/left")).unwrap();
    let left = left.trim().parse().unwrap();
    eventually("it ends", || !Process::is_running(left));
}

#[test]
fn a_reload_can_move_the_port_to_another_address() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    let port = free_port();
    let listen = |address: &str| {
        std::fs::write(&file, format!("listen = '{address}:{port}'\n")).unwrap();
    };
    listen("127.0.0.1");
    let mut command = command();
    command.arg("run").arg("--espocrm").arg(standin.path()).arg("--config").arg(&file);
    let mut daemon = Daemon::spawn(command);
    let mut before = alice(&daemon);
    listen("0.0.0.0");
    daemon.reload(&format!("Browsers are served at 0.0.0.0:{port}."));
    let mut after = alice(&daemon);
    // An unavailable address keeps the previous one.
    listen("192.0.2.1");
    daemon.reload("this machine has no such address");
    let mut third = alice(&daemon);
    expect_alive(&daemon, &mut before, 1);
    for tab in [&mut after, &mut third] {
        tab.expect_event(&super::notification(1));
    }
}

#[test]
fn an_error_in_the_configuration_file_keeps_the_previous_settings() {
    let standin = Standin::new();
    let commands = standin.path().join("custom/commands");
    std::fs::create_dir_all(&commands).unwrap();
    std::fs::write(commands.join("Quiet.php"), "<?php return 0;").unwrap();
    standin.custom_categories(&json!({"quiet": {"accessCheckCommand": "Quiet"}}));
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "listen = '127.0.0.1'\n").unwrap();
    let mut command = command();
    command
        .arg("run")
        .arg("--espocrm")
        .arg(standin.path())
        .arg("--config")
        .arg(&file)
        .arg("--debug");
    let mut daemon = Daemon::spawn(command);
    let mut alice = alice(&daemon);
    std::fs::write(&file, "listen = '127.0.0.1'\nmax_checks = none\n").unwrap();
    let error = daemon.reload("own.toml");
    assert!(error.contains("Keeping the previous settings."), "{error}");
    // A verdict that is valid only with the current version still counts.
    daemon.subscribe(&mut alice, "alice", "quiet");
}

#[test]
fn switching_to_another_espocrm_requires_a_restart_and_is_logged() {
    let (standin, other) = (Standin::new(), Standin::new());
    let file = standin.path().join("own.toml");
    let name = |standin: &Standin| {
        let root = standin.path().to_str().unwrap();
        std::fs::write(&file, format!("listen = '127.0.0.1'\nespocrm = '{root}'\n")).unwrap();
    };
    name(&standin);
    let mut command = command();
    command.arg("run").arg("--config").arg(&file);
    let mut daemon = Daemon::spawn(command);
    name(&other);
    daemon.reload("Restart the daemon to apply it. Still serving");
}

#[test]
fn an_unwritable_standard_output_does_not_cause_a_panic() {
    for arguments in [&["--help"][..], &["--version"]] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = command().args(arguments).stdout(full).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("Standard output"));
    }
}

#[test]
fn a_version_string_cannot_forge_log_lines() {
    let mut standin = Standin::new();
    standin.config("version", "9.2.7\n2026-01-01 [ERROR] forged");
    let mut command = command();
    command.args(["config", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
    let output = run(command);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("9.2.7\\n2026-01-01 [ERROR] forged"), "{text}");
}

#[test]
fn messages_sent_to_another_endpoint_cause_a_warning() {
    for (name, value, warning) in [
        ("webSocketMessager", json!("Redis"), "webSocketMessager is \"Redis\""),
        (
            "webSocketZeroMQSubmissionDsn",
            json!("tcp://localhost:1"),
            "its webSocketZeroMQSubmissionDsn is \"tcp://localhost:1\"",
        ),
    ] {
        let mut standin = Standin::new();
        let zeromq = Port::reserve();
        standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://{}", zeromq.address()));
        standin.config(name, value);
        let mut daemon = Daemon::start(&standin);
        daemon.wait_for(warning);
    }
}

#[test]
fn a_directory_without_data_is_not_an_espocrm() {
    let standin = Standin::new();
    std::fs::remove_dir_all(standin.path().join("data")).unwrap();
    let mut command = command();
    command.args(["config", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
    let output = run(command);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no data directory"));
    assert!(!standin.path().join("data").exists(), "root: {}", is_root());
}
