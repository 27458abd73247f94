//! Our own TLS, with certificates as the openssl command makes them.

pub mod authority;
mod introduced;
mod keys;
mod renewing;
mod traffic;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};
use serde_json::{Value, json};

use crate::support::{Client, DEADLINE, Daemon, Php, Standin};
use authority::Issued;

type Tab = Client<StreamOwned<ClientConnection, TcpStream>>;

pub const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

/// Has a stand-in want TLS with this certificate.
pub fn secure(standin: &mut Standin, issued: &Issued) {
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", issued.certificate.to_str());
    standin.config("webSocketSslCertificateLocalPrivateKey", issued.key.to_str());
}

/// A connection that has not begun its handshake.
fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Tab {
    over(TcpStream::connect(address).unwrap(), config)
}

fn over(tcp: TcpStream, config: &Arc<ClientConfig>) -> Tab {
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    Client::over(StreamOwned::new(tls, tcp))
}

/// A tab of alice's that gets notifications.
fn alice(daemon: &Daemon, config: &Arc<ClientConfig>) -> Tab {
    let mut alice = connect(daemon.address, config);
    alice.upgrade("/?authToken=tok-alice&userId=alice");
    alice.expect_welcome();
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}

/// A message for the tabs of alice.
fn notification(number: u32) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}

/// Shows that a tab of alice's still lives and has got nothing else meanwhile.
fn expect_alive(daemon: &Daemon, alice: &mut Tab, number: u32) {
    Php::send(&daemon.zeromq, &[notification(number)]);
    alice.expect_event(&notification(number));
}
