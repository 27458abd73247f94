//! All tabs reconnect at once.

use super::{COUNT_STARTS, cores, expect_event_of, expect_mode, starts};
use espocrm_websocket::platform::sys;

use crate::support::{Client, Control, Daemon, Standin, eventually};

#[test]
fn a_storm_is_served_by_at_most_one_worker_per_core() {
    let standin = Standin::new();
    let php = standin.php("php", COUNT_STARTS);
    // On a slow machine a grant would expire before the last check.
    let daemon = Daemon::with_workers(&standin, &["--php", &php, "--check-cache", "60s"]);
    let topics = ["recordUpdate.Account.1", "streamUpdate.Account.1", "calendarUpdate"];
    let mut tabs = Vec::new();
    for number in 0..100 {
        let user = format!("u{number}");
        let mut tab = Client::open(daemon.address, &user, &format!("tok-{user}"));
        for topic in topics {
            tab.subscribe(topic);
        }
        tab.subscribe(&format!("recordUpdate.Account.own{number}"));
        tabs.push(tab);
    }
    let mut peak = 0;
    eventually("all are served", || {
        peak = peak.max(daemon.children().len());
        daemon.count(": add topic ") == 400
    });
    assert!((1..=cores()).contains(&peak), "{peak}");
    assert!(starts(&standin) <= cores());
    expect_mode(&standin, "worker");
    assert_eq!(standin.runs().len(), 500);
    for tab in &mut tabs {
        tab.expect_welcome();
        tab.expect_silence();
    }
    expect_event_of(&daemon, &mut tabs[70], "own70");
}

#[test]
fn the_tabs_of_one_user_share_their_checks() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "60s"]);
    let mut tabs: Vec<Client> =
        (0..100).map(|_| Client::open(daemon.address, "alice", "tok-alice")).collect();
    for tab in &mut tabs {
        for id in 0..4 {
            tab.subscribe(&format!("recordUpdate.Account.{id}"));
        }
    }
    eventually("all are served", || daemon.count(": add topic ") == 400);
    assert_eq!(standin.runs().len(), 5);
}

/// The queue has 10,240 places for logins, which subscriptions do not use.
#[test]
fn when_too_many_logins_wait_further_tabs_must_retry() {
    if sys::raise_open_files() < 11_500 {
        eprintln!("skipped: needs more open files than the limit allows");
        return;
    }
    let standin = Standin::new();
    let path = Control::path(&standin);
    let flags = ["--max-checks", "1", "--max-per-address", "0", "--max-per-user", "0"];
    let control = ["--control", path.to_str().unwrap(), "--max-connections", "11000"];
    // No check times out before all tabs are connected.
    let timeout = ["--check-timeout", "5m"];
    let daemon = Daemon::with_workers(&standin, &[&flags[..], &control[..], &timeout[..]].concat());
    let control = Control::at(&path);
    standin.hold("");
    let mut tabs: Vec<Client> =
        (0..10_240).map(|_| Client::open(daemon.address, "alice", "tok-alice")).collect();
    let late = || {
        let mut late = Client::tcp(daemon.address);
        late.send(crate::support::request("/?authToken=tok-bob&userId=bob").as_bytes());
        late.read_head()
    };
    let answer = late();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    control.expect("/connections/refused/check_queue", 1);
    // Waiting logins stay connected, and each client that leaves makes room.
    tabs[5_000].expect_silence();
    drop(tabs.drain(9_000..));
    eventually("there is room", || late().starts_with("HTTP/1.1 101 "));
}
