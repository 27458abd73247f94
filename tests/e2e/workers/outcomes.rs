//! A worker and the plain command give the same answers.

use serde_json::json;

use super::{WORKERS_DISABLED, expect_mode};
use crate::support::{Client, Daemon, Standin, eventually};

#[test]
fn workers_answer_like_plain_commands_in_every_version() {
    for version in ["7.0.0", "7.1.8", "7.2.0", "9.1.9", "9.2.0", "9.3.10", "10.0.0"] {
        let plain = Standin::version(version);
        let expected = transcript(&plain, &mut Daemon::start(&plain));
        expect_mode(&plain, "plain");
        let warm = Standin::version(version);
        let mut daemon = Daemon::with_workers(&warm, &["--check-cache", "0"]);
        assert_eq!(transcript(&warm, &mut daemon), expected, "{version}");
        expect_mode(&warm, "worker");
        let (mut ran, mut should) = (warm.runs(), plain.runs());
        // Several plain commands run concurrently, and failed checks are retried after a second.
        for runs in [&mut ran, &mut should] {
            runs.sort();
            runs.dedup();
        }
        assert_eq!(ran, should, "{version}");
        assert_eq!(daemon.count(WORKERS_DISABLED), 0);
    }
}

/// The daemon's reactions to all possible outcomes of a check.
fn transcript(standin: &Standin, daemon: &mut Daemon) -> Vec<String> {
    standin.custom_categories(&json!({
        "custom": {"paramList": ["id"], "accessCheckCommand": "CustomCheck :id"},
    }));
    standin.set("bad-tokens", "tok-carol");
    let mut printed = Vec::new();
    for (user, token) in [
        ("alice", "tok-alice"),
        ("alice", "tok-bob"),
        ("alice", "guessed"),
        ("carol", "tok-carol"),
        ("portal1", "tok-portal1"),
    ] {
        printed.push(format!("{user} {token}: {}", login(daemon, user, token)));
    }
    for user in ["alice", "portal1"] {
        let mut tab = daemon.connect(user);
        for topic in [
            "recordUpdate.Unknown.1",
            "recordUpdate.Account.1",
            "streamUpdate.Account.1",
            "recordUpdate.Account.deny1",
            "calendarUpdate",
            "custom.yes",
            "custom.no",
        ] {
            printed.push(subscribe(daemon, &mut tab, user, topic));
        }
        tab.expect_silence();
    }
    // EspoCRM prints `Error: …`.
    standin.set("failure", "error");
    printed.push(format!("error: {}", login(daemon, "alice", "tok-alice")));
    standin.unset("failure");
    printed.push(format!("afterwards: {}", login(daemon, "alice", "tok-alice")));
    printed
}

fn login(daemon: &Daemon, user: &str, token: &str) -> &'static str {
    let mut tab = Client::open(daemon.address, user, token);
    match tab.next().map(|frame| frame.opcode) {
        Some(1) => "welcome",
        Some(8) => "refused",
        None => "dropped",
        other => panic!("{other:?}"),
    }
}

/// Subscribes, and returns the log line about it without the time and the connection.
fn subscribe(daemon: &Daemon, tab: &mut Client, user: &str, topic: &str) -> String {
    let lines = daemon.log().len();
    tab.subscribe(topic);
    if topic.contains("Unknown") && user != "alice" {
        // An outage is logged once.
        return format!("{topic}: tried again in silence");
    }
    let verdicts = [
        format!("add topic {topic} for user {user}"),
        format!("check access failed for topic {topic} for user {user}"),
        "The access check of a subscription failed".to_owned(),
    ];
    let verdict = |line: &String| {
        let at = verdicts.iter().find_map(|verdict| line.find(verdict))?;
        Some(line[at..].to_owned())
    };
    let mut printed = None;
    eventually("there is a verdict", || {
        printed = daemon.log().iter().skip(lines).find_map(verdict);
        printed.is_some()
    });
    printed.unwrap()
}

