//! Whose connection it is: limits by client address, by user, and by the page's origin.

use std::net::IpAddr;

use log::warn;

use super::Server;
use super::bursts::Cause;
use crate::daemon::connection::Phase;
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_LOGINS_OF_ADDRESS;
use crate::engine::printable::{Printable, plural};
use crate::engine::protocol::client_address;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::http::{Credentials, Head};
use crate::engine::telemetry::stats::End;
use crate::settings::Settings;

/// Connections beyond the limit of an address that get an answer (503); others are ended at once.
const OVER_LIMIT: u32 = 16;

impl Server {
    /// What a connection from this address counts for, if that is known when it comes. Those of
    /// private addresses may come from a proxy, if none is named.
    pub(super) fn client_of_peer(&self, peer: IpAddr) -> Option<ClientKey> {
        let proxies = &self.settings.trusted_proxies.value;
        let may_be_proxy =
            if proxies.is_empty() { client_address::is_private(peer) } else { self.is_proxy(peer) };
        (!may_be_proxy).then(|| ClientKey::of(peer))
    }

    /// The same for a connection that a trusted proxy has passed on, by what it says.
    pub(super) fn client_of_head(&self, peer: IpAddr, head: &Head<'_, '_>) -> Option<ClientKey> {
        let proxies = &self.settings.trusted_proxies.value;
        if self.settings.proxy_protocol.value || !self.is_proxy(peer) {
            return None;
        }
        let client = client_address::client(peer, head.forwarded_for(), proxies);
        (!self.is_proxy(client)).then(|| ClientKey::of(client))
    }

    /// Whether connections from this address begin with a PROXY header.
    pub(super) fn is_introduced(&self, peer: IpAddr) -> bool {
        self.settings.proxy_protocol.value && self.is_proxy(peer)
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.settings.trusted_proxies.value.iter().any(|proxy| proxy.contains(peer))
    }

    /// Counts a connection for its client. False if that has too many: then it is to be told to
    /// come back, or it has been ended.
    pub(super) fn belongs_to(&mut self, id: ConnId, client: ClientKey) -> bool {
        let limit = limit(self.settings.max_per_address.value);
        let before = self.addresses.count(client).connections;
        if before >= limit {
            if self.bursts.begins(Cause::PerAddress, self.now) {
                warn!(
                    "The address {client} has {}, and may have {limit}: further ones are turned \
                     away. If it is a proxy's, name it in trusted_proxies; if it is that of many \
                     users, raise max_per_address.",
                    plural(before.into(), "connection", "connections")
                );
            }
            self.count_end(id, End::AddressLimit);
            if before >= limit.saturating_add(OVER_LIMIT) {
                self.end(id, End::AddressLimit);
                return false;
            }
        }
        if let Some(conn) = self.conn(id) {
            conn.client = Some(client);
            self.addresses.add(client);
        }
        before < limit
    }

    /// The same for one whose request has not arrived yet.
    pub(super) fn will_belong_to(&mut self, id: ConnId, client: ClientKey) {
        if !self.belongs_to(id, client)
            && let Some(conn) = self.conn(id)
            && let Phase::Upgrading(upgrading) = &mut conn.phase
        {
            upgrading.over_limit = true;
        }
    }

    /// It has ended.
    pub(super) fn leave(&mut self, id: ConnId) {
        self.end_login(id);
        let conn = self.conns.get_mut(id.slot()).filter(|conn| conn.id == id);
        if let Some(client) = conn.and_then(|conn| conn.client.take()) {
            self.addresses.remove(client);
        }
    }

    /// Whether so many logins of its address wait, or its user has so many connections, that it is
    /// told to come back.
    pub(super) fn is_crowded(&mut self, id: ConnId, credentials: Option<&Credentials>) -> bool {
        if self.check_queue.is_full_for_logins() {
            self.count_end(id, End::CheckQueue);
            return true;
        }
        let client = self.conn(id).and_then(|conn| conn.client);
        let logins = client.map_or(0, |client| self.addresses.count(client).logins);
        if let Some(client) = client.filter(|_| logins >= MAX_LOGINS_OF_ADDRESS) {
            if self.bursts.begins(Cause::Logins, self.now) {
                warn!(
                    "{MAX_LOGINS_OF_ADDRESS} logins of the address {client} wait to be checked: \
                     further ones are told to come back."
                );
            }
            self.count_end(id, End::LoginLimit);
            return true;
        }
        let has_too_many = credentials
            .is_some_and(|it| self.has_too_many(&it.user, self.hub.connections_of(&it.user)));
        if has_too_many {
            self.count_end(id, End::UserLimit);
        }
        has_too_many
    }

    /// Whether a user who has so many connections may have no more.
    pub(super) fn has_too_many(&mut self, user: &str, connections: usize) -> bool {
        let limit = limit(self.settings.max_per_user.value) as usize;
        if connections < limit {
            return false;
        }
        if self.bursts.begins(Cause::PerUser, self.now) {
            warn!(
                "User {} has {}, which is the limit: further ones are \
                 turned away. Raise max_per_user if so many are wanted.",
                Printable(user),
                plural(connections as u64, "connection", "connections"),
            );
        }
        true
    }

    /// Its login waits to be checked.
    pub(super) fn begin_login(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id).filter(|conn| !conn.logging_in) else { return };
        conn.logging_in = true;
        if let Some(client) = conn.client {
            self.addresses.begin_login(client);
        }
    }

    /// It waits no longer.
    pub(super) fn end_login(&mut self, id: ConnId) {
        let conn = self.conns.get_mut(id.slot()).filter(|conn| conn.id == id);
        if let Some(conn) = conn
            && std::mem::take(&mut conn.logging_in)
            && let Some(client) = conn.client
        {
            self.addresses.end_login(client);
        }
    }

    /// Whether a page of the request's origin may connect.
    pub(super) fn may_connect(&mut self, id: ConnId, head: &Head<'_, '_>) -> bool {
        if allows(&self.settings, head) {
            return true;
        }
        self.count_end(id, End::Origin);
        if self.bursts.begins(Cause::Origin, self.now) {
            let origin = head.origin().map_or("none".into(), String::from_utf8_lossy);
            warn!(
                "A page was refused whose origin is not among origins: {}. If it is one of \
                 EspoCRM's, add it.",
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

/// 0 stands for none.
fn limit(setting: usize) -> u32 {
    if setting == 0 { u32::MAX } else { u32::try_from(setting).unwrap_or(u32::MAX) }
}
