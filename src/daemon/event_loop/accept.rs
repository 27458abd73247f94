//! Accepting connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::listener::Listener;
use crate::daemon::seam::TcpStream;
use crate::daemon::stream::Stream;
use crate::daemon::tls::Acceptor;
use crate::engine::admission::Decision;
use crate::engine::admission::handshakes::Surplus;
use crate::engine::connection::Handshake;
use crate::engine::limits::{HANDSHAKE_GRACE, MAX_HANDSHAKES, RESERVED_DESCRIPTORS};
use crate::engine::printable::plural;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::Settings;

/// The listener.
pub(super) struct Accepting {
    listener: Listener,
    acceptor: Option<Acceptor>,
    /// More connections may be waiting.
    pending: bool,
    /// Out of descriptors or memory: accepting resumes at this time.
    paused_until: Option<Time>,
}

/// Connections accepted in one turn.
const ACCEPTS: usize = 256;

impl Accepting {
    pub(super) fn new(listener: Listener, acceptor: Option<Acceptor>) -> Self {
        Self { listener, acceptor, pending: true, paused_until: None }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub(super) fn close_listener(&mut self) {
        self.listener.close();
    }

    pub(super) fn replace_listener(&mut self, listener: Listener) {
        self.listener = listener;
        self.pending = true;
    }

    pub(super) fn replace_acceptor(&mut self, acceptor: Option<Acceptor>) {
        if let Some(new) = &acceptor {
            new.log_validity(self.acceptor.as_ref());
        }
        self.acceptor = acceptor;
    }

    pub(super) fn set_pending(&mut self) {
        self.pending = true;
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending && self.paused_until.is_none()
    }

    /// Resumes accepting, since a descriptor may be free again.
    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    pub(super) fn paused_until(&self) -> Option<Time> {
        self.paused_until
    }

    /// Wraps a TCP stream, with TLS if configured. With `proxy_header`, TLS starts after that
    /// header.
    fn stream(&self, tcp: TcpStream, proxy_header: bool) -> io::Result<Stream> {
        let tls = self.acceptor.as_ref().map(Acceptor::accept).transpose()?;
        Ok(Stream::new(tcp, tls, proxy_header))
    }
}

/// Lowers `max_connections` to what the limit of open files allows.
pub(crate) fn limit_to_open_files(settings: &mut Settings) {
    let wanted = settings.max_connections.value;
    let affordable = affordable(wanted, sys::raise_open_files());
    if affordable < wanted {
        warn!(
            "The limit of open files allows only {}, not {wanted}. Raise LimitNOFILE in the unit, \
             or lower max_connections.",
            plural(affordable as u64, "connection", "connections")
        );
        settings.max_connections.value = affordable;
    }
}

/// Number of ZeroMQ senders for which connections leave descriptors. Only half of the remaining
/// descriptors, since an excess is detected with a delay.
pub(super) fn affordable_senders(settings: &Settings) -> usize {
    let left = sys::raise_open_files().saturating_sub(settings.max_connections.value as u64);
    usize::try_from(left / 2).unwrap_or(usize::MAX)
}

fn affordable(max_connections: usize, open_files: u64) -> usize {
    let room = open_files.saturating_sub(RESERVED_DESCRIPTORS).max(16);
    max_connections.min(usize::try_from(room).unwrap_or(usize::MAX))
}

impl Server {
    /// Accepts waiting connections, up to this turn's budget.
    pub(super) fn accept(&mut self) {
        if self.accepting.paused_until.is_some_and(|until| self.now < until) {
            return;
        }
        self.accepting.paused_until = None;
        for _ in 0..ACCEPTS {
            if !self.accepting.pending {
                return;
            }
            match self.accepting.listener.accept() {
                Ok((tcp, peer)) => self.open(tcp, peer.ip().to_canonical()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.accepting.pending = false,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return self.pause(&error),
                },
            }
        }
    }

    fn open(&mut self, tcp: TcpStream, peer: IpAddr) {
        let decision = self.admission.decide_connection(self.conns.len());
        if let Decision::Drop(limit) = decision {
            self.log_limit(&limit);
            self.telemetry.stats.opened += 1;
            self.telemetry.stats.end(limit.end());
            return;
        }
        let proxy_header = self.admission.expects_proxy_header(peer);
        let stream = match self.accepting.stream(tcp, proxy_header) {
            Ok(stream) => stream,
            Err(error) => return self.pause(&error),
        };
        let handshake = Handshake::new(peer, proxy_header);
        let registry = self.poll.registry();
        let id = match self.conns.open(stream, handshake, self.now, registry) {
            Ok(id) => id,
            Err(error) => return self.pause(&error),
        };
        self.telemetry.stats.opened += 1;
        if let Decision::Reject(limit) = decision {
            self.reject(id, &limit);
        }
        let client = self.admission.client_of_peer(peer);
        self.admission.begin_handshake(id, client.unwrap_or(ClientKey::of(peer)), self.now);
        self.expire_handshakes();
        if let Some(client) = client {
            self.admit_client(id, client);
        }
    }

    /// Ends handshakes while there are too many.
    pub(super) fn expire_handshakes(&mut self) {
        while let Some(Surplus { id, client, count }) = self.admission.surplus_handshake(self.now) {
            if self.log_limiter.should_log(Cause::Handshakes, self.now) {
                warn!(
                    "More than {MAX_HANDSHAKES} handshakes are incomplete after {} s, or far more \
                     before that. {count} of them come from {client}, more than from any other \
                     address; the oldest of these are ended. If {client} is not your proxy, block \
                     it in the firewall.",
                    HANDSHAKE_GRACE.as_secs()
                );
            }
            self.end(id, End::HandshakeLimit);
            self.admission.end_handshake(id);
        }
    }

    /// Pauses accepting for a second, for lack of descriptors or memory. Existing connections are
    /// served meanwhile.
    fn pause(&mut self, error: &io::Error) {
        self.telemetry.stats.accept_failures += 1;
        if self.log_limiter.should_log(Cause::NoDescriptor, self.now) {
            warn!(
                "Connections cannot be accepted: {error}. Retrying every second. Raise LimitNOFILE \
                 in the unit, or lower max_connections."
            );
        }
        self.accepting.paused_until = Some(self.now.after(Duration::from_secs(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_other_purposes() {
        assert_eq!(affordable(10_000, 524_288), 10_000);
        assert_eq!(affordable(10_000, 1_024), 768);
        assert_eq!(affordable(10_000, 64), 16);
        assert_eq!(affordable(10_000, u64::MAX), 10_000);
    }
}
