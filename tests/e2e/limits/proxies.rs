//! The client address of connections that a proxy forwards.

use std::net::IpAddr;

use super::{enter, expect_503, from, target};
use crate::support::{Daemon, GOOD_HEAD, Standin, request};

/// Version 2 of the PROXY protocol, with an unknown extension.
fn binary(client: IpAddr) -> Vec<u8> {
    let IpAddr::V4(client) = client else { panic!("an IPv4 address is enough") };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10".to_vec();
    header.extend_from_slice(&client.octets());
    header.extend_from_slice(&[127, 0, 0, 1, 0x12, 0x34, 0x1f, 0x90]);
    header.extend_from_slice(&[0xea, 0, 1, b'x']);
    header
}

fn text(client: IpAddr) -> Vec<u8> {
    format!("PROXY TCP4 {client} 127.0.0.1 4660 8080\r\n").into_bytes()
}

fn forwarded(daemon: &Daemon, peer: &str, header: &str, user: &str) -> String {
    let mut client = from(peer, daemon.address);
    let head = format!("GET {} HTTP/1.1\r\n{header}\r\n{GOOD_HEAD}", target(user));
    client.send(head.as_bytes());
    let status = client.read_head();
    // The connection stays open, so that it counts.
    std::mem::forget(client);
    status.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn only_trusted_proxies_may_set_the_client_address() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "2", "--trusted-proxy", "127.0.0.2"];
    let daemon = Daemon::start_with(&standin, &flags);
    let header = "X-Forwarded-For: 198.51.100.9, 203.0.113.7";
    assert_eq!(forwarded(&daemon, "127.0.0.2", header, "alice"), "101");
    assert_eq!(forwarded(&daemon, "127.0.0.2", header, "bob"), "101");
    assert_eq!(forwarded(&daemon, "127.0.0.2", header, "carol"), "503");
    // Another client of the same proxy.
    let other = "X-Forwarded-For: 203.0.113.7, 198.51.100.9";
    assert_eq!(forwarded(&daemon, "127.0.0.2", other, "carol"), "101");
    // The proxy itself has no limit, since it may have sent no address.
    for user in ["dave", "erin", "frank"] {
        assert_eq!(forwarded(&daemon, "127.0.0.2", "X-Other: 1", user), "101");
    }
    // The header of an untrusted peer does not bypass that peer's own limit.
    for (number, status) in [(1, "101"), (2, "101"), (3, "503")] {
        let header = format!("X-Forwarded-For: 192.0.2.{number}");
        assert_eq!(forwarded(&daemon, "127.0.0.3", &header, "grace"), status);
    }
}

#[test]
fn the_proxy_protocol_header_may_arrive_in_pieces() {
    let standin = Standin::new();
    let flags = ["--max-per-address", "2", "--trusted-proxy", "127.0.0.2", "--proxy-protocol"];
    let mut daemon = Daemon::start_with(&standin, &flags);
    let mut clients = Vec::new();
    let named = "203.0.113.7".parse().unwrap();
    for (header, step) in [(binary(named), 1), (text(named), 3)] {
        let mut client = from("127.0.0.2", daemon.address);
        for piece in [&header, request(&target("alice")).as_bytes()].concat().chunks(step) {
            client.send(piece);
        }
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        client.expect_welcome();
        clients.push(client);
    }
    for header in [binary, text] {
        let mut client = from("127.0.0.2", daemon.address);
        client.send(&header("203.0.113.7".parse().unwrap()));
        expect_503(client, "alice");
        let mut client = from("127.0.0.2", daemon.address);
        client.send(&header("203.0.113.8".parse().unwrap()));
        clients.push(enter(client, "alice"));
    }
    // What a proxy sends as a health check.
    let mut client = from("127.0.0.2", daemon.address);
    client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    clients.push(enter(client, "alice"));
    for client in &mut clients {
        client.expect_silence();
    }
    // A peer that is not a trusted proxy cannot set its address and needs no header.
    enter(from("127.0.0.3", daemon.address), "bob");
    let mut client = from("127.0.0.3", daemon.address);
    client.send(&text("203.0.113.9".parse().unwrap()));
    client.send(request(&target("bob")).as_bytes());
    assert!(String::from_utf8(client.read_to_end()).unwrap().starts_with("HTTP/1.1 505 "));
    // A trusted proxy must send the header.
    let mut client = from("127.0.0.2", daemon.address);
    client.send(request(&target("alice")).as_bytes());
    assert_eq!(client.read_to_end(), b"");
    daemon.wait_for("A trusted proxy opened a connection without a PROXY protocol header");
}

#[test]
fn the_proxy_protocol_requires_trusted_proxies() {
    let standin = Standin::new();
    let mut command = crate::support::command();
    command.args(["config", "--config", "/dev/null", "--proxy-protocol", "--espocrm"]);
    command.arg(standin.path());
    let output = crate::support::run(command);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("trusted_proxies names no proxy"), "{error}");
}
