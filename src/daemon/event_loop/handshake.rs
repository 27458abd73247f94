//! The handshake: from an HTTP request to a WebSocket.

use log::{info, warn};

use super::log_limiter::Cause;
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
        let is_parse_due = upgrading.feed(bytes);
        if upgrading.expects_proxy_header {
            return self.receive_proxy_header(id);
        }
        if !is_parse_due {
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
                let is_admitted = client.is_none_or(|client| self.admit_client(id, client));
                let credentials = upgrade.credentials.as_ref();
                if !is_admitted
                    || request.over_limit
                    || self.reject_if_locked_down(id)
                    || self.reject_login_if_crowded(id, credentials)
                {
                    return self.refuse(id, Refusal::Unavailable);
                }
                if !self.admit_origin(id, &head) {
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

    /// Reads the PROXY header, in which a proxy names its client.
    fn receive_proxy_header(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let Phase::Upgrading(upgrading) = &mut conn.phase else { return };
        let (client, rest) = match proxy_header::parse(upgrading.bytes()) {
            Ok(None) => return,
            Ok(Some(header)) => (header.client, upgrading.skip_proxy_header(header.length)),
            Err(Malformed) => {
                if self.log_limiter.should_log(Cause::ProxyHeader, self.now) {
                    warn!(
                        "A trusted proxy opened a connection without a PROXY protocol header. \
                         Enable the PROXY protocol in the proxy, or disable proxy_protocol."
                    );
                }
                return self.end(id, End::ProxyHeader);
            }
        };
        if let Some(client) = client {
            let client = ClientKey::of(client);
            self.assign_handshake(id, client);
            self.admit_client_early(id, client);
        }
        let Some(conn) = self.conn(id) else { return };
        if !conn.is_tls() {
            if !rest.is_empty() {
                self.receive_request(id, &rest);
            }
            return;
        }
        match conn.begin_tls(&rest) {
            // The kernel does not report the bytes that TLS has buffered already.
            Ok(()) => self.conns.schedule_read(id),
            Err(error) => {
                self.log_tls_failure(&error);
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
                self.conns.begin_login(id);
                self.hub.open(id, &credentials);
            }
            // Only after the upgrade, since an HTTP error would make the browser retry forever.
            None => {
                self.count_end(id, End::NoToken);
                self.close(id, CloseReason::Refused);
            }
        }
        // Immediately, so that the browser need not wait until the check has been started. If the
        // connection ends here, the hub closes the session it has just opened.
        self.flush_one(id);
    }

    fn refuse(&mut self, id: ConnId, refusal: Refusal) {
        if refusal != Refusal::Unavailable && self.log_limiter.should_log(Cause::Refused, self.now)
        {
            info!(
                "A request was rejected because it is not a WebSocket handshake: {refusal}. If \
                 browsers cannot connect, the proxy does not forward the WebSocket upgrade."
            );
        }
        // Rejections for a limit were logged before.
        self.count_end(id, End::NotWebSocket);
        self.respond(id, refusal.response());
    }

    /// Sends an HTTP response, the last output of this connection.
    fn respond(&mut self, id: ConnId, response: String) {
        self.send(id, SharedFrame::encoded(response.into_bytes()));
        if let Some(conn) = self.conn(id) {
            conn.phase = Phase::Finishing;
            self.end_handshake(id);
            self.set_deadline(id, CLOSE_DEADLINE);
        }
    }
}