#[test]
fn failing_commands_have_the_same_outcome_in_workers_and_plain_commands() {
    // The first ones are reported by the worker itself, the last ones by the plain command that
    // follows.
    for (version, failure, outcome) in [
        ("9.2.7", "error", "dropped"),
        ("9.2.7", "noise", "dropped"),
        ("9.1.9", "error", "dropped"),
        ("9.1.9", "noise", "dropped"),
        ("7.0.0", "error", "dropped"),
        ("7.0.0", "noise", "dropped"),
        ("9.2.7", "exit255", "dropped"),
        ("9.2.7", "crash", "dropped"),
        ("9.2.7", "nothing", "dropped"),
        ("9.2.7", "missing-class", "dropped"),
        ("9.2.7", "flood", "dropped"),
        ("9.2.7", "killed", "dropped"),
    ] {
        let standin = Standin::version(version);
        let mut complaints = Vec::new();
        for flags in [&["--no-worker", "--check-cache", "0"][..], &["--check-cache", "0"]] {
            let mut daemon = Daemon::with_workers(&standin, flags);
            daemon.connect("alice");
            standin.set("failure", failure);
            assert_eq!(login(&daemon, "alice", "tok-alice"), outcome, "{version} {failure}");
            if outcome == "dropped" {
                let line = daemon.wait_for("The access check of a login failed");
                complaints.push(line[line.find("The access check").unwrap()..].to_owned());
            }
            standin.unset("failure");
            assert_eq!(login(&daemon, "alice", "tok-alice"), "welcome", "{version} {failure}");
            assert_eq!(login(&daemon, "alice", "guessed"), "refused", "{version} {failure}");
            assert_eq!(daemon.count(WORKERS_DISABLED), 0, "{version} {failure}");
        }
        if let [plain, warm] = &complaints[..] {
            assert_eq!(plain, warm);
        }
    }
}

/// A class that decides in each access check.
fn policy(verdict: &str) -> String {
    format!(
        "<?php namespace Espo\\Core\\Utils; class Policy \
         {{ public static function allows(array $options) {{ return {verdict}; }} }}"
    )
}

#[test]
fn a_change_applies_to_the_next_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    let topic = "recordUpdate.Account.1";
    let mut expect = |daemon: &mut Daemon, is_allowed: bool| {
        let printed = subscribe(daemon, &mut tab, "alice", topic);
        tab.unsubscribe(topic);
        assert_eq!(printed.starts_with("add topic"), is_allowed, "{printed}");
    };
    expect(&mut daemon, true);

    // The user logs out, and logs in again.
    standin.set("bad-tokens", "tok-alice");
    assert_eq!(login(&daemon, "alice", "tok-alice"), "refused");
    standin.unset("bad-tokens");
    assert_eq!(login(&daemon, "alice", "tok-alice"), "welcome");

    // The record, then the user's role, whose table EspoCRM keeps in a PHP file: changed so fast
    // that modification times do not differ, and in files of the same length.
    let table = standin.path().join("data/cache/application/acl/alice.php");
    for _ in 0..3 {
        standin.set("denied", "1");
        expect(&mut daemon, false);
        standin.unset("denied");
        expect(&mut daemon, true);
        standin.set("denied-alice", "1");
        std::fs::remove_file(&table).unwrap();
        expect(&mut daemon, false);
        standin.set("denied-alice", "2");
        std::fs::remove_file(&table).unwrap();
        expect(&mut daemon, true);
    }

    // Code, as when an extension is installed.
    let file = "../application/Espo/Core/Utils/Policy.php";
    for _ in 0..3 {
        standin.write_raw(file, &policy("false"));
        expect(&mut daemon, false);
        standin.write_raw(file, &policy("!false"));
        expect(&mut daemon, true);
    }
    expect_mode(&standin, "worker");
}

#[test]
fn a_version_change_applies_to_the_next_check_of_a_worker() {
    let standin = Standin::new();
    standin.state("9.1.9");
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    for version in ["9.2.0", "9.1.9", "10.0.0", "7.0.0", "9.2.0"] {
        let lines = daemon.log().len();
        standin.state(version);
        let granted = subscribe(&daemon, &mut tab, "alice", "recordUpdate.Account.1");
        assert!(granted.starts_with("add topic"), "{version}: {granted}");
        let denied = subscribe(&daemon, &mut tab, "alice", "recordUpdate.Account.deny1");
        assert!(denied.starts_with("check access failed"), "{version}: {denied}");
        tab.unsubscribe("recordUpdate.Account.1");
        daemon.wait_for_after(lines, &format!("have changed: EspoCRM {version}"));
        // The daemon checks for changes at most once per second.
        std::thread::sleep(std::time::Duration::from_millis(1_100));
    }
    expect_mode(&standin, "worker");
}
