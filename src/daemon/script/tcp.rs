//! Real and scripted TCP sockets.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Source;
use mio::net;
use mio::{Interest, Registry, Token};

use super::{Arrivals, Socket};

pub(crate) enum TcpStream {
    Mio(net::TcpStream),
    Scripted(Socket),
}

pub(crate) enum TcpListener {
    Mio(net::TcpListener),
    Scripted(Arrivals),
}

impl TcpStream {
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Mio(tcp) => tcp.shutdown(how),
            Self::Scripted(socket) => socket.shutdown(how),
        }
    }
}

impl Read for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Mio(tcp) => tcp.read(buffer),
            Self::Scripted(socket) => socket.read(buffer),
        }
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Mio(tcp) => tcp.write(bytes),
            Self::Scripted(socket) => socket.write(&[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Mio(tcp) => tcp.write_vectored(slices),
            Self::Scripted(socket) => socket.write(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TcpListener {
    pub(crate) fn from_std(tcp: std::net::TcpListener) -> Self {
        Self::Mio(net::TcpListener::from_std(tcp))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Mio(tcp) => tcp.local_addr(),
            Self::Scripted(_) => Ok(SocketAddr::from(([127, 0, 0, 1], 1))),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Mio(tcp) => tcp.accept().map(|(tcp, from)| (TcpStream::Mio(tcp), from)),
            Self::Scripted(arrivals) => {
                arrivals.accept().map(|(socket, from)| (TcpStream::Scripted(socket), from))
            }
        }
    }
}

impl Source for TcpStream {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Mio(tcp) => tcp.register(registry, token, interests),
            Self::Scripted(socket) => {
                socket.register(token);
                Ok(())
            }
        }
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Source for TcpListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Mio(tcp) => tcp.register(registry, token, interests),
            Self::Scripted(_) => Ok(()),
        }
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
