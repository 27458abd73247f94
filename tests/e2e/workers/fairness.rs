//! The order of checks, and checks that are not needed.

use std::time::Duration;

use crate::support::{Client, Daemon, Standin, eventually};

const CHECK: &str = "AclCheck --userId=alice --scope=Account --id=1 --action=read";

#[test]
fn many_subscriptions_of_one_user_do_not_delay_another_user() {
    for more in [&["--no-worker"][..], &[]] {
        let standin = Standin::new();
        let flags = [&["--max-checks", "1", "--check-cache", "0"], more].concat();
        let mut daemon = Daemon::with_workers(&standin, &flags);
        let mut alice = daemon.connect("alice");
        standin.set("delay", "50");
        standin.hold("--userId=alice");
        for id in 0..100 {
            alice.subscribe(&format!("recordUpdate.Account.{id}"));
        }
        alice.expect_silence();
        let mut bob = Client::open(daemon.address, "bob", "tok-bob");
        bob.subscribe("recordUpdate.Account.b");
        bob.expect_silence();
        eventually("the first check runs", || standin.runs().len() == 2);
        standin.release();
        bob.expect_welcome();
        daemon.wait_for("add topic recordUpdate.Account.b for user bob");
        let runs = standin.runs();
        let of_alice = |run: &&String| run.contains("--userId=alice");
        let bobs = runs.iter().position(|run| run.contains("--userId=bob")).unwrap();
        let before = runs[..bobs].iter().filter(of_alice).count();
        assert!(before <= 3, "{runs:?}");
        assert_eq!(runs[2], "AuthTokenCheck tok-bob bob");
    }
}

#[test]
fn a_second_tab_needs_no_check_of_its_own() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "1h"]);
    let topic = "recordUpdate.Account.1";
    let mut first = daemon.connect("alice");
    daemon.subscribe(&mut first, "alice", topic);
    let runs = standin.runs();
    assert_eq!(runs.len(), 2);
    let mut second = daemon.connect("alice");
    daemon.subscribe(&mut second, "alice", topic);
    assert_eq!(standin.runs(), runs);

    // Another token, another user, another record, and denied access are checked.
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    let mut bob = daemon.connect("bob");
    daemon.subscribe(&mut bob, "bob", topic);
    for _ in 0..2 {
        let lines = daemon.log().len();
        bob.subscribe("recordUpdate.Account.deny1");
        daemon.wait_for_after(lines, "check access failed for topic recordUpdate.Account.deny1");
    }
    assert_eq!(standin.runs().len(), runs.len() + 6);

    // A repeated request causes a new check.
    for expected in 2..4 {
        first.unsubscribe(topic);
        daemon.subscribe(&mut first, "alice", topic);
        assert_eq!(standin.count(CHECK), expected);
    }
    // A denial then applies to everyone.
    standin.set("denied", "1");
    let lines = daemon.log().len();
    first.unsubscribe(topic);
    first.subscribe(topic);
    daemon.wait_for_after(lines, "check access failed");
    let lines = daemon.log().len();
    let mut third = daemon.connect("alice");
    third.subscribe(topic);
    daemon.wait_for_after(lines, "check access failed");
    assert_eq!(standin.count(CHECK), 5);
}

#[test]
fn a_cached_verdict_expires_after_the_configured_time() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "1s"]);
    daemon.connect("alice");
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1_100));
        let before = standin.runs().len();
        daemon.connect("alice");
        assert_eq!(standin.runs().len(), before + 1);
    }
    std::thread::sleep(Duration::from_millis(1_100));
    standin.set("bad-tokens", "tok-alice");
    Client::open(daemon.address, "alice", "tok-alice").expect_close(1008);
}

#[test]
fn the_check_cache_can_be_disabled() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    for expected in 1..4 {
        let mut tab = daemon.connect("alice");
        daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
        assert_eq!((standin.count(CHECK), standin.runs().len()), (expected, 2 * expected));
    }
}

#[test]
fn a_reload_clears_the_check_cache() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "1h"]);
    let mut tab = daemon.connect("alice");
    daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
    standin.set("bad-tokens", "tok-alice");
    standin.set("denied", "1");
    // Until then the cached verdicts are used.
    let mut second = daemon.connect("alice");
    daemon.reload("have not changed");
    Client::open(daemon.address, "alice", "tok-alice").expect_close(1008);
    second.subscribe("recordUpdate.Account.1");
    daemon.wait_for("check access failed for topic recordUpdate.Account.1");
}
