//! Startup, and what prevents it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{alice, expect_alive};
use crate::support::{Client, Daemon, Php, Standin, TempDir, command, command_as_nobody, run};

#[test]
fn a_directory_is_the_only_required_argument() {
    let standin = Standin::new();
    let mut by_path = command();
    by_path.arg(standin.path());
    let mut by_dot = command();
    by_dot.arg(".").current_dir(standin.path());
    for mut command in [by_path, by_dot] {
        command.args(["--config", "/dev/null", "--listen", "127.0.0.1"]);
        let daemon = Daemon::spawn(command);
        expect_alive(&daemon, &mut alice(&daemon), 1);
    }
}

#[test]
fn two_daemons_serve_two_sites() {
    let standins = [Standin::new(), Standin::new()];
    standins[1].set("bad-tokens", "tok-alice");
    let mut daemons = standins.each_ref().map(Daemon::start);
    let mut alice = daemons[0].connect("alice");
    Client::open(daemons[1].address, "alice", "tok-alice").expect_close(1008);
    let mut bob = daemons[1].connect("bob");
    daemons[0].subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    daemons[1].subscribe(&mut bob, "bob", "recordUpdate.Account.1");
    let event = |number| json!({"topicId": "recordUpdate.Account.1", "number": number});
    for (number, daemon) in daemons.iter().enumerate() {
        Php::send(&daemon.zeromq, &[event(number)]);
    }
    alice.expect_event(&event(0));
    bob.expect_event(&event(1));
    alice.expect_silence();
    bob.expect_silence();
}

#[test]
fn questionable_settings_are_served_with_a_warning() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    standin.custom_categories(&json!({"broken": {"accessCheckCommand": "A | B"}}));
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for("EspoCRM's useWebSocket is off");
    daemon.wait_for(
        "\"broken\" is not served: its accessCheckCommand cannot be run: it contains '|'",
    );
    let mut alice = alice(&daemon);
    alice.subscribe("broken");
    daemon.wait_for("check access failed for topic broken");
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_missing_php_is_replaced_by_the_default_php() {
    let mut standin = Standin::new();
    standin.config("phpExecutablePath", "/nonexistent/php");
    let mut daemon = Daemon::start(&standin);
    let warning = daemon.wait_for("/nonexistent/php does not exist");
    assert!(warning.contains("EspoCRM: phpExecutablePath). Using php instead"), "{warning}");
    expect_alive(&daemon, &mut alice(&daemon), 1);
}

#[test]
fn checks_run_with_the_php_configured_in_espocrm() {
    let mut standin = Standin::new();
    let php = standin.php("named", "[ $# = 0 ] || echo > data/standin/named");
    standin.config("phpExecutablePath", php);
    let daemon = Daemon::start(&standin);
    daemon.connect("alice");
    assert!(standin.path().join("data/standin/named").exists());
}

#[test]
fn a_directory_without_espocrm_is_reported() {
    let empty = TempDir::new("empty");
    let half = Standin::new();
    std::fs::remove_file(half.path().join("command.php")).unwrap();
    for (dir, words) in [
        (Path::new("/nonexistent"), ["/nonexistent", "No such file", "--espocrm DIR"]),
        (empty.path(), ["contains no bootstrap.php", "not EspoCRM's root", "/var/www/html"]),
        (half.path(), ["contains no command.php", "not EspoCRM's root", "--espocrm DIR"]),
    ] {
        let mut command = command();
        command.args(["run", "--config", "/dev/null", "--espocrm"]).arg(dir);
        expect_refusal(command, &words);
    }
    let mut command = command();
    command.args(["run", "--config", "/dev/null"]);
    expect_refusal(
        command,
        &["EspoCRM's directory is not set", "--espocrm DIR", "espocrm = \"/var/www/html\""],
    );
}

#[test]
fn a_php_that_cannot_be_started_is_reported() {
    let standin = Standin::new();
    let not_executable = standin.path().join("bootstrap.php");
    for php in ["/nonexistent/php", "no-such-php", not_executable.to_str().unwrap()] {
        let words = [&format!("could not be started as {php}"), "php-cli", "--php PATH"];
        expect_refusal(at(&standin, &["--php", php]), &words);
    }
    let file = standin.path().join("own.toml");
    std::fs::write(&file, "php = '/nonexistent/php'").unwrap();
    let file = file.to_str().unwrap();
    expect_refusal(
        at(&standin, &["--config", file]),
        &["started as /nonexistent/php", "--php PATH"],
    );
}

#[test]
fn a_failing_probe_is_reported() {
    for (failure, words) in [
        ("exit255", "PHP ended with status 255 (no output)"),
        ("error", "PHP ended with status 1 and printed: Error: SQLSTATE"),
        ("killed", "PHP was killed by signal 9"),
        ("noise", "PHP ended with status 0 and printed: Notice: something else"),
        ("crash", "PHP ended with status 255 and printed: PHP Fatal error"),
    ] {
        let standin = Standin::new();
        standin.set("probe-failure", failure);
        let root = standin.path().display();
        let try_this = format!("{root}/data/logs, and try as root: cd {root} && runuser -u ");
        expect_refusal(at(&standin, &[]), &[words, &try_this]);
    }
    let standin = Standin::new();
    standin.write_raw("config.php", "<?php return [");
    expect_refusal(at(&standin, &[]), &["PHP Parse error", "data/config.php"]);
}

