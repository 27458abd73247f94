//! Limits per address, per user, and for handshakes.

use std::io::{Read, Write};

use super::{enter, expect_503, from, target};
use crate::support::{Client, Control, Daemon, Standin, eventually, request};

#[test]
fn the_limit_per_address_applies_to_each_address() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "3", "--trusted-proxy", "192.0.2.1"];
    let mut daemon = Daemon::start_with(&standin, &flags);
    let connect = |address: &str| -> Vec<_> {
        ["alice", "bob", "carol"]
            .map(|user| enter(from(address, daemon.address), user))
            .into_iter()
            .collect()
    };
    let mut first = connect("127.0.0.2");
    let second = connect("127.0.0.3");
    expect_503(from("127.0.0.2", daemon.address), "dave");
    expect_503(from("127.0.0.3", daemon.address), "dave");
    let mut other = enter(from("127.0.0.4", daemon.address), "dave");
    for client in &mut first {
        client.expect_silence();
    }
    // A client that leaves makes room for another.
    drop(first.pop());
    eventually("there is room again", || {
        let mut client = from("127.0.0.2", daemon.address);
        client.send(request(&target("dave")).as_bytes());
        client.read_head().starts_with("HTTP/1.1 101 ")
    });
    drop(second);
    other.expect_silence();
    daemon.wait_for("Address 127.0.0.2 has 3 connections, at its limit of 3");
}

#[test]
fn far_beyond_the_limit_per_address_connections_get_no_response() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "1", "--trusted-proxy", "192.0.2.1"];
    let daemon = Daemon::start_with(&standin, &flags);
    let mut first = enter(from("127.0.0.2", daemon.address), "alice");
    // Clients that send nothing count, too.
    let silent: Vec<_> = (0..16).map(|_| from("127.0.0.2", daemon.address)).collect();
    let mut next = from("127.0.0.2", daemon.address);
    assert_eq!(next.read_to_end(), b"");
    first.expect_silence();
    drop(silent);
    enter(from("127.0.0.3", daemon.address), "bob");
}

#[test]
fn private_addresses_have_no_limit_unless_proxies_are_configured() {
    let standin = Standin::new();
    let daemon = Daemon::start_with(&standin, &["--max-per-address", "1"]);
    let mut clients = ["alice", "bob", "carol"].map(|user| daemon.connect(user));
    for client in &mut clients {
        client.expect_silence();
    }
}

#[test]
fn the_limit_per_user_applies_to_each_user() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--max-per-user", "2"]);
    let mut first = daemon.connect("alice");
    let second = daemon.connect("alice");
    expect_503(Client::tcp(daemon.address), "alice");
    daemon.connect("bob");
    daemon.wait_for("User alice has 2 connections, the limit per user");
    drop(second);
    eventually("there is room again", || {
        let mut client = Client::tcp(daemon.address);
        client.send(request(&target("alice")).as_bytes());
        client.read_head().starts_with("HTTP/1.1 101 ")
    });
    first.expect_silence();
}

#[test]
fn concurrent_logins_do_not_exceed_the_limit_per_user() {
    let standin = Standin::new();
    let daemon = Daemon::start_with(&standin, &["--max-per-user", "2"]);
    standin.hold("alice");
    let mut clients: Vec<_> = (0..5)
        .map(|_| {
            let mut client = Client::tcp(daemon.address);
            client.upgrade(&target("alice"));
            client
        })
        .collect();
    standin.release();
    // Without a Close frame: the tab may reconnect when there is room.
    let welcomed = clients.iter_mut().filter_map(Client::next).count();
    assert_eq!(welcomed, 2);
}

#[test]
fn slow_handshakes_do_not_block_other_clients() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    let mut slow: Vec<_> = (0..1_100).map(|_| Client::tcp(daemon.address)).collect();
    for client in &mut slow {
        client.send(b"GET / HTTP/1.1\r\nHost: ");
    }
    let mut good = daemon.connect("alice");
    // Handshakes that have had some seconds are evicted, the oldest first; newer ones keep their
    // time.
    assert_eq!(slow[0].read_to_end(), b"");
    slow[1_000].send(b"localhost\r\n\r\n");
    assert!(slow[1_000].read_head().starts_with("HTTP/1.1 426 "));
    good.expect_silence();
    daemon.wait_for("1024 handshakes are incomplete");
    assert!(control.number("/connections/refused/handshake_limit") > 0);
}

