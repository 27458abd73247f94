//! The self-check: a check with a random token after each load and reload. While EspoCRM accepts
//! that token, nothing is granted.

use std::io;

use log::{debug, error, info, warn};

use super::{Backend, Server};
use crate::daemon::connection::Connection;
use crate::engine::checks::check::Check;
use crate::engine::checks::self_check::Outcome;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::connection::Phase;
use crate::engine::espocrm::version::Convention;
use crate::engine::telemetry::stats::End;
use crate::engine::time::Time;
use crate::espocrm::PROBE_TIMEOUT;
use crate::espocrm::process::{Finished, Task};
use crate::platform::random;

/// Length of a user id in characters.
const ID: usize = 17;

impl Server {
    /// Schedules a self-check. No other check is started before it ends.
    pub(super) fn request_self_check(&mut self) {
        if matches!(self.backend, Backend::Espocrm(_)) {
            self.self_check.request(self.now);
        }
        self.update_check_pause();
    }

    /// Pauses the check queue while a reload runs, and until EspoCRM has rejected a random token.
    pub(super) fn update_check_pause(&mut self) {
        let is_paused = self.backend.is_reloading() || !self.self_check.allows_checks();
        self.check_queue.set_paused(is_paused);
    }

    /// When [`self_check_if_due`](Self::self_check_if_due) has something to do.
    pub(super) fn next_self_check(&self) -> Option<Time> {
        let runs_php = matches!(self.backend, Backend::Espocrm(_));
        self.self_check.next_deadline().filter(|_| runs_php && !self.backend.is_reloading())
    }

    /// Runs the self-check by the plain command, which every check falls back to. Workers are
    /// verified when they grant for the first time.
    pub(super) fn self_check_if_due(&mut self) {
        if !self.self_check.is_due(self.now) {
            return;
        }
        if self.self_check.rejects_clients() {
            // Without connections, nothing else detects that the settings were fixed.
            self.check_for_changes();
        }
        let Backend::Espocrm(espocrm) = &self.backend else { return };
        if self.backend.is_reloading() {
            return;
        }
        let check = match random_check() {
            Ok(check) => check,
            Err(error) => {
                self.self_check.start(Check::authentication("", ""));
                return self.self_check_failed(&error);
            }
        };
        let check = self.self_check.start(check);
        let task = Task::SelfCheck(self.settings.version.convention());
        let command = espocrm.installation.check(&check);
        // Other checks wait for it, so limit its time.
        let timeout = self.settings.check_timeout.value.min(PROBE_TIMEOUT);
        let registry = self.poll.registry();
        if let Err(error) = self.children.spawn(registry, self.now, task, command, timeout) {
            self.self_check_failed(&error);
        }
    }

    /// Handles the result of the self-check.
    pub(super) fn self_checked(&mut self, at_start: Convention, finished: &Finished) {
        let Some(check) = self.self_check.question().cloned() else { return };
        let convention = self.convention(at_start);
        let verdict = match &finished.exit {
            Err(failure) => Verdict::Unchecked(failure.clone()),
            Ok(exit) => {
                let complaint = || check.redact(&finished.first_line());
                self.self_check.read(convention, *exit, &finished.stdout, complaint)
            }
        };
        self.finish_self_check(&verdict);
    }

    pub(super) fn finish_self_check(&mut self, verdict: &Verdict) {
        match self.self_check.finish(self.now, verdict) {
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
                if let Verdict::Unchecked(failure) = verdict {
                    warn!(
                        "The self-check with a random token gave no result: {failure}. Retrying \
                         every 10 s. See EspoCRM's data/logs, and run espocrm-websocket doctor."
                    );
                }
            }
            Outcome::Accepted => self.lock_down(),
        }
        self.update_check_pause();
    }

    /// Ends all connections without a Close frame, since their access is in doubt; browsers retry
    /// until the self-check passes. New connections get 503.
    fn lock_down(&mut self) {
        error!(
            "Self-check failed: EspoCRM accepted a random token as a login ({} command.php {}), so \
             its access checks cannot be trusted. All connections are ended and new ones rejected \
             (503) until it rejects such a token; that is checked every 10 s. Check which PHP \
             phpExecutablePath names, that EspoCRM's files are complete, and that no extension \
             replaces {}.",
            self.settings.php.value.display(),
            Check::AUTHENTICATION,
            Check::AUTHENTICATION
        );
        let open = self.conns.iter().filter(|conn| conn.state.phase() == Phase::Open);
        for id in open.map(Connection::id).collect::<Vec<_>>() {
            self.end(id, End::SelfCheck);
        }
        // Clear the check cache and replace all workers.
        self.check_queue.set_cache_lifetime(self.settings.check_cache.value);
        for worker in self.pool.retire_all(self.settings.workers()) {
            self.workers.stop(worker);
        }
    }

    fn self_check_failed(&mut self, error: &io::Error) {
        let failure = Failure::NotStarted(error.to_string());
        self.finish_self_check(&Verdict::Unchecked(failure));
    }
}

/// A check of a random token and user in EspoCRM's format.
fn random_check() -> io::Result<Check> {
    let (token, user) = (random::hex()?, random::hex()?);
    Ok(Check::authentication(&token, user.get(..ID).unwrap_or(&user)))
}
