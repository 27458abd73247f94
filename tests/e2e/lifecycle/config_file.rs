//! The configuration file and the command line: errors come with suggestions, values have units.

use std::io::Write;
use std::process::{Command, Output};

use super::settings::{config, row};
use super::{alice, expect_alive};
use crate::support::{Client, Daemon, Standin, command, run};

/// The output of `espocrm-websocket config --check` for a file with this text.
fn check(standin: &Standin, text: &str) -> Output {
    let file = standin.path().join("own.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = command();
    command.args(["config", "--check", "--espocrm"]).arg(standin.path());
    command.arg("--config").arg(file);
    run(command)
}

#[test]
fn all_errors_of_a_file_are_reported_at_once_with_their_lines() {
    let standin = Standin::new();
    let output = check(
        &standin,
        "# Ours\nworker = true\nmax_conections = 7\n\ncheck_timeout = 'soon'\n\
         max_checks = 0\nping_interval = '25s'\nwebSocketPort = 8080\norigins = ['*']\n",
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let reported = String::from_utf8(output.stderr).unwrap();
    let reported: Vec<_> = reported.lines().collect();
    let expected = [
        (3, "there is no setting \"max_conections\"; did you mean max_connections?"),
        (5, "check_timeout: \"soon\": a length of time is expected, such as \"20s\""),
        (6, "max_checks: it must be at least 1"),
        (8, "\"webSocketPort\" is a parameter of EspoCRM"),
        (9, "origins: \"*\": expected an origin"),
    ];
    assert_eq!(reported.len(), expected.len(), "{reported:#?}");
    for (reported, (line, mistake)) in reported.iter().zip(expected) {
        assert!(reported.contains(&format!("own.toml: line {line}: {mistake}")), "{reported}");
    }
}

#[test]
fn a_valid_file_is_checked_without_output() {
    let standin = Standin::new();
    let output = check(&standin, "max_connections = 10_000\nmax_buffered = \"32 MiB\"\n");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn an_unusable_certificate_is_found_by_the_check() {
    let mut standin = Standin::new();
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", "missing.pem");
    let output = check(&standin, "");
    assert_eq!(output.status.code(), Some(1));
    let reported = String::from_utf8(output.stderr).unwrap();
    assert!(reported.contains("missing.pem: No such file"), "{reported}");
}

#[test]
fn values_have_units() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(
        &file,
        "max_connections = 9_000\nmax_buffered = '100MB'\nrecheck_interval = '1d'\n\
         ping_interval = 20\ncheck_cache = '500ms'\n",
    )
    .unwrap();
    let shown = config(&standin, &["--config", file.to_str().unwrap()]);
    for (name, value) in [
        ("max_connections", "9000"),
        ("max_buffered", "100000000"),
        ("recheck_interval", "86400s"),
        ("ping_interval", "20s"),
        ("check_cache", "500ms"),
    ] {
        assert_eq!(row(&shown, name), (value, "configuration file"));
    }
    let memory = |shown: &str| {
        let line = shown.lines().find(|line| line.starts_with("memory at most")).unwrap();
        line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
    };
    let most = |size| memory(&config(&standin, &["--max-buffered", size]));
    assert_eq!(most("164MB") - most("64MB"), 100);
}

#[test]
fn command_line_errors_suggest_the_intended_word() {
    for (arguments, words) in [
        (
            &["run", "--max-conections", "7"][..],
            "--max-conections here; did you mean --max-connections?",
        ),
        (&["setup", "--espocrn", "/x"], "--espocrn here; did you mean --espocrm?"),
        (&["cofnig"], "there is no command cofnig; did you mean config?"),
        (&["html"], "there is no command html; to specify a directory, include a slash"),
        (&["run", "/x", "--espocrm", "/y"], "EspoCRM's directory is given twice"),
        (&["/x", "/y"], "/y"),
        (&["demo", "--config", "/dev/null"], "the demo has no EspoCRM"),
        (&["demo", "--espocrm", "/x"], "the demo has no EspoCRM"),
        (&["demo", "/x"], "the demo has no EspoCRM"),
        (&["run", "--check"], "--check can only be used with the command config"),
    ] {
        let mut command = command();
        command.args(arguments);
        let output = run(command);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let reported = String::from_utf8(output.stderr).unwrap();
        assert!(reported.contains(words) && reported.contains("--help"), "{reported}");
    }
}

#[test]
fn a_directory_may_follow_its_command() {
    let standin = Standin::new();
    for command_name in ["config", "run"] {
        let mut command: Command = command();
        command.arg(command_name).arg(standin.path());
        command.args(["--config", "/dev/null", "--listen", "127.0.0.1"]);
        if command_name == "run" {
            Daemon::spawn(command).connect("alice").expect_silence();
        } else {
            assert!(run(command).status.success());
        }
    }
}

#[test]
fn max_buffered_applies_after_a_reload() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "max_buffered = '16MiB'\n").unwrap();
    let mut command = command();
    command.args(["run", "--no-worker", "--listen", "127.0.0.1", "--espocrm"]).arg(standin.path());
    command.arg("--config").arg(&file).env("TMPDIR", standin.path());
    let mut daemon = Daemon::spawn(command);
    // Each client sends an incomplete message of 60 KB: 6 MB in total.
    let mut tabs: Vec<_> = (0..100)
        .map(|_| {
            let mut tab = daemon.connect("alice");
            tab.send_frame(0x01, &b" ".repeat(60_000));
            tab
        })
        .collect();
    // All of it has been read and is buffered.
    tabs.iter_mut().for_each(Client::expect_silence);
    std::fs::write(&file, "max_buffered = '4MiB'\n").unwrap();
    let lines = daemon.log().len();
    let reported = daemon.reload("settings have changed");
    assert!(reported.contains("max_buffered 4MiB (configuration file)"), "{reported}");
    let reported = daemon.wait_for_after(lines, "The largest are ended");
    assert!(reported.contains("more than 4MiB of"), "{reported}");
    // A quarter of the memory is free after that; the other clients are still connected.
    let is_there = |tab: &mut Client| {
        let _ = tab.stream.write_all(&<Client>::frame(0x89, b"there?"));
        tab.next().is_some()
    };
    let left = tabs.iter_mut().map(is_there).filter(|is_there| *is_there).count();
    assert!((20..=70).contains(&left), "{left}");
    expect_alive(&daemon, &mut alice(&daemon), 1);
}
