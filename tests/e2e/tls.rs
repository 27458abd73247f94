//! The daemon's own TLS, with certificates created with the openssl command.

pub mod authority;
mod files;
mod keys;
mod letsencrypt;
mod proxy_protocol;
mod renewal;
mod traffic;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};

use crate::support::{Client, DEADLINE, Daemon, Standin, expect_alive, notification};
use authority::Issued;

type Tab = Client<StreamOwned<ClientConnection, TcpStream>>;

pub const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

/// Configures a stand-in to use TLS with this certificate.
pub fn secure(standin: &mut Standin, issued: &Issued) {
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", issued.certificate.to_str());
    standin.config("webSocketSslCertificateLocalPrivateKey", issued.key.to_str());
}

/// A connection that has not started its handshake.
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

/// A tab of alice that receives notifications.
pub fn alice(daemon: &Daemon, config: &Arc<ClientConfig>) -> Tab {
    let mut alice = connect(daemon.address, config);
    alice.upgrade("/?authToken=tok-alice&userId=alice");
    alice.expect_welcome();
    alice.subscribe("newNotification");
    alice.expect_silence();
    alice
}
