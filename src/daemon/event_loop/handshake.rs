//! The handshake: from an HTTP request to a WebSocket.

use std::net::IpAddr;

use log::{info, warn};

use super::log_limiter::Cause;
use super::{Backend, Server};
use crate::engine::connection::Handshake;
use crate::engine::id::ConnId;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::protocol::frame::CloseReason;
use crate::engine::protocol::http;
use crate::engine::protocol::http::{Refusal, Upgrade};
use crate::engine::telemetry::stats::End;

impl Server {
    /// Answers a request if it is complete.
    pub(super) fn receive_request(&mut self, id: ConnId, request: Handshake) {
        let mut headers = http::no_headers();
        let head = match http::parse(request.bytes(), &mut headers) {
            Ok(Some(head)) => head,
            Ok(None) => {
                if let Some(conn) = self.conns.state(id) {
                    conn.resume(request);
                }
                return;
            }
            Err(refusal) => return self.refuse(id, refusal),
        };
        match head.upgrade() {
            Ok(mut upgrade) => {
                if !self.admit_request(id, &request, &head, upgrade.credentials.as_ref()) {
                    return self.refuse(id, Refusal::Unavailable);
                }
                if !self.admit_origin(id, &head) {
                    upgrade.credentials = None;
                }
                self.begin_websocket(id, &upgrade);
                let rest = request.bytes().get(head.length..).unwrap_or_default();
                self.receive(id, rest);
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

    /// Assigns a connection to the client that a proxy has named, and continues with the bytes after
    /// the PROXY header.
    pub(super) fn receive_proxy_header(&mut self, id: ConnId, client: Option<IpAddr>, rest: &[u8]) {
        if let Some(client) = client.map(ClientKey::of) {
            self.admission.assign_handshake(id, client);
            self.admit_client(id, client);
        }
        let Some(conn) = self.conns.get(id) else { return };
        if !conn.is_tls() {
            if !rest.is_empty() {
                self.receive(id, rest);
            }
            return;
        }
        match conn.begin_tls(rest) {
            // The kernel does not report the bytes that TLS has buffered already.
            Ok(()) => self.conns.schedule_read(id),
            Err(error) => {
                self.log_tls_failure(&error);
                self.end(id, End::Tls);
            }
        }
    }

    pub(super) fn reject_proxy_header(&mut self, id: ConnId) {
        if self.log_limiter.should_log(Cause::ProxyHeader, self.now) {
            warn!(
                "A trusted proxy opened a connection without a PROXY protocol header. Enable the \
                 PROXY protocol in the proxy, or disable proxy_protocol."
            );
        }
        self.end(id, End::ProxyHeader);
    }

    fn begin_websocket(&mut self, id: ConnId, upgrade: &Upgrade) {
        let Some(conn) = self.conns.state(id) else { return };
        conn.accept(self.now, self.settings.ping_interval.value, upgrade);
        self.admission.end_handshake(id);
        if let Some(credentials) = &upgrade.credentials {
            self.admission.begin_login(conn);
            self.hub.open(id, credentials);
            self.phase_changed(id);
        } else {
            // Only after the upgrade, since an HTTP error would make the browser retry forever.
            self.reject_as(id, End::NoToken);
            self.close(id, CloseReason::Refused);
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
        if let Some(conn) = self.conns.state(id) {
            // Rejections for a limit were logged and counted before.
            conn.refuse(self.now, refusal);
            self.admission.end_handshake(id);
            self.phase_changed(id);
        }
    }

    /// Sends an HTTP response, the last output of this connection.
    fn respond(&mut self, id: ConnId, response: String) {
        if let Some(conn) = self.conns.state(id) {
            conn.respond(self.now, response);
            self.admission.end_handshake(id);
            self.phase_changed(id);
        }
    }
}
