//! A simple model of the access checks that the server must run.

use std::time::Duration;

use crate::daemon::script::Number;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::time::Time;

/// A connection that waits for a verdict on its login or a topic. Numbers are unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub tab: Number,
    pub topic: Option<&'static str>,
    pub number: u64,
}

/// All checks that are queued, waited for or running.
#[derive(Default)]
pub(super) struct Checks {
    jobs: Vec<Job>,
    issued: u64,
    /// Tickets without an answer that were not canceled.
    live: Vec<Ticket>,
    /// Actions that the server has decided but not yet performed.
    pending_actions: Vec<PendingAction>,
    /// Verdicts that are not applied yet.
    answers: Vec<(Ticket, Verdict)>,
}

enum PendingAction {
    Check(Ticket, String),
    Cancel(u64),
}

struct Job {
    command: String,
    state: State,
    tickets: Vec<Ticket>,
    /// Further requests for the same check join this job.
    is_shared: bool,
    failures: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running(JobId),
    /// It has failed and is retried at that time.
    Failed(JobId, Time),
    /// Its retry is due, or it was requested again.
    Again(JobId),
}

/// Delays between retries of a subscription's check, in seconds.
const RETRIES: [u64; 4] = [1, 4, 15, 60];

impl Checks {
    /// Requests a check and returns the number of its ticket.
    pub(super) fn request(
        &mut self,
        tab: Number,
        topic: Option<&'static str>,
        command: String,
    ) -> u64 {
        self.issued += 1;
        let ticket = Ticket { tab, topic, number: self.issued };
        self.live.push(ticket.clone());
        self.pending_actions.push(PendingAction::Check(ticket, command));
        self.issued
    }

    /// Cancels the tickets that match.
    pub(super) fn cancel(&mut self, unwanted: impl Fn(&Ticket) -> bool) {
        for ticket in self.live.extract_if(.., |ticket| unwanted(ticket)) {
            self.pending_actions.push(PendingAction::Cancel(ticket.number));
        }
    }

    /// Performs the pending actions in order.
    pub(super) fn carry_out(&mut self) {
        for action in std::mem::take(&mut self.pending_actions) {
            match action {
                PendingAction::Check(ticket, command) => self.add(ticket, command),
                PendingAction::Cancel(number) => self.remove(number),
            }
        }
    }

    fn add(&mut self, ticket: Ticket, command: String) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.is_shared && job.command == command)
        else {
            let (state, tickets) = (State::Queued, vec![ticket]);
            return self.jobs.push(Job { command, state, tickets, is_shared: true, failures: 0 });
        };
        job.tickets.push(ticket);
        if let State::Failed(id, _) = job.state {
            (job.state, job.failures) = (State::Again(id), 0);
        }
    }

    fn remove(&mut self, number: u64) {
        self.jobs.retain_mut(|job| {
            let before = job.tickets.len();
            job.tickets.retain(|ticket| ticket.number != number);
            let runs = matches!(job.state, State::Running(_));
            if job.tickets.len() < before && runs {
                job.is_shared = false;
            }
            runs || !job.tickets.is_empty()
        });
    }

    /// Marks a check as running; returns false if the model expects no such check.
    pub(super) fn start(&mut self, id: JobId, command: &str) -> bool {
        let matches = |state| move |job: &Job| job.state == state && job.command == command;
        let index = self.jobs.iter().position(matches(State::Again(id)));
        let index = index.or_else(|| self.jobs.iter().position(matches(State::Queued)));
        let job = index.map(|index| &mut self.jobs[index]);
        job.map(|job| job.state = State::Running(id)).is_some()
    }

    pub(super) fn finish(&mut self, now: Time, id: JobId, verdict: &Verdict) {
        let index = self.jobs.iter().position(|job| job.state == State::Running(id));
        let index = index.expect("only running checks end");
        let job = &mut self.jobs[index];
        let is_login = job.tickets.iter().any(|ticket| ticket.topic.is_none());
        let failed = matches!(verdict, Verdict::Failed(_));
        let is_wanted = !is_login && !job.tickets.is_empty();
        if let Some(seconds) = RETRIES.get(job.failures).filter(|_| failed && is_wanted) {
            job.failures += 1;
            job.state = State::Failed(id, now.after(Duration::from_secs(*seconds)));
            return;
        }
        let tickets = self.jobs.swap_remove(index).tickets;
        self.answers.extend(tickets.into_iter().map(|ticket| (ticket, verdict.clone())));
    }

    pub(super) fn expire(&mut self, now: Time) {
        for job in &mut self.jobs {
            if let State::Failed(id, at) = job.state
                && at <= now
            {
                job.state = State::Again(id);
            }
        }
    }

    /// Takes the verdicts of tickets that were not canceled.
    pub(super) fn take_answers(&mut self) -> Vec<(Ticket, Verdict)> {
        let mut answers = std::mem::take(&mut self.answers);
        answers.retain(|(ticket, _)| self.live.contains(ticket));
        self.live.retain(|live| !answers.iter().any(|(ticket, _)| ticket == live));
        answers
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether checks wait to be started.
    pub(super) fn has_queued(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job.state, State::Queued | State::Again(_)))
    }

    pub(super) fn waiting(&self) -> usize {
        self.jobs.iter().map(|job| job.tickets.len()).sum()
    }
}