#[test]
fn pending_logins_per_address_are_limited() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "0", "--trusted-proxy", "192.0.2.1"];
    let (mut daemon, control) = Control::start(&standin, &flags);
    standin.hold("");
    let _waiting: Vec<_> = (0..1_024)
        .map(|number| {
            let mut client = from("127.0.0.2", daemon.address);
            client.upgrade(&target(&format!("user{}", number / 8)));
            client
        })
        .collect();
    expect_503(from("127.0.0.2", daemon.address), "alice");
    daemon.wait_for("1024 logins from address 127.0.0.2 wait to be checked");
    control.expect("/connections/refused/login_limit", 1);
    // Another address has its own limit.
    let mut other = from("127.0.0.3", daemon.address);
    other.upgrade(&target("alice"));
    standin.release();
    other.expect_welcome();
}

/// Opens more than 1,024 connections that send only this, from each address in turn.
fn flood(
    daemon: &Daemon,
    addresses: &[&str],
    introduction: impl Fn(usize) -> String,
) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..2_500 {
        let mut client = from(addresses[number % addresses.len()], daemon.address);
        // The connection may have been closed already.
        let _ = client.stream.write_all(introduction(number).as_bytes());
        clients.push(client);
    }
    clients
}

/// Starts a handshake, and completes it when the flood is over and was processed.
fn expect_unharmed(
    daemon: &mut Daemon,
    introduction: &str,
    flood: impl FnOnce(&Daemon) -> Vec<Client>,
) {
    let mut slow = from("127.0.0.1", daemon.address);
    let request = introduction.to_owned() + &request(&target("alice"));
    let (begin, rest) = request.split_at(request.len() / 2);
    slow.send(begin.as_bytes());
    let mut flooding = flood(daemon);
    let mut other = from("127.0.0.1", daemon.address);
    other.send(introduction.as_bytes());
    enter(other, "bob").expect_silence();
    slow.send(rest.as_bytes());
    assert!(slow.read_head().starts_with("HTTP/1.1 101 "));
    slow.expect_welcome();
    daemon.wait_for("1024 handshakes are incomplete");
    assert_eq!(flooding[0].stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_flood_of_handshakes_closes_only_connections_from_its_address() {
    let standin = Standin::new();
    // Addresses that may belong to a proxy, and others.
    let proxies: [&[&str]; 2] = [&[], &["--max-per-address", "0", "--trusted-proxy", "192.0.2.1"]];
    for flags in proxies {
        let mut daemon = Daemon::start_with(&standin, flags);
        expect_unharmed(&mut daemon, "", |daemon| flood(daemon, &["127.0.0.2"], |_| String::new()));
        let line = daemon.wait_for("1024 handshakes are incomplete");
        assert!(line.contains("from 127.0.0.2, more than from any other address"), "{line}");
    }
}

#[test]
fn behind_a_proxy_a_flood_counts_against_the_forwarded_client_address() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "0", "--trusted-proxy", "127.0.0.0/8", "--proxy-protocol"];
    let proxies = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let slow = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 80\r\n";
    // One address, or one IPv6 network.
    let clients: [fn(usize) -> String; 2] = [
        |_| "PROXY TCP4 198.51.100.9 192.0.2.1 4711 80\r\n".to_owned(),
        |number| {
            format!("PROXY TCP6 2001:db8::{:x}:{number:x} 2001:db8:1::1 4711 80\r\n", number % 7)
        },
    ];
    for client in clients {
        let mut daemon = Daemon::start_with(&standin, &flags);
        expect_unharmed(&mut daemon, slow, |daemon| flood(daemon, &proxies, client));
    }
}
