//! Settings that change while the daemon runs; no connection is closed because of that.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{alice, expect_alive, free_port, notification};
use crate::support::{Client, Daemon, Php, Standin, command, eventually, run};

/// A PHP of [`Standin::php`] in which no check starts while `data/standin/gate` exists, and which
/// does not report the settings while `data/standin/probe-gate` exists.
const GATES: &str = "case $# in 0) gate=probe-gate;; *) gate=gate;; esac; \
    while [ -e data/standin/$gate ] && [ -e /proc/$PPID ]; do sleep 0.02; done";

const CHANGED: &str = "EspoCRM's settings have changed";
const SETTINGS_KEPT: &str = "Keeping the previous settings.";

fn message(number: u32) -> Value {
    json!({"topicId": "news", "number": number})
}

/// The position of `text` in the log.
fn position(daemon: &Daemon, text: &str) -> usize {
    let log = daemon.log();
    log.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {log:#?}"))
}

#[test]
fn a_new_category_is_available_to_open_tabs() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    alice.subscribe("news");
    daemon.wait_for("check access failed for topic news");
    standin.custom_categories(&json!({"news": {}}));
    daemon.reload("have changed: EspoCRM 9.2.7, 7 categories");
    daemon.subscribe(&mut alice, "alice", "news");
    Php::send(&daemon.zeromq, &[message(1)]);
    alice.expect_event(&message(1));
    expect_alive(&daemon, &mut alice, 1);
    daemon.reload("have not changed");
}

