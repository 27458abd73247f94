//! Admission: limits by client address and by user, and the client that a connection counts for.

pub mod addresses;
pub mod handshakes;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use super::connection::Connection;
use super::id::ConnId;
use super::limits::{MAX_HANDSHAKES, MAX_LOGINS_OF_ADDRESS, max_new_handshakes};
use super::protocol::client_address;
use super::protocol::client_address::{ClientKey, Network};
use super::protocol::http::Head;
use super::protocol::origin::Origin;
use super::telemetry::stats::End;
use super::time::Time;
use addresses::Addresses;
use handshakes::{Handshakes, Surplus};

/// Decides which connections are admitted.
///
/// Methods whose names begin with `decide` change nothing. The caller applies a decision: it
/// answers or ends the connection, and reports a connection that is not dropped with
/// [`begin_handshake`](Self::begin_handshake), [`count`](Self::count) and
/// [`begin_login`](Self::begin_login). [`end`](Self::end) removes all of that.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    /// Connections and pending logins by client address.
    addresses: Addresses,
    /// Connections that have not completed their handshake.
    handshakes: Handshakes,
}

/// The settings.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Maximum number of connections.
    pub connections: usize,
    /// Maximum number of connections of one client address; 0 for no limit.
    pub per_address: usize,
    /// Maximum number of connections of one user; 0 for no limit.
    pub per_user: usize,
    /// Addresses whose connections are those of their clients.
    pub trusted_proxies: Vec<Network>,
    /// Connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Origins of pages that may connect; empty to allow all.
    pub origins: Vec<Origin>,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Admit it.
    Admit,
    /// Answer its request with 503.
    Reject(Limit<'a>),
    /// End it at once, without an answer.
    Drop(Limit<'a>),
}

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit<'a> {
    /// This many connections are allowed.
    Connections(usize),
    /// An address has its maximum number of connections.
    Address {
        /// The address.
        client: ClientKey,
        /// Number of its connections.
        connections: u32,
        /// Their maximum number.
        limit: u32,
    },
    /// Too many logins of this address wait to be checked.
    Logins(ClientKey),
    /// Too many logins wait to be checked.
    CheckQueue,
    /// EspoCRM accepts any token.
    SelfCheck,
    /// A user has the maximum number of connections.
    User {
        /// The user's id.
        user: &'a str,
        /// Number of their connections.
        connections: usize,
    },
}

/// What admission of a login depends on, besides its connection.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The self-check has failed.
    pub is_locked_down: bool,
    /// The check queue has no room for a login.
    pub is_queue_full: bool,
    /// The user, if the request names one, and the number of their connections.
    pub user: Option<(&'a str, usize)>,
}

/// Connections beyond [`Policy::connections`] that are answered with 503; others are dropped. Each
/// costs as much as a connection during its handshake.
pub const OVER_LIMIT: usize = 64;

/// Connections beyond the limit of an address that are answered with 503; others are dropped.
const OVER_LIMIT_OF_ADDRESS: u32 = 16;

