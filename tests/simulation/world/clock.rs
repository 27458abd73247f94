//! Time, and what is due by it.

use std::time::Duration;

use espocrm_websocket::core::id::ConnId;

use super::{INTERVAL, LONGEST, World};

impl World {
    pub(super) fn let_time_pass(&mut self) {
        if self.choices.chance(3) {
            self.outage = !self.outage;
        }
        let longest = *self.choices.pick(&[10, 1_000, 30_000, LONGEST.as_millis() as usize]);
        self.now = self.now.after(Duration::from_millis(self.choices.below(longest) as u64));
        self.access.expire(self.now);
        let mut fired = Vec::new();
        self.timers.take_due(self.now, &mut fired);
        for id in fired {
            // As the server does: look at what it is really waiting for.
            let Some(due) = self.due.get_mut(&id) else { continue };
            if *due <= self.now {
                *due = self.now.after(INTERVAL);
                self.seen("pinged");
            }
            let due = self.due[&id];
            self.timers.add(id, due);
            self.review(id);
        }
        let second = Duration::from_secs(1);
        assert!(self.due.values().all(|due| self.now < due.after(second)), "a timer was lost");
        if let Some(next) = self.timers.next_due() {
            assert!(next > self.now && self.due.values().all(|due| next <= due.after(second)));
        }
        self.expect_reviews();
        self.carry_out();
    }

    /// At any time: not earlier than it is due anything is asked.
    pub(super) fn review_one(&mut self) {
        if let Some(id) = self.some_conn() {
            self.review(id);
        }
    }

    pub(super) fn review(&mut self, id: ConnId) {
        let before = self.issued.len();
        self.hub.review(self.now, id);
        self.carry_out();
        let tickets = &self.issued[before..];
        if tickets.is_empty() {
            return;
        }
        let user = self.model.conns[&id].user.clone();
        assert!(tickets.iter().all(|ticket| self.model.conns[&ticket.conn].user == user));
        let mut tabs = self.model.conns.values().filter(|conn| conn.user == user);
        assert!(tabs.all(|conn| conn.review.is_some() || !conn.authenticated));
        self.tell(|| format!("{user} is reviewed"));
        self.seen("reviewed");
    }

    pub(super) fn set_review_interval(&mut self, seconds: u64) {
        let interval = Duration::from_secs(seconds);
        if interval != self.review_interval {
            self.review_interval = interval;
            self.review_since = self.now;
        }
        self.hub.set_review_interval(interval);
    }

    /// Everybody who is logged in has been asked about within the interval, and the time between
    /// two looks: one that plans the first review, and one that finds out that it is due.
    fn expect_reviews(&self) {
        let look = INTERVAL + Duration::from_secs(1) + LONGEST;
        for (id, conn) in &self.model.conns {
            let idle = self.now.since(conn.reviewed.max(self.review_since));
            let asked = !conn.authenticated || conn.review.is_some();
            let off = self.review_interval.is_zero();
            assert!(asked || off || idle <= self.review_interval + 2 * look, "{id} is forgotten");
        }
    }
}
