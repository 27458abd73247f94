//! Running access checks on PHP workers.

use std::io;
use std::rc::Rc;

use log::{error, info, warn};

use super::{Backend, Server};
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{Failure, ProcessExit, Verdict};
use crate::engine::checks::worker_pool::{Next, Runner, WorkerId};
use crate::engine::checks::worker_protocol::{Done, Reply};
use crate::engine::espocrm::version::Convention;
use crate::espocrm::Router;
use crate::espocrm::workers::{CheckRequest, Outcome, Problem};
use crate::platform::sys;

impl Server {
    /// Selects the runner of the next check; `None` if it has to wait for a worker.
    pub(super) fn runner(&mut self, waiting: usize) -> Option<Runner> {
        if let Backend::Espocrm(_) = self.backend {
            self.pool.set_stuck(self.workers.stuck());
            return self.pool.take(self.now, waiting);
        }
        Some(Runner::Plain)
    }

    /// Runs a check; by a plain command if the worker cannot.
    pub(super) fn start_check(&mut self, id: JobId, check: &Rc<Check>, runner: Runner) {
        let convention = self.settings.version.convention();
        let (worker, started) = match runner {
            Runner::Plain => return self.start_plain(id, check, convention),
            Runner::Idle(worker) => (worker, Ok(())),
            Runner::New(worker) => (worker, self.start_worker(worker)),
        };
        let (now, timeout) = (self.now, self.settings.check_timeout.value);
        let errand = CheckRequest { job: id, convention, verifies: false };
        let registry = self.poll.registry();
        let arguments = &check.arguments;
        let running = started
            .and_then(|()| self.workers.run(registry, worker, errand, arguments, now, timeout));
        if let Err(error) = running {
            self.workers.stop(worker);
            self.worker_failed(worker, &error.to_string());
            self.start_plain(id, check, convention);
        } else {
            self.stats.run(true);
        }
    }

    /// Handles I/O of a worker.
    pub(super) fn worker_ready(&mut self, number: usize) {
        #[cfg(test)]
        if let Backend::Scripted(checks) = &self.backend {
            if let Some((id, check, verdict)) = checks.take() {
                self.finish_check(id, &check, &verdict);
            }
            return;
        }
        let mut outcomes = Vec::new();
        self.workers.ready(self.poll.registry(), number, &mut outcomes);
        self.take_outcomes(outcomes);
    }

    /// Reaps the workers that have exited.
    pub(super) fn reap_workers(&mut self) {
        let (mut outcomes, mut ended) = (Vec::new(), Vec::new());
        self.workers.reap(&mut outcomes, &mut ended);
        for worker in ended {
            self.worker_failed(worker, "it exited while idle");
        }
        self.take_outcomes(outcomes);
    }

    /// Reaps orphans of PHP processes when the daemon runs as PID 1, in a container without an init
    /// process. Called after the known processes have been reaped.
    pub(super) fn reap_orphans(&self) {
        if std::process::id() == 1 {
            let is_known =
                |pid| self.children.processes().chain(self.workers.processes()).any(|it| it == pid);
            sys::reap_orphans(is_known);
        }
    }

    /// Stops workers whose check has timed out, and surplus idle workers.
    pub(super) fn expire_workers(&mut self) {
        let mut outcomes = Vec::new();
        self.workers.expire(self.now, &mut outcomes);
        self.take_outcomes(outcomes);
        for worker in self.pool.expire(self.now) {
            self.workers.stop(worker);
        }
    }

