//! Untrusted text neither controls a terminal nor forges lines: command line, errors, command
//! output, the doctor, the log.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::{
    Client, Control, Daemon, GOOD_HEAD, Php, Standin, alice, command, find_leak, readable, run,
};

/// Some characters of each kind that is not printable, their escaped form, and their form in JSON.
const BAD: &str = "x\u{1b}[31m\u{9b}2J\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}\u{e0041}\u{e000}y";
const SHOWN: &str = r"x\u{1b}[31m\u{9b}2J\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}\u{e0041}\u{e000}y";
const JSON: &str = r"x\u001b[31m\u009b2J\u007f\u202e\u2066\u200b\u2028\udb40\udc41\ue000y";

/// Three errors.
const TOML: &str = r#"
"x\u001b[31m" = 1
listen = "x\u001b[31m\u202e\nespocrm-websocket: all is well"
max_checks = "\u009b2J"
"#;

/// A forged line that imitates the program's own output.
const FORGED: &str = "espocrm-websocket: all is well";

fn stderr(output: Output) -> String {
    let text = readable(output.stderr);
    text.lines().for_each(|line| assert_eq!(find_leak(line), None));
    text
}

fn printed(arguments: &[&str]) -> String {
    let mut command = command();
    command.args(arguments);
    stderr(run(command))
}

#[test]
fn arguments_are_quoted_without_control_characters() {
    let standin = Standin::new();
    let forging = format!("/nowhere/{BAD}\n{FORGED}");
    let missing = standin.path().join(format!("{BAD}\n{FORGED}"));
    fs::write(&missing, TOML).unwrap();
    for arguments in [
        &["run", "--config", "/dev/null", "--espocrm", &forging][..],
        &["config", "--config", &forging],
        &["config", "--config", missing.to_str().unwrap()],
        &["setup", "--root", &forging],
        &["adopt", "--root", &forging],
        &["doctor", "--root", &forging],
        &["health", "--config", &forging],
        &["status", "--control", &forging],
        &["status", &forging],
        &["run", &format!("--{BAD}\n{FORGED}")],
        &["run", "--listen", &forging],
        &["run", "--config", "/dev/null", "--espocrm", "/", "--log-file", &forging],
        &[&forging],
    ] {
        let error = printed(arguments);
        assert!(error.starts_with("espocrm-websocket: "), "{arguments:?}: {error}");
        assert!(error.contains(r"x\u{1b}[31m"), "{arguments:?}: {error}");
        assert_eq!(error.matches("\nespocrm-websocket: ").count(), 0, "{arguments:?}: {error}");
    }
    // Not even valid UTF-8.
    let mut command = command();
    command.args(["run", "--config", "/dev/null", "--espocrm"]);
    command.arg(OsStr::from_bytes(b"/nowhere/\xff\x9b2J\x1b[31m"));
    let error = stderr(run(command));
    assert!(error.contains(r"2J\u{1b}[31m"), "{error}");
    // Line breaks of the program's own texts are kept.
    assert!(printed(&["run", "--nothing"]).ends_with("\nTry: espocrm-websocket --help\n"));
    let error = printed(&["config", "--config", missing.to_str().unwrap()]);
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn user_input_is_escaped_in_command_output() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let mut alice = alice(&daemon);
    let topic = format!("newNotification.{BAD}");
    alice.subscribe(&topic);
    alice.expect_silence();
    let raw = control.get("/topics");
    let expected = format!(r#""newNotification.{JSON}""#);
    assert!(raw.contains(&expected), "{raw}");
    assert!(control.output_of(&["status", "topics", "--json"]).contains(&expected));
    assert!(control.output_of(&["status", "topics"]).contains(SHOWN));
    let read: Value = serde_json::from_str(&raw).unwrap();
    let topics = read["topics"].as_array().unwrap();
    assert!(topics.iter().any(|it| it["topic"] == *topic), "{raw}");
    let (status, raw) = control.ask("POST", "/kick?user=%c2%9b2J%7f%e2%80%ae", "");
    assert_eq!(status, 200);
    assert!(raw.contains(r"\u009b2J\u007f\u202e"), "{raw}");
    // This user has no connections.
    let kicked = control.run(&["kick", BAD]);
    assert_eq!(kicked.status.code(), Some(1));
    let kicked = String::from_utf8(kicked.stderr).unwrap();
    assert!(kicked.contains(SHOWN), "{kicked}");
    for text in [control.output_of(&["status"]), control.output_of(&["status", "--json"])] {
        text.lines().for_each(|line| assert_eq!(find_leak(line), None));
    }
    // Messages to browsers are not changed.
    let event = json!({"topicId": topic, "userId": "alice"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    assert_eq!(alice.next_message()[1], *topic);
}

#[test]
fn an_origin_is_logged_on_one_line() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--origin", "https://crm.example.com"]);
    let mut client = Client::tcp(daemon.address);
    // Control characters are not permitted in header values.
    let origin = "https://x\u{9b}2J\u{202e}\u{2028}\u{e0041}y";
    let head = GOOD_HEAD.replace("http://localhost", origin);
    client.send(format!("GET /?authToken=tok-alice&userId=alice HTTP/1.1\r\n{head}").as_bytes());
    client.read_head();
    client.expect_close(1008);
    let line = daemon.wait_for("A page was rejected because its origin is not in");
    assert!(line.contains(r"https://x\u{9b}2J\u{202e}\u{2028}\u{e0041}y"), "{line}");
}

#[test]
fn espocrms_settings_are_shown_escaped() {
    let mut standin = Standin::new();
    let hostile = format!("tcp://127.0.0.1:5555{BAD}\n    rm -rf /");
    standin.config("webSocketZeroMQSubmissionDsn", &*hostile);
    standin.config("webSocketMessager", &*hostile);
    standin.config("siteUrl", format!("https://{BAD}\n    rm -rf /"));
    standin.config("webSocketUrl", format!("wss://{BAD}\n    rm -rf /"));
    let mut config = command();
    config.args(["config", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
    let shown = run(config);
    for text in [&shown.stdout, &shown.stderr] {
        readable(text.clone()).lines().for_each(|line| assert_eq!(find_leak(line), None));
    }
    for flags in [&[][..], &["--json"]] {
        let mut doctor = command();
        doctor.args(["doctor", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
        let output = run(doctor_with(doctor, flags));
        let text = readable(output.stdout);
        text.lines().for_each(|line| assert_eq!(find_leak(line), None));
        assert!(text.contains(r"x\u"), "{text}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("rm -rf")), "{text}");
        if flags == ["--json"] {
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        }
    }
}

fn doctor_with(mut doctor: std::process::Command, flags: &[&str]) -> std::process::Command {
    doctor.args(flags);
    doctor
}
