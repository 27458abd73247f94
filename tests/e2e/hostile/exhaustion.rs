//! Descriptors and processes run out while the daemon runs: existing connections are still served,
//! and the daemon recovers by itself.

use std::net::TcpStream;

use super::{alice, expect_alive, expect_no_spinning, expect_served};
use crate::support::{Client, Daemon, Standin, command_as_nobody, request};

#[test]
fn without_free_descriptors_existing_connections_are_served_and_the_loop_does_not_spin() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    daemon.leave_descriptors(0);
    // More clients connect, to both ports.
    let mut waiting: Vec<Client> = (0..20).map(|_| Client::tcp(daemon.address)).collect();
    for client in &mut waiting {
        client.send(request("/?authToken=tok-bob&userId=bob").as_bytes());
    }
    let zeromq = daemon.zeromq.strip_prefix("tcp://").unwrap().to_owned();
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&zeromq).unwrap()).collect();
    daemon.wait_for("Connections cannot be accepted: ");
    daemon.wait_for("connections cannot be accepted at");
    alice.expect_silence();
    expect_no_spinning(&daemon);
    alice.expect_silence();

    daemon.unlimit("Max open files", "nofile");
    drop(waiting);
    daemon.connect("bob");
    daemon.wait_for("EspoCRM's messages are received at");
    drop(silent);
    expect_alive(&daemon, &mut alice, 4);
}

#[test]
fn zeromq_peers_that_exhaust_the_descriptors_are_disconnected() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    // Ten descriptors are left.
    daemon.leave_descriptors(10);
    let zeromq = daemon.zeromq.strip_prefix("tcp://").unwrap().to_owned();
    let _silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&zeromq).unwrap()).collect();
    expect_served(&daemon, &mut alice);
    expect_no_spinning(&daemon);
    expect_alive(&daemon, &mut alice, 5);
}

#[test]
fn a_check_without_free_descriptors_runs_later() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    // One descriptor for the connection, but none for PHP's pipes.
    daemon.leave_descriptors(1);
    // The client reconnects, as after any end without a Close frame.
    Client::open(daemon.address, "bob", "tok-bob").expect_drop();
    daemon.wait_for("The access check of a login failed: PHP could not be started");
    alice.subscribe("recordUpdate.Account.1");
    expect_alive(&daemon, &mut alice, 1);
    expect_no_spinning(&daemon);
    daemon.unlimit("Max open files", "nofile");
    daemon.wait_for("add topic recordUpdate.Account.1 for user alice");
    daemon.connect("bob");
    daemon.wait_for("Access checks work again");
    expect_alive(&daemon, &mut alice, 2);
}

#[test]
fn tabs_retry_while_no_process_can_be_started() {
    for workers in [false, true] {
        let standin = Standin::new();
        let mut command = command_as_nobody(&standin);
        command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--debug"]);
        command.args(["--espocrm", ".", "--check-cache", "0"]);
        if !workers {
            command.arg("--no-worker");
        }
        command.env("TMPDIR", standin.path());
        let mut daemon = Daemon::spawn(command);
        let mut alice = alice(&daemon);
        for worker in daemon.workers() {
            crate::support::Process::signal(worker, "KILL");
        }
        daemon.limit("--nproc=0:");
        Client::open(daemon.address, "bob", "tok-bob").expect_drop();
        daemon.wait_for("failed: PHP could not be started");
        expect_alive(&daemon, &mut alice, 1);
        expect_no_spinning(&daemon);
        expect_alive(&daemon, &mut alice, 2);
        daemon.unlimit("Max processes", "nproc");
        daemon.connect("bob");
        daemon.wait_for("Access checks work again");
        expect_alive(&daemon, &mut alice, 3);
    }
}
