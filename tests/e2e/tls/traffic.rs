//! Traffic over TLS, and clients that try to connect without it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::authority::{Authority, EC};
use super::{BOTH, alice, expect_alive, notification, secure};
use crate::support::{
    Client, Control, DEADLINE, Daemon, Standin, command, eventually, request, run,
};

/// One ZeroMQ connection, which keeps the order of messages.
fn publisher(daemon: &Daemon) -> zmq::Socket {
    let socket = zmq::Context::new().socket(zmq::PUSH).unwrap();
    // A failing test must not wait until the remaining messages are received.
    socket.set_linger(0).unwrap();
    socket.connect(&daemon.zeromq).unwrap();
    socket
}

fn large(number: usize) -> Value {
    let mut message = notification(number);
    message["text"] = json!("x".repeat(900_000));
    message
}

fn serve(authority: &Authority) -> (Standin, Daemon) {
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let daemon = Daemon::start(&standin);
    (standin, daemon)
}

#[test]
fn many_and_large_messages_arrive_in_order() {
    let authority = Authority::new();
    let (_standin, daemon) = serve(&authority);
    for version in BOTH {
        let mut alice = alice(&daemon, &authority.client(&[version]));
        let publisher = publisher(&daemon);
        let send = |message: &Value| publisher.send(&*message.to_string(), 0).unwrap();
        send(&large(0));
        alice.expect_event(&large(0));
        // All together are smaller than the outbound queue.
        for number in 1..5_000 {
            send(&notification(number));
        }
        for number in 1..5_000 {
            alice.expect_event(&notification(number));
        }
        send(&large(5_000));
        alice.expect_event(&large(5_000));
    }
}

#[test]
fn health_succeeds_over_tls() {
    let authority = Authority::new();
    let (standin, daemon) = serve(&authority);
    let mut health = command();
    health.args(["health", "--config", "/dev/null", "--listen", &daemon.address.to_string()]);
    health.arg("--espocrm").arg(standin.path());
    let output = run(health);
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn a_client_that_reads_too_slowly_is_disconnected_without_a_close_frame() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let (_standin, mut daemon) = serve(&authority);
    let mut good = alice(&daemon, &client);
    good.unsubscribe("newNotification");
    daemon.subscribe(&mut good, "alice", "appParamsUpdate");

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Small, but with room for a whole TLS record: otherwise nothing could be read in the end.
    socket.set_recv_buffer_size(65_536).unwrap();
    socket.connect(&daemon.address.into()).unwrap();
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(client, name).unwrap();
    let mut slow = Client::over(StreamOwned::new(tls, tcp));
    slow.upgrade("/?authToken=tok-alice&userId=alice");
    slow.expect_welcome();
    daemon.subscribe(&mut slow, "alice", "newNotification");

    let publisher = publisher(&daemon);
    for number in 0..4 {
        publisher.send(&*large(number).to_string(), 0).unwrap();
    }
    daemon.wait_for("A browser could not keep up");
    let other = json!({"topicId": "appParamsUpdate"});
    publisher.send(&*other.to_string(), 0).unwrap();
    good.expect_event(&other);

    // Only whole TLS records arrive: the beginning of a text, and then nothing.
    let bytes = slow.read_to_end();
    assert!(bytes.first().is_none_or(|&first| first == 0x81));
    assert!(bytes.len() < large(0).to_string().len());
}

#[test]
fn the_tls_handshake_and_the_upgrade_may_arrive_byte_by_byte() {
    let authority = Authority::new();
    let (_standin, daemon) = serve(&authority);
    for version in BOTH {
        let tcp = TcpStream::connect(daemon.address).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(authority.client(&[version]), name).unwrap();
        let mut tab = Client::over(StreamOwned::new(tls, Trickle(tcp)));
        tab.upgrade("/?authToken=tok-alice&userId=alice");
        tab.expect_welcome();
    }
}

/// Sends each byte separately.
struct Trickle(TcpStream);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn clients_without_tls_use_no_resources() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let (mut daemon, control) = Control::start(&standin, &[]);
    let mut tab = alice(&daemon, &client);
    let descriptors = daemon.descriptors();

    let mut silent: Vec<Client> = (0..60).flat_map(|_| non_tls_clients(&daemon, &client)).collect();
    expect_alive(&daemon, &mut tab, 1);
    alice(&daemon, &client);
    // All are disconnected, the waiting ones when the handshake times out.
    for client in &mut silent {
        let answer = client.read_to_end();
        assert!(answer.len() < 5_000 && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    eventually("descriptors are free again", || daemon.descriptors() == descriptors);
    daemon.wait_for("A TLS handshake failed");
    assert!(control.number("/connections/refused/tls") > 0);

    // The same applies to clients that disconnect by themselves, in any number.
    let memory = daemon.status("VmRSS");
    for number in 2..5 {
        let round: Vec<Client> = (0..60).flat_map(|_| non_tls_clients(&daemon, &client)).collect();
        expect_alive(&daemon, &mut tab, number);
        drop(round);
        eventually("descriptors are free again", || daemon.descriptors() == descriptors);
    }
    let grown = daemon.status("VmRSS").saturating_sub(memory);
    assert!(grown < 1_024, "{grown} kB");
}

/// All kinds of connections to the port that are not browsers.
fn non_tls_clients(daemon: &Daemon, client: &Arc<ClientConfig>) -> Vec<Client> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let half = &hello[..hello.len() / 2];
    let http = request("/?authToken=tok-alice&userId=alice");
    let garbage: Vec<u8> = (1..=u8::MAX).cycle().take(2_000).collect();
    let all = [&b""[..], &hello, half, &hello[..3], http.as_bytes(), &garbage];
    all.map(|bytes| {
        let mut client = Client::tcp(daemon.address);
        client.send(bytes);
        client
    })
    .into()
}
