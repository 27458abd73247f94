//! What the daemon logs about itself, and how repeated lines are limited.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Client, DEADLINE, Daemon, Standin, command, eventually};

#[test]
fn the_startup_log_lists_findings_and_settings() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "listen = '127.0.0.1'\nmax_connections = 500\n").unwrap();
    let mut program = command();
    program.args(["run", "--espocrm"]).arg(standin.path()).arg("--config").arg(&file);
    program.env("TMPDIR", standin.path());
    let daemon = Daemon::spawn(program);
    let php = Command::new("php").args(["-r", "echo PHP_VERSION;"]).output().unwrap();
    let php = String::from_utf8(php.stdout).unwrap();
    let log = daemon.log().join("\n");
    let root = standin.path().canonicalize().unwrap();
    for words in [
        format!(" for EspoCRM 9.2.7 in {}, 6 categories, PHP {php} (php).", root.display()),
        format!("The configuration file is {}.", file.display()),
        "Access is checked by ".to_owned(),
        format!("Browsers are served at ws://{}.", daemon.address),
        format!("EspoCRM's messages are received at {}.", daemon.zeromq),
        "Limits: 500 connections and ".to_owned(),
    ] {
        assert!(log.contains(&words), "{words}\n{log}");
    }
}

/// The PHP that runs checks is not the one that was tried first.
#[test]
fn the_version_of_the_php_that_runs_checks_is_logged() {
    let mut standin = Standin::new();
    let php = standin.php("named", "");
    standin.config("phpExecutablePath", &*php);
    let mut daemon = Daemon::start(&standin);
    let line = daemon.wait_for(" 6 categories, PHP ");
    assert!(line.ends_with(&format!(" ({php}).")), "{line}");
    daemon.reload("have not changed");
}

#[test]
fn a_reload_logs_the_changes() {
    let mut standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "listen = '127.0.0.1'\nmax_per_user = 7\n").unwrap();
    let mut program = command();
    program.args(["run", "--espocrm"]).arg(standin.path()).arg("--config").arg(&file);
    program.env("TMPDIR", standin.path());
    let mut daemon = Daemon::spawn(program);
    standin.config("webSocketDebugMode", true);
    std::fs::write(&file, "listen = '127.0.0.1'\norigins = ['same-site']\n").unwrap();
    let reported = daemon.reload("settings have changed");
    let (_, now) = reported.split_once(" Now: ").unwrap();
    assert_eq!(
        now,
        "debug true (EspoCRM: webSocketDebugMode), max_per_user 250 (default), \
         origins http://localhost (configuration file)."
    );
    // Categories are not a setting of the daemon.
    standin.custom_categories(&serde_json::json!({"more": {}}));
    standin.clear_cache();
    let reported = daemon.reload("settings have changed");
    assert!(reported.ends_with(" 7 categories."), "{reported}");
}

const OFF: &str = "EspoCRM's useWebSocket is off";

#[test]
fn repeated_lines_are_counted_until_another_line_follows() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for(OFF);
    // Each change of EspoCRM's configuration causes the warning again: the first time after other
    // lines. Debug lines in between do not matter.
    let read = "certificate has changed. Reloading";
    for number in 1..=3 {
        // The configuration differs by its length.
        standin.config("odd", "x".repeat(number));
        eventually("the configuration is read again", || {
            daemon.connect("alice").expect_silence();
            daemon.count(read) == number
        });
    }
    let lines = daemon.log().len();
    assert_eq!(daemon.count(OFF), 2);
    daemon.reload("Reloading EspoCRM's settings");
    let log = daemon.log().split_off(lines);
    let again = log.iter().position(|line| line.contains(&format!("2 more times: {OFF}"))).unwrap();
    assert!(log[again].contains("[WARN ] "), "{log:#?}");
    assert!(log[again + 1].contains("Reloading EspoCRM's settings"), "{log:#?}");
    // After that line, it counts as a new one.
    daemon.wait_for_after(lines + again + 1, OFF);
}

#[test]
fn a_line_repeated_once_is_counted_in_the_singular() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for(OFF);
    for number in 1..=2 {
        standin.config("odd", "x".repeat(number));
        eventually("the configuration is read again", || {
            daemon.connect("alice").expect_silence();
            daemon.count("certificate has changed. Reloading") == number
        });
    }
    daemon.reload("Reloading EspoCRM's settings");
    daemon.wait_for(&format!("1 more time: {OFF}"));
}

/// Sends requests that do not open a WebSocket.
fn send_invalid_requests(daemon: &Daemon, count: usize) {
    for _ in 0..count {
        let mut client = Client::tcp(daemon.address);
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(client.read_to_end().starts_with(b"HTTP/1.1 426 "));
    }
}

const REFUSED: &str = "A request was rejected because it is not a WebSocket handshake";
const MORE: &str = "more in the last 60 s: rejected requests that are not WebSocket handshakes.";

#[test]
fn suppressed_lines_are_summarized_at_exit() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    send_invalid_requests(&daemon, 4);
    daemon.wait_for(REFUSED);
    assert_eq!(daemon.count(REFUSED), 1);
    daemon.signal("TERM");
    daemon.wait();
    let line = daemon.wait_for(MORE);
    assert!(line.ends_with(&format!("[INFO ] 3 {MORE}")), "{line}");
}

#[test]
#[ignore = "takes more than a minute"]
fn suppressed_lines_are_summarized_within_about_a_minute() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for(OFF);
    send_invalid_requests(&daemon, 3);
    eventually_within_minutes(|| daemon.count(MORE) > 0);
    assert_eq!(daemon.count(&format!("2 {MORE}")), 1);
    // Also a repeated line that was suppressed.
    standin.config("odd", "x");
    daemon.connect("alice").expect_silence();
    standin.config("odd", "xx");
    eventually("the configuration is read again", || {
        daemon.connect("alice").expect_silence();
        daemon.count("certificate has changed. Reloading") == 2
    });
    eventually_within_minutes(|| daemon.count(&format!(" times: {OFF}")) > 0);
    // After that the daemon sleeps.
    let cpu = daemon.cpu();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(daemon.cpu(), cpu);
}

/// Waits for something that happens after a minute.
fn eventually_within_minutes(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60) + DEADLINE);
        std::thread::sleep(Duration::from_millis(100));
    }
}
