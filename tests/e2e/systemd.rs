//! What systemd and the daemon tell each other, played by hand; tests/packages has the real one.

use std::fs;
use std::io::{PipeReader, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use crate::support::{Client, DEADLINE, Daemon, Standin, command, eventually, run};

fn serving(standin: &Standin) -> Command {
    let mut serving = command();
    serving.args(["run", "--config", "/dev/null", "--no-worker", "--listen", "127.0.0.1"]);
    serving.arg("--espocrm").arg(standin.path());
    serving
}

/// By whom the daemon believes to have been started.
struct Manager(UnixDatagram);

impl Manager {
    fn new(standin: &Standin, command: &mut Command) -> Self {
        let path = standin.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        command.env("NOTIFY_SOCKET", path);
        Self(socket)
    }

    fn next(&self) -> String {
        let mut text = [0; 4_096];
        let length = self.0.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }
}

#[test]
fn systemd_is_told_when_it_serves_reloads_and_stops() {
    let standin = Standin::new();
    let mut command = serving(&standin);
    let manager = Manager::new(&standin, &mut command);
    let daemon = Daemon::spawn(command);
    let ready = manager.next();
    assert!(ready.starts_with("READY=1\nSTATUS=Serving 127.0.0.1:"), "{ready}");
    daemon.connect("alice");
    daemon.signal("HUP");
    let reloading = manager.next();
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(micros.parse::<u64>().unwrap() > 0);
    assert!(manager.next().starts_with("READY=1\n"));
    // What cannot be read is done with, too.
    standin.write_raw("config.php", "<?php broken");
    daemon.signal("HUP");
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert!(manager.next().starts_with("READY=1\n"));
    daemon.signal("TERM");
    assert_eq!(manager.next(), "STOPPING=1");
}

#[test]
fn systemd_is_told_why_it_does_not_start() {
    let standin = Standin::new();
    let mut command = serving(&standin);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    command.args(["--listen", &taken.local_addr().unwrap().to_string()]);
    let manager = Manager::new(&standin, &mut command);
    assert_eq!(run(command).status.code(), Some(1));
    let failed = manager.next();
    assert!(failed.starts_with("STATUS=Browsers cannot be served at 127.0.0.1:"), "{failed}");
    assert!(failed.contains("it is in use"), "{failed}");
}

#[test]
fn the_watchdog_hears_that_the_loop_goes_round() {
    let standin = Standin::new();
    let mut command = serving(&standin);
    let manager = Manager::new(&standin, &mut command);
    command.env("WATCHDOG_USEC", "200000");
    let daemon = Daemon::spawn(command);
    let until = |text: &str| {
        eventually(text, || {
            let sign = manager.next();
            sign.starts_with("WATCHDOG=1\n") && sign.contains(text)
        });
    };
    until(" 0 connections");
    let _alice = daemon.connect("alice");
    until(" 1 connections");
    until(" 1 connections");
}

#[test]
fn a_watchdog_that_is_not_ours_hears_nothing() {
    let standin = Standin::new();
    let mut command = serving(&standin);
    let manager = Manager::new(&standin, &mut command);
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let daemon = Daemon::spawn(command);
    assert!(manager.next().starts_with("READY=1\n"));
    daemon.connect("alice");
    daemon.signal("TERM");
    assert_eq!(manager.next(), "STOPPING=1");
}

/// Has systemd's socket, which is given as standard input.
fn activated(standin: &Standin, socket: impl AsFd) -> Command {
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    let serving = serving(standin);
    command.args(["-c", script, "sh"]).arg(serving.get_program()).args(serving.get_args());
    command.stdin(Stdio::from(socket.as_fd().try_clone_to_owned().unwrap()));
    command
}

#[test]
fn a_socket_of_systemd_is_served_and_kept_while_the_daemon_is_restarted() {
    let mut standin = Standin::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Before there is a daemon.
    let mut early = Client::tcp(address);
    let daemon = Daemon::spawn_with_stdin(activated(&standin, &socket));
    assert_eq!(daemon.address, address);
    early.upgrade("/?authToken=tok-alice&userId=alice");
    early.expect_welcome();
    // EspoCRM's port does not count.
    standin.config("webSocketPort", 1);
    let mut daemon = daemon;
    daemon.reload("settings have not changed");
    daemon.connect("bob");
    daemon.stop("TERM");
    early.expect_drop();
    let mut between = Client::tcp(address);
    let daemon = Daemon::spawn_with_stdin(activated(&standin, &socket));
    between.upgrade("/?authToken=tok-alice&userId=alice");
    between.expect_welcome();
    daemon.connect("bob");
}

#[test]
fn what_is_no_listening_tcp_socket_is_refused() {
    let standin = Standin::new();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    for wrong in [OwnedFd::from(udp), OwnedFd::from(file)] {
        let mut command = activated(&standin, &wrong);
        let told = command.output().unwrap();
        let said = String::from_utf8_lossy(&told.stderr);
        assert!(said.contains("ListenStream="), "{said}");
        assert_eq!(told.status.code(), Some(1));
    }
}

/// Waits until what comes out of a pipe contains `text`.
fn read_until(pipe: &mut PipeReader, text: &str) -> String {
    let mut all = Vec::new();
    eventually(text, || {
        let mut piece = [0; 4_096];
        let length = pipe.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..length]);
        String::from_utf8_lossy(&all).contains(text)
    });
    String::from_utf8(all).unwrap()
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let standin = Standin::new();
    for is_journal in [true, false] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = fs::File::from(OwnedFd::from(writer.try_clone().unwrap())).metadata().unwrap();
        let number = if is_journal { file.ino() } else { file.ino() + 1 };
        let mut command = serving(&standin);
        command.env("JOURNAL_STREAM", format!("{}:{number}", file.dev()));
        command.args(["--debug", "--zeromq", "tcp://127.0.0.1:*", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stderr(writer);
        let mut process = command.spawn().unwrap();
        drop(command);
        let log = read_until(&mut reader, "EspoCRM's messages are received");
        let _ = process.kill();
        process.wait().unwrap();
        for line in log.lines() {
            let begin = line.get(..3).unwrap();
            assert_eq!(["<4>", "<6>", "<7>"].contains(&begin), is_journal, "{log}");
        }
        assert_eq!(log.contains("[INFO ]"), !is_journal, "{log}");
        assert_eq!(log.contains("<6>espocrm-websocket "), is_journal, "{log}");
    }
}

