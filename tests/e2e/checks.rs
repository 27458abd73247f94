//! Access checks by PHP: which commands run, how many, and what their outcome means.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, DEADLINE, Daemon, Php, Process, Standin, eventually, request};

/// The ways in which a check can fail, and what the log then contains. `missing` and `no-command`
/// remove a file; the others are implemented by the stand-in.
const FAILURES: [(&str, &str); 9] = [
    ("exit255", "PHP exited with status 255"),
    ("error", "PHP exited with status 1: Error: SQLSTATE"),
    ("hang", "PHP did not finish in time and was killed"),
    ("killed", "PHP was killed by signal 9"),
    ("noise", "PHP printed unexpected output: Notice: something else"),
    ("flood", "PHP's output was too long"),
    ("crash", "PHP exited with status 255: PHP Fatal error"),
    ("missing", "PHP could not be started: No such file"),
    ("no-command", "PHP exited with status 1: Could not open input file: command.php"),
];

/// Differs from `tok-…` even in its first 15 characters, which are what PHP prints.
const USER: &str = "0123456789abcdef0";

#[test]
fn a_check_runs_with_exactly_its_arguments() {
    let standin = Standin::new();
    standin.custom_categories(&json!({
        "quoted": {"paramList": ["id"], "accessCheckCommand":
            "AclCheck --userId=:userId --scope=Account '--id=:id' \"--note=a :id\" --more=:other"},
    }));
    let php = standin.php("php", "case $1 in command.php) pwd -P > data/standin/cwd;; esac");
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    let mut alice = daemon.connect("alice");
    for topic in [
        "newNotification",
        "recordUpdate.Account.6b0",
        "streamUpdate.C_X.0f8f-1.more.of it",
        "calendarUpdate",
        "quoted.--x",
        "quoted.$(id)",
        "quoted.7",
    ] {
        match topic {
            "quoted.--x" | "quoted.$(id)" => alice.subscribe(topic),
            _ => daemon.subscribe(&mut alice, "alice", topic),
        }
    }
    let mut runs = standin.arguments();
    runs.sort();
    assert_eq!(
        runs,
        [
            ["AclCheck", "--userId=alice", "--scope=Account", "--id=6b0", "--action=read"].to_vec(),
            [
                "AclCheck",
                "--userId=alice",
                "--scope=Account",
                "--id=7",
                "--note=a 7",
                "--more=:other"
            ]
            .to_vec(),
            ["AclCheck", "--userId=alice", "--scope=C_X", "--id=0f8f-1", "--action=stream"]
                .to_vec(),
            ["AclCheck", "--userId=alice", "--scope=Calendar"].to_vec(),
            ["AuthTokenCheck", "tok-alice", "alice"].to_vec(),
        ]
    );
    let cwd = std::fs::read_to_string(standin.path().join("data/standin/cwd")).unwrap();
    assert_eq!(Path::new(cwd.trim()), standin.path().canonicalize().unwrap());
}

#[test]
fn max_checks_limits_concurrent_checks() {
    let standin = Standin::new();
    let php = standin.php_with_gate();
    let daemon = Daemon::start_with(&standin, &["--php", &php, "--max-checks", "2"]);
    assert_eq!(max_concurrent_checks(&standin, &daemon, 7), 2);
}

#[test]
fn two_concurrent_checks_per_core_are_the_default() {
    let standin = Standin::new();
    let php = standin.php_with_gate();
    let daemon = Daemon::start_with(&standin, &["--php", &php]);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(max_concurrent_checks(&standin, &daemon, 2 * cores + 3), 2 * cores);
}

/// Logs in this many users and counts the concurrent PHP processes.
fn max_concurrent_checks(standin: &Standin, daemon: &Daemon, users: usize) -> usize {
    standin.set("gate", "");
    let open =
        |number| Client::open(daemon.address, &format!("u{number}"), &format!("tok-u{number}"));
    let mut tabs: Vec<Client> = (0..users).map(open).collect();
    // An answer shows that the input was processed: each check runs or is queued.
    for tab in &mut tabs {
        tab.expect_silence();
    }
    let mut most = daemon.children().len();
    standin.unset("gate");
    eventually("all checks have ended", || {
        let running = daemon.children().len();
        most = most.max(running);
        running == 0 && standin.runs().len() == users
    });
    for tab in &mut tabs {
        tab.expect_welcome();
    }
    most
}

