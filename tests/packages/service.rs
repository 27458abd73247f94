//! The running service: reloads, crashes, and its log.

use std::collections::BTreeSet;

use crate::container::Release;
use crate::package::{CONFIG, DROP_IN, installed};
use crate::standin::{self, PORT};
use crate::support::{Client, eventually};
use crate::tab::{self, UNIT};

on_each_release! {
    a_reload_keeps_the_process_and_its_tabs
    messages_from_the_php_of_the_distribution_reach_a_tab
    an_invalid_setting_does_not_stop_the_running_service
    a_killed_daemon_is_restarted
    a_stuck_daemon_is_restarted
    the_journal_has_priorities_and_no_duplicate_timestamps
    a_startup_error_has_priority_error_in_the_journal
    the_restart_delay_grows_where_systemd_supports_it
    stopping_the_service_ends_php
    an_endpoint_that_cannot_be_bound_keeps_the_previous_socket
}

fn a_reload_keeps_the_process_and_its_tabs(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    container.run(&format!("echo 'max_per_user = 1' >>{CONFIG} && systemctl reload {UNIT}"));
    // systemctl returns when the setting is in effect.
    assert!(Client::attempt(tab::address(PORT)).is_none());
    assert!(container.is_active(UNIT));
    assert_eq!(container.main_pid(UNIT), pid);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}

fn messages_from_the_php_of_the_distribution_reach_a_tab(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    // From the subscription on.
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    let message = standin::notification(2);
    container.run(&format!("echo '{message}' | php /tests/send.php tcp://127.0.0.1:5555"));
    tab.expect_event(&message);
}

fn an_invalid_setting_does_not_stop_the_running_service(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    container.run(&format!("echo 'no setting' >>{CONFIG}"));
    container.fail(&format!("systemctl reload {UNIT}"));
    assert_eq!(container.main_pid(UNIT), pid);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    // An administrator who restarts it anyway gets the reason why it does not start.
    container.attempt(&format!("systemctl restart {UNIT}"));
    eventually("the error is in the journal", || container.logged(UNIT, "config.toml") > 0);
    container.run(&format!("sed -i '/^no setting/d' {CONFIG}"));
    // The start is retried forever.
    container.wait_until_active(UNIT);
}

fn a_killed_daemon_is_restarted(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    container.run(&format!("kill -KILL {pid}"));
    tab.expect_drop();
    let mut tab = tab::reconnect(PORT);
    assert_ne!(container.main_pid(UNIT), pid);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}

fn a_stuck_daemon_is_restarted(release: Release) {
    let container = installed(release);
    assert_ne!(container.property(UNIT, "WatchdogUSec"), "0");
    let hasty = "[Service]\nWatchdogSec=2\n";
    container.write(&format!("/etc/systemd/system/{UNIT}.d/90-hasty.conf"), hasty);
    container.run(&format!("systemctl daemon-reload && systemctl restart {UNIT}"));
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    container.run(&format!("kill -STOP {pid}"));
    tab.expect_drop();
    tab::reconnect(PORT);
    assert_ne!(container.main_pid(UNIT), pid);
    assert!(container.logged(UNIT, "Watchdog timeout") > 0);
}

fn the_journal_has_priorities_and_no_duplicate_timestamps(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    // An unreadable message.
    let pusher = crate::support::Pusher::connect("tcp://127.0.0.1:5555");
    pusher.send_bytes(b"not JSON");
    let ours = || {
        let lines = container.journal(UNIT).into_iter();
        lines.filter(|line| line["SYSLOG_IDENTIFIER"] == "espocrm-websocket").collect::<Vec<_>>()
    };
    let priorities = || {
        let priority = |line: &serde_json::Value| line["PRIORITY"].as_str().unwrap().to_owned();
        ours().iter().map(priority).collect::<BTreeSet<_>>()
    };
    // Warnings, information, and the debug log.
    eventually("three priorities are logged", || priorities().len() >= 3);
    assert_eq!(priorities(), ["4", "6", "7"].map(str::to_owned).into());
    for line in ours() {
        let message = line["MESSAGE"].as_str().unwrap();
        assert!(!message.starts_with('<'), "{message}");
        let has_year = message.split('-').next().is_some_and(|it| it.parse::<u32>().is_ok());
        assert!(!has_year, "{message}");
        assert!(!message.contains("tok-"), "{message}");
    }
}

fn a_startup_error_has_priority_error_in_the_journal(release: Release) {
    let container = installed(release);
    let warnings = || container.run(&format!("journalctl --no-pager -p warning -o cat -u {UNIT}"));
    assert!(!warnings().contains("nonsense"), "{}", warnings());
    // ExecStartPre= finds this error.
    container.run(&format!("echo 'nonsense = 1' >>{CONFIG}"));
    container.attempt(&format!("systemctl restart {UNIT}"));
    eventually("the journal has the error", || warnings().contains("nonsense"));
    container.run(&format!("sed -i '/^nonsense/d' {CONFIG} && systemctl stop {UNIT}"));
    // Only ExecStart= finds this error.
    let holder = std::net::TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    container.attempt(&format!("systemctl start {UNIT}"));
    let in_use = format!("{PORT}");
    eventually("the journal has the error", || warnings().contains(&in_use));
    drop(holder);
    container.wait_until_active(UNIT);
}

fn the_restart_delay_grows_where_systemd_supports_it(release: Release) {
    let container = installed(release);
    let drop_in = container.read(DROP_IN);
    match release {
        Release::Bookworm => assert!(!drop_in.contains("RestartSteps"), "{drop_in}"),
        Release::Trixie => {
            assert_eq!(container.property(UNIT, "RestartSteps"), "6");
            assert_eq!(container.property(UNIT, "RestartMaxDelayUSec"), "1min");
        }
    }
    let warnings = container.run("journalctl --no-pager -p warning -o cat _PID=1");
    assert!(!warnings.contains("Unknown key"), "{warnings}");
}

fn stopping_the_service_ends_php(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    assert!(container.run("pgrep -x php").lines().count() > 0);
    container.run(&format!("systemctl stop {UNIT}"));
    tab.expect_drop();
    assert_eq!(container.property(UNIT, "Result"), "success");
    container.fail("pgrep -x php");
}

fn an_endpoint_that_cannot_be_bound_keeps_the_previous_socket(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    // A file as directory, a read-only file system under ProtectSystem=strict, and an existing
    // file.
    for endpoint in ["ipc:///etc/hostname/x", "ipc:///usr/x", "ipc:///etc/hostname"] {
        container.run(&format!("echo 'zeromq = \"{endpoint}\"' >>{CONFIG}"));
        container.fail(&format!("systemctl reload {UNIT}"));
        let error = format!("Cannot receive EspoCRM's messages at {endpoint}: ");
        eventually("the error is logged", || container.logged(UNIT, &error) > 0);
        container.run(&format!("sed -i '/^zeromq/d' {CONFIG}"));
        container.wait_until_active(UNIT);
    }
    assert_eq!(container.logged(UNIT, "Keeping the previous socket at tcp://127.0.0.1:5555."), 3);
    assert_eq!(container.main_pid(UNIT), pid);
    assert!(!container.read("/etc/hostname").is_empty());
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}
