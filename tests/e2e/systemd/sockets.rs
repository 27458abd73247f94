//! Listening sockets that systemd has opened and keeps open while the daemon restarts.

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use super::{after, serving};
use crate::support::{Client, Daemon, Port, Standin, expect_alive, request};
use crate::tls::authority::{Authority, EC};
use crate::tls::{self, secure};

/// Sockets after the standard streams, as systemd passes them: Rust can only set the standard
/// streams of a process, and the shell renumbers them.
const ONE: &str = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$";
const TWO: &str =
    "exec 3<&0 4<&1 </dev/null >&2; export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=a:b";

/// The command that serves a stand-in with this socket.
fn at(socket: impl Into<OwnedFd>, standin: &Standin, flags: &[&str]) -> Command {
    let mut command = after(ONE, &serving(standin, flags));
    command.stdin(Stdio::from(socket.into()));
    command
}

fn activate(listener: &TcpListener, standin: &Standin, flags: &[&str]) -> Daemon {
    Daemon::spawn_with_stdin(at(listener.try_clone().unwrap(), standin, flags))
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A tab of alice that has sent its request and has not received a response.
fn ask(listener: &TcpListener) -> Client {
    let mut client = Client::tcp(listener.local_addr().unwrap());
    client.send(request("/?authToken=tok-alice&userId=alice").as_bytes());
    client
}

/// Expects the response, and that messages are delivered.
fn expect_served(client: &mut Client, daemon: &Daemon) {
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.expect_welcome();
    client.subscribe("newNotification");
    expect_alive(daemon, client, 1);
}

#[test]
fn clients_that_connected_before_the_daemon_started_are_served() {
    let standin = Standin::new();
    let listener = listener();
    let mut early = ask(&listener);
    let daemon = activate(&listener, &standin, &[]);
    assert_eq!(daemon.address, listener.local_addr().unwrap());
    expect_served(&mut early, &daemon);
    expect_served(&mut ask(&listener), &daemon);
}

#[test]
fn several_sockets_are_served() {
    let standin = Standin::new();
    let (four, six) = (listener(), TcpListener::bind("[::1]:0").unwrap());
    let mut early = [ask(&six), ask(&four)];
    let mut command = after(TWO, &serving(&standin, &["--print-addresses"]));
    let descriptor = |socket: &TcpListener| OwnedFd::from(socket.try_clone().unwrap());
    command.stdin(Stdio::from(descriptor(&four))).stdout(Stdio::from(descriptor(&six)));
    let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
    let output = process.stderr.take().unwrap();
    let daemon = Daemon::watch(process, output);
    for client in &mut early {
        expect_served(client, &daemon);
    }
    drop(early);
    for socket in [&six, &four, &six] {
        expect_served(&mut ask(socket), &daemon);
    }
}

#[test]
fn clients_that_connect_during_a_restart_are_served_by_the_new_daemon() {
    let standin = Standin::new();
    let listener = listener();
    let mut daemon = activate(&listener, &standin, &[]);
    let mut before = ask(&listener);
    expect_served(&mut before, &daemon);
    for _ in 0..2 {
        daemon.stop("TERM");
        before.expect_drop();
        let mut between = ask(&listener);
        daemon = activate(&listener, &standin, &[]);
        expect_served(&mut between, &daemon);
        before = between;
    }
}

#[test]
fn a_passed_socket_takes_precedence_over_every_setting() {
    let mut standin = Standin::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    standin.config("webSocketPort", taken.port());
    let listener = listener();
    let daemon = activate(&listener, &standin, &["--listen", &taken.to_string()]);
    expect_served(&mut ask(&listener), &daemon);
    drop(daemon);
    let mut daemon = activate(&listener, &standin, &[]);
    let mut alice = ask(&listener);
    expect_served(&mut alice, &daemon);

    let port = Port::reserve();
    standin.config("webSocketPort", port.address().port());
    daemon.reload("have not changed");
    assert!(TcpStream::connect(port.address()).is_err());
    expect_alive(&daemon, &mut alice, 2);
    expect_served(&mut ask(&listener), &daemon);
    assert_eq!(daemon.count("Browsers are served at "), 1);
    assert_eq!(daemon.count("[ERROR]"), 0);
}

#[test]
fn a_passed_socket_may_use_tls() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let listener = listener();
    let mut daemon = activate(&listener, &standin, &[]);
    daemon.wait_for(&format!("wss://{}", listener.local_addr().unwrap()));
    let mut alice = tls::alice(&daemon, &authority.client(tls::BOTH));
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_passed_descriptor_that_is_no_listening_tcp_socket_is_reported() {
    let standin = Standin::new();
    let listener = listener();
    let file = File::create(standin.path().join("file")).unwrap();
    let unix = UnixListener::bind(standin.path().join("unix")).unwrap();
    let sockets: [OwnedFd; 4] = [
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        TcpStream::connect(listener.local_addr().unwrap()).unwrap().into(),
        file.into(),
        unix.into(),
    ];
    for socket in sockets {
        let mut command = at(socket, &standin, &[]);
        command.stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        for words in ["A socket passed by systemd cannot be used: ", "ListenStream="] {
            assert!(printed.contains(words), "{words:?} is missing in: {printed}");
        }
    }
}

#[test]
fn sockets_passed_to_another_process_are_ignored() {
    let standin = Standin::new();
    let listener = listener();
    let address = listener.local_addr().unwrap();
    for script in [
        "exec 3<&0; export LISTEN_FDS=1 LISTEN_PID=1",
        "exec 3<&0; export LISTEN_FDS=1",
        "exec 3<&0; export LISTEN_FDS=0 LISTEN_PID=$$",
        "exec 3<&0; export LISTEN_FDS=-1 LISTEN_PID=$$",
        "exec 3<&0; export LISTEN_PID=$$",
    ] {
        let mut command = after(script, &serving(&standin, &[]));
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        command.stdin(Stdio::from(socket));
        let daemon = Daemon::spawn_with_stdin(command);
        assert_ne!(daemon.address, address, "{script}");
        daemon.connect("alice").expect_silence();
    }
}

#[test]
fn announced_but_missing_sockets_are_ignored() {
    let standin = Standin::new();
    let script = "export LISTEN_FDS=3 LISTEN_PID=$$";
    let daemon = Daemon::spawn(after(script, &serving(&standin, &[])));
    daemon.connect("alice").expect_silence();
}

/// It accepts every login, and a passed socket could make it reachable for other machines.
#[test]
fn the_demo_ignores_passed_sockets() {
    let listener = listener();
    let mut demo = crate::support::command();
    demo.args(["demo", "--listen", "127.0.0.1:0"]);
    let mut command = after(ONE, &demo);
    let socket = OwnedFd::from(listener.try_clone().unwrap());
    command.stdin(Stdio::from(socket));
    let demo = Daemon::spawn_with_stdin(command);
    assert_ne!(demo.address, listener.local_addr().unwrap());
}
