//! From an HTTP request to a WebSocket.

use log::{info, warn};

use super::bursts::Cause;
use super::{Backend, Server};
use crate::daemon::connection::Phase;
use crate::engine::id::ConnId;
use crate::engine::limits::CLOSE_DEADLINE;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::http;
use crate::engine::protocol::http::{Refusal, Upgrade};
use crate::engine::protocol::proxy_header;
use crate::engine::protocol::proxy_header::Malformed;
use crate::engine::protocol::reader::Reader;
use crate::engine::telemetry::stats::End;
use crate::engine::timers;

impl Server {
    pub(super) fn receive_request(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conn(id) else { return };
        let Phase::Upgrading(upgrading) = &mut conn.phase else { return };
        let is_worth_parsing = upgrading.feed(bytes);
        if upgrading.introduction {
            return self.receive_introduction(id);
        }
        if !is_worth_parsing {
            return;
        }
        let request = std::mem::take(upgrading);
        let mut headers = http::no_headers();
        let head = match http::parse(request.bytes(), &mut headers) {
            Ok(Some(head)) => head,
            Ok(None) => {
                // Not complete yet.
                conn.phase = Phase::Upgrading(request);
                return;
            }
            Err(refusal) => return self.refuse(id, refusal),
        };
        match head.upgrade() {
            Ok(mut upgrade) => {
                let client = request.peer.and_then(|peer| self.client_of_head(peer, &head));
                let room = client.is_none_or(|client| self.belongs_to(id, client));
                let credentials = upgrade.credentials.as_ref();
                if !room
                    || request.over_limit
                    || self.is_locked_down(id)
                    || self.is_crowded(id, credentials)
                {
                    return self.refuse(id, Refusal::Unavailable);
                }
                if !self.may_connect(id, &head) {
                    upgrade.credentials = None;
                }
                self.begin_websocket(id, upgrade);
                let rest = request.bytes().get(head.length..).unwrap_or_default();
                self.receive_frames(id, rest);
            }
            Err(refusal) => {
                if let Backend::Demo(demo) = &self.backend {
                    let response = demo.respond(&head).unwrap_or_else(|| refusal.response());
                    self.respond(id, response);
                } else {
                    self.refuse(id, refusal);
                }
            }
        }
    }

    /// A proxy says first whose connection it passes on.
    fn receive_introduction(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let Phase::Upgrading(upgrading) = &mut conn.phase else { return };
        let (client, rest) = match proxy_header::parse(upgrading.bytes()) {
            Ok(None) => return,
            Ok(Some(introduction)) => {
                (introduction.client, upgrading.introduced(introduction.length))
            }
            Err(Malformed) => {
                if self.bursts.begins(Cause::Introduction, self.now) {
                    warn!(
                        "A trusted proxy began a connection without a header of the PROXY \
                         protocol. Turn it on in the proxy, or proxy_protocol off here."
                    );
                }
                return self.end(id, End::ProxyHeader);
            }
        };
        if let Some(client) = client {
            let client = ClientKey::of(client);
            self.assign_handshake(id, client);
            self.will_belong_to(id, client);
        }
        let Some(conn) = self.conn(id) else { return };
        if !conn.is_tls() {
            if !rest.is_empty() {
                self.receive_request(id, &rest);
            }
            return;
        }
        match conn.begin_tls(&rest) {
            // What it has in it already is told by nobody.
            Ok(()) => self.read_later(id),
            Err(error) => {
                self.no_tls(&error);
                self.end(id, End::Tls);
            }
        }
    }

    fn begin_websocket(&mut self, id: ConnId, upgrade: Upgrade) {
        let due = self.now.after(timers::spread(self.settings.ping_interval.value, id));
        let Some(conn) = self.conn(id) else { return };
        conn.phase = Phase::Open(Reader::default());
        conn.due = due;
        self.end_handshake(id);
        self.arm(id);
        self.send(id, SharedFrame::encoded(upgrade.response().into_bytes()));
        match upgrade.credentials {
            #[cfg(feature = "echo")]
            _ if self.echoes() => {}
            Some(credentials) => {
                self.begin_login(id);
                self.hub.open(id, &credentials);
            }
            // After the upgrade: an HTTP error would make the browser try again for ever.
            None => {
                self.count_end(id, End::NoToken);
                self.close(id, CloseReason::Refused);
            }
        }
        // At once: whatever the check needs to be started, the browser is not kept waiting for it.
        // It may be gone already: then the hub closes what it has opened.
        self.flush_one(id);
    }

    fn refuse(&mut self, id: ConnId, refusal: Refusal) {
        if refusal != Refusal::Unavailable && self.bursts.begins(Cause::Refused, self.now) {
            info!(
                "A request that opens no WebSocket was refused: {refusal}. If browsers cannot \
                 connect, the proxy in front does not pass the upgrade on."
            );
        }
        // Of one that came when there were too many that was said before.
        self.count_end(id, End::NotWebSocket);
        self.respond(id, refusal.response());
    }

    /// Sends the last that this connection gets.
    fn respond(&mut self, id: ConnId, response: String) {
        self.send(id, SharedFrame::encoded(response.into_bytes()));
        if let Some(conn) = self.conn(id) {
            conn.phase = Phase::Finishing;
            self.end_handshake(id);
            self.limit(id, CLOSE_DEADLINE);
        }
    }
}
