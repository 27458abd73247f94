//! Faulty workers: their responses are rejected, and the plain command is run instead.

use serde_json::json;

use super::{WORKERS_DISABLED, expect_event_of, expect_mode, starts, worker};
use crate::support::{Client, Daemon, Php, Standin, eventually};

const FAULTY_WORKER: &str = include_str!("faulty.php");

/// An EspoCRM whose PHP starts such a worker instead of its web server, and the path of that PHP.
fn standin(fault: &str) -> (Standin, String) {
    let standin = Standin::new();
    std::fs::write(standin.path().join("faulty.php"), FAULTY_WORKER).unwrap();
    let shell = format!("case $1 in -q) exec php faulty.php {fault} \"$@\";; esac");
    let php = standin.php("php", &shell);
    (standin, php)
}

/// Continues until a second worker was faulty; then workers are disabled, which is logged once.
fn expect_workers_disabled(fault: &str) {
    let (standin, php) = standin(fault);
    let mut daemon = Daemon::with_workers(&standin, &["--php", &php, "--check-cache", "0"]);
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    let mut tab = daemon.connect("alice");
    daemon.wait_for(WORKERS_DISABLED);
    daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
    tab.subscribe("recordUpdate.Account.deny1");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1");
    Client::open(daemon.address, "bob", "tok-alice").expect_close(1008);
    Php::send(&daemon.zeromq, &[json!({"topicId": "recordUpdate.Account.deny1"})]);
    expect_event_of(&daemon, &mut tab, "1");
    assert_eq!((daemon.count(WORKERS_DISABLED), starts(&standin)), (1, 2), "{fault}");
    assert_eq!(daemon.count("The access check of a"), 0, "{fault}");
    expect_mode(&standin, "plain");
    eventually("the workers have ended", || daemon.children().is_empty());
}

/// Two logins time out in such a worker; the third succeeds, because workers are disabled.
fn time_out_twice(fault: &str) -> (Standin, Daemon) {
    let (standin, php) = standin(fault);
    let flags = ["--php", &php, "--check-timeout", "3s", "--check-cache", "0"];
    let mut daemon = Daemon::with_workers(&standin, &flags);
    for _ in 0..2 {
        Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    }
    daemon.wait_for(WORKERS_DISABLED);
    daemon.connect("alice");
    (standin, daemon)
}

#[test]
fn workers_that_cannot_be_reached_are_disabled() {
    // Each of the first two workers is given five seconds.
    std::thread::scope(|scope| {
        for fault in ["silent", "other-address", "exits", "closed-port", "resets"] {
            scope.spawn(|| expect_workers_disabled(fault));
        }
    });
}

#[test]
fn workers_that_exit_before_answering_are_disabled() {
    for fault in ["closes", "half-head", "exits-on-request"] {
        expect_workers_disabled(fault);
    }
}

#[test]
fn workers_that_send_invalid_responses_are_disabled() {
    for fault in [
        "garbage",
        "body-too-short",
        "body-too-long",
        "no-body",
        "no-length",
        "wrong-nonce",
        "no-nonce",
        "no-status",
        "two-responses",
        "status-302",
    ] {
        expect_workers_disabled(fault);
    }
}

#[test]
fn workers_that_send_huge_responses_are_disabled_and_the_responses_are_not_stored() {
    for fault in ["endless", "huge-body", "huge-head"] {
        expect_workers_disabled(fault);
    }
}

#[test]
fn workers_that_can_never_run_a_command_are_disabled() {
    for fault in ["status-500", "status-403"] {
        expect_workers_disabled(fault);
    }
}

#[test]
fn output_of_a_worker_after_its_response_is_ignored() {
    let (standin, php) = standin("second-response");
    let mut daemon = Daemon::with_workers(&standin, &["--php", &php, "--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    for id in 0..3 {
        Client::open(daemon.address, "alice", "guessed").expect_close(1008);
        daemon.subscribe(&mut tab, "alice", &format!("recordUpdate.Account.{id}"));
        let topic = format!("recordUpdate.Account.deny{id}");
        tab.subscribe(&topic);
        daemon.wait_for(&format!("check access failed for topic {topic}"));
    }
    tab.expect_silence();
    assert_eq!((starts(&standin), daemon.count(WORKERS_DISABLED)), (1, 0));
}

#[test]
fn a_late_response_is_ignored() {
    std::thread::scope(|scope| {
        for fault in ["hangs", "hangs-in-body", "late"] {
            scope.spawn(move || {
                let (standin, php) = standin(fault);
                let flags = ["--php", &php, "--check-timeout", "2s", "--check-cache", "0"];
                let mut daemon = Daemon::with_workers(&standin, &flags);
                let mut tab = Client::open(daemon.address, "alice", "guessed");
                eventually("the worker is started", || starts(&standin) == 1);
                // Without a Close frame, since access was not denied.
                tab.expect_drop();
                daemon.wait_for("The access check of a login failed: PHP did not finish in time");
                eventually("it is killed", || daemon.children().is_empty());
            });
        }
    });
}

#[test]
fn workers_that_never_answer_in_time_are_disabled() {
    std::thread::scope(|scope| {
        for fault in ["hangs", "hangs-in-body", "late"] {
            scope.spawn(move || {
                let (standin, daemon) = time_out_twice(fault);
                expect_mode(&standin, "plain");
                assert_eq!((daemon.count(WORKERS_DISABLED), starts(&standin)), (1, 2), "{fault}");
            });
        }
    });
}

#[test]
fn workers_that_are_not_ready_within_a_short_timeout_are_disabled() {
    time_out_twice("silent");
}

#[test]
fn workers_are_not_disabled_by_a_command_that_sometimes_fails() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    let first = worker(&daemon);
    for _ in 0..4 {
        standin.set("failure", "crash");
        Client::open(daemon.address, "alice", "tok-alice").expect_drop();
        standin.unset("failure");
        daemon.connect("alice");
    }
    let round = ["worker", "plain", "worker"];
    assert_eq!(standin.modes(), [&["worker"][..], &round, &round, &round, &round].concat());
    assert_eq!((worker(&daemon), daemon.count(WORKERS_DISABLED)), (first, 0));
}

#[test]
fn disabled_workers_are_tried_again_when_settings_change() {
    let (standin, php) = standin("status-500");
    let mut daemon = Daemon::with_workers(&standin, &["--php", &php, "--check-cache", "0"]);
    daemon.connect("alice");
    daemon.connect("alice");
    daemon.wait_for(WORKERS_DISABLED);
    standin.php("php", "");
    standin.state("9.3.0");
    daemon.reload("settings have changed");
    daemon.connect("alice");
    assert_eq!(standin.modes(), ["plain", "plain", "worker"]);
}
