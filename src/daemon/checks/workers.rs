//! Running access checks on PHP workers.

use std::io;
use std::rc::Rc;

use log::{error, info, warn};

use super::{CheckRunner, Context};
use crate::daemon::event_loop::Backend;
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{ProcessExit, Verdict};
use crate::engine::checks::worker_pool::{
    CheckAction, Fault, Next, Outcome, Problem, Runner, WorkerId,
};
use crate::engine::checks::worker_protocol::{Done, Reply};
use crate::espocrm::Installation;
use crate::espocrm::Router;
use crate::espocrm::workers::{self, CheckRequest};

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
        let request = CheckRequest { job, convention };
        let running = started.and_then(|()| self.send(context, worker, request, check));
        if let Err(error) = running {
            let outcome = failed(error.to_string());
            self.handle_outcome(context, installation, worker, request, check, outcome);
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
        let mut outcomes = Vec::new();
        self.workers.ready(context.registry, number, &mut outcomes);
        self.take_outcomes(context, outcomes);
    }

    /// Reaps the workers that have exited, and orphans.
    pub(crate) fn reap_workers(&mut self, context: &mut Context<'_>) {
        let (mut outcomes, mut ended) = (Vec::new(), Vec::new());
        self.workers.reap(&mut outcomes, &mut ended);
        for worker in ended {
            let check = self.handle_worker(context, worker, Outcome::Exited);
            debug_assert_eq!(check, CheckAction::Nothing);
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
        let mut commands = vec![Check::AUTHENTICATION];
        for command in context.settings.categories.commands() {
            if !commands.contains(&command) {
                commands.push(command);
            }
        }
        let command = installation.worker(&router, &commands.join(" "));
        self.router = Some(router);
        self.workers.start(context.registry, context.now, id, command)
    }

    fn is_router_removed(&self) -> bool {
        !self.router.as_ref().is_some_and(Router::exists)
    }

    fn take_outcomes(&mut self, context: &mut Context<'_>, outcomes: Vec<workers::Outcome>) {
        let Backend::Espocrm(installation) = context.backend else { return };
        for workers::Outcome { worker, request, result } in outcomes {
            let check = self.queue.check(request.job);
            debug_assert!(check.is_some(), "only running checks end");
            let Some(check) = check else { continue };
            let outcome = match result {
                Ok(Reply::Done(done)) => {
                    Outcome::Answered(self.read(context, worker, request, &check, &done))
                }
                Ok(Reply::Unable) if self.is_router_removed() => Outcome::ScriptRemoved,
                Ok(Reply::Unable) => Outcome::Unable,
                Err(Problem::Failed(reason)) => failed(check.redact(&reason)),
                Err(problem) => Outcome::Unanswered(problem),
            };
            self.handle_outcome(context, installation, worker, request, &check, outcome);
        }
    }

    /// Interprets the answer of a worker.
    fn read(
        &self,
        context: &Context<'_>,
        worker: WorkerId,
        request: CheckRequest,
        check: &Check,
        done: &Done,
    ) -> Verdict {
        let convention = context.convention(request.convention);
        let exit = ProcessExit::Status(done.status);
        if self.pool.is_verifying(worker) {
            return self.self_check.read(convention, exit, &done.output, String::new);
        }
        let line = || check.redact(&verdict::first_line(&done.output));
        verdict::read(convention, &check.affirmation, exit, &done.output, line)
    }

    fn handle_outcome(
        &mut self,
        context: &mut Context<'_>,
        installation: &Installation,
        worker: WorkerId,
        request: CheckRequest,
        check: &Check,
        outcome: Outcome,
    ) {
        match self.handle_worker(context, worker, outcome) {
            CheckAction::Nothing => {}
            CheckAction::Finish(verdict) => self.finish(context, request.job, check, &verdict),
            CheckAction::RunPlain => {
                self.start_plain(context, installation, request.job, check, request.convention);
            }
            CheckAction::Verify => {
                let question = self.self_check.question().cloned();
                let question = question.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
                let sent = question.and_then(|it| self.send(context, worker, request, &it));
                if let Err(error) = sent {
                    let outcome = failed(check.redact(&error.to_string()));
                    self.handle_outcome(context, installation, worker, request, check, outcome);
                }
            }
        }
    }

    /// Executes the part of a decision that concerns the worker. Returns the other part.
    fn handle_worker(
        &mut self,
        context: &mut Context<'_>,
        worker: WorkerId,
        outcome: Outcome,
    ) -> CheckAction {
        let decision = self.pool.handle_outcome(context.now, worker, outcome);
        if decision.worker != Next::Wait {
            self.workers.stop(worker);
        }
        if decision.fault == Some(Fault::Untrusted) {
            error!(
                "A PHP worker accepted a random token as a login. It is stopped, and its grants \
                 are discarded. Find out why AuthTokenCheck behaves differently in a worker, or \
                 use --no-worker."
            );
            self.request_self_check(context.now);
        }
        context.stats.worker_failures += u64::from(decision.fault.is_some());
        match (decision.worker, decision.fault) {
            (Next::GiveUp, Some(fault)) => warn_workers_unusable(&fault.to_string()),
            (Next::GiveUp, None) => {
                warn_workers_unusable("it cannot run EspoCRM's commands, or not in time");
            }
            (Next::Stop | Next::Wait, Some(fault)) => info!("A PHP worker was stopped: {fault}."),
            (Next::Stop | Next::Wait, None) => {}
        }
        decision.check
    }
}

fn failed(reason: String) -> Outcome {
    Outcome::Unanswered(Problem::Failed(reason))
}

fn warn_workers_unusable(reason: &str) {
    warn!(
        "PHP workers cannot be used: {reason}. For the next minutes each access check runs in its \
         own PHP process, which costs more. Use --no-worker to make this permanent."
    );
}
