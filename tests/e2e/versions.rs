//! EspoCRM from 5.6 to 10; before 9.2 the exit status of a check has no meaning.

use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Daemon, Php, Standin, eventually};

#[test]
fn every_version_distinguishes_granted_from_denied() {
    for version in ["5.6.0", "7.0.0", "9.1.9", "9.2.0", "9.3.10", "10.0.0", "10.0.0-beta1"] {
        let standin = Standin::new();
        standin.state(version);
        let mut daemon = Daemon::start(&standin);
        daemon.wait_for(&format!(" for EspoCRM {version} in "));
        verdicts(&standin, &mut daemon);
    }
}

#[test]
fn with_an_unknown_version_only_unambiguous_verdicts_grant() {
    for version in ["", "dev"] {
        let standin = Standin::new();
        standin.state(version);
        let mut daemon = Daemon::start(&standin);
        daemon.wait_for("which is not supported");
        verdicts(&standin, &mut daemon);
    }
}

/// Goes through all verdicts of a check.
fn verdicts(standin: &Standin, daemon: &mut Daemon) {
    standin.set("bad-tokens", "tok-carol\ntok-dave");
    Client::open(daemon.address, "carol", "tok-carol").expect_close(1008);
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    // A valid token of another user.
    Client::open(daemon.address, "alice", "tok-bob").expect_close(1008);
    let mut bob = daemon.connect("bob");
    // EspoCRM prints `Error: …`, which is not a verdict.
    bob.subscribe("recordUpdate.Unknown.1");
    let doubt = daemon.wait_for("The access check of a subscription failed");
    assert!(doubt.contains("Error: Scope"), "{doubt}");
    standin.set("failure", "error");
    Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    standin.unset("failure");

    let mut alice = daemon.connect("alice");
    for topic in ["recordUpdate.Account.1", "streamUpdate.Account.1", "calendarUpdate"] {
        daemon.subscribe(&mut alice, "alice", topic);
    }
    let refused = ["recordUpdate.Account.deny1", "streamUpdate.Account.deny1"];
    for topic in refused {
        alice.subscribe(topic);
        daemon.wait_for(&format!("check access failed for topic {topic} for user alice"));
    }
    for topic in [refused[0], refused[1], "recordUpdate.Unknown.1"] {
        Php::send(&daemon.zeromq, &[json!({ "topicId": topic })]);
    }
    let event = json!({"topicId": "recordUpdate.Account.1"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    alice.expect_event(&event);
    bob.expect_silence();
}

#[test]
fn a_version_change_on_disk_changes_the_interpretation_of_verdicts() {
    let standin = Standin::new();
    standin.state("9.1.9");
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    let mut number = 0;
    let mut allowed_and_denied = |daemon: &mut Daemon| {
        number += 1;
        alice.subscribe(&format!("recordUpdate.Account.deny{number}"));
        daemon.subscribe(&mut alice, "alice", &format!("recordUpdate.Account.{number}"));
        daemon
            .wait_for(&format!("check access failed for topic recordUpdate.Account.deny{number}"));
        alice.expect_silence();
    };
    allowed_and_denied(&mut daemon);
    for version in ["9.2.0", "9.1.9", "10.0.0"] {
        let lines = daemon.log().len();
        standin.state(version);
        allowed_and_denied(&mut daemon);
        daemon.wait_for_after(lines, &format!("have changed: EspoCRM {version}"));
        // The daemon checks for changes at most once per second.
        std::thread::sleep(Duration::from_millis(1_100));
    }
}

#[test]
fn a_version_that_changes_twice_in_a_second_grants_nothing_wrong() {
    let standin = Standin::new();
    standin.state("9.1.9");
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    standin.state("9.2.0");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    daemon.wait_for("have changed: EspoCRM 9.2.0");
    standin.state("9.1.9");
    expect_denial(&mut daemon, &mut alice);
}

#[test]
fn a_version_that_changes_while_a_check_runs_grants_nothing_wrong() {
    let standin = Standin::new();
    standin.state("9.2.0");
    let php = standin.php_with_gate();
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    let mut alice = daemon.connect("alice");
    standin.set("gate", "");
    alice.subscribe("recordUpdate.Account.deny1");
    eventually("the check runs", || daemon.children().len() == 1);
    standin.state("9.1.9");
    standin.unset("gate");
    expect_denial(&mut daemon, &mut alice);
}

#[test]
fn a_version_that_could_not_be_read_when_it_changed_grants_nothing_wrong() {
    let standin = Standin::new();
    standin.state("9.2.0");
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    standin.set("probe-failure", "exit255");
    standin.state("9.1.9");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    daemon.wait_for("Keeping the previous settings");
    standin.unset("probe-failure");
    std::thread::sleep(Duration::from_millis(1_100));
    expect_denial(&mut daemon, &mut alice);
}

/// Subscribes to a topic that EspoCRM denies.
fn expect_denial(daemon: &mut Daemon, alice: &mut Client) {
    let topic = "recordUpdate.Account.deny1";
    alice.subscribe(topic);
    let line = daemon.wait_for(&format!("topic {topic} for user alice"));
    assert!(line.contains("check access failed"), "{line}");
}
