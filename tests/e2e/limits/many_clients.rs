//! Many tabs and many topics at once, without any loss.

use serde_json::json;

use super::target;
use crate::support::{Client, Control, Daemon, Pusher, Standin, eventually, request};

/// A tab that has connected and has not sent its request yet.
fn connect(daemon: &Daemon) -> Client {
    Client::tcp(daemon.address)
}

#[test]
fn two_thousand_simultaneous_connections_all_stay_open() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--max-per-user", "0"]);
    let mut tabs: Vec<Client> = (0..2_000).map(|_| connect(&daemon)).collect();
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.send(request(&target(&format!("u{}", number % 10))).as_bytes());
    }
    for tab in &mut tabs {
        assert!(tab.read_head().starts_with("HTTP/1.1 101 "));
        tab.expect_welcome();
    }
    assert_eq!(daemon.count("handshakes are incomplete"), 0);
}

#[test]
fn thousands_of_subscriptions_are_granted_and_do_not_delay_logins() {
    const USERS: usize = 13;
    const TABS: usize = 9;
    const RECORDS: usize = 120;
    let standin = Standin::new();
    let path = Control::path(&standin);
    let mut daemon = Daemon::with_workers(&standin, &["--control", path.to_str().unwrap()]);
    let control = Control::at(&path);
    let mut tabs: Vec<Client> =
        (0..USERS * TABS).map(|number| daemon.connect(&format!("u{}", number % USERS))).collect();
    standin.hold("AclCheck");
    for tab in &mut tabs {
        for record in 0..RECORDS {
            tab.subscribe(&format!("recordUpdate.Account.{record}"));
        }
    }
    for tab in &mut tabs {
        tab.expect_silence();
    }
    let mut another = connect(&daemon);
    another.upgrade(&target("another"));
    daemon.wait_for("has subscribed to so many topics at once that access checks of further ones");
    standin.release();
    another.expect_welcome();
    daemon.subscribe(&mut another, "another", "recordUpdate.Account.1");
    // Not from the log, which may have lost lines.
    let all = (USERS * TABS * RECORDS + 1) as u64;
    let granted = || control.number("/subscriptions/recordUpdate");
    eventually("all subscriptions are granted", || granted() == all);
    for tab in &mut tabs {
        tab.expect_silence();
    }
}

/// Warnings that only the test environment causes.
const ENVIRONMENT_WARNINGS: [&str; 2] =
    ["The daemon runs as root, which it does not need", "The limit of open files allows only "];

/// Warnings and errors in the daemon's log, without those of the environment.
fn warnings(daemon: &Daemon) -> Vec<String> {
    let is_one = |line: &String| {
        let is_bad = line.contains("[WARN ]") || line.contains("[ERROR]");
        is_bad && !ENVIRONMENT_WARNINGS.iter().any(|text| line.contains(text))
    };
    daemon.log().into_iter().filter(is_one).collect()
}

/// All tabs at once: first they connect, then they request the upgrade, then they subscribe, and
/// only then does PHP answer the first check, as with cold caches.
fn connect_and_subscribe_all(standin: &Standin, daemon: &Daemon) -> Vec<Client> {
    const TABS: usize = 300;
    const USERS: usize = 100;
    standin.hold("AuthTokenCheck");
    let mut tabs: Vec<Client> = (0..TABS).map(|_| connect(daemon)).collect();
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.send(request(&target(&format!("u{}", number % USERS))).as_bytes());
    }
    for tab in &mut tabs {
        assert!(tab.read_head().starts_with("HTTP/1.1 101 "));
    }
    standin.release();
    for tab in &mut tabs {
        tab.expect_welcome();
        for topic in ["newNotification", "appParamsUpdate", "recordUpdate.Account.1"] {
            tab.subscribe(topic);
        }
    }
    let granted = || daemon.count(": add topic recordUpdate.Account.1 for user u");
    eventually("all subscriptions are granted", || granted() == TABS);
    tabs
}

#[test]
fn hundreds_of_tabs_that_reconnect_after_a_restart_cause_no_warning() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &[]);
    let address = daemon.address.to_string();
    let mut tabs = connect_and_subscribe_all(&standin, &daemon);
    daemon.signal("TERM");
    daemon.wait();
    daemon.wait_for("Stopped");
    for tab in &mut tabs {
        tab.expect_drop();
    }
    assert_eq!(warnings(&daemon), Vec::<String>::new());

    let mut daemon = Daemon::with_workers(&standin, &["--listen", &address]);
    let mut tabs = connect_and_subscribe_all(&standin, &daemon);
    let message = json!({"topicId": "recordUpdate.Account.1"});
    Pusher::connect(&daemon.zeromq).send(&message);
    for tab in &mut tabs {
        tab.expect_event(&message);
    }
    daemon.signal("TERM");
    daemon.wait();
    daemon.wait_for("Stopped");
    assert_eq!(warnings(&daemon), Vec::<String>::new());
}