#[test]
fn a_removed_category_is_no_longer_delivered() {
    let standin = Standin::new();
    standin.custom_categories(&json!({"news": {}, "other": {}}));
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    daemon.subscribe(&mut alice, "alice", "news");
    standin.custom_categories(&json!({"other": {}}));
    daemon.reload(CHANGED);
    Php::send(&daemon.zeromq, &[message(1)]);
    daemon.wait_for("A ZeroMQ message was dropped");
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn after_a_changed_access_command_nothing_is_delivered_until_granted_again() {
    let standin = Standin::new();
    standin.custom_categories(&json!({"news": {}}));
    let php = standin.php("php", GATES);
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    let mut alice = alice(&daemon);
    daemon.subscribe(&mut alice, "alice", "news");

    standin.set("gate", "");
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck yes"}}));
    daemon.reload(CHANGED);
    Php::send(&daemon.zeromq, &[message(1)]);
    expect_alive(&daemon, &mut alice, 1);
    let lines = daemon.log().len();
    standin.unset("gate");
    daemon.wait_for_after(lines, "add topic news");
    Php::send(&daemon.zeromq, &[message(2)]);
    alice.expect_event(&message(2));

    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck no"}}));
    daemon.reload(CHANGED);
    daemon.wait_for("check access failed for topic news");
    Php::send(&daemon.zeromq, &[message(3)]);
    expect_alive(&daemon, &mut alice, 2);
    assert_eq!(standin.runs()[1..], ["CustomCheck yes", "CustomCheck no"]);
}

#[test]
fn a_category_that_becomes_invalid_keeps_its_definition() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    standin.custom_categories(&json!({"recordUpdate": {"accessCheckCommand": "AclCheck | true"}}));
    daemon.signal("HUP");
    eventually("the settings are read again", || {
        standin.probes() == 2 && daemon.children().is_empty()
    });
    let event = json!({"topicId": "recordUpdate.Account.1"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    alice.expect_event(&event);
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.2");
    let check = "AclCheck --userId=alice --scope=Account --id=2 --action=read";
    assert_eq!(standin.runs().last().unwrap(), check);
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_category_that_becomes_invalid_is_logged() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    standin.custom_categories(&json!({"recordUpdate": {"accessCheckCommand": "AclCheck | true"}}));
    daemon.reload("EspoCRM's settings have");
    assert!(daemon.log().iter().any(|line| line.contains("\"recordUpdate\"")));
}

#[test]
fn a_broken_espocrm_keeps_the_previous_settings() {
    type Step<'a> = &'a dyn Fn(&mut Standin);
    let away = |standin: &Standin, from: &str, to: &str| {
        std::fs::rename(standin.path().join(from), standin.path().join(to)).unwrap();
    };
    let cases: [(Step, Step, &str); 7] = [
        (
            &|it| it.write_raw("config.php", "<?php return ["),
            &|it| it.config("useWebSocket", true),
            "status 255 and printed: PHP Parse error",
        ),
        (
            &|it| away(it, "bootstrap.php", "away"),
            &|it| away(it, "away", "bootstrap.php"),
            "bootstrap.php",
        ),
        (
            &|it| it.set("probe-failure", "noise"),
            &|it| it.unset("probe-failure"),
            "status 0 and printed: Notice",
        ),
        (
            &|it| it.set("probe-failure", "killed"),
            &|it| it.unset("probe-failure"),
            "PHP was killed by signal 9",
        ),
        (&|it| away(it, "php", "away"), &|it| away(it, "away", "php"), "PHP could not be started"),
        (
            &|it| it.config("webSocketPort", "eighty"),
            &|it| it.config("webSocketPort", 0),
            "webSocketPort is \"eighty\"",
        ),
        (
            &|it| std::fs::write(it.path().join("own.toml"), "max_checks = 0").unwrap(),
            &|it| std::fs::write(it.path().join("own.toml"), "").unwrap(),
            "own.toml: line 1: max_checks: it must be at least 1",
        ),
    ];
    for (break_it, repair_it, why) in cases {
        let mut standin = Standin::new();
        let php = standin.php("php", "");
        let file = standin.path().join("own.toml");
        std::fs::write(&file, "").unwrap();
        let mut command = command();
        command.args(["run", "--listen", "127.0.0.1", "--php", &php, "--config"]).arg(file);
        command.arg("--espocrm").arg(standin.path());
        let mut daemon = Daemon::spawn(command);
        let mut alice = alice(&daemon);
        break_it(&mut standin);
        let lines = daemon.log().len();
        daemon.reload(SETTINGS_KEPT);
        let error = daemon.wait_for_after(lines, why);
        assert!(error.contains("[ERROR]"), "{error}");
        expect_alive(&daemon, &mut alice, 1);
        repair_it(&mut standin);
        daemon.reload("have not changed");
        expect_alive(&daemon, &mut alice, 2);
        daemon.connect("bob").expect_silence();
    }
}

#[test]
fn a_hanging_php_keeps_the_settings_and_does_not_delay_existing_connections() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.set("probe-failure", "hang");
    daemon.signal("HUP");
    eventually("the probe hangs", || standin.probes() == 2);
    let mut bob = Client::open(daemon.address, "bob", "tok-bob");
    alice.subscribe("calendarUpdate");
    // Without the settings a verdict could not be interpreted, so these logins wait.
    expect_alive(&daemon, &mut alice, 1);
    bob.expect_silence();

    // Startup does not wait forever either.
    let mut command = command();
    command.args(["run", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
    let output = run(command);
    assert_eq!(output.status.code(), Some(1));
    let hangs = "PHP did not end within 30 s";
    assert!(String::from_utf8_lossy(&output.stderr).contains(hangs), "{output:?}");

    let error = daemon.wait_for(hangs);
    assert!(error.contains(SETTINGS_KEPT), "{error}");
    bob.expect_welcome();
    daemon.wait_for("add topic calendarUpdate");
    expect_alive(&daemon, &mut alice, 2);
    assert!(daemon.children().is_empty());
}

#[test]
fn logins_wait_while_settings_are_read() {
    let standin = Standin::new();
    let php = standin.php("php", GATES);
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    let mut alice = alice(&daemon);
    standin.set("probe-gate", "");
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck yes"}}));
    daemon.signal("HUP");
    eventually("the probe runs", || daemon.children().len() == 1);
    let mut bob = Client::open(daemon.address, "bob", "tok-bob");
    // The topic may become valid in a moment.
    bob.subscribe("news");
    alice.subscribe("news");
    bob.expect_silence();
    expect_alive(&daemon, &mut alice, 1);
    // After another signal meanwhile, the settings are read once more.
    daemon.signal("HUP");
    alice.expect_silence();
    standin.unset("probe-gate");
    bob.expect_welcome();
    daemon.wait_for("add topic news for user bob");
    daemon.wait_for("add topic news for user alice");
    eventually("the settings are read twice", || {
        standin.probes() == 3 && daemon.children().is_empty()
    });
    expect_alive(&daemon, &mut alice, 2);
}

#[test]
fn many_reload_signals_close_no_connection() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    for number in 0..20 {
        daemon.signal("HUP");
        expect_alive(&daemon, &mut alice, number);
    }
    eventually("the reloads are finished", || daemon.children().is_empty());
    daemon.connect("bob").expect_silence();
    expect_alive(&daemon, &mut alice, 20);
}

#[test]
fn a_new_connection_triggers_the_check_for_changes() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    standin.custom_categories(&json!({"news": {}}));
    let mut bob = Client::open(daemon.address, "bob", "tok-bob");
    bob.subscribe("news");
    bob.expect_welcome();
    daemon.wait_for("add topic news");
    assert!(position(&daemon, CHANGED) < position(&daemon, "user bob subscribed"));
}

#[test]
fn a_new_subscription_triggers_the_check_for_changes() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.custom_categories(&json!({"calendarUpdate": {"accessCheckCommand": "CustomCheck no"}}));
    alice.subscribe("calendarUpdate");
    daemon.wait_for("check access failed for topic calendarUpdate");
    assert_eq!(standin.runs()[1..], ["CustomCheck no"]);
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_subscription_to_a_new_category_triggers_the_check_for_changes() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.custom_categories(&json!({"news": {}}));
    alice.subscribe("news");
    let line = daemon.wait_for("topic news for user alice");
    assert!(line.contains("add topic"), "{line}");
}

