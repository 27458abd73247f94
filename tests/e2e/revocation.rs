//! Granted access is rechecked while the tab is open.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Php, Standin, eventually};

const TOKEN: &str = "AuthTokenCheck tok-alice alice";
const READ: &str = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
const RECORD: &str = "recordUpdate.Account.1";
const DENIED: &str = "check access failed for topic recordUpdate.Account.1 for user alice";

fn start(standin: &Standin) -> Daemon {
    Daemon::start_with(standin, &["--recheck-interval", "100ms"])
}

/// A tab of alice that sees two records.
fn alice(daemon: &mut Daemon) -> Client {
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", RECORD);
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.2");
    alice
}

fn update(id: u32) -> Value {
    json!({"topicId": format!("recordUpdate.Account.{id}")})
}

/// Waits until this check has run this many more times.
fn runs(standin: &Standin, arguments: &str, more: usize) {
    let before = standin.count(arguments);
    eventually(arguments, || standin.count(arguments) >= before + more);
}

#[test]
fn a_logout_cleanly_closes_all_tabs_of_that_session_and_no_others() {
    let standin = Standin::new();
    let mut daemon = start(&standin);
    let mut tabs = [daemon.connect("alice"), alice(&mut daemon)];
    let mut bob = daemon.connect("bob");
    daemon.subscribe(&mut bob, "bob", RECORD);
    runs(&standin, TOKEN, 2);
    for tab in &mut tabs {
        tab.expect_silence();
    }
    standin.set("bad-tokens", "tok-alice\n");
    for tab in &mut tabs {
        tab.expect_close(1008);
    }
    runs(&standin, "AuthTokenCheck tok-bob bob", 2);
    Php::send(&daemon.zeromq, &[update(1)]);
    bob.expect_event(&update(1));
    // A tab that is reloaded is rejected in the same way.
    Client::open(daemon.address, "alice", "tok-alice").expect_close(1008);
}

#[test]
fn a_record_is_no_longer_delivered_after_access_is_denied() {
    let standin = Standin::new();
    let mut daemon = start(&standin);
    let mut alice = alice(&mut daemon);
    runs(&standin, READ, 1);
    Php::send(&daemon.zeromq, &[update(1)]);
    alice.expect_event(&update(1));
    standin.set("denied", "1\n");
    daemon.wait_for(DENIED);
    Php::send(&daemon.zeromq, &[update(1), update(2)]);
    alice.expect_event(&update(2));
    // When access is restored, new subscriptions are granted.
    standin.unset("denied");
    daemon.subscribe(&mut alice, "alice", RECORD);
    Php::send(&daemon.zeromq, &[update(1)]);
    alice.expect_event(&update(1));
    alice.expect_silence();
}

#[test]
fn a_failing_espocrm_revokes_nothing() {
    std::thread::scope(|scope| {
        for failure in ["error", "exit255", "crash"] {
            scope.spawn(move || {
                let standin = Standin::new();
                let mut daemon = start(&standin);
                let mut alice = alice(&mut daemon);
                standin.set("failure", failure);
                runs(&standin, TOKEN, 2);
                daemon.wait_for("It remains granted until the next recheck");
                Php::send(&daemon.zeromq, &[update(1)]);
                alice.expect_event(&update(1));
                standin.unset("failure");
                runs(&standin, READ, 1);
                standin.set("bad-tokens", "tok-alice\n");
                alice.expect_close(1008);
            });
        }
    });
}

#[test]
fn a_topic_whose_recheck_fails_stays_subscribed() {
    let standin = Standin::new();
    let fail = "case $2 in AclCheck) \
        if [ -e data/standin/no-acl ]; then echo >> data/standin/no-acl; exit 255; fi;; esac";
    let php = standin.php("php", fail);
    let mut daemon = Daemon::start_with(&standin, &["--recheck-interval", "100ms", "--php", &php]);
    let mut alice = alice(&mut daemon);
    standin.set("no-acl", "");
    let failed = standin.path().join("data/standin/no-acl");
    let failures = || std::fs::read_to_string(&failed).unwrap().lines().count();
    // Two topics, at least two rechecks.
    eventually("rechecks fail", || failures() >= 5);
    Php::send(&daemon.zeromq, &[update(1), update(2)]);
    alice.expect_events(&[update(1), update(2)]);
    assert!(!daemon.log().iter().any(|line| line.contains("check access failed")));
    standin.unset("no-acl");
    standin.set("denied", "1\n");
    daemon.wait_for(DENIED);
}

