//! Connections after the handshake.

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::connection::Phase;
use crate::engine::id::ConnId;
use crate::engine::limits::{
    CLOSE_DEADLINE, MAX_CONTROL_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND, MAX_SUBSCRIPTIONS,
};
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::outbox::Full;
use crate::engine::protocol::reader::Incoming;
use crate::engine::protocol::wamp;
use crate::engine::telemetry::stats::{End, LimitHit};
use crate::platform::random;

impl Server {
    pub(super) fn receive_frames(&mut self, id: ConnId, bytes: &[u8]) {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (frames, closing) = match self.conn(id).map(|conn| &mut conn.phase) {
            Some(Phase::Open(reader)) => (reader.feed(bytes, &mut incoming), false),
            Some(Phase::Closing(reader)) => (reader.feed(bytes, &mut incoming), true),
            _ => Default::default(),
        };
        let now = self.now;
        // Conformance test suites send faster than any browser.
        let is_limited = cfg!(not(feature = "echo"));
        if is_limited && self.conn(id).is_some_and(|conn| !conn.count(now, frames)) {
            incoming.clear();
            self.close_flooding(id);
        }
        for incoming in incoming.drain(..) {
            match incoming {
                Incoming::Closed | Incoming::Violation(_) if closing => self.finish(id),
                _ if closing => {}
                #[cfg(feature = "echo")]
                Incoming::Message(_) | Incoming::Binary(_) if self.echoes() => {
                    self.echo(id, incoming);
                }
                Incoming::Message(text) => self.receive_message(id, &text),
                // EspoCRM's original daemon treats these as text.
                Incoming::Binary(bytes) => match std::str::from_utf8(&bytes) {
                    Ok(text) => self.receive_message(id, text),
                    Err(_) => self.close(id, CloseReason::Malformed),
                },
                Incoming::Pong => {}
                Incoming::Answer(frame) => self.send(id, frame),
                Incoming::Closed => self.finish(id),
                Incoming::Violation(reason) => {
                    self.close(id, reason);
                    // Further input is unreliable, including an answer to the Close frame.
                    self.finish(id);
                }
            }
        }
        self.incoming = incoming;
    }

    fn receive_message(&mut self, id: ConnId, text: &str) {
        if let Some(conn) = self.conn(id) {
            conn.completed();
        }
        if wamp::may_subscribe(text) {
            // Subscriptions are decided by the categories that are on disk now.
            self.check_for_changes();
        }
        self.hub.receive(id, text);
        self.carry_out();
    }

    /// Closes a connection that sends too many frames: not a browser, or a script in an endless
    /// loop.
    fn close_flooding(&mut self, id: ConnId) {
        if self.log_limiter.should_log(Cause::Flooded, self.now) {
            let user = self.hub.user(id).unwrap_or("(not yet logged in)").to_owned();
            warn!(
                "A tab of user {user} sent more than {MAX_FRAMES_PER_SECOND} messages or \
                 {MAX_CONTROL_FRAMES_PER_SECOND} pings in a second. Its connection was closed; it \
                 reconnects only when its page is reloaded."
            );
        }
        self.close(id, CloseReason::Flood);
    }

    pub(super) fn welcome(&mut self, id: ConnId) {
        self.conns.end_login(id);
        // Other connections of the user may have been admitted during the check.
        if let Some(user) = self.hub.user(id).map(str::to_owned) {
            let others = self.hub.connections_of(&user).saturating_sub(1);
            if self.reject_user_if_over_limit(&user, others) {
                return self.end(id, End::UserLimit);
            }
        }
        match random::hex() {
            Ok(session) => self.send(id, SharedFrame::text(&wamp::welcome(&session))),
            Err(error) => {
                warn!(
                    "The kernel provided no random numbers: {error}. A connection was ended; the \
                     browser will retry."
                );
                return self.end(id, End::CheckFailed);
            }
        }
        // Schedules its recheck together with those of the user's other tabs.
        self.hub.recheck(self.now, id);
        self.arm(id);
    }

    /// Queues a frame, to be written at the end of this turn. Ignored after a Close frame.
    pub(super) fn send(&mut self, id: ConnId, frame: SharedFrame) {
        let Some(conn) = self.conn(id) else { return };
        if !matches!(conn.phase, Phase::Upgrading(_) | Phase::Open(_)) {
            return;
        }
        if let Err(Full) = self.conns.send(id, frame) {
            self.end_slow(id);
        }
    }

    /// Closes a connection with a Close frame, and waits a limited time for the answer. The tab
    /// does not reconnect until it is reloaded.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        let is_login = self.conn(id).is_some_and(|conn| conn.logging_in);
        self.count_end(
            id,
            match reason {
                CloseReason::Refused if is_login => End::TokenDenied,
                CloseReason::Refused => End::TokenRevoked,
                CloseReason::Forbidden => End::Forbidden,
                CloseReason::Protocol => End::Protocol,
                CloseReason::Malformed => End::Malformed,
                CloseReason::TooBig => End::TooBig,
                CloseReason::Flood => End::Flood,
            },
        );
        self.conns.end_login(id);
        self.hub.close(id);
        self.send(id, SharedFrame::close(reason));
        let Some(conn) = self.conn(id) else { return };
        if let Phase::Open(reader) = &mut conn.phase {
            conn.phase = Phase::Closing(std::mem::take(reader));
            self.set_deadline(id, CLOSE_DEADLINE);
        }
    }

    /// Writes queued output and then ends TCP, since both sides have sent a Close frame.
    fn finish(&mut self, id: ConnId) {
        self.count_end(id, End::PeerClosed);
        self.conns.end_login(id);
        self.hub.close(id);
        let Some(conn) = self.conn(id) else { return };
        conn.phase = Phase::Finishing;
        if !conn.has_output() {
            conn.written();
        }
        self.set_deadline(id, CLOSE_DEADLINE);
    }

    pub(super) fn too_many_subscriptions(&mut self, id: ConnId) {
        self.stats.hit_limit(LimitHit::Subscriptions);
        if self.log_limiter.should_log(Cause::TooManySubscriptions, self.now) {
            let user = self.hub.user(id).unwrap_or("(not yet logged in)");
            warn!(
                "A tab of user {user} requested more than {MAX_SUBSCRIPTIONS} subscriptions. \
                 Further ones are ignored."
            );
        }
    }
}