#[test]
fn identical_queued_checks_share_one_run() {
    let standin = Standin::new();
    let php = standin.php_with_gate();
    let mut daemon = Daemon::start_with(&standin, &["--php", &php, "--max-checks", "1"]);
    standin.set("gate", "");
    let open = |_| Client::open(daemon.address, "alice", "tok-alice");
    let mut tabs: Vec<Client> = (0..8).map(open).collect();
    for tab in &mut tabs {
        tab.subscribe("recordUpdate.Account.1");
        tab.expect_silence();
    }
    standin.unset("gate");
    for tab in &mut tabs {
        tab.expect_welcome();
    }
    let granted = |line: &&String| line.contains("add topic recordUpdate.Account.1");
    eventually("all subscriptions are granted", || {
        daemon.log().iter().filter(granted).count() == 8
    });
    let check = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
    assert_eq!(standin.runs(), ["AuthTokenCheck tok-alice alice", check]);
    let event = json!({"topicId": "recordUpdate.Account.1"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    for tab in &mut tabs {
        tab.expect_event(&event);
    }
    // A check for another user is not identical, nor is a later one.
    let mut bob = daemon.connect("bob");
    daemon.subscribe(&mut bob, "bob", "recordUpdate.Account.1");
    tabs[0].unsubscribe("recordUpdate.Account.1");
    daemon.subscribe(&mut tabs[0], "alice", "recordUpdate.Account.1");
    assert_eq!(standin.count(check), 2);
    assert_eq!(standin.runs().len(), 5);
}

/// A daemon that runs one check at a time, and a tab of alice whose first subscription is being
/// checked while the second waits.
fn hold_two_checks(standin: &Standin) -> (Daemon, Client) {
    let php = standin.php_with_gate();
    let daemon = Daemon::start_with(standin, &["--php", &php, "--max-checks", "1"]);
    let mut alice = daemon.connect("alice");
    standin.set("gate", "");
    alice.subscribe("recordUpdate.Account.1");
    alice.subscribe("recordUpdate.Account.2");
    (daemon, alice)
}

#[test]
fn logins_are_checked_before_subscriptions() {
    let standin = Standin::new();
    let (mut daemon, mut alice) = hold_two_checks(&standin);
    alice.expect_silence();
    let mut bob = Client::open(daemon.address, "bob", "tok-bob");
    bob.expect_silence();
    standin.unset("gate");
    bob.expect_welcome();
    daemon.wait_for("add topic recordUpdate.Account.2");
    let check = |id| format!("AclCheck --userId=alice --scope=Account --id={id} --action=read");
    assert_eq!(standin.runs()[1..], [check(1), "AuthTokenCheck tok-bob bob".into(), check(2)]);
}

#[test]
fn a_check_without_waiting_clients_is_not_run() {
    let standin = Standin::new();
    let (mut daemon, mut alice) = hold_two_checks(&standin);
    alice.unsubscribe("recordUpdate.Account.2");
    alice.expect_silence();
    let mut carol = Client::open(daemon.address, "carol", "tok-carol");
    carol.expect_silence();
    drop(carol);
    daemon.wait_for(": close");
    standin.unset("gate");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.3");
    let check = |id| format!("AclCheck --userId=alice --scope=Account --id={id} --action=read");
    assert_eq!(standin.runs()[1..], [check(1), check(3)]);
}

#[test]
fn a_verdict_does_not_apply_to_a_later_connection_in_the_same_slot() {
    let standin = Standin::new();
    let php = standin.php_with_gate();
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    standin.set("gate", "");
    let mut alice = Client::open(daemon.address, "alice", "tok-alice");
    alice.expect_silence();
    drop(alice);
    daemon.wait_for(": close");
    let mut mallory = Client::open(daemon.address, "alice", "guessed");
    mallory.subscribe("newNotification");
    mallory.expect_silence();
    standin.unset("gate");
    mallory.expect_close(1008);
}

#[test]
fn a_check_that_exceeds_its_timeout_is_killed_with_its_children() {
    let standin = Standin::new();
    let start_another = "case $1 in command.php) \
        sleep 120 & echo $! > data/standin/sleeper; echo $$ > data/standin/leader;; esac";
    let php = standin.php("php", start_another);
    standin.set("failure", "hang");
    let daemon = Daemon::start_with(&standin, &["--php", &php, "--check-timeout", "1s"]);
    Client::open(daemon.address, "alice", "tok-alice").expect_drop();
    for name in ["leader", "sleeper"] {
        let file = standin.path().join("data/standin").join(name);
        let pid = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        eventually("it is killed", || !Process::is_running(pid));
    }
    assert_eq!(daemon.children().len(), 0);
}

#[test]
fn a_failed_login_check_ends_without_a_close_frame_and_a_later_login_succeeds() {
    for (failure, reason) in FAILURES {
        let (standin, mut daemon) = failing(failure);
        fail(&standin, failure);
        let mut tab = Client::tcp(daemon.address);
        tab.send(request(&format!("/?authToken=tok-{USER}&userId={USER}")).as_bytes());
        let answer = String::from_utf8(tab.read_to_end()).unwrap();
        assert!(answer.is_empty() || answer.ends_with("\r\n\r\n"), "a frame: {answer}");
        daemon.wait_for(&format!("The access check of a login failed: {reason}"));
        repair(&standin, failure);
        daemon.connect(USER).expect_silence();
        // A denial is different: the browser must not reconnect.
        Client::open(daemon.address, USER, "tok-other").expect_close(1008);
        assert_eq!(daemon.children().len(), 0, "a zombie");
        expect_no_token(&daemon);
    }
}

#[test]
fn a_subscription_whose_check_fails_is_retried() {
    // Each takes a second.
    std::thread::scope(|scope| {
        for (failure, reason) in FAILURES {
            scope.spawn(move || {
                let (standin, mut daemon) = failing(failure);
                let mut tab = daemon.connect(USER);
                fail(&standin, failure);
                tab.subscribe("recordUpdate.Account.1");
                daemon.wait_for(&format!("The access check of a subscription failed: {reason}"));
                daemon.wait_for("The check will be retried");
                let event = json!({"topicId": "recordUpdate.Account.1"});
                Php::send(&daemon.zeromq, std::slice::from_ref(&event));
                tab.expect_silence();
                repair(&standin, failure);
                daemon.wait_for("add topic recordUpdate.Account.1");
                let event = json!({"topicId": "recordUpdate.Account.1", "again": true});
                Php::send(&daemon.zeromq, std::slice::from_ref(&event));
                tab.expect_event(&event);
                eventually("all children are reaped", || daemon.children().is_empty());
                expect_no_token(&daemon);
            });
        }
    });
}

#[test]
fn the_upgrade_response_does_not_wait_for_a_check() {
    let standin = Standin::new();
    let php = standin.php("php", "");
    let daemon = Daemon::start_with(&standin, &["--php", &php]);
    std::fs::remove_file(php).unwrap();
    Client::open(daemon.address, "alice", "tok-alice").expect_drop();
}

/// A stand-in that supports this failure, and a daemon that serves it.
fn failing(failure: &str) -> (Standin, Daemon) {
    // Since 9.2, the output does not matter.
    let standin = Standin::version(if failure == "noise" { "9.1.0" } else { "9.2.7" });
    let php = standin.php("php", "");
    let timeout = if failure == "hang" { "3s" } else { "60s" };
    let daemon = Daemon::start_with(&standin, &["--php", &php, "--check-timeout", timeout]);
    (standin, daemon)
}

fn fail(standin: &Standin, failure: &str) {
    match file_to_remove(failure) {
        Some(file) => {
            let path = standin.path().join(file);
            std::fs::rename(&path, path.with_extension("away")).unwrap();
        }
        None => standin.set("failure", failure),
    }
}

fn repair(standin: &Standin, failure: &str) {
    match file_to_remove(failure) {
        Some(file) => {
            let path = standin.path().join(file);
            std::fs::rename(path.with_extension("away"), &path).unwrap();
        }
        None => standin.unset("failure"),
    }
}

fn file_to_remove(failure: &str) -> Option<&str> {
    match failure {
        "missing" => Some("php"),
        "no-command" => Some("command.php"),
        _ => None,
    }
}

fn expect_no_token(daemon: &Daemon) {
    let leaked = daemon.log().into_iter().find(|line| line.contains("tok-0123456789a"));
    assert_eq!(leaked, None);
}

#[test]
fn repeated_check_failures_back_off_until_the_subscription_is_granted() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    standin.set("failure", "error");
    alice.subscribe("recordUpdate.Account.1");
    let check = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
    eventually("the check is retried", || {
        standin.count(check) == 2 && daemon.children().is_empty()
    });
    // While the subscription waits for the third attempt it is neither dropped nor checked twice.
    alice.subscribe("recordUpdate.Account.1");
    alice.expect_silence();
    standin.unset("failure");
    daemon.wait_for("add topic recordUpdate.Account.1");
    assert_eq!(standin.count(check), 3);
}

#[test]
fn a_tab_that_connects_after_the_recovery_does_not_wait_for_the_next_retry() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--max-checks", "1"]);
    let mut before = daemon.connect("alice");
    standin.set("failure", "error");
    before.subscribe("recordUpdate.Account.1");
    let check = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
    eventually("the check is retried", || {
        standin.count(check) == 2 && daemon.children().is_empty()
    });
    standin.unset("failure");
    let mut after = daemon.connect("alice");
    after.subscribe("recordUpdate.Account.1");
    after.subscribe("recordUpdate.Account.2");
    daemon.wait_for("add topic recordUpdate.Account.2");
    assert!(daemon.log().iter().any(|line| line.contains("add topic recordUpdate.Account.1")));
}

