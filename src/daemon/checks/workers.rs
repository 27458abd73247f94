//! Running access checks on PHP workers.

use std::io;
use std::rc::Rc;

use log::{error, info, warn};

use super::{CheckRunner, Context};
use crate::daemon::event_loop::Backend;
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{Failure, ProcessExit, Verdict};
use crate::engine::checks::worker_pool::{Next, Runner, WorkerId};
use crate::engine::checks::worker_protocol::{Done, Reply};
use crate::engine::espocrm::version::Convention;
use crate::espocrm::Installation;
use crate::espocrm::Router;
use crate::espocrm::workers::{CheckRequest, Outcome, Problem};

impl CheckRunner {
    /// Selects the runner of the next check; `None` if it has to wait for a worker.
    pub(super) fn runner(&mut self, context: &Context<'_>, waiting: usize) -> Option<Runner> {
        if let Backend::Espocrm(_) = context.backend {
            self.pool.set_stuck(self.workers.stuck());
            return self.pool.take(context.now, waiting);
        }
        Some(Runner::Plain)
    }

    /// Runs a check; by a plain command if the worker cannot.
    pub(super) fn start(
        &mut self,
        context: &mut Context<'_>,
        installation: &Installation,
        job: JobId,
        check: &Rc<Check>,
        runner: Runner,
    ) {
        let convention = context.settings.version.convention();
        let (worker, started) = match runner {
            Runner::Plain => {
                return self.start_plain(context, installation, job, check, convention);
            }
            Runner::Idle(worker) => (worker, Ok(())),
            Runner::New(worker) => (worker, self.start_worker(context, installation, worker)),
        };
        let request = CheckRequest { job, convention, verifies: false };
        let running = started.and_then(|()| self.send(context, worker, request, check));
        if let Err(error) = running {
            self.workers.stop(worker);
            self.worker_failed(context, worker, &error.to_string());
            self.start_plain(context, installation, job, check, convention);
        } else {
            context.stats.run(true);
        }
    }

    /// Sends a check to a worker.
    fn send(
        &mut self,
        context: &Context<'_>,
        worker: WorkerId,
        request: CheckRequest,
        check: &Check,
    ) -> io::Result<()> {
        let (registry, timeout) = (context.registry, context.settings.check_timeout.value);
        self.workers.run(registry, worker, request, &check.arguments, context.now, timeout)
    }

    /// Handles an event of [`EventSource::Worker`](crate::daemon::token::EventSource::Worker).
    pub(crate) fn worker_ready(&mut self, context: &mut Context<'_>, number: usize) {
        #[cfg(test)]
        if let Backend::Scripted(checks) = context.backend {
            if let Some((job, check, verdict)) = checks.take() {
                self.finish(context, job, &check, &verdict);
            }
            return;
        }
        let mut outcomes = Vec::new();
        self.workers.ready(context.registry, number, &mut outcomes);
        self.take_outcomes(context, outcomes);
    }

    /// Reaps the workers that have exited, and orphans.
    pub(crate) fn reap_workers(&mut self, context: &mut Context<'_>) {
        let (mut outcomes, mut ended) = (Vec::new(), Vec::new());
        self.workers.reap(&mut outcomes, &mut ended);
        for worker in ended {
            self.worker_failed(context, worker, "it exited while idle");
        }
        self.take_outcomes(context, outcomes);
        self.reap_orphans();
    }

    /// Stops workers whose check has timed out, and surplus idle workers.
    pub(super) fn expire_workers(&mut self, context: &mut Context<'_>) {
        let mut outcomes = Vec::new();
        self.workers.expire(context.now, &mut outcomes);
        self.take_outcomes(context, outcomes);
        for worker in self.pool.expire(context.now) {
            self.workers.stop(worker);
        }
    }

