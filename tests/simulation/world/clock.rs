//! Time, timers and rechecks.

use std::time::Duration;

use espocrm_websocket::engine::checks::check::Urgency;
use espocrm_websocket::engine::id::ConnId;

use super::{INTERVAL, LONGEST, RESUME, World};
use crate::model::Connection;

impl World {
    pub(super) fn advance_time(&mut self) {
        if self.choices.chance(3) {
            self.outage = !self.outage;
        }
        let longest = *self.choices.pick(&[10, 1_000, 30_000, LONGEST.as_millis() as usize]);
        self.step = Duration::from_millis(self.choices.below(longest) as u64);
        self.now = self.now.after(self.step);
        self.queue.expire(self.now);
        let mut fired = Vec::new();
        self.timers.take_due(self.now, &mut fired);
        for id in fired {
            // Like the daemon: compare with the actual deadline, unless the timer is obsolete.
            let Some(due) = self.due.get_mut(&id) else { continue };
            if self.armed.get(&id).is_none_or(|armed| *armed > self.now) {
                continue;
            }
            self.armed.remove(&id);
            if *due <= self.now {
                *due = self.now.after(INTERVAL);
                self.seen("pinged");
            }
            self.recheck(id);
            self.resume(id);
            self.arm(id);
        }
        let second = Duration::from_secs(1);
        assert!(self.due.values().all(|due| self.now < due.after(second)), "a timer was lost");
        if let Some(next) = self.timers.next_due() {
            assert!(next > self.now && self.due.values().all(|due| next <= due.after(second)));
        }
        self.expect_rechecks();
        self.perform_actions();
    }

    /// Rechecks at an arbitrary time: nothing is requested before the recheck is due.
    pub(super) fn recheck_one(&mut self) {
        if let Some(id) = self.some_conn() {
            self.recheck(id);
        }
    }

    pub(super) fn recheck(&mut self, id: ConnId) {
        let before = self.issued.len();
        self.hub.recheck(self.now, id);
        self.perform_actions();
        let tickets = &self.issued[before..];
        if tickets.is_empty() {
            return;
        }
        let user = self.model.conns[&id].user.clone();
        assert!(tickets.iter().all(|ticket| self.model.conns[&ticket.conn].user == user));
        let mut tabs = self.model.conns.values().filter(|conn| conn.user == user);
        let is_requested =
            |conn: &Connection| conn.recheck.is_some() || conn.requested == Some(self.now);
        assert!(tabs.all(|conn| is_requested(conn) || !conn.authenticated));
        self.trace(|| format!("{user} is rechecked"));
        self.seen("rechecked");
    }

    /// Adds a timer for the earliest deadline.
    pub(super) fn arm(&mut self, id: ConnId) {
        let Some(due) = self.due.get(&id) else { return };
        let resume = self.hub.has_delayed(id).then(|| self.now.after(RESUME));
        let at =
            [Some(*due), self.hub.next_recheck(id), resume].into_iter().flatten().min().unwrap();
        if self.armed.get(&id).is_none_or(|armed| *armed > at) {
            let at = self.timers.add(id, at);
            self.armed.insert(id, at);
        }
    }

    /// Requests the checks of delayed subscriptions if there is room.
    fn resume(&mut self, id: ConnId) {
        let Some(user) = self.hub.user(id).filter(|_| self.hub.has_delayed(id)) else { return };
        let room = self.queue.room(Urgency::Subscription, user);
        self.hub.resume(id, room);
        self.perform_actions();
        self.seen("resumed");
    }

    pub(super) fn set_recheck_interval(&mut self, seconds: u64) {
        let interval = Duration::from_secs(seconds);
        if interval != self.recheck_interval {
            self.recheck_interval = interval;
            self.recheck_since = self.now;
        }
        if self.hub.set_recheck_interval(self.now, interval) {
            let ids: Vec<ConnId> = self.due.keys().copied().collect();
            for id in ids {
                self.arm(id);
            }
        }
    }

    /// The token of every authenticated connection is rechecked within the interval, which is
    /// counted in whole seconds and ends with a step of time.
    fn expect_rechecks(&self) {
        let late = Duration::from_secs(2) + self.step;
        for (id, conn) in &self.model.conns {
            let idle = self.now.since(conn.rechecked.max(self.recheck_since));
            let is_requested = !conn.authenticated || conn.recheck.is_some();
            let off = self.recheck_interval.is_zero();
            let in_time = idle <= self.recheck_interval + late;
            assert!(is_requested || off || in_time, "{id} was not rechecked");
        }
    }
}
