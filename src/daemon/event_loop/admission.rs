//! Applies and logs the decisions of admission.

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::engine::admission::{Decision, Limit, Load, Policy};
use crate::engine::connection::Handshake;
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_LOGINS_OF_ADDRESS;
use crate::engine::printable::{Printable, plural};
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::http::{Credentials, Head};
use crate::engine::telemetry::stats::End;
use crate::settings::Settings;

impl Server {
    /// Counts a connection for its client. If the client has too many, the connection is rejected:
    /// answered with 503 once its request is complete, or ended.
    pub(super) fn admit_client(&mut self, id: ConnId, client: ClientKey) {
        match self.admission.decide_client(client) {
            Decision::Admit => {}
            Decision::Reject(limit) => self.reject(id, &limit),
            Decision::Drop(limit) => {
                self.log_limit(&limit);
                return self.end(id, limit.end());
            }
        }
        if let Some(conn) = self.conns.state(id) {
            self.admission.count(conn, client);
        }
    }

    /// Whether a WebSocket handshake is admitted. Otherwise it is to be answered with 503.
    pub(super) fn admit_request(
        &mut self,
        id: ConnId,
        request: &Handshake,
        head: &Head<'_, '_>,
        credentials: Option<&Credentials>,
    ) -> bool {
        if let Some(client) = self.admission.client_of_head(request.peer(), head) {
            self.admit_client(id, client);
        }
        let Some(conn) = self.conns.state(id).filter(|conn| !conn.is_rejected()) else {
            return false;
        };
        let user = credentials.map(|it| (&*it.user, self.hub.connections_of(&it.user)));
        let load = Load {
            is_locked_down: self.checks.rejects_clients(),
            is_queue_full: self.checks.queue().is_full_for_logins(),
            user,
        };
        match self.admission.decide_login(conn, &load) {
            Decision::Admit => true,
            Decision::Reject(limit) | Decision::Drop(limit) => {
                self.reject(id, &limit);
                false
            }
        }
    }

    /// Whether pages of the request's origin may connect. Counts and logs a rejection.
    pub(super) fn admit_origin(&mut self, id: ConnId, head: &Head<'_, '_>) -> bool {
        if self.admission.allows_origin(head) {
            return true;
        }
        self.reject_as(id, End::Origin);
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

    /// Rejects a connection for a limit, and logs that.
    pub(super) fn reject(&mut self, id: ConnId, limit: &Limit<'_>) {
        self.log_limit(limit);
        self.reject_as(id, limit.end());
    }

    /// Sets the reason for a rejection.
    pub(super) fn reject_as(&mut self, id: ConnId, reason: End) {
        if let Some(conn) = self.conns.state(id) {
            conn.reject(reason);
        }
        self.count_end(id);
    }

    pub(super) fn log_limit(&mut self, limit: &Limit<'_>) {
        let mut is_logged = |cause| self.log_limiter.should_log(cause, self.now);
        match *limit {
            Limit::Connections(limit) if is_logged(Cause::OverLimit) => warn!(
                "The limit of {} is reached. New connections are rejected; browsers will retry. \
                 Raise max_connections, or find out which client opens so many.",
                plural(limit as u64, "connection", "connections")
            ),
            Limit::Address { client, connections, limit } if is_logged(Cause::PerAddress) => warn!(
                "Address {client} has {}, at its limit of {limit}. New connections from it are \
                 rejected; browsers will retry. If it is a proxy, add it to trusted_proxies; if \
                 many users share it, raise max_per_address.",
                plural(connections.into(), "connection", "connections")
            ),
            Limit::Logins(client) if is_logged(Cause::Logins) => warn!(
                "{MAX_LOGINS_OF_ADDRESS} logins from address {client} wait to be checked. New ones \
                 from it are rejected; browsers will retry."
            ),
            Limit::User { user, connections } if is_logged(Cause::PerUser) => warn!(
                "User {} has {}, the limit per user. New connections of this user are rejected; \
                 browsers will retry. Raise max_per_user if users need more.",
                Printable(user),
                plural(connections as u64, "connection", "connections"),
            ),
            // A full check queue and a failed self-check are logged when they occur.
            _ => {}
        }
    }

    /// Applies the settings for admission and memory.
    pub(super) fn apply_limits(&mut self) {
        self.admission.set_policy(policy(&self.settings));
        self.memory.set_limit(self.settings.max_buffered.value);
    }
}

/// The settings for admission.
pub(super) fn policy(settings: &Settings) -> Policy {
    Policy {
        connections: settings.max_connections.value,
        per_address: settings.max_per_address.value,
        per_user: settings.max_per_user.value,
        trusted_proxies: settings.trusted_proxies.value.clone(),
        proxy_protocol: settings.proxy_protocol.value,
        origins: settings.origins.value.clone(),
    }
}
