//! What a systemd unit runs: the user, the check before the start, and what the kernel may kill.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{
    Client, Daemon, Standin, command, command_as_nobody, eventually, is_root, run, serving_by,
};

/// `config --check` for a stand-in.
fn check(standin: &Standin, flags: &[&str]) -> Output {
    let mut command = command();
    command.args(["config", "--check"]).args(flags).arg("--espocrm").arg(standin.path());
    if !flags.contains(&"--config") {
        command.args(["--config", "/dev/null"]);
    }
    run(command)
}

#[test]
fn valid_settings_are_checked_without_output() {
    let output = check(&Standin::new(), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn questionable_settings_cause_a_warning_and_no_error() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    let output = check(&standin, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("[WARN ] EspoCRM's useWebSocket is off"), "{printed}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_error_in_settings_is_reported() {
    let mut standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "\nmax_checks = 0\n").unwrap();
    let broken = ["--config", file.to_str().unwrap()];
    let expect = |output: Output, words: &str| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.contains(words) && output.stdout.is_empty(), "{printed}");
    };
    expect(check(&standin, &broken), "own.toml: line 2: max_checks: it must be at least 1");
    expect(check(&standin, &["--php", "/nonexistent/php"]), "PHP could not be started");
    standin.config("webSocketPort", "eighty");
    expect(check(&standin, &[]), "webSocketPort is \"eighty\"");
    standin.write_raw("config.php", "<?php return [");
    expect(check(&standin, &[]), "PHP Parse error");
}

/// The command that serves a stand-in as a user who is subject to file permissions.
fn as_nobody(standin: &Standin) -> Command {
    let mut command = serving_by(command_as_nobody(standin), Path::new("."));
    command.args(["--listen", "127.0.0.1"]);
    command
}

#[test]
fn a_user_who_does_not_own_the_data_directory_gets_a_warning() {
    if !is_root() {
        return;
    }
    let standin = Standin::new();
    let daemon = Daemon::spawn(as_nobody(&standin));
    assert_eq!(daemon.count("[WARN ]"), 0);
    drop(daemon);

    let data = standin.path().join("data");
    std::os::unix::fs::chown(&data, Some(33), Some(33)).unwrap();
    let mut daemon = Daemon::spawn(as_nobody(&standin));
    let warning = daemon.wait_for("The daemon and PHP run as nobody, who does not own ");
    assert!(
        warning.contains("[WARN ]") && warning.contains("espocrm-websocket setup"),
        "{warning}"
    );
    drop(daemon);

    let mut daemon = Daemon::start(&Standin::new());
    daemon.wait_for("The daemon runs as root, which it does not need; PHP runs as nobody.");
}

/// When memory runs out, the kernel kills processes whose work can be repeated.
#[test]
fn php_is_killed_before_the_daemon_when_memory_runs_out() {
    let standin = Standin::new();
    standin.set("failure", "hang");
    let score = |process: &str| {
        let score = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
        score.trim().parse::<i32>().unwrap()
    };
    let daemon = Daemon::start(&standin);
    let _tab = Client::open(daemon.address, "alice", "tok-alice");
    eventually("a check hangs", || standin.runs().len() == 1);
    let children = daemon.children();
    assert_eq!(children.len(), 1);
    assert_eq!(score(&children[0].pid.to_string()), 500);
    assert_eq!(score(&daemon.pid().to_string()), score("self"));
    drop(daemon);

    standin.unset("failure");
    let daemon = Daemon::with_workers(&standin, &[]);
    daemon.connect("alice");
    eventually("a worker runs", || !daemon.workers().is_empty());
    for worker in daemon.workers() {
        assert_eq!(score(&worker.to_string()), 500);
    }
}
