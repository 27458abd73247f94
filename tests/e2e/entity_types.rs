//! Topics of entity types that do not exist in EspoCRM; any user can request them.

use crate::support::{Client, Daemon, Standin, eventually};

const UNKNOWN: &str = "recordUpdate.Unknown.1";

/// An EspoCRM that reports its entity types.
fn standin(types: &[&str]) -> Standin {
    let mut standin = Standin::new();
    standin.config("useCache", true);
    standin.entity_types(types);
    standin
}

fn was_run(standin: &Standin, scope: &str) -> bool {
    standin.runs().iter().any(|run| run.contains(&format!("--scope={scope} ")))
}

#[test]
fn a_record_of_an_unknown_type_is_denied_without_a_check() {
    for start in [Daemon::start_with, Daemon::with_workers] {
        let standin = standin(&["Account", "Contact"]);
        let mut daemon = start(&standin, &[]);
        let mut alice = daemon.connect("alice");
        alice.subscribe(UNKNOWN);
        daemon.wait_for(&format!("check access failed for topic {UNKNOWN} for user alice"));
        daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
        // Not an entity type, but a scope.
        daemon.subscribe(&mut alice, "alice", "calendarUpdate");
        assert!(!was_run(&standin, "Unknown"));
        assert_eq!(daemon.count("The access check of a"), 0);
        alice.expect_silence();
    }
}

#[test]
fn a_newly_added_type_is_checked() {
    let standin = standin(&["Account"]);
    let mut daemon = Daemon::start_with(&standin, &[]);
    let mut alice = daemon.connect("alice");
    for round in 0..3 {
        let name = format!("CThing{round}");
        standin.entity_types(&["Account", &name]);
        daemon.subscribe(&mut alice, "alice", &format!("recordUpdate.{name}.1"));
    }
    // A removed type is denied as soon as the list of types was read again.
    eventually("the topic is denied", || {
        alice.unsubscribe("recordUpdate.CThing0.1");
        alice.subscribe("recordUpdate.CThing0.1");
        daemon.count("check access failed for topic recordUpdate.CThing0.1 for user alice") > 0
    });
    alice.expect_silence();
}

#[test]
fn every_type_is_checked_if_the_list_of_types_is_unavailable() {
    let mut standin = standin(&["Account"]);
    standin.config("useCache", false);
    let mut daemon = Daemon::start_with(&standin, &[]);
    let mut alice = daemon.connect("alice");
    alice.subscribe(UNKNOWN);
    daemon.wait_for(
        "The access check of a subscription failed: PHP exited with status 1: Error: Scope",
    );
}

#[test]
fn a_database_outage_denies_nothing() {
    let standin = standin(&["Account"]);
    let mut daemon = Daemon::start_with(&standin, &[]);
    let mut alice = daemon.connect("alice");
    standin.set("failure", "error");
    alice.subscribe("recordUpdate.Account.1");
    daemon.wait_for(
        "The access check of a subscription failed: PHP exited with status 1: Error: SQLSTATE",
    );
    standin.unset("failure");
    daemon.wait_for("add topic recordUpdate.Account.1 for user alice");
}

#[test]
fn a_permanently_failing_topic_does_not_hide_failing_logins() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--check-cache", "0"]);
    let mut alice = daemon.connect("alice");
    alice.subscribe(UNKNOWN);
    daemon.wait_for("The access check of a subscription failed");
    standin.set("failure", "error");
    Client::open(daemon.address, "bob", "tok-bob").expect_drop();
    daemon
        .wait_for("The access check of a login failed: PHP exited with status 1: Error: SQLSTATE");
    standin.unset("failure");
    // A success of one kind ends only failures of that kind.
    eventually("bob is welcome", || Client::attempt(daemon.address).is_some());
    daemon.wait_for("Access checks work again for logins, after 1 failure.");
    assert_eq!(daemon.count("work again for subscriptions"), 0);
}
