//! Accepting connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::connection::Upgrading;
use crate::daemon::listener::Listener;
use crate::daemon::net::TcpStream;
use crate::daemon::stream::Stream;
use crate::daemon::tls::Acceptor;
use crate::engine::admission::handshakes::{Handshakes, Surplus};
use crate::engine::id::ConnId;
use crate::engine::limits;
use crate::engine::limits::{
    HANDSHAKE_DEADLINE, HANDSHAKE_GRACE, MAX_HANDSHAKES, RESERVED_DESCRIPTORS,
};
use crate::engine::printable::plural;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::Settings;

/// The listener and the handshakes in progress.
pub(super) struct Accepting {
    listener: Listener,
    acceptor: Option<Acceptor>,
    /// More connections may be waiting.
    pending: bool,
    /// Out of descriptors or memory: accepting resumes at this time.
    paused_until: Option<Time>,
    /// Connections accepted so far (wraps).
    /// Connections that have not completed their handshake.
    handshakes: Handshakes,
}

/// Connections accepted in one turn.
const ACCEPTS: usize = 256;

/// Connections beyond the limit that are answered with 503; others are closed at once. Each costs
/// as much as a connection during its handshake.
const OVER_LIMIT: usize = 64;

impl Accepting {
    pub(super) fn new(listener: Listener, acceptor: Option<Acceptor>) -> Self {
        Self {
            listener,
            acceptor,
            pending: true,
            paused_until: None,
            handshakes: Handshakes::new(MAX_HANDSHAKES, MAX_HANDSHAKES),
        }
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

    /// When the number of handshakes next has to be checked.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.handshakes.next_deadline()
    }

    #[cfg(test)]
    pub(super) fn handshakes(&self) -> &Handshakes {
        &self.handshakes
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
        let limit = self.settings.max_connections.value;
        let over_limit = self.conns.len() >= limit;
        if over_limit {
            if self.log_limiter.should_log(Cause::OverLimit, self.now) {
                warn!(
                    "The limit of {} is reached. New connections are rejected; browsers will \
                     retry. Raise max_connections, or find out which client opens so many.",
                    plural(limit as u64, "connection", "connections")
                );
            }
            if self.conns.len() >= limit.saturating_add(OVER_LIMIT) {
                self.stats.opened += 1;
                self.stats.end(End::ConnectionLimit);
                return;
            }
        }
        let proxy_header = self.expects_proxy_header(peer);
        let stream = match self.accepting.stream(tcp, proxy_header) {
            Ok(stream) => stream,
            Err(error) => return self.pause(&error),
        };
        let times = (self.now, self.now.after(HANDSHAKE_DEADLINE));
        let upgrading = Upgrading::new(peer, proxy_header, over_limit);
        let opened = self.conns.open(stream, upgrading, times, self.poll.registry());
        let id = match opened {
            Ok(id) => id,
            Err(error) => return self.pause(&error),
        };
        self.stats.opened += 1;
        if over_limit {
            self.count_end(id, End::ConnectionLimit);
        }
        let client = self.client_of_peer(peer);
        self.begin_handshake(id, client.unwrap_or(ClientKey::of(peer)));
        if let Some(client) = client {
            self.admit_client_early(id, client);
        }
    }

    /// Counts a handshake, and ends the oldest ones if there are too many.
    fn begin_handshake(&mut self, id: ConnId, client: ClientKey) {
        self.accepting.handshakes.begin(id, client, self.now);
        self.expire_handshakes();
    }

    /// Derives the limit of handshakes from the limit of connections.
    pub(super) fn limit_handshakes(&mut self) {
        let limit = limits::max_new_handshakes(self.settings.max_connections.value);
        self.accepting.handshakes.set_limit_of_new(limit);
    }

    /// Ends handshakes while there are too many.
    pub(super) fn expire_handshakes(&mut self) {
        while let Some(Surplus { id, client, count }) = self.accepting.handshakes.surplus(self.now)
        {
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
            self.end_handshake(id);
        }
    }

    /// Assigns a handshake to the client named by a proxy.
    pub(super) fn assign_handshake(&mut self, id: ConnId, client: ClientKey) {
        self.accepting.handshakes.assign(id, client);
    }

    /// Removes a handshake that is complete, or has ended.
    pub(super) fn end_handshake(&mut self, id: ConnId) {
        self.accepting.handshakes.end(id);
    }

    /// Pauses accepting for a second, for lack of descriptors or memory. Existing connections are
    /// served meanwhile.
    fn pause(&mut self, error: &io::Error) {
        self.stats.accept_failures += 1;
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