#[test]
fn a_denied_subscription_is_not_retried() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    alice.subscribe("recordUpdate.Account.deny1");
    let line = "check access failed for topic recordUpdate.Account.deny1 for user alice";
    daemon.wait_for(line);
    // The denied subscription was removed: subscribing again causes a new check.
    let lines = daemon.log().len();
    alice.subscribe("recordUpdate.Account.deny1");
    daemon.wait_for_after(lines, line);
    let check = "AclCheck --userId=alice --scope=Account --id=deny1 --action=read";
    assert_eq!(standin.count(check), 2);
    alice.expect_silence();
}

#[test]
fn errors_of_php_are_logged_without_the_token() {
    let standin = Standin::new();
    let complain = "case $1 in command.php) \
        echo \"#0 check('$3', '$4') of $(printf %.15s \"$3\")...\" >&2; exit 255;; esac";
    let php = standin.php("php", complain);
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    Client::open(daemon.address, USER, &format!("tok-{USER}")).expect_drop();
    let line = daemon.wait_for("The access check of a login failed");
    assert!(line.contains("#0 check("), "{line}");
    expect_no_token(&daemon);
}

#[test]
fn php_inherits_only_its_standard_streams_and_no_service_manager_variables() {
    let standin = Standin::new();
    let record = "name=data/standin/${1:-probe}; ls -l /proc/self/fd > $name.fd; env > $name.env";
    let php = standin.php("php", record);
    let ours = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"];
    let mut command = crate::support::serving(&standin);
    command.args(["--listen", "127.0.0.1", "--debug", "--no-worker", "--php"]).arg(php);
    command.env("ESPOCRM_LIKES", "this");
    command.env("NOTIFY_SOCKET", standin.path().join("nobody"));
    command.envs(ours[1..].iter().map(|name| (name, "60000000")));
    let mut daemon = Daemon::spawn(command);
    // Sockets of each kind, none of which may be inherited.
    let mut alice = daemon.connect("alice");
    Php::send(&daemon.zeromq, &[json!({"topicId": "newNotification"})]);
    daemon.reload("have not changed");
    daemon.subscribe(&mut alice, "alice", "calendarUpdate");
    for (name, stdin) in [("command.php", "/dev/null"), ("probe", "/memfd:espocrm-websocket")] {
        let read = |what| {
            let file = standin.path().join(format!("data/standin/{name}.{what}"));
            std::fs::read_to_string(file).unwrap()
        };
        let links = read("fd");
        let links: Vec<&str> =
            links.lines().filter_map(|line| Some(line.split_once(" -> ")?.1)).collect();
        // The shell redirected the output of `ls` into a file; the last entry is the directory
        // itself.
        assert_eq!(links.len(), 4, "{links:?}");
        assert!(links[0].starts_with(stdin) && links[2].starts_with("pipe:"), "{links:?}");
        assert!(links[3].ends_with("/fd"), "{links:?}");
        let environment = read("env");
        assert!(environment.contains("ESPOCRM_LIKES=this") && environment.contains("PATH="));
        for name in ours {
            assert!(!environment.contains(name), "{environment}");
        }
    }
}