#[test]
fn the_log_can_be_a_file_that_is_moved_away() {
    let standin = Standin::new();
    fs::create_dir_all(standin.path().join("data/logs")).unwrap();
    let log = standin.path().join("data/logs/websocket.log");
    let says = |text: &str| {
        eventually(text, || fs::read_to_string(&log).unwrap_or_default().contains(text));
    };
    let mut command = serving(&standin);
    command.args(["--listen", "127.0.0.1:0", "--log-file", "data/logs/websocket.log"]);
    let mut process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    says("EspoCRM's messages are received");
    fs::rename(&log, log.with_extension("1")).unwrap();
    let signal = |name: &str| {
        let pid = process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    };
    signal("HUP");
    says("settings have not changed");
    // Where it cannot be opened it goes on where it was.
    fs::rename(&log, log.with_extension("2")).unwrap();
    fs::create_dir(&log).unwrap();
    signal("HUP");
    let old = log.with_extension("2");
    let told = "cannot be opened";
    eventually(told, || fs::read_to_string(&old).unwrap().contains(told));
    signal("TERM");
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_log_file_that_cannot_be_opened_and_settings_that_make_no_sense_are_told() {
    let mut standin = Standin::new();
    let mut command = serving(&standin);
    command.args(["--log-file", "nowhere/websocket.log"]);
    let told = run(command);
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("nowhere/websocket.log cannot be opened"), "{said}");
    assert_eq!(told.status.code(), Some(1));
    let check = |standin: &Standin| {
        let mut check = crate::support::command();
        check.args(["config", "--check", "--config", "/dev/null", "--espocrm"]);
        check.arg(standin.path());
        run(check)
    };
    let sound = check(&standin);
    assert_eq!((sound.status.code(), &*sound.stdout), (Some(0), &b""[..]));
    standin.config("webSocketPort", "none");
    let wrong = check(&standin);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("webSocketPort"));
    assert_eq!((wrong.status.code(), &*wrong.stdout), (Some(1), &b""[..]));
}
