//! The endpoint for EspoCRM's messages: who can reach it, and who should.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use super::{alice, expect_alive};
use crate::support::{Daemon, Standin, command, eventually, run};

const WARNING: &str = " can send messages to EspoCRM's users. Block that port in the firewall";

/// What `config` prints about an endpoint, on standard output and on standard error.
fn config(endpoint: &str) -> (String, String) {
    let mut standin = Standin::new();
    standin.config("webSocketZeroMQSubscriberDsn", endpoint);
    let mut command = command();
    command.args(["config", "--config", "/dev/null", "--espocrm"]).arg(standin.path());
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    let [shown, printed] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (shown, printed)
}

#[test]
fn an_endpoint_reachable_by_others_causes_a_warning() {
    for (endpoint, is_open) in [
        ("tcp://*:5555", true),
        ("tcp://0.0.0.0:5555", true),
        ("tcp://[::]:5555", true),
        ("tcp://eth0:5555", true),
        ("tcp://192.168.1.5:5555", true),
        ("tcp://[2001:db8::1]:5555", true),
        ("tcp://127.0.0.1:5555", false),
        ("tcp://localhost:5555", false),
        ("tcp://lo:5555", false),
        ("tcp://[::1]:5555", false),
        ("ipc:///run/espocrm-websocket/zeromq.sock", false),
    ] {
        let (shown, printed) = config(endpoint);
        assert!(shown.contains(endpoint), "{shown}");
        let warning = format!("Any program that can reach {endpoint}{WARNING}");
        assert_eq!(printed.contains(&warning), is_open, "{printed}");
        assert_eq!(printed.contains(WARNING), is_open, "{printed}");
    }
}

#[test]
fn every_endpoint_notation_is_served_and_open_ones_cause_a_warning() {
    for (endpoint, bound, is_open) in
        [("tcp://*:*", "tcp://0.0.0.0:", true), ("tcp://localhost:*", "tcp://127.0.0.1:", false)]
    {
        let mut standin = Standin::new();
        standin.config("webSocketZeroMQSubscriberDsn", endpoint);
        let daemon = Daemon::start(&standin);
        assert!(daemon.zeromq.starts_with(bound), "{}", daemon.zeromq);
        assert_eq!(daemon.count(WARNING), usize::from(is_open));
        let mut alice = alice(&daemon);
        expect_alive(&daemon, &mut alice, 1);
    }
}

#[test]
fn a_socket_file_is_limited_to_its_user_and_group_and_removed_with_the_daemon() {
    let mut standin = Standin::new();
    let path = standin.path().join("zeromq.sock");
    let endpoint = format!("ipc://{}", path.display());
    standin.config("webSocketZeroMQSubscriberDsn", &*endpoint);
    // A stale socket file of a daemon that could not clean up.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    for signal in ["KILL", "TERM"] {
        let daemon = Daemon::start(&standin);
        assert_eq!(daemon.zeromq, endpoint);
        assert_eq!(daemon.count(WARNING), 0);
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        let mut alice = alice(&daemon);
        expect_alive(&daemon, &mut alice, 1);
        // A second daemon does not replace it.
        let mut second = command();
        second.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
        let output = run({
            second.arg(standin.path());
            second
        });
        assert!(String::from_utf8_lossy(&output.stderr).contains("it is in use"), "{output:?}");
        expect_alive(&daemon, &mut alice, 2);
        daemon.stop(signal);
        assert_eq!(path.exists(), signal == "KILL");
    }
}

#[test]
fn a_reload_moves_between_a_port_and_a_socket_file() {
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let file = format!("ipc://{}/zeromq.sock", standin.path().display());
    for (number, endpoint) in [&file, "tcp://127.0.0.1:*"].into_iter().enumerate() {
        standin.config("webSocketZeroMQSubscriberDsn", endpoint);
        let line = daemon.reload("EspoCRM's messages are received at ");
        line.trim_end_matches('.').rsplit_once(' ').unwrap().1.clone_into(&mut daemon.zeromq);
        expect_alive(&daemon, &mut alice, number);
    }
    // libzmq removes the file in its own thread.
    let path = standin.path().join("zeromq.sock");
    eventually("the socket file is removed", || !path.exists());
}
