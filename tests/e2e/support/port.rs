//! A TCP port for a server that has to be told one.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Keeps a port at 127.0.0.1 for one test: the kernel gives it to nobody who asks for any free one.
/// A server that sets `SO_REUSEADDR`, as they all do, can listen there, again and again.
pub struct Port(Socket);

impl Port {
    pub fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }
}
