//! All tabs come back at once.

use super::{COUNT_STARTS, cores, expect_event_of, expect_means, starts};
use crate::support::{Client, Control, Daemon, Standin, eventually};

#[test]
fn a_storm_is_served_by_no_more_workers_than_there_are_cores() {
    let standin = Standin::new();
    let php = standin.php("php", COUNT_STARTS);
    let daemon = Daemon::with_workers(&standin, &["--php", &php]);
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
    expect_means(&standin, "worker");
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
    let daemon = Daemon::with_workers(&standin, &["--verdict-reuse", "60s"]);
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

#[test]
fn when_too_many_checks_wait_a_tab_is_told_to_come_back() {
    let standin = Standin::new();
    let path = Control::path(&standin);
    let flags = ["--max-checks", "1", "--control", path.to_str().unwrap()];
    let daemon = Daemon::with_workers(&standin, &flags);
    let control = Control::at(&path);
    // Of one user no more than 1,024 may wait.
    let user = |tab: usize| format!("user{}", tab / 8);
    let mut tabs: Vec<Client> = (0..96).map(|tab| daemon.connect(&user(tab))).collect();
    standin.hold("");
    for tab in &mut tabs {
        for id in 0..128 {
            tab.subscribe(&format!("recordUpdate.Account.{id}"));
        }
        tab.expect_silence();
    }
    // Each of the 12,288 that may wait does.
    let mut late = Client::tcp(daemon.address);
    late.send(crate::support::request("/?authToken=tok-bob&userId=bob").as_bytes());
    let answer = late.read_head();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    control.expect("/connections/refused/check_queue", 1);
    // Those who are there live on.
    tabs[95].expect_silence();
    // Who leaves makes room.
    drop(tabs.pop());
    eventually("there is room", || {
        let mut again = Client::tcp(daemon.address);
        again.send(crate::support::request("/?authToken=tok-bob&userId=bob").as_bytes());
        again.read_head().starts_with("HTTP/1.1 101 ")
    });
    standin.release();
    eventually("all are served", || daemon.count(": add topic ") >= 95 * 128);
    daemon.connect("bob");
    expect_event_of(&daemon, &mut tabs[94], "127");
}

#[test]
fn a_tab_whose_topics_find_no_room_among_the_waiting_checks_is_ended() {
    let standin = Standin::new();
    let path = Control::path(&standin);
    let flags = ["--max-checks", "1", "--control", path.to_str().unwrap()];
    let daemon = Daemon::with_workers(&standin, &flags);
    let control = Control::at(&path);
    // 16,384 checks may wait, 1,024 of them for one user.
    let mut tabs: Vec<Client> =
        (0..136).map(|tab| daemon.connect(&format!("user{}", tab / 8))).collect();
    standin.hold("");
    for tab in &mut tabs {
        for id in 0..128 {
            tab.subscribe(&format!("recordUpdate.Account.{id}"));
        }
    }
    // Without a Close frame: it comes back.
    for tab in &mut tabs[130..] {
        tab.expect_drop();
    }
    assert!(control.number("/connections/ended/check_queue") >= 6);
    tabs[0].expect_silence();
    standin.release();
}
