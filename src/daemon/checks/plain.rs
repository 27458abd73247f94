//! Plain commands: a PHP process for each check, for the self-check, and for the probe.

use std::io;
use std::process::Command;

use mio::Registry;

use super::{CheckRunner, Context, Event};
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::espocrm::version::Convention;
use crate::engine::time::Time;
use crate::espocrm::Installation;
use crate::espocrm::PROBE_TIMEOUT;
use crate::espocrm::process::{Finished, Task};
use crate::platform::sys;

impl CheckRunner {
    /// Runs a check by a plain command.
    pub(super) fn start_plain(
        &mut self,
        context: &mut Context<'_>,
        installation: &Installation,
        job: JobId,
        check: &Check,
        convention: Convention,
    ) {
        let task = Task::Check(job, convention);
        let command = installation.check(check);
        let timeout = context.settings.check_timeout.value;
        context.stats.run(false);
        let (registry, now) = (context.registry, context.now);
        if let Err(error) = self.children.spawn(registry, now, task, command, timeout) {
            let failure = Failure::NotStarted(error.to_string());
            self.finish(context, job, check, &Verdict::Failed(failure));
        }
    }

    /// Starts the probe of EspoCRM's settings. [`Event::Probed`] is its result.
    ///
    /// # Errors
    /// Those of starting a process.
    pub(crate) fn start_probe(
        &mut self,
        now: Time,
        registry: &Registry,
        command: Command,
    ) -> io::Result<()> {
        self.children.spawn(registry, now, Task::Probe, command, PROBE_TIMEOUT)
    }

    /// Handles an event of [`EventSource::Child`](crate::daemon::token::EventSource::Child).
    pub(crate) fn child_ready(&mut self, number: usize) {
        self.children.readable(number);
    }

    /// Reaps the children that have exited, for [`handle_finished`](Self::handle_finished).
    pub(crate) fn reap_children(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        self.children.reap(&mut finished);
        finished
    }

    /// Handles a child that has exited.
    pub(crate) fn handle_finished(
        &mut self,
        context: &mut Context<'_>,
        finished: Finished,
    ) -> Option<Event> {
        match finished.task {
            Task::Probe => return Some(Event::Probed(finished)),
            Task::SelfCheck(convention) => {
                return self.handle_self_check(context, convention, &finished);
            }
            Task::Check(job, convention) => {
                if let Some(check) = self.queue.check(job) {
                    let verdict = read(context.convention(convention), &check, &finished);
                    self.finish(context, job, &check, &verdict);
                }
            }
        }
        None
    }

    /// Reaps orphans of PHP processes when the daemon runs as PID 1, in a container without an init
    /// process. Called after the known processes have been reaped.
    pub(super) fn reap_orphans(&self) {
        if std::process::id() == 1 {
            sys::reap_orphans(|pid| self.processes().any(|it| it == pid));
        }
    }
}

fn read(convention: Convention, check: &Check, finished: &Finished) -> Verdict {
    match &finished.exit {
        Err(failure) => Verdict::Failed(failure.clone()),
        Ok(exit) => {
            let complaint = || check.redact(&finished.first_line());
            verdict::read(convention, &check.affirmation, *exit, &finished.stdout, complaint)
        }
    }
}