#[test]
fn a_subscription_to_a_formerly_open_category_triggers_the_check_for_changes() {
    let standin = Standin::new();
    standin.custom_categories(&json!({"news": {}}));
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck no"}}));
    alice.subscribe("news");
    let line = daemon.wait_for("topic news for user alice");
    assert!(line.contains("check access failed"), "{line}");
}

#[test]
fn changes_are_noticed_without_any_requests() {
    let standin = Standin::new();
    standin.custom_categories(&json!({"news": {}}));
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    daemon.subscribe(&mut alice, "alice", "news");
    standin.custom_categories(&json!({"news": {"accessCheckCommand": "CustomCheck no"}}));
    daemon.wait_for("check access failed for topic news");
    Php::send(&daemon.zeromq, &[message(1)]);
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_cleared_cache_causes_one_probe() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.clear_cache();
    daemon.connect("bob");
    assert_eq!(standin.probes(), 2);
    assert!(standin.path().join("data/cache/application/metadata.php").exists());
    // The daemon checks for changes at most once per second.
    std::thread::sleep(Duration::from_millis(1_100));
    daemon.connect("carol");
    assert_eq!(standin.probes(), 2);
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_new_port_is_served_and_existing_connections_stay() {
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut before = alice(&daemon);
    let old = daemon.address;
    daemon.address.set_port(free_port());
    standin.config("webSocketPort", daemon.address.port());
    daemon.reload(&format!("Browsers are served at {}.", daemon.address));
    let mut after = alice(&daemon);
    assert!(TcpStream::connect(old).is_err());
    Php::send(&daemon.zeromq, &[notification(1)]);
    for tab in [&mut before, &mut after] {
        tab.expect_event(&notification(1));
    }
}

#[test]
fn a_new_dsn_is_served_and_existing_connections_stay() {
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    expect_alive(&daemon, &mut alice, 1);
    let old = daemon.zeromq.strip_prefix("tcp://").unwrap().to_owned();
    daemon.zeromq = format!("ipc://{}/bus.sock", standin.path().display());
    standin.config("webSocketZeroMQSubscriberDsn", &*daemon.zeromq);
    daemon.reload(&format!("EspoCRM's messages are received at {}.", daemon.zeromq));
    expect_alive(&daemon, &mut alice, 2);
    eventually("the old endpoint is closed", || TcpStream::connect(&old).is_err());
}

#[test]
fn occupied_ports_keep_the_previous_ones() {
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut before = alice(&daemon);
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [browsers, messages] = taken.each_ref().map(|it| it.local_addr().unwrap());
    standin.config("webSocketPort", browsers.port());
    standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://{messages}"));
    standin.custom_categories(&json!({"news": {}}));
    daemon.reload(CHANGED);
    let kept = format!("Keeping the previous socket at {}.", daemon.zeromq);
    for (what, kept) in [
        (format!("Cannot listen for browsers at {browsers}"), SETTINGS_KEPT),
        (format!("Cannot receive EspoCRM's messages at tcp://{messages}"), &*kept),
    ] {
        let error = daemon.wait_for(&what);
        assert!(error.contains(kept), "{error}");
    }
    let mut after = alice(&daemon);
    // The other changes are applied.
    daemon.subscribe(&mut after, "alice", "news");
    Php::send(&daemon.zeromq, &[notification(1)]);
    for tab in [&mut before, &mut after] {
        tab.expect_event(&notification(1));
    }
    // Once the ports are free, a signal is enough.
    drop(taken);
    daemon.reload(&format!("EspoCRM's messages are received at tcp://{messages}."));
    daemon.wait_for(&format!("Browsers are served at {browsers}."));
}

#[test]
fn another_spelling_of_the_same_dsn_is_accepted() {
    let mut standin = Standin::new();
    let port = free_port();
    standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://127.0.0.1:{port}"));
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://localhost:{port}"));
    daemon.reload("EspoCRM's settings have");
    assert!(!daemon.log().iter().any(|line| line.contains("[ERROR]")));
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn the_configuration_file_is_reloaded_and_flags_take_precedence() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "").unwrap();
    let php = standin.php("php", GATES);
    let path = file.to_str().unwrap();
    let flags = ["--config", path, "--php", &php, "--listen", "127.0.0.1"];
    let mut command = command();
    command.arg("run").arg("--espocrm").arg(standin.path()).args(flags);
    let mut daemon = Daemon::spawn(command);
    std::fs::write(&file, "max_checks = 1\nphp = '/nonexistent'\nlisten = '127.0.0.2'").unwrap();
    daemon.reload(CHANGED);
    standin.set("gate", "");
    let open = |user: &str| Client::open(daemon.address, user, &format!("tok-{user}"));
    let mut tabs = ["alice", "bob", "carol"].map(open);
    for tab in &mut tabs {
        tab.expect_silence();
    }
    assert_eq!(daemon.children().len(), 1);
    standin.unset("gate");
    for tab in &mut tabs {
        tab.expect_welcome();
    }
}

