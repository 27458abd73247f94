//! Many tabs and many topics at once, without anything being lost.

use super::target;
use crate::support::{Client, Daemon, Standin, eventually, request};

/// A tab that has connected, and will send its request.
fn knock(daemon: &Daemon) -> Client {
    Client::tcp(daemon.address)
}

#[test]
fn of_two_thousand_tabs_that_connect_at_once_none_is_ended() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--max-per-user", "0"]);
    let mut tabs: Vec<Client> = (0..2_000).map(|_| knock(&daemon)).collect();
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.send(request(&target(&format!("u{}", number % 10))).as_bytes());
    }
    for tab in &mut tabs {
        assert!(tab.read_head().starts_with("HTTP/1.1 101 "));
        tab.expect_welcome();
    }
    assert_eq!(daemon.count("have not completed their upgrade"), 0);
}

#[test]
fn users_who_want_thousands_of_topics_get_them_all_and_let_others_log_in_meanwhile() {
    const USERS: usize = 13;
    const TABS: usize = 9;
    const RECORDS: usize = 120;
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &[]);
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
    let mut another = knock(&daemon);
    another.upgrade(&target("another"));
    daemon.wait_for("has requested so many topics at once that the access checks of further ones");
    standin.release();
    another.expect_welcome();
    daemon.subscribe(&mut another, "another", "recordUpdate.Account.1");
    let granted = || daemon.count("add topic recordUpdate.Account.");
    eventually("all are granted", || granted() == USERS * TABS * RECORDS + 1);
    for tab in &mut tabs {
        tab.expect_silence();
    }
}
