//! Secrets are leaked neither into the log, which is checked whenever a test's daemon ends, nor
//! into a core file.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::support::{
    Client, Daemon, Process, Standin, command, find_leak, readable, register_secret,
};

#[test]
fn the_log_check_finds_tokens_and_unprintable_characters() {
    assert_eq!(find_leak("2026-01-31T12:59:59.999Z [INFO ] 1: user alice, it's \"Київ\""), None);
    let found = |text: &str| find_leak(text).is_some();
    assert!(found("1: user alice tok-alice"));
    for text in ["a\nb", "a\r", "\u{1b}[2J", "\u{202e}", "\u{200b}", "\u{85}", "a\tb"] {
        assert!(found(text), "{text:?}");
    }
    assert!(found(&readable(b"\xff".into())));

    assert!(!found("sh4ll n0t be exposed"));
    register_secret("sh4ll n0t");
    assert!(found("sh4ll n0t be exposed"));
    // A token sent by a client is found anywhere in the log.
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    Client::open(daemon.address, "alice", "Zq8gu3553d").expect_close(1008);
    assert!(found("who=Zq8gu3553d&"));
}

#[test]
fn the_log_check_finds_worker_secrets() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &[]);
    daemon.connect("alice");
    let worker = daemon.workers()[0];
    let environment = fs::read_to_string(format!("/proc/{worker}/environ")).unwrap();
    let (_, rest) = environment.split_once("ESPOCRM_WEBSOCKET_SECRET=").unwrap();
    let secret = rest.split('\0').next().unwrap();
    assert_eq!(find_leak(secret), None);
    drop(daemon);
    assert!(find_leak(secret).is_some());
}

#[test]
fn a_crash_leaves_no_core_file() {
    let standin = Standin::new();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]).arg(command().get_program());
    shell.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm", "."]);
    shell.current_dir(standin.path()).env("TMPDIR", standin.path());
    let mut daemon = Daemon::spawn(shell);
    daemon.connect("alice");
    // The limit also applies to PHP processes, which receive tokens. With a limit of 1 there is
    // neither a file nor a dump for systemd.
    let worker = daemon.workers()[0];
    for pid in [daemon.pid(), worker] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(matches!(line.split_whitespace().nth(4), Some("0" | "1")), "{line}");
    }
    // A failed assertion ends with SIGABRT. Rust handles SIGSEGV itself and continues if it was
    // sent by a process.
    daemon.signal("ABRT");
    assert_eq!(daemon.wait().signal(), Some(6));
    let files = fs::read_dir(standin.path()).unwrap().flatten();
    let names: Vec<_> = files.map(|file| file.file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with("core")), "{names:?}");
    Process::signal(worker, "KILL");
}