#[test]
fn debug_mode_can_be_turned_on_and_off() {
    let mut standin = Standin::new();
    let mut command = command();
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
    command.arg(standin.path());
    let mut daemon = Daemon::spawn(command);
    daemon.connect("alice");
    standin.config("webSocketDebugMode", true);
    daemon.reload(CHANGED);
    daemon.connect("bob");
    daemon.wait_for("user bob subscribed");
    standin.config("webSocketDebugMode", false);
    daemon.reload(CHANGED);
    daemon.connect("carol");
    // The line of the reload follows everything that the login has logged.
    daemon.reload("have not changed");
    let log = daemon.log().join("\n");
    assert!(!log.contains("user alice") && !log.contains("user carol"), "{log}");
}

#[test]
fn a_changed_php_path_applies_to_later_checks() {
    let mut standin = Standin::new();
    let note = |name| format!("case $3 in tok-*) echo {name} >> data/standin/php;; esac");
    let (old, new) = (standin.php("old", &note("old")), standin.php("new", &note("new")));
    standin.config("phpExecutablePath", old);
    let mut daemon = Daemon::start(&standin);
    daemon.connect("alice");
    standin.config("phpExecutablePath", new);
    daemon.reload(CHANGED);
    daemon.connect("bob");
    // A missing PHP keeps the current one in use.
    standin.config("phpExecutablePath", "/nonexistent/php");
    daemon.reload("/nonexistent/php does not exist");
    daemon.connect("carol");
    let used = std::fs::read_to_string(standin.path().join("data/standin/php")).unwrap();
    assert_eq!(used, "old\nnew\nnew\n");
}

#[test]
fn a_replaced_php_binary_is_found() {
    let mut standin = Standin::new();
    let (old, new) = (standin.php("php8.1", ""), standin.php("php8.3", ""));
    standin.config("phpExecutablePath", &*old);
    let mut daemon = Daemon::start(&standin);
    std::fs::remove_file(old).unwrap();
    standin.config("phpExecutablePath", new);
    daemon.signal("HUP");
    let line = daemon.wait_for("settings");
    let line = daemon.wait_for_after(position(&daemon, &line) + 1, "settings");
    assert!(line.contains(CHANGED), "{line}");
    daemon.connect("alice");
}
