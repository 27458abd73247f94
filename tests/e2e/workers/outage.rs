//! EspoCRM's database or PHP is unavailable for a while, and recovers.

use super::{expect_event_of, worker};
use crate::support::{Client, Daemon, Process, Standin, eventually};

/// Logged when an outage begins, and when it ends.
const BEGINS: &str = "The access check of a";
const ENDS: &str = "Access checks work again";

#[test]
fn an_outage_disconnects_and_rejects_no_tab() {
    // Each waits for retries.
    std::thread::scope(|scope| {
        for failure in ["error", "exit255", "crash", "killed", "noise", "hang", "missing"] {
            for mode in ["--no-worker", "--debug"] {
                scope.spawn(move || survive_outage(failure, mode));
            }
        }
    });
}

fn survive_outage(failure: &str, mode: &str) {
    // Since 9.2, the output does not matter.
    let standin = Standin::version(if failure == "noise" { "9.1.9" } else { "9.2.7" });
    let php = standin.php("php", "");
    let timeout = if failure == "hang" { "3s" } else { "60s" };
    let flags = ["--php", &php, "--check-timeout", timeout, "--check-cache", "0", mode];
    let mut daemon = Daemon::with_workers(&standin, &flags);
    let mut before = daemon.connect("alice");
    daemon.subscribe(&mut before, "alice", "recordUpdate.Account.1");

    if failure == "missing" {
        std::fs::rename(&php, format!("{php}.away")).unwrap();
        // A running worker does not need the PHP binary again.
        for worker in daemon.workers() {
            daemon.connect("bob");
            Process::signal(worker, "KILL");
        }
        eventually("no PHP is left", || daemon.children().is_empty());
    } else {
        standin.set("failure", failure);
    }
    before.subscribe("recordUpdate.Account.2");
    // A bad token is not denied either.
    let open = |token| Client::open(daemon.address, "bob", token);
    for mut tab in ["tok-bob", "tok-bob", "guessed"].map(open) {
        tab.expect_drop();
    }
    daemon.wait_for(BEGINS);
    expect_event_of(&daemon, &mut before, "1");

    if failure == "missing" {
        std::fs::rename(format!("{php}.away"), &php).unwrap();
    } else {
        standin.unset("failure");
    }
    let mut after = daemon.connect("bob");
    daemon.subscribe(&mut after, "bob", "recordUpdate.Account.3");
    Client::open(daemon.address, "bob", "guessed").expect_close(1008);
    daemon.wait_for("add topic recordUpdate.Account.2 for user alice");
    expect_event_of(&daemon, &mut before, "2");
    expect_event_of(&daemon, &mut after, "3");
    // Once for logins and once for subscriptions.
    eventually("the outage is over", || daemon.count(ENDS) == 2);
    let printed = (daemon.count(BEGINS), daemon.count(ENDS));
    assert_eq!(printed, (2, 2), "{failure} {mode}");
    before.expect_silence();
}

#[test]
fn the_end_of_an_outage_is_logged_with_the_number_of_failed_checks() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    standin.set("failure", "error");
    for _ in 0..5 {
        Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    }
    standin.unset("failure");
    // A denial is an answer, too.
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    daemon.wait_for("Access checks work again for logins, after 5 failures.");
    // The same worker continues.
    let first = worker(&daemon);
    daemon.connect("alice");
    assert_eq!(worker(&daemon), first);
}
