//! The end.

use std::net::TcpStream;

use super::alice;
use crate::support::{Client, Daemon, Process, Standin, eventually};

#[test]
fn sigterm_and_sigint_end_all_connections_without_a_close_frame() {
    for signal in ["TERM", "INT"] {
        let standin = Standin::new();
        let mut daemon = Daemon::start_with(&standin, &["--check-timeout", "1h"]);
        let mut open = alice(&daemon);
        let mut half = Client::tcp(daemon.address);
        half.send(b"GET / HTTP/1.1\r\nHost:");
        standin.set("failure", "hang");
        let mut waiting = Client::open(daemon.address, "bob", "tok-bob");
        standin.set("probe-failure", "hang");
        let probes = standin.probes();
        daemon.signal("HUP");
        let mut children = Vec::new();
        eventually("a check and a probe hang", || {
            children = daemon.children();
            standin.runs().len() == 2 && standin.probes() == probes + 1 && children.len() == 2
        });
        open.expect_silence();

        daemon.signal(signal);
        // None of the above delays it.
        assert_eq!(daemon.wait().code(), Some(0));
        daemon.wait_for(&format!("Stopped by SIG{signal}, with 3 connections open"));
        for tab in [&mut open, &mut half, &mut waiting] {
            tab.expect_drop();
        }
        assert!(Client::attempt(daemon.address).is_none());
        let zeromq = daemon.zeromq.strip_prefix("tcp://").unwrap();
        assert!(TcpStream::connect(zeromq).is_err());
        assert!(children.iter().all(|child| !Process::is_running(child.pid)));
    }
}

#[test]
fn a_port_can_be_served_again_at_once() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let address = daemon.address.to_string();
    let mut tab = alice(&daemon);
    // The side that ends TCP first is left with the port in TIME_WAIT: the daemon.
    daemon.signal("TERM");
    tab.expect_drop();
    daemon.wait();
    let daemon = Daemon::start_with(&standin, &["--listen", &address]);
    alice(&daemon);
}
