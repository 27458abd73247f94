//! What must hold after each step, and at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use espocrm_websocket::engine::checks::verdict::Verdict;
use espocrm_websocket::engine::id::ConnId;

use super::{LIMIT, TOPICS, World, about};

impl World {
    pub(super) fn check_everything(&mut self) {
        if self.is_thorough {
            self.hub.check_invariants();
            self.access.check_invariants();
        }
        assert!(self.running.len() <= LIMIT);
        assert_eq!(self.access.running(), self.running.len());
        assert_eq!(self.access.waiting(), self.model.waiting());
        let slots: BTreeSet<usize> = self.model.conns.keys().map(|id| id.slot()).collect();
        assert_eq!(slots.len(), self.model.conns.len());
        for (id, conn) in &self.model.conns {
            let user = conn.authenticated.then_some(conn.user.as_str());
            assert_eq!(self.hub.user(*id), user);
        }
        // Every authenticated connection's topics that could be published.
        for topic in TOPICS {
            let Ok(receivers) = self.hub.receivers(&about(topic, None)) else { continue };
            let mut receivers: Vec<ConnId> = receivers.collect();
            receivers.sort_unstable();
            assert_eq!(receivers, self.model.receivers(topic, None), "{topic}");
        }
    }

    /// Everybody leaves: nothing may be left.
    pub(super) fn end(&mut self) {
        let ids: Vec<ConnId> = self.model.conns.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
        self.carry_out();
        if self.reloading {
            self.reloading = false;
            self.access.set_paused(false);
            self.hub.reload(None);
            self.carry_out();
        }
        for (job, _) in std::mem::take(&mut self.running) {
            let mut answers = Vec::new();
            self.access.finish(self.now, job, &Verdict::Granted, &mut answers);
            assert!(answers.is_empty());
        }
        assert!(self.access.start(self.now).is_none());
        assert!(self.hub.is_empty());
        assert!(self.access.is_idle());
        let mut fired = Vec::new();
        self.timers.take_due(self.now.after(Duration::from_secs(3_600)), &mut fired);
        assert!(self.timers.is_empty());
    }
}