#[test]
fn running_checks_end_with_the_daemon() {
    let standin = Standin::new();
    // The daemon does not wait for running checks.
    let mut daemon = Daemon::start_with(&standin, &["--check-timeout", "1h"]);
    standin.set("failure", "hang");
    let mut tab = Client::open(daemon.address, "alice", "tok-alice");
    let mut children = Vec::new();
    eventually("a check hangs", || {
        children = daemon.children();
        standin.runs().len() == 1 && children.len() == 1
    });
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    assert!(!Process::is_running(children[0].pid));
    tab.expect_drop();
}

#[test]
fn the_php_probe_at_startup_ends_with_the_daemon() {
    let standin = Standin::new();
    standin.set("probe-failure", "hang");
    let mut process = crate::support::serving(&standin).spawn().unwrap();
    let mut children = Vec::new();
    eventually("the probe hangs", || {
        children = Process::children_of(process.id());
        standin.probes() == 1 && children.len() == 1
    });
    let pid = process.id().to_string();
    assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
    process.wait().unwrap();
    let php = children[0].pid;
    // Not `eventually`: a process that does not end must be killed here.
    let start = Instant::now();
    while Process::is_running(php) && start.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let survived = Process::is_running(php);
    let _ = std::process::Command::new("kill").args(["-s", "KILL", &php.to_string()]).status();
    assert!(!survived);
}
