//! The listening socket for browsers or the proxy in front of the daemon.

use std::io;
use std::net::{self, SocketAddr};

use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::seam::{TcpListener, TcpStream};
use crate::platform::exit::{Exit, Result};
use crate::settings::{Settings, Source};

/// A listening TCP socket, or several that systemd has opened.
pub(crate) struct Listener {
    /// None once they are closed.
    sockets: Vec<TcpListener>,
    /// The first one's.
    address: SocketAddr,
}

/// With the usual 128, a thousand tabs that reconnect at the same time wait 1.5 s until their
/// kernel retries. The kernel caps the value (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// Bytes that the kernel buffers for a client that does not read; the kernel doubles the number.
/// Without this limit it buffers up to 4 MB.
const SEND_BUFFER: usize = 64 * 1024;

impl Listener {
    /// Listens at the address in the settings.
    ///
    /// # Errors
    /// Why that fails, the setting that is responsible, and what to do.
    pub(crate) fn bind(settings: &Settings) -> Result<Self> {
        let address = settings.listen();
        Self::listen(address).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "it is in use by another process. Stop EspoCRM's own daemon (php \
                     websocket.php), or find the process: ss -ltnp 'sport = :{}'",
                    address.port()
                ),
                io::ErrorKind::PermissionDenied => "permission denied. A port below 1024 needs \
                     AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
                    .to_owned(),
                io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
                _ => error.to_string(),
            };
            let parameter = match settings.port.source {
                Source::Espocrm(parameter) => format!("EspoCRM's parameter {parameter}"),
                Source::Default => "EspoCRM's parameter webSocketPort, which is not set".to_owned(),
                Source::File => "the configuration file".to_owned(),
                Source::Flag => "--listen".to_owned(),
                Source::Systemd => "systemd's socket unit".to_owned(),
            };
            Exit::error(format!(
                "Cannot listen for browsers at {address}: {why}. The port is set by {parameter}."
            ))
        })
    }

    /// Uses sockets that already listen.
    ///
    /// # Errors
    /// If there are none, or they cannot be used.
    pub(crate) fn inherit(sockets: Vec<net::TcpListener>) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(|socket| prepare(socket.into()));
        Self::of(sockets.collect::<io::Result<_>>()?)
    }

    /// The address, with the actual port if the settings have port 0.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening.
    pub(crate) fn close(&mut self) {
        self.sockets.clear();
    }

    /// Registers the sockets with `token`. After an event, call [`accept`](Self::accept) until it
    /// would block.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let mut sockets = self.sockets.iter_mut();
        sockets.try_for_each(|socket| registry.register(socket, token, Interest::READABLE))
    }

    /// Accepts the next connection without waiting; returns it and its peer's address.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        for socket in &self.sockets {
            match socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return accepted,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn listen(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::of(vec![prepare(socket)?])
    }

    pub(super) fn of(sockets: Vec<TcpListener>) -> io::Result<Self> {
        let address = sockets.first().ok_or(io::ErrorKind::NotFound)?.local_addr()?;
        Ok(Self { sockets, address })
    }
}

fn prepare(socket: Socket) -> io::Result<TcpListener> {
    // Accepted connections inherit these options.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}
