//! Standard error does not accept the log: full, blocked or closed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Client, Daemon, Php, Standin, UnloggedDaemon, command, eventually, is_root};

/// Causes many long log lines.
fn log_many_lines(client: &mut Client) {
    for number in 0..300 {
        client.subscribe(&format!("unknown.{number}.{}", "x".repeat(400)));
    }
    client.expect_silence();
}

#[test]
fn a_full_device_or_closed_pipe_for_the_log_has_no_effect() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(full), writer.into()] {
        let standin = Standin::new();
        let mut unlogged = UnloggedDaemon::start(&standin, command(), stderr);
        let mut alice = unlogged.alice();
        log_many_lines(&mut alice);
        unlogged.expect_alive(&mut alice, 1);
    }
}

#[test]
fn an_error_without_a_writable_output_is_still_a_failure() {
    for arguments in [&["run", "--port"][..], &["run", "--espocrm", "/nonexistent"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let status = command().args(arguments).stderr(full).status().unwrap();
        assert!(matches!(status.code(), Some(1 | 2)), "{status:?}");
    }
}

#[test]
fn a_blocked_log_reader_delays_nothing_and_lost_lines_are_counted() {
    let standin = Standin::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut unlogged = UnloggedDaemon::start(&standin, command(), writer);
    let mut alice = unlogged.alice();
    // A pipe holds 64 KiB.
    log_many_lines(&mut alice);
    unlogged.expect_alive(&mut alice, 1);
    unlogged.expect_alive(&mut alice, 2);
    let lines = read_in_background(reader);
    eventually("it is read", || !lines.lock().unwrap().is_empty());
    eventually("lost lines are reported", || {
        alice.subscribe("unknown.after");
        alice.expect_silence();
        lines.lock().unwrap().iter().any(|line| line.ends_with("unknown.after for user alice"))
    });
    let lines = lines.lock().unwrap().clone();
    expect_whole_lines(&lines);
    assert_eq!(lines.iter().filter(|line| line.contains(LOST)).count(), 1, "{lines:#?}");
}

const LOST: &str = " lost here.";

/// Expects that no line begins within another one.
fn expect_whole_lines(lines: &[String]) {
    for line in lines {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && rest.starts_with('['), "{line:?}");
        assert!(!rest.contains("Z ["), "{line:?}");
    }
}

type Lines = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

fn read_in_background(reader: PipeReader) -> Lines {
    let lines = Lines::default();
    let shared = Lines::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            shared.lock().unwrap().push(line);
        }
    });
    lines
}

/// Uses its own file system of 64 KiB, which only root can create.
#[test]
fn a_full_disk_loses_only_log_lines() {
    if !is_root() {
        return;
    }
    let standin = Standin::new();
    let disk = standin.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut command = Command::new("unshare");
    // The file system is visible only to the daemon and ends with it.
    let script = "mount -t tmpfs -o size=64k none \"$0\" && exec \"$@\" 2>>\"$0/log\"";
    command.args(["--mount", "--propagation=private", "sh", "-c", script]).arg(&disk);
    command.arg(crate::support::command().get_program());
    let mut unlogged = UnloggedDaemon::start(&standin, command, Stdio::inherit());
    let mut alice = unlogged.alice();
    let seen = format!("/proc/{}/root{}", unlogged.pid(), disk.display());
    let log = Path::new(&seen).join("log");
    log_many_lines(&mut alice);
    unlogged.expect_alive(&mut alice, 1);
    let size = fs::metadata(&log).unwrap().len();
    assert!(size >= 60_000, "{size}");
    // As logrotate does with copytruncate.
    let before = fs::read_to_string(&log).unwrap();
    File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    alice.subscribe("unknown.after");
    unlogged.expect_alive(&mut alice, 2);
    let after = fs::read_to_string(&log).unwrap();
    // A line that was truncated because the disk was full stays a separate line.
    assert_ne!(before.ends_with('\n'), after.starts_with('\n'), "{after:?}");
    let lines: Vec<String> = after.trim_start().lines().map(str::to_owned).collect();
    expect_whole_lines(&lines);
    assert!(lines[0].contains(LOST), "{lines:?}");
    assert!(lines[1].ends_with("unknown.after for user alice"), "{lines:?}");
}

/// Topics and users of EspoCRM's messages, request paths, and everything else that a peer chooses.
#[test]
fn every_log_record_is_one_line_of_printable_characters() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = super::alice(&daemon);
    let bad = [
        "a\nb",
        "a\r\nb",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{202e}backwards",
        "\u{200b}\u{feff}\u{2066}",
        "\u{85}\u{9b}2J",
        "\0\u{7}\u{8}\t",
        "\u{2028}\u{2029}",
        &"\u{1b}".repeat(200),
    ];
    for bad in bad {
        alice.subscribe(bad);
        let topic = format!("newNotification.{bad}");
        daemon_subscribe(&mut alice, &topic);
        alice.unsubscribe(bad);
        for message in [
            serde_json::json!({"topicId": topic, "userId": "alice"}),
            serde_json::json!({"topicId": "newNotification", "userId": bad}),
            serde_json::json!({"topicId": bad, "userId": bad}),
            Value::from(bad),
        ] {
            Php::send(&daemon.zeromq, &[message]);
        }
        assert_eq!(alice.next_message()[1], *topic);
        let mut tab = Client::tcp(daemon.address);
        tab.send(
            format!("GET /{bad}?authToken={bad}&userId={bad} HTTP/1.1\r\n{bad}: {bad}\r\n\r\n")
                .as_bytes(),
        );
        tab.read_to_end();
        Client::open(daemon.address, "alice", &hex(bad)).expect_close(1008);
        Client::open(daemon.address, &hex(bad), "tok-alice").expect_close(1008);
    }
    // Not even valid UTF-8.
    alice.send_frame(0x81, b"[5,\"\xff\xfe\"]");
    alice.expect_close(1007);
    // Each of them was logged, and the log is checked when the daemon is dropped.
    daemon.wait_for("\\u{202e}backwards");
    daemon.wait_for("\\u{1b}[31mred");
    daemon.wait_for("message newNotification.a\\r\\nb for user alice");
}

/// Granted without a check, and without a log line.
fn daemon_subscribe(client: &mut Client, topic: &str) {
    client.subscribe(topic);
    client.expect_silence();
}

fn hex(text: &str) -> String {
    text.bytes()
        .flat_map(|byte| [b'%', digit(byte >> 4), digit(byte & 15)])
        .map(char::from)
        .collect()
}

fn digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}
