//! Running access checks.

use std::rc::Rc;

use log::{info, warn};

use super::log_limiter::Cause;
use super::{Backend, Server};
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::queue::{Answer, JobId, QueueFull};
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::espocrm::version::Convention;
use crate::engine::id::ConnId;
use crate::engine::limits::{MAX_WAITING_LOGINS, MAX_WAITING_SUBSCRIPTIONS};
use crate::engine::printable::plural;
use crate::engine::telemetry::stats::{End, LimitHit};
use crate::espocrm::process::{Finished, Task};
use crate::platform::logging::Outage;

impl Server {
    pub(super) fn request_check(&mut self, ticket: Ticket, urgency: Urgency, check: Check) {
        let user = Rc::clone(&check.user);
        let full = match self.check_queue.request(self.now, ticket, check, urgency) {
            Ok(true) => {
                self.stats.checks_cached += 1;
                return self.answers.push(Answer { ticket, verdict: Verdict::Granted });
            }
            Ok(false) => return,
            Err(full) => full,
        };
        match urgency {
            Urgency::Authentication => {
                if self.log_limiter.should_log(Cause::QueueFull, self.now) {
                    warn!(
                        "{MAX_WAITING_LOGINS} logins wait for their check by PHP. Further \
                         connections are rejected; browsers will retry. Find out why EspoCRM is \
                         slow."
                    );
                }
                // Without a Close frame, so that the browser reconnects and tries again.
                self.end(ticket.conn, End::CheckQueue);
            }
            Urgency::Subscription => {
                self.stats.hit_limit(LimitHit::UserChecks);
                self.log_delay(full, &user);
                self.hub.delay(ticket);
                self.arm(ticket.conn);
            }
            Urgency::Recheck => {
                self.stats.hit_limit(LimitHit::Rechecks);
                let verdict = Verdict::Unchecked(Failure::NotStarted(String::new()));
                self.answers.push(Answer { ticket, verdict });
            }
        }
    }

    fn log_delay(&mut self, full: QueueFull, user: &str) {
        match full {
            QueueFull::ForUser if self.log_limiter.should_log(Cause::UserFull, self.now) => warn!(
                "User {user} has subscribed to so many topics at once that access checks of \
                 further ones are delayed."
            ),
            QueueFull::ForAll
                if self.log_limiter.should_log(Cause::SubscriptionsFull, self.now) =>
            {
                warn!(
                    "{MAX_WAITING_SUBSCRIPTIONS} access checks of subscriptions wait for PHP. \
                     Further ones are delayed. Find out why EspoCRM is slow, or which user \
                     subscribes to so many topics."
                );
            }
            QueueFull::ForUser | QueueFull::ForAll => {}
        }
    }

    /// Requests the checks of a connection's delayed subscriptions, as far as the queue has room.
    pub(super) fn resume_subscriptions(&mut self, id: ConnId) {
        if !self.hub.has_delayed(id) {
            return;
        }
        let Some(user) = self.hub.user(id) else { return };
        let room = self.check_queue.room(Urgency::Subscription, user);
        self.hub.resume(id, room);
        self.carry_out();
    }

    /// Starts as many checks as may run. Checks that cannot start fail immediately.
    pub(super) fn start_checks(&mut self) {
        if !self.check_queue.can_start() {
            return;
        }
        // PHP's answer is interpreted by the rules of the EspoCRM version that is on disk now.
        self.check_for_changes();
        while self.check_queue.can_start() {
            let waiting = self.check_queue.queued().saturating_sub(1);
            let Some(runner) = self.runner(waiting) else { return };
            let Some((id, check)) = self.check_queue.start(self.now) else { return };
            if self.is_excluded(&check) {
                self.pool.release(self.now, runner);
                self.check_queue.finish(self.now, id, &Verdict::Denied, &mut self.answers);
                continue;
            }
            match &mut self.backend {
                Backend::Espocrm(_) => self.start_check(id, &check, runner),
                Backend::Demo(demo) => {
                    let verdict = demo.check(&check);
                    self.finish_check(id, &check, &verdict);
                }
                #[cfg(test)]
                Backend::Scripted(checks) => checks.start(id, check),
            }
        }
    }

