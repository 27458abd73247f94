//! Having access checked.

use std::rc::Rc;

use log::{info, warn};

use super::bursts::Cause;
use super::{Backend, Server};
use crate::core::access::{Answer, JobId, QueueFull};
use crate::core::check::{Check, Ticket, Urgency};
use crate::core::limits::MAX_WAITING_OF_USER;
use crate::core::stats::{End, LimitHit};
use crate::core::verdict::{self, Failure, Verdict};
use crate::core::version::Convention;
use crate::shell::children::{Finished, Task};

impl Server {
    pub(super) fn request_check(&mut self, ticket: Ticket, urgency: Urgency, check: Check) {
        let user = Rc::clone(&check.user);
        let full = match self.access.request(self.now, ticket, check, urgency) {
            Ok(true) => {
                self.stats.checks_reused += 1;
                return self.answers.push(Answer { ticket, verdict: Verdict::Granted });
            }
            Ok(false) => return,
            Err(full) => full,
        };
        if urgency == Urgency::Review {
            self.stats.leave_out(LimitHit::Reviews);
        } else if full == QueueFull::ForUser {
            self.stats.leave_out(LimitHit::UserChecks);
        }
        if full == QueueFull::ForUser
            && urgency == Urgency::Subscription
            && self.bursts.begins(Cause::UserFull, self.now)
        {
            warn!(
                "User {user} wants so many topics at once that {MAX_WAITING_OF_USER} checks wait: \
                 no more are taken for now."
            );
        }
        if full == QueueFull::ForUser || urgency == Urgency::Review {
            // It is left out; nobody else is to suffer for it.
            let verdict = Verdict::Unchecked(Failure::NotStarted(String::new()));
            self.answers.push(Answer { ticket, verdict });
        } else {
            if self.bursts.begins(Cause::QueueFull, self.now) {
                warn!(
                    "Too many access checks wait for PHP: tabs are sent away and will come back. Find \
                     out why EspoCRM answers so slowly."
                );
            }
            // Without a Close frame, so that it comes back and asks again.
            let is_login = urgency == Urgency::Authentication;
            self.end(ticket.conn, if is_login { End::Crowded } else { End::CheckQueue });
        }
    }

    /// Starts as many checks as may run. What fails to start is answered at once.
    pub(super) fn start_checks(&mut self) {
        if !self.access.can_start() {
            return;
        }
        // A verdict is read by the rules of the EspoCRM that is on disk now.
        self.look();
        while self.access.can_start() {
            let waiting = self.access.queued().saturating_sub(1);
            let Some(lane) = self.lane(waiting) else { return };
            let Some((id, check)) = self.access.start(self.now) else { return };
            match &mut self.backend {
                Backend::Espocrm(_) => self.start_check(id, &check, lane),
                Backend::Demo(demo) => {
                    let verdict = demo.check(&check);
                    self.finish_check(id, &check, &verdict);
                }
                #[cfg(test)]
                Backend::Scripted(checks) => checks.start(id, check),
            }
        }
    }

    /// Runs a check in a PHP process of its own.
    pub(super) fn start_plainly(&mut self, id: JobId, check: &Check, convention: Convention) {
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

    /// Takes what PHP has answered.
    pub(super) fn reap_children(&mut self) {
        let mut finished = Vec::new();
        self.children.reap(&mut finished);
        for finished in finished {
            match finished.task {
                Task::Probe => self.finish_reload(&finished),
                Task::SelfCheck(convention) => self.self_checked(convention, &finished),
                Task::Check(id, convention) => {
                    if let Some(check) = self.access.check(id) {
                        let convention = self.convention(convention);
                        let verdict = read(convention, &check, &finished);
                        self.finish_check(id, &check, &verdict);
                    }
                }
            }
        }
    }

    /// How the outcome of a check is to be read that was started under this convention. If EspoCRM
    /// may have become another version meanwhile, only what counts in each of them is granted or
    /// denied.
    pub(super) fn convention(&self, at_start: Convention) -> Convention {
        let in_doubt = matches!(&self.backend, Backend::Espocrm(espocrm) if espocrm.is_in_doubt());
        if in_doubt || at_start != self.settings.version.convention() {
            Convention::InDoubt
        } else {
            at_start
        }
    }

    pub(super) fn finish_check(&mut self, id: JobId, check: &Check, verdict: &Verdict) {
        // Nothing is granted while EspoCRM accepts any token.
        let untrusted = Verdict::Unchecked(Failure::Untrusted);
        let is_untrusted = self.self_check.rejects_clients() && *verdict == Verdict::Granted;
        let verdict = if is_untrusted { &untrusted } else { verdict };
        let answered = self.answers.len();
        let urgency = self.access.urgency(id);
        let is_review = urgency == Some(Urgency::Review);
        if let Some((urgency, began)) = urgency.zip(self.access.began(id)) {
            // It may have ended in the turn in which it was started, at an earlier look at the clock.
            let took = self.clock.now().since(began).as_millis();
            self.stats.check(urgency, verdict, u64::try_from(took).unwrap_or(u64::MAX));
            let worked = !matches!(verdict, Verdict::Unchecked(_));
            self.checks_fail = match self.checks_fail {
                _ if worked => None,
                Some((since, _)) => Some((since, self.now)),
                None => Some((self.now, self.now)),
            };
        }
        self.access.finish(self.now, id, verdict, &mut self.answers);
        let Verdict::Unchecked(failure) = verdict else {
            if let Some(count) = self.outage.worked() {
                info!("Access checks work again; {count} could not be made meanwhile.");
            }
            return;
        };
        if !self.outage.failed(self.now) {
            return;
        }
        let what = if check.is_authentication() { "A login" } else { "A subscription" };
        let then = if is_review {
            "It was granted before, and stays so until the next review"
        } else if check.is_authentication() {
            "Its tab will come back and try again"
        } else if self.answers.len() > answered {
            "It was tried several times and is given up: the tab will not see that topic before it \
             asks again"
        } else {
            "It will be tried again"
        };
        warn!(
            "{what} could not be checked: {failure}. {then}. Further ones are not told before checks \
             work again. See EspoCRM's data/logs."
        );
    }
}

fn read(convention: Convention, check: &Check, finished: &Finished) -> Verdict {
    match &finished.exit {
        Err(failure) => Verdict::Unchecked(failure.clone()),
        Ok(exit) => {
            let complaint = || check.redact(&finished.complaint());
            verdict::read(convention, &check.affirmation, *exit, &finished.stdout, complaint)
        }
    }
}
