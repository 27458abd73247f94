//! A simulated EspoCRM that answers checks, sends messages, and changes.

use espocrm_websocket::engine::checks::check::Check;
use espocrm_websocket::engine::checks::verdict::{Failure, Verdict};
use espocrm_websocket::engine::espocrm::category::Categories;
use espocrm_websocket::engine::id::ConnId;

use super::{TOPICS, USERS, World, message};
use crate::model::{self, Rule, Status};

impl World {
    /// The user's valid token.
    pub(super) fn token(&self, user: &str) -> String {
        format!("{user}{}", self.logouts.get(user).copied().unwrap_or(0))
    }

    /// Invalidates the user's token.
    pub(super) fn log_out(&mut self) {
        let user = *self.choices.pick(&USERS);
        self.trace(|| format!("{user} logs out"));
        *self.logouts.entry(user).or_default() += 1;
    }

    pub(super) fn publish(&mut self) {
        let topic = *self.choices.pick(&TOPICS);
        let user = self.choices.chance(40).then(|| *self.choices.pick(&USERS));
        let submission = message(topic, user);
        let expected = self.model.receivers(topic, user);
        let receivers = self.hub.receivers(&submission).map(Iterator::collect::<Vec<_>>);
        match receivers {
            Err(_) => {
                assert_eq!(model::rule(self.edition, topic), Rule::Unknown);
                assert!(expected.is_empty());
                self.seen("unknown topic");
            }
            Ok(mut receivers) => {
                receivers.sort_unstable();
                assert_eq!(receivers, expected, "{topic} for {user:?}");
                let seen = if expected.is_empty() { "no receivers" } else { "delivered" };
                self.seen(seen);
            }
        }
    }

    pub(super) fn finish_one(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let index = self.choices.below(self.running.len());
        let (job, check) = self.running.swap_remove(index);
        let verdict = self.verdict(&check);
        self.trace(|| format!("{:?} → {verdict:?}", check.arguments));
        let mut answers = Vec::new();
        self.queue.finish(self.now, job, &verdict, &mut answers);
        for answer in answers {
            self.apply(answer.ticket, &answer.verdict, &check);
        }
        self.perform_actions();
    }

    /// The current verdict of the simulated EspoCRM.
    pub(super) fn verdict(&mut self, check: &Check) -> Verdict {
        let is_login = &*check.arguments[0] == "AuthTokenCheck";
        let fails = match (self.outage, is_login) {
            (false, _) => 3,
            // Some logins must succeed, so that other checks can fail.
            (true, true) => 30,
            (true, false) => 97,
        };
        if self.choices.chance(fails) {
            return Verdict::Failed(Failure::TimedOut);
        }
        let is_bad = is_login && *check.arguments[1] != self.token(&check.arguments[2]);
        let denied = !is_login && self.choices.chance(25);
        if is_bad || denied { Verdict::Denied } else { Verdict::Granted }
    }

    pub(super) fn reload(&mut self) {
        if !self.reloading {
            self.trace(|| "reload begins".to_owned());
            self.reloading = true;
            self.hub.begin_reload();
            self.queue.set_paused(true);
            return;
        }
        self.reloading = false;
        let old = self.edition;
        if self.choices.chance(75) {
            self.edition = self.choices.below(24) as u32;
            self.seen("reloaded");
        }
        self.trace(|| format!("edition {old} → {}", self.edition));
        let changed = self.edition != old;
        let ids: Vec<ConnId> = self.model.conns.keys().copied().collect();
        for id in ids {
            let conn = self.model.conns.get_mut(&id).unwrap();
            for (topic, status) in &mut conn.subscriptions {
                if model::rule(old, topic) != model::rule(self.edition, topic) {
                    *status = Status::Pending;
                }
            }
            if conn.authenticated {
                self.resolve_pending(id);
            }
        }
        let categories = Categories::from_json(&model::categories(self.edition));
        self.hub.reload(changed.then_some(categories));
        self.queue.set_paused(false);
        self.perform_actions();
        let interval = *self.choices.pick(&[0, 60, 60, 60, 300]);
        self.set_recheck_interval(interval);
    }
}
