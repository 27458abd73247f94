//! Notifications of the state: starting, ready, reloading, stopping, failed.

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use super::{Manager, kinds, serving};
use crate::support::{Control, Daemon, ProcessGroup, Standin, alice, eventually, run};

/// A PHP of [`Standin::php`] that does not report the settings while `data/standin/gate` exists.
const GATE: &str = "echo > data/standin/begun; \
    while [ $# = 0 ] && [ -e data/standin/gate ] && [ -e /proc/$PPID ]; do sleep 0.02; done";

#[test]
fn ready_is_sent_once_both_ports_accept_and_not_before() {
    for manager in [Manager::new, Manager::with_abstract_address] {
        let standin = Standin::new();
        let php = standin.php("php", GATE);
        let manager = manager(&standin);
        standin.set("gate", "");
        let mut command = serving(&standin, &["--php", &php]);
        command.env("NOTIFY_SOCKET", &manager.name).stdout(Stdio::null()).stderr(Stdio::null());
        let _daemon = ProcessGroup::start(command);
        let begun = standin.path().join("data/standin/begun");
        eventually("the probe runs", || begun.exists());
        assert!(manager.notifications().is_empty());

        standin.unset("gate");
        let ready = manager.wait_for_number(0);
        let status = ready.strip_prefix("READY=1\nSTATUS=Serving ").unwrap();
        let (browsers, status) = status.split_once(", EspoCRM sends to tcp://").unwrap();
        let (zeromq, status) = status.split_once(". ").unwrap();
        // At the first attempt.
        for address in [browsers, zeromq] {
            TcpStream::connect(address).unwrap();
        }
        assert_eq!(status, "0 connections, 0 messages received.");
    }
}

#[test]
fn a_reload_is_notified_with_its_time_and_its_end() {
    let standin = Standin::new();
    let php = standin.php("php", GATE);
    let manager = Manager::new(&standin);
    let mut command = serving(&standin, &["--php", &php]);
    command.env("NOTIFY_SOCKET", &manager.name);
    let mut daemon = Daemon::spawn(command);
    let mut alice = alice(&daemon);
    standin.set("gate", "");
    let before = monotonic_micros();
    daemon.signal("HUP");
    let reloading = manager.wait_for_number(1);
    let moment = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    let moment: u64 = moment.parse().unwrap();
    let after = monotonic_micros();
    assert!((before..=after).contains(&moment), "{before} {moment} {after}");

    // Another signal meanwhile: the reload ends when the settings were read once more.
    daemon.signal("HUP");
    assert!(manager.wait_for_number(2).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    alice.expect_silence();
    assert_eq!(manager.notifications().len(), 3);
    standin.unset("gate");
    let ready = manager.wait_for_number(3);
    assert!(ready.starts_with("READY=1\nSTATUS=Serving "), "{ready}");
    assert!(ready.ends_with(" 1 connection, 0 messages received."), "{ready}");
    assert_eq!(standin.probes(), 3);

    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let all = manager.all();
    assert_eq!(kinds(&all), ["READY", "RELOADING", "RELOADING", "READY", "STOPPING"]);
    assert_eq!(all[4], "STOPPING=1");
}

#[test]
fn a_reload_through_the_control_socket_is_notified_before_it_is_answered() {
    let standin = Standin::new();
    let manager = Manager::new(&standin);
    let path = Control::path(&standin);
    let mut command = serving(&standin, &["--control", path.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &manager.name);
    let _daemon = Daemon::spawn(command);
    assert_eq!(Control::at(&path).ask("POST", "/reload", ""), (200, "{\"reloaded\":true}".into()));
    assert_eq!(kinds(&manager.all()), ["READY", "RELOADING", "READY"]);
}

/// Microseconds of the clock that systemd compares with, as reported by PHP.
fn monotonic_micros() -> u64 {
    let output = Command::new("php").args(["-r", "echo intdiv(hrtime(true), 1000);"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().parse().unwrap()
}

#[test]
fn a_failed_reload_is_also_notified_as_finished() {
    type Step<'a> = &'a dyn Fn(&mut Standin);
    let away = |standin: &Standin, from: &str, to: &str| {
        std::fs::rename(standin.path().join(from), standin.path().join(to)).unwrap();
    };
    let cases: [(Step, Step); 3] = [
        (&|it| it.write_raw("config.php", "<?php return ["), &|it| it.config("useWebSocket", true)),
        (&|it| it.config("webSocketPort", "eighty"), &|it| it.config("webSocketPort", 0)),
        // After that there is nothing to wait for.
        (&|it| away(it, "php", "away"), &|it| away(it, "away", "php")),
    ];
    for (break_it, repair_it) in cases {
        let mut standin = Standin::new();
        let php = standin.php("php", "");
        let manager = Manager::new(&standin);
        let mut command = serving(&standin, &["--php", &php]);
        command.env("NOTIFY_SOCKET", &manager.name);
        let mut daemon = Daemon::spawn(command);
        break_it(&mut standin);
        daemon.reload("Keeping the previous settings.");
        manager.wait_for_number(2);
        repair_it(&mut standin);
        daemon.reload("have not changed");
        manager.wait_for_number(4);
        daemon.signal("TERM");
        daemon.wait();
        let all = manager.all();
        let expected = ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"];
        assert_eq!(kinds(&all), expected);
    }
}

#[test]
fn a_failed_start_reports_only_its_reason() {
    let standin = Standin::new();
    let path = |name: &str| standin.path().join(name).to_str().unwrap().to_owned();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let broken = path("own.toml");
    std::fs::write(&broken, "\nmax_checks = 0\n").unwrap();
    let tcp = format!("tcp://{taken}");
    for (flags, why) in [
        (["--listen", &taken.to_string()], format!("Cannot listen for browsers at {taken}: it is")),
        (["--zeromq", &tcp], format!("Cannot receive EspoCRM's messages at {tcp}: it is in")),
        (["--php", "/nonexistent/php"], "PHP could not be started as /nonexistent/php".to_owned()),
        (["--log-file", "none/log"], format!("The log file {} cannot be", path("none/log"))),
        // An error of several lines, in the file that is read first.
        (["--config", &broken], format!("{broken}: line 2: max_checks: it must be at least 1")),
    ] {
        let _ = std::fs::remove_file(path("notify"));
        let manager = Manager::new(&standin);
        let mut command = serving(&standin, &flags);
        command.env("NOTIFY_SOCKET", &manager.name);
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let all = manager.all();
        assert_eq!(all.len(), 1, "{all:?}");
        let status = all[0].strip_prefix("STATUS=").unwrap();
        assert!(status.starts_with(&why) && !status.contains('\n'), "{status:?}");
    }
}

#[test]
fn a_missing_service_manager_has_no_effect() {
    let standin = Standin::new();
    for name in ["/nonexistent/notify", "@nobody", "", "@", "relative", "vsock:2:1"] {
        let mut command = serving(&standin, &[]);
        command.env("NOTIFY_SOCKET", name).env("WATCHDOG_USEC", "200000");
        let mut daemon = Daemon::spawn(command);
        daemon.connect("alice").expect_silence();
        daemon.reload("have not changed");
        daemon.stop("TERM");
    }
}