#[test]
fn the_tabs_of_a_user_share_each_recheck() {
    let standin = Standin::new();
    let (mut daemon, file) = start_without(&standin);
    let mut tabs: Vec<Client> = (0..3).map(|_| alice(&mut daemon)).collect();
    let subscribed = standin.count(READ);
    standin.hold("id=1 ");
    set_interval(&mut daemon, &file, "100ms");
    wait(&mut tabs, "the record is rechecked", || standin.count(READ) > subscribed);
    standin.set("denied", "1\n");
    // Other rechecks continue meanwhile and do not repeat this one.
    let before = standin.count(TOKEN);
    wait(&mut tabs, "rechecks go on", || standin.count(TOKEN) >= before + 2);
    standin.release();
    let denied = || daemon.log().iter().filter(|it| it.ends_with(DENIED)).count();
    wait(&mut tabs, "all are denied by it", || denied() == 3);
    assert_eq!(standin.count(READ), subscribed + 1);

    set_interval(&mut daemon, &file, "0");
    settle(&daemon, &mut tabs);
    let before = standin.count(TOKEN);
    standin.hold("AuthTokenCheck");
    set_interval(&mut daemon, &file, "100ms");
    wait(&mut tabs, "the token is rechecked", || standin.count(TOKEN) > before);
    standin.set("bad-tokens", "tok-alice\n");
    // Events are delivered while it runs.
    Php::send(&daemon.zeromq, &[update(2)]);
    for tab in &mut tabs {
        tab.expect_event(&update(2));
    }
    standin.release();
    for tab in &mut tabs {
        tab.expect_close(1008);
    }
    assert_eq!(standin.count(TOKEN), before + 1);
}

#[test]
fn without_an_interval_there_are_no_rechecks() {
    let standin = Standin::new();
    let flags = ["--recheck-interval", "0", "--ping-interval", "1s"];
    let mut daemon = Daemon::start_with(&standin, &flags);
    let mut alice = alice(&mut daemon);
    let runs = standin.runs();
    standin.set("bad-tokens", "tok-alice\n");
    answer_pings(&mut alice, 4);
    assert_eq!(standin.runs(), runs);
}

#[test]
fn a_reload_applies_a_changed_interval() {
    let standin = Standin::new();
    let (mut daemon, file) = start_without(&standin);
    let mut tabs = [alice(&mut daemon)];
    answer_pings(&mut tabs[0], 2);
    assert_eq!(standin.count(TOKEN), 1);

    set_interval(&mut daemon, &file, "100ms");
    wait(&mut tabs, "it is rechecked", || standin.count(TOKEN) > 3);

    set_interval(&mut daemon, &file, "0");
    settle(&daemon, &mut tabs);
    let runs = standin.runs();
    answer_pings(&mut tabs[0], 2);
    assert_eq!(standin.runs(), runs);
}

/// A daemon without rechecks, and the file in which they can be enabled.
fn start_without(standin: &Standin) -> (Daemon, PathBuf) {
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "recheck_interval = 0").unwrap();
    // At each ping the daemon checks whether a recheck is due.
    let flags = ["--ping-interval", "1s", "--config", file.to_str().unwrap()];
    (Daemon::start_with(standin, &flags), file)
}

fn set_interval(daemon: &mut Daemon, file: &Path, interval: &str) {
    std::fs::write(file, format!("recheck_interval = '{interval}'")).unwrap();
    daemon.reload("have changed");
}

/// Waits for a condition while these tabs receive only pings, which they answer.
fn wait(tabs: &mut [Client], what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || {
        tabs.iter_mut().for_each(Client::expect_silence);
        condition()
    });
}

/// Waits until everything that has started is finished.
fn settle(daemon: &Daemon, tabs: &mut [Client]) {
    let mut quiet = 0;
    // For two pings: the consequences of a verdict have started by then.
    wait(tabs, "nothing is checked", || {
        quiet = if daemon.children().is_empty() { quiet + 1 } else { 0 };
        quiet == 2
    });
}

/// Answers this many pings.
fn answer_pings(tab: &mut Client, count: usize) {
    for _ in 0..count {
        let ping = tab.next_raw().unwrap();
        assert_eq!(ping.opcode, 9, "{ping:?}");
        tab.send_frame(0x8a, &ping.payload);
    }
}
