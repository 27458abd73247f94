//! The socket at which browsers, or the proxy in front of us, connect.

use std::io;
use std::net::{self, SocketAddr};

use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::net::{TcpListener, TcpStream};
use crate::platform::exit::{Exit, Result};
use crate::settings::{Settings, Source};

/// A listening TCP socket, or several that systemd has opened.
pub(crate) struct Listener {
    /// None once they are closed.
    sockets: Vec<TcpListener>,
    /// The first one's.
    address: SocketAddr,
}

/// With the usual 128, a thousand tabs that come back at once wait 1.5 s for a second attempt of
/// their kernel. The kernel caps it (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// What the kernel keeps for a reader that does not read; it doubles the number. Without a cap it
/// goes up to 4 MB.
const SEND_BUFFER: usize = 64 * 1024;

impl Listener {
    /// Listens where the settings say.
    ///
    /// # Errors
    /// If that is not possible: why, by which setting, and what to do.
    pub(crate) fn bind(settings: &Settings) -> Result<Self> {
        let address = settings.listen();
        Self::listen(address).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "it is in use. Another daemon runs there: stop EspoCRM's own (php \
                     websocket.php), or find it by: ss -ltnp 'sport = :{}'",
                    address.port()
                ),
                io::ErrorKind::PermissionDenied => "this user may not. A port below 1024 needs \
                     AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
                    .to_owned(),
                io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
                _ => error.to_string(),
            };
            let parameter = match settings.port.source {
                Source::Espocrm(parameter) => format!("EspoCRM's parameter {parameter}"),
                Source::Default => "EspoCRM's parameter webSocketPort, which is not set".to_owned(),
                Source::File => "our configuration file".to_owned(),
                Source::Flag | Source::Systemd => "--listen".to_owned(),
            };
            Exit::error(format!(
                "Browsers cannot be served at {address}: {why}. The port is set by {parameter}."
            ))
        })
    }

    /// Listens at sockets that listen already.
    ///
    /// # Errors
    /// If they cannot be used, or there is none.
    pub(crate) fn inherit(sockets: Vec<net::TcpListener>) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(|socket| prepare(socket.into()));
        Self::of(sockets.collect::<io::Result<_>>()?)
    }

    /// Takes connections from a test.
    #[cfg(test)]
    pub(crate) fn scripted(arrivals: super::script::Arrivals) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Self { sockets: vec![TcpListener::Scripted(arrivals)], address }
    }

    /// Where it listens: with the number of the port if any free one was asked for.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends listening.
    pub(crate) fn close(&mut self) {
        self.sockets.clear();
    }

    /// Has `token` reported when connections wait. After a report
    /// [`accept`](Self::accept) must be called until it would block.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let mut sockets = self.sockets.iter_mut();
        sockets.try_for_each(|socket| registry.register(socket, token, Interest::READABLE))
    }

    /// Takes the next connection, without waiting, and tells where it comes from.
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

    fn of(sockets: Vec<TcpListener>) -> io::Result<Self> {
        let address = sockets.first().ok_or(io::ErrorKind::NotFound)?.local_addr()?;
        Ok(Self { sockets, address })
    }
}

fn prepare(socket: Socket) -> io::Result<TcpListener> {
    // The connections that it accepts inherit these.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}