    /// Runs a check by a plain command.
    pub(super) fn start_plain(&mut self, id: JobId, check: &Check, convention: Convention) {
        let Backend::Espocrm(espocrm) = &self.backend else { return };
        let task = Task::Check(id, convention);
        let command = espocrm.installation.check(check);
        let timeout = self.settings.check_timeout.value;
        let registry = self.poll.registry();
        self.stats.run(false);
        if let Err(error) = self.children.spawn(registry, self.now, task, command, timeout) {
            let failure = Failure::NotStarted(error.to_string());
            self.finish_check(id, check, &Verdict::Unchecked(failure));
        }
    }

    /// Handles the PHP processes that have ended.
    pub(super) fn reap_children(&mut self) {
        let mut finished = Vec::new();
        self.children.reap(&mut finished);
        for finished in finished {
            match finished.task {
                Task::Probe => self.finish_reload(&finished),
                Task::SelfCheck(convention) => self.self_checked(convention, &finished),
                Task::Check(id, convention) => {
                    if let Some(check) = self.check_queue.check(id) {
                        let convention = self.convention(convention);
                        let verdict = read(convention, &check, &finished);
                        self.finish_check(id, &check, &verdict);
                    }
                }
            }
        }
    }

    /// The convention for interpreting the outcome of a check that was started under `at_start`. If
    /// EspoCRM's version may have changed meanwhile, only outcomes that mean the same in every
    /// version count as granted or denied.
    pub(super) fn convention(&self, at_start: Convention) -> Convention {
        if self.is_in_doubt() || at_start != self.settings.version.convention() {
            Convention::InDoubt
        } else {
            at_start
        }
    }

    /// Whether a check is denied without running it, because EspoCRM has no such entity type.
    fn is_excluded(&self, check: &Check) -> bool {
        self.settings.entity_types.exclude(check) && !self.is_in_doubt()
    }

    pub(super) fn finish_check(&mut self, id: JobId, check: &Check, verdict: &Verdict) {
        // Nothing is granted while EspoCRM accepts any token.
        let untrusted = Verdict::Unchecked(Failure::Untrusted);
        let is_untrusted = self.self_check.rejects_clients() && *verdict == Verdict::Granted;
        let verdict = if is_untrusted { &untrusted } else { verdict };
        let answered = self.answers.len();
        let urgency = self.check_queue.urgency(id);
        let is_recheck = urgency == Some(Urgency::Recheck);
        if let Some((urgency, began)) = urgency.zip(self.check_queue.began(id)) {
            // A check may end in the turn that started it, so this turn's time would be too early.
            let took = self.clock.now().since(began).as_millis();
            self.stats.check(urgency, verdict, u64::try_from(took).unwrap_or(u64::MAX));
            let is_answer = !matches!(verdict, Verdict::Unchecked(_));
            self.failing_checks = match self.failing_checks {
                _ if is_answer => None,
                Some((since, _)) => Some((since, self.now)),
                None => Some((self.now, self.now)),
            };
        }
        self.check_queue.finish(self.now, id, verdict, &mut self.answers);
        let Verdict::Unchecked(failure) = verdict else {
            if let Some(count) = self.outage_of(check).worked() {
                let kind = if check.is_authentication() { "logins" } else { "subscriptions" };
                let failures = plural(count, "failure", "failures");
                info!("Access checks work again for {kind}, after {failures}.");
            }
            return;
        };
        let now = self.now;
        if !self.outage_of(check).failed(now) {
            return;
        }
        let kind = if check.is_authentication() { "login" } else { "subscription" };
        let consequence = if is_recheck {
            "It remains granted until the next recheck"
        } else if check.is_authentication() {
            "The browser will retry"
        } else if self.answers.len() > answered {
            "All retries failed: the tab gets no events of this topic until it subscribes again"
        } else {
            "The check will be retried"
        };
        warn!(
            "A {kind} could not be checked: {failure}. {consequence}. Further failures are not \
             logged until {kind} checks succeed again. See EspoCRM's data/logs."
        );
    }

    /// Logins and subscriptions are tracked separately, so that a topic with failing checks does
    /// not hide that users cannot log in.
    fn outage_of(&mut self, check: &Check) -> &mut Outage {
        let [logins, subscriptions] = &mut self.outages;
        if check.is_authentication() { logins } else { subscriptions }
    }
}

fn read(convention: Convention, check: &Check, finished: &Finished) -> Verdict {
    match &finished.exit {
        Err(failure) => Verdict::Unchecked(failure.clone()),
        Ok(exit) => {
            let complaint = || check.redact(&finished.first_line());
            verdict::read(convention, &check.affirmation, *exit, &finished.stdout, complaint)
        }
    }
}