#[test]
fn unreadable_files_are_reported() {
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (file, words) in [
        ("bootstrap.php", ["bootstrap.php is not readable by this user", "Run", "as the owner of"]),
        ("command.php", ["command.php is not readable by this user", "Run", "as the owner of"]),
        ("data/config.php", ["Cannot read the settings", "config.php", "Permission denied"]),
        ("own.toml", ["own.toml", "Permission denied", ""]),
    ] {
        let standin = Standin::new();
        std::fs::write(standin.path().join("own.toml"), "").unwrap();
        allow(&standin.path().join("data/standin"), 0o777);
        allow(&standin.path().join(file), 0o000);
        let mut command = command_as_nobody(&standin);
        command.args(["run", "--config", "own.toml", "--listen", "127.0.0.1", "--espocrm", "."]);
        expect_refusal(command, &words);
    }
}

#[test]
fn an_occupied_browser_port_is_reported_with_its_parameter() {
    let mut standin = Standin::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let served = format!("Cannot listen for browsers at {address}: it is in use");
    let find = format!("ss -ltnp 'sport = :{}'", address.port());
    let file = standin.path().join("own.toml");
    std::fs::write(&file, format!("listen = '{address}'")).unwrap();
    for (flags, parameter) in [
        (&["--listen", &address.to_string()][..], "The port is set by --listen"),
        (&["--config", file.to_str().unwrap()], "The port is set by the configuration file"),
    ] {
        expect_refusal(at(&standin, flags), &[&served, &find, parameter]);
    }
    standin.config("webSocketPort", address.port());
    let words = [&*served, &find, "php websocket.php", "EspoCRM's parameter webSocketPort"];
    expect_refusal(at(&standin, &[]), &words);
}

#[test]
fn an_occupied_zeromq_port_is_reported_with_its_parameter() {
    let mut standin = Standin::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("tcp://{}", taken.local_addr().unwrap());
    let words = [
        &format!("Cannot receive EspoCRM's messages at {dsn}: it is in use"),
        "EspoCRM's parameter webSocketZeroMQSubscriberDsn",
        "--zeromq",
    ];
    expect_refusal(at(&standin, &["--zeromq", &dsn]), &words);
    standin.config("webSocketZeroMQSubscriberDsn", dsn);
    expect_refusal(at(&standin, &[]), &words);
}

#[test]
fn invalid_values_of_espocrm_are_reported() {
    for (name, value, words) in [
        ("webSocketPort", json!("eighty"), ["webSocketPort", "\"eighty\"", "not a port number"]),
        ("webSocketPort", json!(80_800), ["webSocketPort", "\"80800\"", "not a port number"]),
        ("webSocketPort", json!("-1"), ["webSocketPort", "\"-1\"", "data/config-internal.php"]),
        (
            "webSocketZeroMQSubscriberDsn",
            json!("127.0.0.1:5555"),
            ["webSocketZeroMQSubscriberDsn", "127.0.0.1:5555", "such as tcp://127.0.0.1:5555"],
        ),
        (
            "webSocketZeroMQSubscriberDsn",
            json!("tcp://127.0.0.1"),
            ["webSocketZeroMQSubscriberDsn", "tcp://127.0.0.1", "Invalid argument"],
        ),
        (
            "webSocketUseSecureServer",
            json!(true),
            ["webSocketUseSecureServer", "webSocketSslCertificateFile", "names no file"],
        ),
    ] {
        let mut standin = Standin::new();
        standin.config(name, value);
        expect_refusal(at(&standin, &[]), &words);
    }
    let standin = Standin::new();
    let words = ["192.0.2.1", "this machine has no such address"];
    expect_refusal(at(&standin, &["--listen", "192.0.2.1"]), &words);
}

#[test]
fn errors_in_the_configuration_file_are_reported_with_their_line() {
    let standin = Standin::new();
    let file = standin.path().join("own.toml");
    let path = file.to_str().unwrap();
    for (text, words) in [
        ("\nport = 8080", ["line 2", "there is no setting \"port\"", "listen"]),
        ("\nmax_checks = 0", ["line 2", "max_checks: ", "at least 1"]),
        ("\nlisten = 'localhost'", ["line 2", "an IP address is expected", "127.0.0.1"]),
        ("debug = yes", ["line 1", "invalid TOML value", ""]),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut words = words.to_vec();
        words.push(path);
        expect_refusal(at(&standin, &["--config", path]), &words);
    }
    let words = ["/nonexistent/own.toml", "No such file"];
    expect_refusal(at(&standin, &["--config", "/nonexistent/own.toml"]), &words);
}

#[test]
fn command_line_errors_are_reported() {
    let standin = Standin::new();
    for (flags, words) in [
        (["--port", "8080"], ["--port", "--help"]),
        (["--max-checks", "0"], ["at least 1", "--help"]),
        (["--listen", "localhost"], ["an IP address is expected", "127.0.0.1"]),
        (["--ping-interval", "soon"], ["a length of time", "\"20s\""]),
    ] {
        let output = run(at(&standin, &flags));
        assert_eq!(output.status.code(), Some(2));
        expect_words(&output.stderr, &words);
    }
    let mut command = command();
    command.arg("html");
    expect_refusal(command, &["there is no command html", "include a slash"]);
}

/// The command that serves a stand-in.
fn at(standin: &Standin, flags: &[&str]) -> Command {
    let mut command = command();
    command.arg("run").arg("--espocrm").arg(standin.path());
    if !flags.contains(&"--config") {
        command.args(["--config", "/dev/null"]);
    }
    if !flags.contains(&"--listen") && !flags.contains(&"--config") {
        command.args(["--listen", "127.0.0.1"]);
    }
    command.args(flags);
    command
}

/// Runs a command that must not start and must print these words.
fn expect_refusal(command: Command, words: &[&str]) {
    let output = run(command);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    expect_words(&output.stderr, words);
}

fn expect_words(printed: &[u8], words: &[&str]) {
    let printed = String::from_utf8_lossy(printed);
    for word in words {
        assert!(printed.contains(word), "{word:?} is missing in: {printed}");
    }
}