    fn start_worker(&mut self, id: WorkerId) -> io::Result<()> {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return Ok(()) };
        // A system that cleans up its temporary directory may have removed the script.
        let router = match espocrm.router.take().filter(Router::exists) {
            Some(router) => router,
            None => Router::write()?,
        };
        let mut commands: Vec<&str> = self.settings.categories.commands().collect();
        commands.push(Check::AUTHENTICATION);
        commands.sort_unstable();
        commands.dedup();
        let command = espocrm.installation.worker(&router, &commands.join(" "));
        espocrm.router = Some(router);
        self.workers.start(self.poll.registry(), self.now, id, command)
    }

    fn is_router_removed(&self) -> bool {
        let Backend::Espocrm(espocrm) = &self.backend else { return false };
        !espocrm.router.as_ref().is_some_and(Router::exists)
    }

    fn take_outcomes(&mut self, outcomes: Vec<Outcome>) {
        for Outcome { worker, request: errand, mut result } in outcomes {
            let check = self.check_queue.check(errand.job);
            let answer = match &result {
                Ok(Reply::Done(done)) => self.assess_answer(worker, errand, check.as_deref(), done),
                _ => Assessed::Unusable,
            };
            if matches!(answer, Assessed::Granted) {
                // The grant counts only after the worker has rejected a random token.
                match self.verify(worker, errand) {
                    Ok(()) => continue,
                    Err(error) => result = Err(Problem::Failed(error.to_string())),
                }
            }
            if matches!(answer, Assessed::Untrusted) {
                error!(
                    "A PHP worker accepted a random token as a login. It is stopped, and its \
                     grants are discarded. Find out why AuthTokenCheck behaves differently in a \
                     worker, or use --no-worker."
                );
                self.request_self_check();
                let reason = "it accepted a random token".to_owned();
                result = Err(Problem::Failed(reason));
            }
            let next = match &result {
                Ok(Reply::Done(_)) => self.pool.answered(self.now, worker),
                Ok(Reply::Unable) if self.is_router_removed() => {
                    self.worker_failed(worker, "its script was removed");
                    Next::Stop
                }
                Ok(Reply::Unable) => self.pool.unable(self.now, worker),
                Err(Problem::TimedOut { begun: true }) => self.pool.stopped(self.now, worker),
                Err(Problem::TimedOut { begun: false } | Problem::NotBegun) => {
                    self.worker_obstructed(worker);
                    Next::Stop
                }
                Err(Problem::Failed(reason)) => {
                    let reason = check.as_ref().map_or(String::new(), |check| check.redact(reason));
                    self.worker_failed(worker, &reason);
                    Next::Stop
                }
            };
            match next {
                Next::Wait => {}
                Next::Stop => self.workers.stop(worker),
                Next::GiveUp => {
                    self.workers.stop(worker);
                    warn_workers_unusable("it cannot run EspoCRM's commands, or not in time");
                }
            }
            let Some(check) = check else { continue };
            match result {
                Ok(Reply::Done(_)) => match answer {
                    Assessed::Verdict(verdict) => self.finish_check(errand.job, &check, &verdict),
                    _ => self.start_plain(errand.job, &check, errand.convention),
                },
                Err(Problem::TimedOut { .. }) => {
                    let verdict = Verdict::Unchecked(Failure::TimedOut);
                    self.finish_check(errand.job, &check, &verdict);
                }
                Ok(Reply::Unable) | Err(Problem::Failed(_) | Problem::NotBegun) => {
                    self.start_plain(errand.job, &check, errand.convention);
                }
            }
        }
    }

    /// Handles an idle worker that did not begin a check.
    fn worker_obstructed(&mut self, worker: WorkerId) {
        self.stats.worker_failures += 1;
        match self.pool.obstructed(self.now, worker) {
            Next::GiveUp => warn_workers_unusable(OBSTRUCTED),
            Next::Stop | Next::Wait => info!("A PHP worker was stopped: {OBSTRUCTED}."),
        }
    }

    /// Assesses an answer of a worker.
    fn assess_answer(
        &mut self,
        worker: WorkerId,
        errand: CheckRequest,
        check: Option<&Check>,
        done: &Done,
    ) -> Assessed {
        let convention = self.convention(errand.convention);
        if !errand.verifies {
            return match check.map(|check| read(convention, check, done)) {
                Some(Verdict::Granted) if !self.pool.is_verified(worker) => Assessed::Granted,
                Some(verdict) => Assessed::Verdict(verdict),
                None => Assessed::Unusable,
            };
        }
        let exit = ProcessExit::Status(done.status);
        match self.self_check.read(convention, exit, &done.output, String::new) {
            Verdict::Denied => {
                self.pool.verified(worker);
                Assessed::Verdict(Verdict::Granted)
            }
            Verdict::Granted => Assessed::Untrusted,
            Verdict::Unchecked(_) => Assessed::Unusable,
        }
    }

    /// Has a worker that has granted a check run the self-check, which it must deny.
    fn verify(&mut self, worker: WorkerId, errand: CheckRequest) -> io::Result<()> {
        let check = self.self_check.question().cloned();
        let check = check.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (now, timeout) = (self.now, self.settings.check_timeout.value);
        let errand = CheckRequest { verifies: true, ..errand };
        let registry = self.poll.registry();
        self.workers.run(registry, worker, errand, &check.arguments, now, timeout)
    }

    fn worker_failed(&mut self, worker: WorkerId, reason: &str) {
        self.stats.worker_failures += 1;
        match self.pool.failed(self.now, worker) {
            Next::GiveUp => warn_workers_unusable(reason),
            Next::Stop | Next::Wait => info!("A PHP worker was stopped: {reason}."),
        }
    }
}

const OBSTRUCTED: &str = "it did not begin a check. Either the machine is overloaded, or a local \
     user holds many connections to its port on 127.0.0.1 (ss -tnp shows their processes)";

/// Assessment of a worker's answer.
enum Assessed {
    Verdict(Verdict),
    /// A grant by a worker that is not verified yet.
    Granted,
    /// The worker grants everything.
    Untrusted,
    /// The check has to be run by a plain command, if it is still needed.
    Unusable,
}

fn read(convention: Convention, check: &Check, done: &Done) -> Verdict {
    let line = || check.redact(&verdict::first_line(&done.output));
    let exit = ProcessExit::Status(done.status);
    verdict::read(convention, &check.affirmation, exit, &done.output, line)
}

fn warn_workers_unusable(reason: &str) {
    warn!(
        "PHP workers cannot be used: {reason}. For the next minutes each access check runs in its \
         own PHP process, which costs more. Use --no-worker to make this permanent."
    );
}
