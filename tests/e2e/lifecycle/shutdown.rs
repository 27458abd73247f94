//! Stopping the daemon.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::alice;
use crate::support::{Client, Daemon, Process, Standin, command, eventually};

#[test]
fn sigterm_and_sigint_end_all_connections_without_a_close_frame() {
    for signal in ["TERM", "INT"] {
        let standin = Standin::new();
        let mut daemon = Daemon::start_with(&standin, &["--check-timeout", "1h"]);
        let mut open = alice(&daemon);
        let mut half = Client::tcp(daemon.address);
        half.send(b"GET / HTTP/1.1\r\nHost:");
        standin.set("failure", "hang");
        let mut waiting = Client::open(daemon.address, "bob", "tok-bob");
        standin.set("probe-failure", "hang");
        let probes = standin.probes();
        daemon.signal("HUP");
        let mut children = Vec::new();
        eventually("a check and a probe hang", || {
            children = daemon.children();
            standin.runs().len() == 2 && standin.probes() == probes + 1 && children.len() == 2
        });
        open.expect_silence();

        daemon.signal(signal);
        // None of the above delays the exit.
        assert_eq!(daemon.wait().code(), Some(0));
        daemon.wait_for(&format!("Stopped by SIG{signal}, with 3 connections open"));
        for tab in [&mut open, &mut half, &mut waiting] {
            tab.expect_drop();
        }
        assert!(Client::attempt(daemon.address).is_none());
        let zeromq = daemon.zeromq.strip_prefix("tcp://").unwrap();
        assert!(TcpStream::connect(zeromq).is_err());
        assert!(children.iter().all(|child| !Process::is_running(child.pid)));
    }
}

#[test]
fn a_port_can_be_reused_immediately() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let address = daemon.address.to_string();
    let mut tab = alice(&daemon);
    // The side that closes TCP first, here the daemon, leaves the port in TIME_WAIT.
    daemon.signal("TERM");
    tab.expect_drop();
    daemon.wait();
    let daemon = Daemon::start_with(&standin, &["--listen", &address]);
    alice(&daemon);
}

/// The demo has nothing to reload.
#[test]
fn the_demo_exits_when_its_terminal_is_closed() {
    let standin = Standin::new();
    let (pid, log) = (standin.path().join("pid"), standin.path().join("log"));
    let line = format!(
        "echo $$ >{}; exec {} demo --listen 127.0.0.1:0 2>{}",
        pid.display(),
        command().get_program().display(),
        log.display()
    );
    // The demo is the session leader of this terminal.
    let mut terminal = Command::new("script");
    terminal.args(["-q", "-c", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut terminal = terminal.spawn().unwrap();
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    eventually("the demo serves", || read(&log).contains("Browsers are served at"));
    let pid: u32 = read(&pid).trim().parse().unwrap();
    assert!(Process::is_running(pid));
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    eventually("the demo ends", || !Process::is_running(pid));
    assert!(read(&log).contains("Stopped"), "{}", read(&log));
}

#[test]
fn a_demo_started_with_nohup_survives_its_terminal() {
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" demo --debug --listen 127.0.0.1:0 \"$@\""]);
    nohup.arg(command().get_program());
    let mut demo = Daemon::spawn(nohup);
    demo.signal("HUP");
    demo.connect("alice");
    assert_eq!(demo.count("Stopped"), 0);
    demo.signal("TERM");
    assert_eq!(demo.wait().code(), Some(0));
}