    fn start_worker(
        &mut self,
        context: &Context<'_>,
        installation: &Installation,
        id: WorkerId,
    ) -> io::Result<()> {
        // A system that cleans up its temporary directory may have removed the script.
        let router = match self.router.take().filter(Router::exists) {
            Some(router) => router,
            None => Router::write()?,
        };
        let mut commands: Vec<&str> = context.settings.categories.commands().collect();
        commands.push(Check::AUTHENTICATION);
        commands.sort_unstable();
        commands.dedup();
        let command = installation.worker(&router, &commands.join(" "));
        self.router = Some(router);
        self.workers.start(context.registry, context.now, id, command)
    }

    fn is_router_removed(&self) -> bool {
        !self.router.as_ref().is_some_and(Router::exists)
    }

    fn take_outcomes(&mut self, context: &mut Context<'_>, outcomes: Vec<Outcome>) {
        let Backend::Espocrm(installation) = context.backend else { return };
        for Outcome { worker, request, mut result } in outcomes {
            let check = self.queue.check(request.job);
            let answer = match &result {
                Ok(Reply::Done(done)) => {
                    self.assess_answer(context, worker, request, check.as_deref(), done)
                }
                _ => Assessed::Unusable,
            };
            if matches!(answer, Assessed::Granted) {
                // The grant counts only after the worker has rejected a random token.
                match self.verify(context, worker, request) {
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
                self.request_self_check(context.now);
                let reason = "it accepted a random token".to_owned();
                result = Err(Problem::Failed(reason));
            }
            let next = match &result {
                Ok(Reply::Done(_)) => self.pool.answered(context.now, worker),
                Ok(Reply::Unable) if self.is_router_removed() => {
                    self.worker_failed(context, worker, "its script was removed");
                    Next::Stop
                }
                Ok(Reply::Unable) => self.pool.unable(context.now, worker),
                Err(Problem::TimedOut { begun: true }) => self.pool.stopped(context.now, worker),
                Err(Problem::TimedOut { begun: false } | Problem::NotBegun) => {
                    self.worker_obstructed(context, worker);
                    Next::Stop
                }
                Err(Problem::Failed(reason)) => {
                    let reason = check.as_ref().map_or(String::new(), |check| check.redact(reason));
                    self.worker_failed(context, worker, &reason);
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
            let (job, convention) = (request.job, request.convention);
            match result {
                Ok(Reply::Done(_)) => match answer {
                    Assessed::Verdict(verdict) => self.finish(context, job, &check, &verdict),
                    _ => self.start_plain(context, installation, job, &check, convention),
                },
                Err(Problem::TimedOut { .. }) => {
                    let verdict = Verdict::Unchecked(Failure::TimedOut);
                    self.finish(context, job, &check, &verdict);
                }
                Ok(Reply::Unable) | Err(Problem::Failed(_) | Problem::NotBegun) => {
                    self.start_plain(context, installation, job, &check, convention);
                }
            }
        }
    }

    /// Handles an idle worker that did not begin a check.
    fn worker_obstructed(&mut self, context: &mut Context<'_>, worker: WorkerId) {
        context.stats.worker_failures += 1;
        match self.pool.obstructed(context.now, worker) {
            Next::GiveUp => warn_workers_unusable(OBSTRUCTED),
            Next::Stop | Next::Wait => info!("A PHP worker was stopped: {OBSTRUCTED}."),
        }
    }

    /// Assesses an answer of a worker.
    fn assess_answer(
        &mut self,
        context: &Context<'_>,
        worker: WorkerId,
        request: CheckRequest,
        check: Option<&Check>,
        done: &Done,
    ) -> Assessed {
        let convention = context.convention(request.convention);
        if !request.verifies {
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
    fn verify(
        &mut self,
        context: &Context<'_>,
        worker: WorkerId,
        request: CheckRequest,
    ) -> io::Result<()> {
        let check = self.self_check.question().cloned();
        let check = check.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.send(context, worker, CheckRequest { verifies: true, ..request }, &check)
    }

    fn worker_failed(&mut self, context: &mut Context<'_>, worker: WorkerId, reason: &str) {
        context.stats.worker_failures += 1;
        match self.pool.failed(context.now, worker) {
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
