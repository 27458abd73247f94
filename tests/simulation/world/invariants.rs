//! Invariants after each step, and at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use espocrm_websocket::engine::checks::verdict::Verdict;
use espocrm_websocket::engine::id::ConnId;

use super::{LIMIT, TOPICS, World, message};

impl World {
    pub(super) fn check_invariants(&mut self) {
        if self.is_thorough {
            self.hub.check_invariants();
            self.queue.check_invariants();
        }
        assert!(self.running.len() <= LIMIT);
        assert_eq!(self.queue.running(), self.running.len());
        assert_eq!(self.queue.waiting(), self.model.waiting());
        let slots: BTreeSet<usize> = self.model.conns.keys().map(|id| id.slot()).collect();
        assert_eq!(slots.len(), self.model.conns.len());
        for (id, conn) in &self.model.conns {
            let user = conn.authenticated.then_some(conn.user.as_str());
            assert_eq!(self.hub.user(*id), user);
        }
        // The receivers of all topics.
        for topic in TOPICS {
            let Ok(receivers) = self.hub.receivers(&message(topic, None)) else { continue };
            let mut receivers: Vec<ConnId> = receivers.collect();
            receivers.sort_unstable();
            assert_eq!(receivers, self.model.receivers(topic, None), "{topic}");
        }
    }

    /// Closes all connections; no state may be left.
    pub(super) fn end(&mut self) {
        let ids: Vec<ConnId> = self.model.conns.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
        self.perform_actions();
        if self.reloading {
            self.reloading = false;
            self.queue.set_paused(false);
            self.hub.reload(None);
            self.perform_actions();
        }
        for (job, _) in std::mem::take(&mut self.running) {
            let mut answers = Vec::new();
            self.queue.finish(self.now, job, &Verdict::Granted, &mut answers);
            assert!(answers.is_empty());
        }
        assert!(self.queue.start(self.now).is_none());
        assert!(self.hub.is_empty());
        assert!(self.queue.is_idle());
        let mut fired = Vec::new();
        self.timers.take_due(self.now.after(Duration::from_secs(3_600)), &mut fired);
        assert!(self.timers.is_empty());
    }
}
