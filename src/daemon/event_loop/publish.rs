//! Receiving EspoCRM's messages and publishing them.

use log::{debug, warn};

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::zmq::Received;
use crate::engine::espocrm::submission;
use crate::engine::espocrm::submission::Rejection;
use crate::engine::limits::MAX_TURN;
use crate::engine::printable::Printable;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::wamp;

/// Messages received in one turn; under load a connection gets that many in one write.
const MESSAGES: usize = 256;

/// Deliveries after which a turn receives no more messages; each takes 16 B in an outbound queue.
const DELIVERIES: u64 = 64 * 1024;

impl Server {
    /// Receives messages of EspoCRM, up to this turn's budget.
    pub(super) fn receive_messages(&mut self) {
        let before = self.telemetry.stats.messages;
        self.take_messages();
        if self.telemetry.stats.messages > before {
            // libzmq may now read more of the input that arrived earlier.
            self.wake_zmq_guard();
        }
    }

    fn take_messages(&mut self) {
        let enough = self.telemetry.stats.deliveries + DELIVERIES;
        let mut bytes = 0;
        for _ in 0..MESSAGES {
            let published = match self.zmq.receive() {
                Received::Message(message) => {
                    bytes += message.len();
                    self.publish(&message).map(drop)
                }
                Received::Rejected(rejection) => Err(rejection),
                Received::Nothing => return,
            };
            self.telemetry.stats.messages += 1;
            if let Err(rejection) = published {
                self.drop_message(rejection);
            }
            if self.telemetry.stats.deliveries >= enough
                || bytes >= MAX_TURN
                || self.memory_is_short()
            {
                return;
            }
        }
    }

    /// Delivers a message to its receivers and returns their number.
    pub(super) fn publish(&mut self, bytes: &[u8]) -> Result<u64, Rejection> {
        let submission = submission::parse(bytes)?;
        let mut receivers = self.hub.receivers(&submission)?.peekable();
        if receivers.peek().is_none() {
            drop(receivers);
            self.show_message(&submission, 0);
            return Ok(0);
        }
        let before = self.telemetry.stats.deliveries;
        // Encoded once for all receivers.
        let frame = SharedFrame::text(&wamp::event(&submission.topic, submission.json));
        let mut slow = Vec::new();
        for id in receivers {
            if self.conns.send(id, frame.clone()).is_err() {
                slow.push(id);
                continue;
            }
            self.telemetry.stats.deliveries += 1;
            debug!("send {} for connection {id}", Printable(&submission.topic));
        }
        if let Some(user) = &submission.user {
            debug!("message {} for user {}", Printable(&submission.topic), Printable(user));
        }
        for id in slow {
            self.end_slow(id);
        }
        let receivers = self.telemetry.stats.deliveries - before;
        self.show_message(&submission, receivers);
        self.evict_largest();
        Ok(receivers)
    }

    fn drop_message(&mut self, rejection: Rejection) {
        self.telemetry.stats.drop(rejection);
        self.show_rejection(rejection);
        if self.log_limiter.should_log(Cause::Rejected(rejection), self.now) {
            warn!(
                "A ZeroMQ message was dropped: {rejection}. If EspoCRM did not send it, find out \
                 which programs can reach {}.",
                self.zmq.endpoint()
            );
        }
    }
}
