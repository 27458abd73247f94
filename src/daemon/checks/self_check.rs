//! The self-check: a check with a random token after each load and reload. While EspoCRM accepts
//! that token, nothing is granted.

use std::io;

use log::{debug, info, warn};

use super::{CheckRunner, Context, Event};
use crate::daemon::event_loop::Backend;
use crate::engine::checks::check::Check;
use crate::engine::checks::self_check::Outcome;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::espocrm::version::Convention;
use crate::engine::time::Time;
use crate::espocrm::PROBE_TIMEOUT;
use crate::espocrm::process::{Finished, Task};
use crate::platform::random;

/// Length of a user id in characters.
const ID: usize = 17;

impl CheckRunner {
    /// Schedules a self-check. No other check is started before it ends.
    pub(crate) fn request_self_check(&mut self, now: Time) {
        self.self_check.request(now);
        self.update_pause();
    }

    /// Logs the next result even if it is the same as before.
    pub(crate) fn announce_self_check(&mut self) {
        self.self_check.announce();
    }

    /// Whether clients are rejected because EspoCRM accepts any token.
    pub(crate) fn rejects_clients(&self) -> bool {
        self.self_check.rejects_clients()
    }

    /// When to call [`start_self_check`](Self::start_self_check).
    pub(crate) fn next_self_check(&self) -> Option<Time> {
        self.self_check.next_deadline().filter(|_| !self.reloading)
    }

    /// Runs the self-check by the plain command, which every check falls back to. Workers are
    /// verified when they grant for the first time.
    pub(crate) fn start_self_check(&mut self, context: &mut Context<'_>) {
        debug_assert!(!self.reloading, "the version may change meanwhile");
        let check = match random_check() {
            Ok(check) => check,
            Err(error) => {
                self.self_check.start(Check::authentication("", ""));
                return self.self_check_failed(context, &error);
            }
        };
        let check = self.self_check.start(check);
        let Backend::Espocrm(installation) = context.backend else { return };
        let task = Task::SelfCheck(context.settings.version.convention());
        let command = installation.check(&check);
        // Other checks wait for it, so limit its time.
        let timeout = context.settings.check_timeout.value.min(PROBE_TIMEOUT);
        let (registry, now) = (context.registry, context.now);
        if let Err(error) = self.children.spawn(registry, now, task, command, timeout) {
            self.self_check_failed(context, &error);
        }
    }

    /// Handles the result of the self-check.
    pub(super) fn handle_self_check(
        &mut self,
        context: &Context<'_>,
        at_start: Convention,
        finished: &Finished,
    ) -> Option<Event> {
        let check = self.self_check.question().cloned()?;
        let convention = context.convention(at_start);
        let verdict = match &finished.exit {
            Err(failure) => Verdict::Failed(failure.clone()),
            Ok(exit) => {
                let complaint = || check.redact(&finished.first_line());
                self.self_check.read(convention, *exit, &finished.stdout, complaint)
            }
        };
        self.finish_self_check(context, &verdict)
    }

    fn finish_self_check(&mut self, context: &Context<'_>, verdict: &Verdict) -> Option<Event> {
        let outcome = self.self_check.finish(context.now, verdict);
        self.update_pause();
        match outcome {
            Outcome::Superseded | Outcome::Unchanged => {}
            Outcome::Passed if std::mem::replace(&mut self.self_check_passed, true) => {
                debug!("Self-check: EspoCRM rejects a random token.");
            }
            Outcome::Passed => {
                info!("Self-check passed: EspoCRM rejects a random token.");
            }
            Outcome::Recovered => {
                self.self_check_passed = true;
                info!(
                    "Self-check passed: EspoCRM rejects a random token again. Clients are accepted \
                     again."
                );
            }
            Outcome::Inconclusive => {
                if let Verdict::Failed(failure) = verdict {
                    warn!(
                        "The self-check with a random token gave no result: {failure}. Retrying \
                         every 10 s. See EspoCRM's data/logs, and run espocrm-websocket doctor."
                    );
                }
            }
            Outcome::Accepted => {
                self.discard_grants(context.settings);
                return Some(Event::Untrusted);
            }
        }
        None
    }

    fn self_check_failed(&mut self, context: &Context<'_>, error: &io::Error) {
        let verdict = Verdict::Failed(Failure::NotStarted(error.to_string()));
        let event = self.finish_self_check(context, &verdict);
        debug_assert!(event.is_none(), "only an answer accepts a token");
    }
}

/// A check of a random token and user in EspoCRM's format.
fn random_check() -> io::Result<Check> {
    let (token, user) = (random::hex()?, random::hex()?);
    Ok(Check::authentication(&token, user.get(..ID).unwrap_or(&user)))
}
