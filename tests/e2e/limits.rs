//! Limits per client, address and user; other clients are not affected.

mod clients;
mod many_clients;
mod memory;
mod origins;
mod proxies;

use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::{Client, DEADLINE, request};

/// A connection from this address of the loopback network.
fn from(address: &str, to: SocketAddr) -> Client {
    let address: IpAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    Client::over(stream)
}

/// The request target for this user.
fn target(user: &str) -> String {
    format!("/?authToken=tok-{user}&userId={user}")
}

/// Upgrades and expects the welcome.
fn enter(mut client: Client, user: &str) -> Client {
    client.upgrade(&target(user));
    client.expect_welcome();
    client
}

/// Requests the upgrade and expects a 503 response.
fn expect_503(mut client: Client, user: &str) {
    client.send(request(&target(user)).as_bytes());
    let answer = String::from_utf8(client.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nRetry-After: 3\r\n"), "{answer}");
}