impl Admission {
    /// An admission without connections.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let new = max_new_handshakes(policy.connections);
        let handshakes = Handshakes::new(MAX_HANDSHAKES, new);
        Self { policy, addresses: Addresses::default(), handshakes }
    }

    /// Replaces the settings. They apply to new connections.
    pub fn set_policy(&mut self, policy: Policy) {
        self.handshakes.set_limit_of_new(max_new_handshakes(policy.connections));
        self.policy = policy;
    }

    /// Decides about a new connection while this many are open.
    #[must_use]
    pub fn decide_connection(&self, open: usize) -> Decision<'static> {
        let limit = self.policy.connections;
        let over = Limit::Connections(limit);
        decide(open, limit, limit.saturating_add(OVER_LIMIT), over)
    }

    /// Decides about a further connection of a client.
    #[must_use]
    pub fn decide_client(&self, client: ClientKey) -> Decision<'static> {
        let limit = u32::try_from(or_unlimited(self.policy.per_address)).unwrap_or(u32::MAX);
        let connections = self.addresses.count(client).connections;
        let over = Limit::Address { client, connections, limit };
        decide(connections, limit, limit.saturating_add(OVER_LIMIT_OF_ADDRESS), over)
    }

    /// Decides about the login of a connection.
    #[must_use]
    pub fn decide_login<'a>(&self, conn: &Connection, load: &Load<'a>) -> Decision<'a> {
        if load.is_locked_down {
            return Decision::Reject(Limit::SelfCheck);
        }
        if load.is_queue_full {
            return Decision::Reject(Limit::CheckQueue);
        }
        let logins = |client: &ClientKey| self.addresses.count(*client).logins;
        if let Some(client) = conn.client().filter(|it| logins(it) >= MAX_LOGINS_OF_ADDRESS) {
            return Decision::Reject(Limit::Logins(client));
        }
        load.user.map_or(Decision::Admit, |(user, others)| self.decide_user(user, others))
    }

    /// Decides about a connection of a user who has this many others.
    #[must_use]
    pub fn decide_user<'a>(&self, user: &'a str, others: usize) -> Decision<'a> {
        let limit = or_unlimited(self.policy.per_user);
        decide(others, limit, usize::MAX, Limit::User { user, connections: others })
    }

    /// Whether pages of the request's origin may connect.
    #[must_use]
    pub fn allows_origin(&self, head: &Head<'_, '_>) -> bool {
        let origins = &self.policy.origins;
        let is_listed = |header| origins.iter().any(|origin| origin.is(header));
        origins.is_empty() || head.origin().is_some_and(is_listed)
    }

    /// Whether connections from this address begin with a PROXY header.
    #[must_use]
    pub fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.policy.proxy_protocol && self.is_proxy(peer)
    }

    /// The client that a connection from `peer` counts for, if that is known before its request.
    /// `None` for a proxy; without `trusted_proxies`, any private address may be one.
    #[must_use]
    pub fn client_of_peer(&self, peer: IpAddr) -> Option<ClientKey> {
        let is_any_trusted = !self.policy.trusted_proxies.is_empty();
        let may_be_proxy =
            if is_any_trusted { self.is_proxy(peer) } else { client_address::is_private(peer) };
        (!may_be_proxy).then(|| ClientKey::of(peer))
    }

    /// The client that a trusted proxy names in the request's headers.
    #[must_use]
    pub fn client_of_head(&self, peer: IpAddr, head: &Head<'_, '_>) -> Option<ClientKey> {
        if self.policy.proxy_protocol || !self.is_proxy(peer) {
            return None;
        }
        let proxies = &self.policy.trusted_proxies;
        let client = client_address::client(peer, head.forwarded_for(), proxies);
        (!self.is_proxy(client)).then(|| ClientKey::of(client))
    }

    /// Counts a new connection as a handshake of `client`, or while that is unknown, of the proxy.
    pub fn begin_handshake(&mut self, id: ConnId, client: ClientKey, now: Time) {
        self.handshakes.begin(id, client, now);
    }

    /// Assigns a handshake to the client named by a proxy.
    pub fn assign_handshake(&mut self, id: ConnId, client: ClientKey) {
        self.handshakes.assign(id, client);
    }

    /// A handshake is complete.
    pub fn end_handshake(&mut self, id: ConnId) {
        self.handshakes.end(id);
    }

    /// The handshake to be evicted, if there are too many. Call until `None`.
    #[must_use]
    pub fn surplus_handshake(&self, now: Time) -> Option<Surplus> {
        self.handshakes.surplus(now)
    }

    /// When there will be a surplus, if no handshake begins or ends before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.handshakes.next_deadline()
    }

    /// Counts a connection for its client.
    pub fn count(&mut self, conn: &mut Connection, client: ClientKey) {
        self.addresses.add(client);
        if let Some(previous) = conn.replace_client(Some(client)) {
            self.addresses.remove(previous);
        }
    }

    /// Counts a login that waits to be checked.
    pub fn begin_login(&mut self, conn: &mut Connection) {
        if !conn.replace_logging_in(true)
            && let Some(client) = conn.client()
        {
            self.addresses.begin_login(client);
        }
    }

    /// A login was checked, or its connection is closed.
    pub fn end_login(&mut self, conn: &mut Connection) {
        if conn.replace_logging_in(false)
            && let Some(client) = conn.client()
        {
            self.addresses.end_login(client);
        }
    }

    /// A connection has ended.
    pub fn end(&mut self, conn: &mut Connection) {
        self.handshakes.end(conn.id());
        self.end_login(conn);
        if let Some(client) = conn.replace_client(None) {
            self.addresses.remove(client);
        }
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.policy.trusted_proxies.iter().any(|proxy| proxy.contains(peer))
    }
}

impl Limit<'_> {
    /// The reason to be counted.
    #[must_use]
    pub fn end(&self) -> End {
        match self {
            Self::Connections(_) => End::ConnectionLimit,
            Self::Address { .. } => End::AddressLimit,
            Self::Logins(_) => End::LoginLimit,
            Self::CheckQueue => End::CheckQueue,
            Self::SelfCheck => End::Untrusted,
            Self::User { .. } => End::UserLimit,
        }
    }
}

fn decide<T: Copy + PartialOrd>(count: T, limit: T, most: T, over: Limit<'_>) -> Decision<'_> {
    if count < limit {
        Decision::Admit
    } else if count < most {
        Decision::Reject(over)
    } else {
        Decision::Drop(over)
    }
}

/// 0 means no limit.
fn or_unlimited(setting: usize) -> usize {
    if setting == 0 { usize::MAX } else { setting }
}

#[cfg(test)]
impl Admission {
    /// Checks that the counts agree with all connections.
    pub(crate) fn check_invariants<'a>(&self, conns: impl Iterator<Item = &'a Connection> + Clone) {
        use super::connection::Phase;
        use std::collections::HashMap;

        let handshakes = conns.clone().filter(|conn| conn.phase() == Phase::Handshake);
        assert!(handshakes.clone().all(|conn| self.handshakes.contains(conn.id())));
        assert_eq!(handshakes.count(), self.handshakes.len());
        let mut counts: HashMap<ClientKey, addresses::Count> = HashMap::new();
        for conn in conns.filter(|conn| conn.client().is_some()) {
            assert!(conn.phase() != Phase::Ended);
            let count = conn.client().map(|client| counts.entry(client).or_default()).unwrap();
            count.connections += 1;
            count.logins += u32::from(conn.is_logging_in());
        }
        assert!(counts.iter().all(|(client, count)| self.addresses.count(*client) == *count));
        assert_eq!(counts.len(), self.addresses.len());
    }

    /// Checks the order of handshakes.
    pub(crate) fn check_handshakes(&self) {
        self.handshakes.check_invariants();
    }
}
