//! The log in systemd's journal, and in a log file.

use std::fs::{self, File};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::serving;
use crate::support::{
    Client, Daemon, Process, Standin, UnloggedDaemon, command, eventually, is_root, run,
};

/// Serves with a pipe as standard error, which `JOURNAL_STREAM` describes as `stream`.
fn with_stream(standin: &Standin, stream: impl Fn(u64, u64) -> String) -> Daemon {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let file = File::from(writer.try_clone().unwrap()).metadata().unwrap();
    let mut command = serving(standin, &[]);
    command.env("JOURNAL_STREAM", stream(file.dev(), file.ino()));
    command.arg("--print-addresses").stdin(Stdio::null());
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let process = command.spawn().unwrap();
    drop(command);
    Daemon::watch(process, reader)
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let mut standin = Standin::new();
    standin.config("useWebSocket", false);
    let mut daemon = with_stream(&standin, |dev, ino| format!("{dev}:{ino}"));
    daemon.connect("alice");
    standin.write_raw("config.php", "<?php return [");
    let error = daemon.reload("Keeping the previous settings.");
    assert!(error.starts_with("<3>"), "{error}");
    for begin in ["<6>espocrm-websocket ", "<6>Browsers are served at ws://", "<4>EspoCRM's useW"] {
        assert!(daemon.log().iter().any(|line| line.starts_with(begin)), "{begin}");
    }
    // The messages sent for alice's login.
    assert!(daemon.log().iter().any(|line| line.starts_with("<7>")));
    for line in daemon.log() {
        let text = line.split_once('>').unwrap().1;
        assert!(line.starts_with('<') && !text.starts_with(['[', '<', ' ']), "{line}");
    }
}

/// What a command writes to standard error, which is the journal.
fn written_to_the_journal(arguments: &[&str]) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let file = File::from(writer.try_clone().unwrap()).metadata().unwrap();
    let mut command = command();
    command.args(arguments).env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut process = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(!process.wait().unwrap().success());
    text
}

#[test]
fn a_fatal_error_has_priority_error_in_the_journal() {
    let nothing = ["--config", "/dev/null", "--espocrm", "/nonexistent"];
    for words in [&["run"][..], &["config", "--check"], &["run", "--nonsense"]] {
        let text = written_to_the_journal(&[words, &nothing].concat());
        assert!(!text.is_empty());
        for line in text.lines() {
            assert!(line.starts_with("<3>"), "{text}");
        }
    }
}

#[test]
fn other_outputs_get_timestamps() {
    let standin = Standin::new();
    let streams: [fn(u64, u64) -> String; 4] = [
        |dev, ino| format!("{dev}:{}", ino + 1),
        |dev, ino| format!("{}:{ino}", dev + 1),
        |dev, ino| format!("{dev}:{ino}1"),
        |_, _| String::new(),
    ];
    for stream in streams {
        let daemon = with_stream(&standin, stream);
        daemon.connect("alice");
        for line in daemon.log() {
            let (time, text) = line.split_once(' ').unwrap();
            assert!(time.len() == 24 && time.ends_with('Z') && text.starts_with('['), "{line}");
        }
    }
}

/// Serves with this log file. The caller reads what is still written to standard error.
fn with_log_file(standin: &Standin, file: &str) -> (UnloggedDaemon, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = command();
    command.args(["--log-file", file]);
    (UnloggedDaemon::start(standin, command, writer), reader)
}

/// Waits until a file contains this.
fn wait_for(file: &Path, text: &str) {
    eventually(&format!("{} contains {text:?}", file.display()), || read(file).contains(text));
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

#[test]
fn the_log_file_is_relative_to_espocrm_and_contains_everything() {
    let standin = Standin::new();
    fs::create_dir_all(standin.path().join("data/logs")).unwrap();
    let file = standin.path().join("data/logs/websocket.log");
    fs::write(&file, "what was there before\n").unwrap();
    let (mut unlogged, mut stderr) = with_log_file(&standin, "data/logs/websocket.log");
    let mut alice = unlogged.alice();
    standin.set("failure", "crash");
    let _bob = Client::open(unlogged.address(), "bob", "tok-bob");
    wait_for(&file, "PHP Fatal error");
    unlogged.expect_alive(&mut alice, 1);
    let text = read(&file);
    assert!(text.starts_with("what was there before\n20"), "{text}");
    assert!(text.contains("[INFO ] espocrm-websocket ") && text.contains("Browsers are"), "{text}");
    assert!(!text.contains("tok-"), "{text}");
    // Standard error is no longer used and was closed.
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_rotated_log_file_is_reopened() {
    let standin = Standin::new();
    let path = |name: &str| standin.path().join(name);
    let (mut unlogged, _stderr) = with_log_file(&standin, "log");
    let mut alice = unlogged.alice();
    // It contains none of EspoCRM's secrets, but other users must not read it either.
    assert_eq!(fs::metadata(path("log")).unwrap().permissions().mode() & 0o137, 0);
    fs::rename(path("log"), path("log.1")).unwrap();
    alice.subscribe("unknown.1");
    wait_for(&path("log.1"), "unknown.1");
    Process::signal(unlogged.pid(), "HUP");
    wait_for(&path("log"), "EspoCRM's settings have not changed");
    alice.subscribe("unknown.2");
    wait_for(&path("log"), "unknown.2");
    let old = read(&path("log.1"));
    assert!(!old.contains("Reloading EspoCRM") && !old.contains("unknown.2"), "{old}");
    unlogged.expect_alive(&mut alice, 1);
}

#[test]
fn a_log_file_that_cannot_be_reopened_stays_in_use() {
    let standin = Standin::new();
    let path = |name: &str| standin.path().join(name);
    fs::create_dir(path("logs")).unwrap();
    let (mut unlogged, _stderr) = with_log_file(&standin, "logs/log");
    let mut alice = unlogged.alice();
    fs::rename(path("logs"), path("away")).unwrap();
    Process::signal(unlogged.pid(), "HUP");
    let old = path("away/log");
    wait_for(&old, "EspoCRM's settings have not changed");
    let error = format!("[ERROR] The log file {} cannot be opened: ", path("logs/log").display());
    assert!(read(&old).contains(&error), "{}", read(&old));
    unlogged.expect_alive(&mut alice, 1);
    // It is opened as soon as this is possible.
    fs::rename(path("away"), path("logs")).unwrap();
    fs::rename(path("logs/log"), path("logs/log.1")).unwrap();
    Process::signal(unlogged.pid(), "HUP");
    wait_for(&path("logs/log"), "EspoCRM's settings have not changed");
}

#[test]
fn a_log_file_that_cannot_be_opened_is_reported_at_startup() {
    let standin = Standin::new();
    let path = |name: &str| standin.path().join(name);
    fs::create_dir(path("dir")).unwrap();
    let fifo = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(fifo.success());
    symlink("elsewhere", path("link")).unwrap();
    // Only root could be misled by a link.
    let link = is_root().then_some(("link", "symbolic links"));
    let others = [
        ("nowhere/log", "No such file or directory"),
        ("dir", "directory"),
        ("fifo", "No such device"),
        ("bootstrap.php/log", "Not a directory"),
    ];
    for (name, why) in others.into_iter().chain(link) {
        let output = run(serving(&standin, &["--log-file", name]));
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        let named = format!("The log file {} cannot be opened: ", path(name).display());
        for words in [&*named, why, "Its directory must exist", "see log_file"] {
            assert!(printed.contains(words), "{words:?} is missing in: {printed}");
        }
        assert_eq!(standin.probes(), 0);
    }
    assert!(!path("elsewhere").exists());
}
