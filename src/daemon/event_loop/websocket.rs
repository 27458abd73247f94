//! Connections after the handshake.

use log::warn;

use super::Server;
use super::log_limiter::Cause;
use crate::engine::admission::Decision;
use crate::engine::connection::Event;
use crate::engine::id::ConnId;
use crate::engine::limits::{
    MAX_CONTROL_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND, MAX_SUBSCRIPTIONS,
};
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::outbox::Full;
use crate::engine::protocol::wamp;
use crate::engine::telemetry::stats::{End, LimitHit};
use crate::platform::random;

impl Server {
    /// Processes the items of the input.
    pub(super) fn receive_frames(&mut self, id: ConnId) {
        let mut incoming = std::mem::take(&mut self.incoming);
        for item in incoming.drain(..) {
            let Some(conn) = self.conns.state(id) else { continue };
            match conn.handle_incoming(self.now, item) {
                Ok(None) => {}
                Ok(Some(Event::Message(text))) => self.receive_message(id, &text),
                Ok(Some(Event::Closed)) => self.closed(id),
                Err(Full) => self.end_slow(id),
            }
        }
        self.incoming = incoming;
    }

    fn receive_message(&mut self, id: ConnId, text: &str) {
        if wamp::may_subscribe(text) {
            // Subscriptions are decided by the categories that are on disk now.
            self.check_for_changes();
        }
        self.hub.receive(id, text);
        self.carry_out();
    }

    /// Logs that a connection sends too many frames: not a browser, or a script in an endless loop.
    pub(super) fn closed_for_flood(&mut self, id: ConnId) {
        if self.log_limiter.should_log(Cause::Flooded, self.now) {
            let user = self.hub.user(id).unwrap_or("(not yet logged in)").to_owned();
            warn!(
                "A tab of user {user} sent more than {MAX_FRAMES_PER_SECOND} messages or \
                 {MAX_CONTROL_FRAMES_PER_SECOND} pings in a second. Its connection was closed; it \
                 reconnects only when its page is reloaded."
            );
        }
        self.closed(id);
    }

    pub(super) fn welcome(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.state(id) {
            self.admission.end_login(conn);
        }
        // Other connections of the user may have been admitted during the check.
        if let Some(user) = self.hub.user(id).map(str::to_owned) {
            let others = self.hub.connections_of(&user).saturating_sub(1);
            if let Decision::Reject(limit) = self.admission.decide_user(&user, others) {
                self.log_limit(&limit);
                return self.end(id, limit.end());
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
        if let Err(Full) = self.conns.send(id, frame) {
            self.end_slow(id);
        }
    }

    /// Closes a connection with a Close frame. The tab does not reconnect until it is reloaded.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        let Some(conn) = self.conns.state(id) else { return };
        match conn.close(self.now, reason) {
            Ok(()) => self.closed(id),
            Err(Full) => self.end_slow(id),
        }
    }

    /// Ends the session of a connection that is no longer open.
    fn closed(&mut self, id: ConnId) {
        self.hub.close(id);
        if let Some(conn) = self.conns.state(id) {
            self.admission.end_login(conn);
            self.phase_changed(id);
        }
    }

    pub(super) fn too_many_subscriptions(&mut self, id: ConnId) {
        self.telemetry.stats.hit_limit(LimitHit::Subscriptions);
        if self.log_limiter.should_log(Cause::TooManySubscriptions, self.now) {
            let user = self.hub.user(id).unwrap_or("(not yet logged in)");
            warn!(
                "A tab of user {user} requested more than {MAX_SUBSCRIPTIONS} subscriptions. \
                 Further ones are ignored."
            );
        }
    }
}
