//! Endpoints that cannot be bound: a startup error, and no effect on a reload.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{alice, expect_alive};
use crate::support::{Daemon, Standin, command, run};

const DSN: &str = "webSocketZeroMQSubscriberDsn";

/// Endpoints in `dir` and elsewhere, and the reason why they cannot be bound.
fn endpoints(dir: &Path) -> Vec<(String, &'static str)> {
    fs::write(dir.join("file"), "content").unwrap();
    fs::create_dir(dir.join("directory")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    symlink("target", dir.join("link")).unwrap();
    fs::write(dir.join("target"), "content").unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    let within = |name: &str| format!("ipc://{}/{name}", dir.display());
    vec![
        (within("file/zeromq.sock"), "Not a directory"),
        (within("loop/zeromq.sock"), "Too many levels of symbolic links"),
        (within("none/zeromq.sock"), "No such file or directory"),
        (within(&"x".repeat(200)), "name too long"),
        (within(&"x".repeat(300)), "name too long"),
        ("ipc:///proc/zeromq.sock".to_owned(), "No such file or directory"),
        ("ipc:///proc/self/status/zeromq.sock".to_owned(), "Not a directory"),
        // Not permitted, or on a read-only file system, depending on the machine.
        ("ipc:///sys/zeromq.sock".to_owned(), " (os error "),
        (within("file"), "not a socket"),
        (within("directory"), "not a socket"),
        (within("link"), "not a socket"),
        (within("loop"), "not a socket"),
        (within("fifo"), "not a socket"),
        ("tcp://192.0.2.1:5555".to_owned(), "no such address"),
        ("tcp://nonexistent.invalid:5555".to_owned(), "no such address"),
    ]
}

/// Expects that the existing files are unchanged.
fn expect_untouched(dir: &Path) {
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"content");
    assert_eq!(fs::read(dir.join("link")).unwrap(), b"content");
    assert!(dir.join("directory").is_dir());
    assert!(fs::symlink_metadata(dir.join("loop")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
    assert!(fs::metadata(dir.join("fifo")).unwrap().file_type().is_fifo());
}

fn start(standin: &Standin) -> Output {
    let mut command = command();
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
    command.arg(standin.path());
    run(command)
}

fn expect_failed_start(standin: &Standin, endpoint: &str, why: &str) {
    let output = start(standin);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{endpoint}: {printed}");
    assert!(
        printed.contains(&format!("Cannot receive EspoCRM's messages at {endpoint}")),
        "{printed}"
    );
    assert!(printed.contains(why) && printed.contains(DSN), "{endpoint}: {printed}");
}

#[test]
fn an_endpoint_that_cannot_be_bound_is_a_startup_error() {
    let mut standin = Standin::new();
    let dir = standin.path().to_owned();
    for (endpoint, why) in endpoints(&dir) {
        standin.config(DSN, &*endpoint);
        expect_failed_start(&standin, &endpoint, why);
        expect_untouched(&dir);
    }
}

#[test]
fn a_reload_with_an_endpoint_that_cannot_be_bound_changes_nothing() {
    let mut standin = Standin::new();
    let dir = standin.path().to_owned();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    for (number, (endpoint, why)) in endpoints(&dir).into_iter().enumerate() {
        standin.config(DSN, &*endpoint);
        let kept = format!("Keeping the previous socket at {}.", daemon.zeromq);
        let line = daemon.reload(&kept);
        assert!(line.contains(&endpoint) && line.contains(why), "{line}");
        expect_alive(&daemon, &mut alice, number);
    }
    expect_untouched(&dir);
    daemon.stop("TERM");
}

#[test]
fn a_listener_with_a_full_backlog_counts_as_in_use_and_does_not_block() {
    let mut standin = Standin::new();
    let path = standin.path().join("busy.sock");
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        socket.connect(&address).map(|()| socket)
    };
    let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
    assert!(!waiting.is_empty());

    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let endpoint = format!("ipc://{}", path.display());
    standin.config(DSN, &*endpoint);
    let line = daemon.reload("Keeping the previous socket");
    assert!(line.contains("it is in use"), "{line}");
    expect_alive(&daemon, &mut alice, 1);
    daemon.stop("TERM");
    expect_failed_start(&standin, &endpoint, "it is in use");
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
}

#[test]
fn sockets_of_other_types_are_not_replaced() {
    let mut standin = Standin::new();
    let path = standin.path().join("datagram.sock");
    let _other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let endpoint = format!("ipc://{}", path.display());
    standin.config(DSN, &*endpoint);
    expect_failed_start(&standin, &endpoint, "it is in use");
    assert!(path.exists());
}

#[test]
fn a_file_that_replaced_the_socket_is_not_deleted() {
    let mut standin = Standin::new();
    let path = standin.path().join("zeromq.sock");
    standin.config(DSN, format!("ipc://{}", path.display()));
    drop(UnixListener::bind(&path).unwrap());
    let daemon = Daemon::start(&standin);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "content").unwrap();
    daemon.stop("TERM");
    assert_eq!(fs::read(&path).unwrap(), b"content");
}
