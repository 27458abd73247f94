//! Admission: limits per client address and per user, and the check of the page's origin.

use std::net::IpAddr;

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::connection::Phase;
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_LOGINS_OF_ADDRESS;
use crate::engine::printable::{Printable, plural};
use crate::engine::protocol::client_address;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::http::{Credentials, Head};
use crate::engine::telemetry::stats::End;
use crate::settings::Settings;

/// Connections beyond the limit of an address that are answered with 503; others are closed at
/// once.
const OVER_LIMIT: u32 = 16;

impl Server {
    /// The client that a connection from `peer` counts for, if that is known before its request.
    /// `None` for a proxy; without `trusted_proxies`, any private address may be one.
    pub(super) fn client_of_peer(&self, peer: IpAddr) -> Option<ClientKey> {
        let proxies = &self.settings.trusted_proxies.value;
        let may_be_proxy =
            if proxies.is_empty() { client_address::is_private(peer) } else { self.is_proxy(peer) };
        (!may_be_proxy).then(|| ClientKey::of(peer))
    }

    /// The client that a trusted proxy names in the request's headers.
    pub(super) fn client_of_head(&self, peer: IpAddr, head: &Head<'_, '_>) -> Option<ClientKey> {
        let proxies = &self.settings.trusted_proxies.value;
        if self.settings.proxy_protocol.value || !self.is_proxy(peer) {
            return None;
        }
        let client = client_address::client(peer, head.forwarded_for(), proxies);
        (!self.is_proxy(client)).then(|| ClientKey::of(client))
    }

    /// Whether connections from this address start with a PROXY header.
    pub(super) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.settings.proxy_protocol.value && self.is_proxy(peer)
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.settings.trusted_proxies.value.iter().any(|proxy| proxy.contains(peer))
    }

    /// Counts a connection for its client. Returns false if the client has too many: the connection
    /// is then to be answered with 503, or has been ended already.
    pub(super) fn admit_client(&mut self, id: ConnId, client: ClientKey) -> bool {
        let limit = limit(self.settings.max_per_address.value);
        let before = self.conns.count_of(client).connections;
        if before >= limit {
            if self.log_limiter.should_log(Cause::PerAddress, self.now) {
                warn!(
                    "Address {client} has {}, at its limit of {limit}. New connections from it are \
                     rejected; browsers will retry. If it is a proxy, add it to trusted_proxies; \
                     if many users share it, raise max_per_address.",
                    plural(before.into(), "connection", "connections")
                );
            }
            self.count_end(id, End::AddressLimit);
            if before >= limit.saturating_add(OVER_LIMIT) {
                self.end(id, End::AddressLimit);
                return false;
            }
        }
        self.conns.set_client(id, client);
        before < limit
    }

    /// Calls [`admit_client`](Self::admit_client) before the request has arrived. A rejection is
    /// answered once it has.
    pub(super) fn admit_client_early(&mut self, id: ConnId, client: ClientKey) {
        if !self.admit_client(id, client)
            && let Some(conn) = self.conn(id)
            && let Phase::Upgrading(upgrading) = &mut conn.phase
        {
            upgrading.over_limit = true;
        }
    }

    /// Whether a login is to be answered with 503, since too many logins wait, in total or from its
    /// address, or its user has too many connections. Counts the reason.
    pub(super) fn reject_login_if_crowded(
        &mut self,
        id: ConnId,
        credentials: Option<&Credentials>,
    ) -> bool {
        if self.checks.queue().is_full_for_logins() {
            self.count_end(id, End::CheckQueue);
            return true;
        }
        let client = self.conn(id).and_then(|conn| conn.client);
        let logins = client.map_or(0, |client| self.conns.count_of(client).logins);
        if let Some(client) = client.filter(|_| logins >= MAX_LOGINS_OF_ADDRESS) {
            if self.log_limiter.should_log(Cause::Logins, self.now) {
                warn!(
                    "{MAX_LOGINS_OF_ADDRESS} logins from address {client} wait to be checked. New \
                     ones from it are rejected; browsers will retry."
                );
            }
            self.count_end(id, End::LoginLimit);
            return true;
        }
        let is_over_limit = credentials.is_some_and(|it| {
            self.reject_user_if_over_limit(&it.user, self.hub.connections_of(&it.user))
        });
        if is_over_limit {
            self.count_end(id, End::UserLimit);
        }
        is_over_limit
    }

    /// Whether a user with this many connections may open no further one. Logs the rejection.
    pub(super) fn reject_user_if_over_limit(&mut self, user: &str, connections: usize) -> bool {
        let limit = limit(self.settings.max_per_user.value) as usize;
        if connections < limit {
            return false;
        }
        if self.log_limiter.should_log(Cause::PerUser, self.now) {
            warn!(
                "User {} has {}, the limit per user. New connections of this user are rejected; \
                 browsers will retry. Raise max_per_user if users need more.",
                Printable(user),
                plural(connections as u64, "connection", "connections"),
            );
        }
        true
    }

    /// Whether pages of the request's origin may connect. Counts and logs a rejection.
    pub(super) fn admit_origin(&mut self, id: ConnId, head: &Head<'_, '_>) -> bool {
        if allows(&self.settings, head) {
            return true;
        }
        self.count_end(id, End::Origin);
        if self.log_limiter.should_log(Cause::Origin, self.now) {
            let origin = head.origin().map_or("none".into(), String::from_utf8_lossy);
            warn!(
                "A page was rejected because its origin is not in the setting origins: {}. If it \
                 is an address of this EspoCRM, add it.",
                Printable(origin)
            );
        }
        false
    }
}

fn allows(settings: &Settings, head: &Head<'_, '_>) -> bool {
    let origins = &settings.origins.value;
    origins.is_empty()
        || head.origin().is_some_and(|header| origins.iter().any(|origin| origin.is(header)))
}

/// 0 means no limit.
fn limit(setting: usize) -> u32 {
    if setting == 0 { u32::MAX } else { u32::try_from(setting).unwrap_or(u32::MAX) }
}
