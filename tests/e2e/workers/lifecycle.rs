//! When workers are started and stopped.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{COUNT_STARTS, cores, expect_event_of, expect_mode, starts, worker};
use crate::support::{Client, DEADLINE, Daemon, Process, Standin, TempDir, eventually, serving};

/// The router files that daemons with this temporary directory have written for their workers.
fn routers(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("espocrm-websocket-router-")).collect()
}

/// A daemon with its own temporary directory.
fn with_temporary_directory(standin: &Standin, dir: &TempDir) -> Daemon {
    let mut command = serving(standin);
    command.args(["--listen", "127.0.0.1", "--debug", "--check-cache", "0"]);
    command.env("TMPDIR", dir.path()).env_remove("RUNTIME_DIRECTORY");
    Daemon::spawn(command)
}

#[test]
fn no_worker_is_started_before_the_first_check() {
    let standin = Standin::new();
    let php = standin.php("php", COUNT_STARTS);
    let mut daemon = Daemon::with_workers(&standin, &["--php", &php]);
    let mut stranger = Client::open(daemon.address, "a_b", "tok-a_b");
    stranger.expect_close(1008);
    daemon.reload("have not changed");
    assert_eq!((starts(&standin), routers(standin.path()).len()), (0, 0));
    daemon.connect("alice");
    assert_eq!((starts(&standin), routers(standin.path()).len()), (1, 1));
}

#[test]
fn one_worker_is_enough_for_a_few_checks() {
    let standin = Standin::new();
    let php = standin.php("php", COUNT_STARTS);
    let mut daemon = Daemon::with_workers(&standin, &["--php", &php]);
    for user in ["alice", "bob", "carol"] {
        let mut tab = daemon.connect(user);
        for id in 0..4 {
            let topic = format!("recordUpdate.Account.{id}");
            daemon.subscribe(&mut tab, user, &topic);
        }
    }
    assert_eq!((starts(&standin), daemon.children().len()), (1, 1));
    expect_mode(&standin, "worker");
    assert_eq!(standin.runs().len(), 15);
}

#[test]
fn a_signal_that_ends_the_daemon_ends_the_worker_and_leaves_nothing_behind() {
    for signal in ["TERM", "INT"] {
        let (standin, dir) = (Standin::new(), TempDir::new("workers"));
        let mut daemon = with_temporary_directory(&standin, &dir);
        let mut tab = daemon.connect("alice");
        let worker = worker(&daemon);
        assert_eq!(routers(dir.path()).len(), 1);
        // A busy worker does not delay the exit.
        standin.hold("AclCheck");
        tab.subscribe("recordUpdate.Account.1");
        eventually("the check runs", || standin.runs().len() == 2);
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!Process::is_running(worker));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        tab.expect_drop();
    }
}

#[test]
fn leftovers_of_a_killed_daemon_are_removed_by_the_next_one() {
    let (standin, dir) = (Standin::new(), TempDir::new("workers"));
    let mut daemon = with_temporary_directory(&standin, &dir);
    let other = with_temporary_directory(&standin, &dir);
    daemon.connect("alice");
    let worker = worker(&daemon);
    let left = routers(dir.path());
    assert_eq!(left.len(), 1);
    other.connect("alice");
    assert_eq!(routers(dir.path()).len(), 2, "the directory of a running daemon was removed");
    daemon.signal("KILL");
    daemon.wait();
    // No other process ends it.
    eventually("the worker ends", || !Process::is_running(worker));
    let next = with_temporary_directory(&standin, &dir);
    next.connect("alice");
    assert!(!left[0].exists());
    assert_eq!(routers(dir.path()).len(), 2);
    other.connect("alice");
}

#[test]
fn changed_settings_replace_the_worker() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    let first = worker(&daemon);
    // Whatever caused the reload, EspoCRM's code may have changed, too.
    daemon.reload("have not changed");
    eventually("it ends", || daemon.children().is_empty() && !Process::is_running(first));
    daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
    let first = worker(&daemon);
    // A worker only answers the commands that existed when it was started.
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck yes"}}));
    daemon.reload("settings have changed");
    eventually("it ends", || daemon.children().is_empty() && !Process::is_running(first));
    daemon.subscribe(&mut tab, "alice", "news");
    assert_ne!(worker(&daemon), first);
    expect_mode(&standin, "worker");
    expect_event_of(&daemon, &mut tab, "1");
}

#[test]
fn a_busy_worker_finishes_its_check_when_settings_change() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    let first = worker(&daemon);
    standin.hold("--id=1");
    tab.subscribe("recordUpdate.Account.1");
    eventually("the check runs", || standin.runs().len() == 2);
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck yes"}}));
    daemon.reload("settings have changed");
    assert_eq!(worker(&daemon), first);
    standin.release();
    daemon.wait_for("add topic recordUpdate.Account.1");
    eventually("it ends", || !Process::is_running(first));
    daemon.subscribe(&mut tab, "alice", "news");
    assert_ne!(worker(&daemon), first);
    expect_mode(&standin, "worker");
    assert_eq!(standin.runs().len(), 3);
}

#[test]
fn a_worker_with_removed_files_is_replaced() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    // Some systems remove files in /tmp that have not been used for days.
    for router in routers(standin.path()) {
        std::fs::remove_dir_all(router).unwrap();
    }
    for id in 0..4 {
        daemon.subscribe(&mut tab, "alice", &format!("recordUpdate.Account.{id}"));
    }
    assert_eq!(standin.modes().last().unwrap(), "worker", "{:?}", standin.modes());
}

#[test]
#[ignore = "takes more than a minute"]
fn an_idle_daemon_keeps_no_php_process() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &[]);
    let mut tab = daemon.connect("alice");
    let first = worker(&daemon);
    // One minute after the last check.
    std::thread::sleep(DEADLINE);
    eventually("it ends", || daemon.children().is_empty() && !Process::is_running(first));
    tab.expect_silence();
    daemon.connect("alice");
    assert_ne!(worker(&daemon), first);
    expect_mode(&standin, "worker");
}

#[test]
fn a_second_worker_is_started_only_for_many_queued_checks() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &[]);
    standin.hold("");
    let open = |number: usize| {
        let mut tab =
            Client::open(daemon.address, &format!("u{number}"), &format!("tok-u{number}"));
        // An answer shows that the input was processed.
        tab.expect_silence();
        tab
    };
    let mut tabs: Vec<Client> = (0..10).map(open).collect();
    eventually("the worker runs a check", || standin.runs().len() == 1);
    assert_eq!(daemon.children().len(), 1);
    tabs.extend((10..100).map(open));
    let expected = cores().min(6);
    eventually("all workers run", || daemon.workers().len() >= expected);
    assert!(daemon.children().len() <= cores());
    standin.release();
    for tab in &mut tabs {
        tab.expect_welcome();
    }
    expect_mode(&standin, "worker");
}
