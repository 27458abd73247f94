//! `/healthz` fails when the daemon does not really serve. The failure of all access checks for a
//! minute is covered by unit tests, whose clock can be set.

use crate::support::{Client, Control, Daemon, Standin, eventually};

fn expect_green(control: &Control) {
    eventually("/healthz succeeds", || {
        control.ask("GET", "/healthz", "") == (200, "ok\n".to_owned())
    });
    assert!(control.get("/metrics").contains("\nespocrm_websocket_healthy 1\n"));
}

/// Waits until `/healthz` fails for this reason.
fn expect_red(control: &Control, why: &str) {
    eventually(&format!("it is red because {why}"), || {
        let (status, body) = control.ask("GET", "/healthz", "");
        status == 503 && body.contains(why)
    });
}

#[test]
fn healthz_fails_at_the_connection_limit() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &["--max-connections", "2"]);
    expect_green(&control);
    let tabs = [daemon.connect("alice"), daemon.connect("bob")];
    expect_red(&control, "The limit of 2 connections is reached.");
    assert!(control.get("/metrics").contains("\nespocrm_websocket_healthy 0\n"));
    let screen = control.output_of(&["status"]);
    assert!(screen.contains("PROBLEM       The limit of 2 connections is reached."), "{screen}");
    drop(tabs);
    expect_green(&control);
}

#[test]
fn healthz_fails_without_free_descriptors_and_still_answers() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let _alice = daemon.connect("alice");
    daemon.leave_descriptors(0);
    let waiting = Client::tcp(daemon.address);
    expect_red(&control, "Connections cannot be accepted: out of file descriptors");
    assert!(control.number("/connections/accept_failures") > 0);
    daemon.unlimit("Max open files", "nofile");
    drop(waiting);
    expect_green(&control);
}

#[test]
fn healthz_fails_while_messages_are_not_received() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    daemon.leave_descriptors(0);
    // There are no peers to disconnect, so libzmq is paused.
    let zeromq = daemon.zeromq.strip_prefix("tcp://").unwrap().to_owned();
    let waiting = std::net::TcpStream::connect(&zeromq).unwrap();
    daemon.wait_for("connections cannot be accepted at");
    expect_red(&control, &format!("EspoCRM's messages are not received at {}", daemon.zeromq));
    daemon.unlimit("Max open files", "nofile");
    drop(waiting);
    expect_green(&control);
}

#[test]
fn briefly_failing_checks_do_not_make_healthz_fail() {
    let standin = Standin::new();
    let (daemon, control): (Daemon, _) = Control::start(&standin, &[]);
    standin.set("failure", "exit255");
    Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    control.expect("/checks/login/failed", 1);
    expect_green(&control);
}
