//! TLS behind a proxy that sends the client address first (the PROXY protocol).

use std::io::Write;
use std::net::TcpStream;

use super::authority::{Authority, EC};
use super::{BOTH, over, secure};
use crate::support::{Daemon, Standin, request};

const TARGET: &str = "/?authToken=tok-alice&userId=alice";

#[test]
fn the_proxy_protocol_header_precedes_tls() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let flags = ["--max-per-address", "1", "--trusted-proxy", "127.0.0.1", "--proxy-protocol"];
    let mut daemon = Daemon::start_with(&standin, &flags);
    let connect = |client: &str| {
        let mut tcp = TcpStream::connect(daemon.address).unwrap();
        tcp.write_all(format!("PROXY TCP4 {client} 127.0.0.1 4660 8443\r\n").as_bytes()).unwrap();
        over(tcp, &authority.client(BOTH))
    };
    let mut first = connect("203.0.113.7");
    first.upgrade(TARGET);
    first.expect_welcome();
    let mut second = connect("203.0.113.7");
    second.send(request(TARGET).as_bytes());
    assert!(second.read_head().starts_with("HTTP/1.1 503 "));
    let mut third = connect("203.0.113.8");
    third.upgrade(TARGET);
    third.expect_welcome();
    // Without the header, and with something other than TLS after it.
    for bytes in [&b"\x16\x03\x01\x02\0\x01"[..], b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n\r\n"] {
        let mut tcp = TcpStream::connect(daemon.address).unwrap();
        tcp.write_all(bytes).unwrap();
        std::io::copy(&mut tcp, &mut std::io::sink()).unwrap();
    }
    first.expect_silence();
    third.expect_silence();
    daemon.wait_for("A TLS handshake failed");
}
