//! The checks that must be made, as simply as it can be said.

use std::time::Duration;

use crate::daemon::script::Number;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::time::Time;

/// Who waits for a verdict: this connection, for its login or a topic. No number is used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub tab: Number,
    pub topic: Option<&'static str>,
    pub number: u64,
}

/// Every check that somebody waits for or that runs.
#[derive(Default)]
pub(super) struct Checks {
    jobs: Vec<Job>,
    issued: u64,
    /// Tickets that are wanted and have got no answer.
    live: Vec<Ticket>,
    /// What the server has decided and not yet done.
    wishes: Vec<Wish>,
    /// What has been found out and is not applied yet.
    answers: Vec<(Ticket, Verdict)>,
}

enum Wish {
    Check(Ticket, String),
    Cancel(u64),
}

struct Job {
    command: String,
    state: State,
    tickets: Vec<Ticket>,
    /// Whoever asks for the same waits for this one.
    is_shared: bool,
    failures: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running(JobId),
    /// It has failed and is tried again at that time.
    Failed(JobId, Time),
    /// That time has come, or somebody has asked.
    Again(JobId),
}

/// In how many seconds a subscription's check is tried again.
const RETRIES: [u64; 4] = [1, 4, 15, 60];

impl Checks {
    /// Asks for a check, of which the ticket is returned.
    pub(super) fn request(
        &mut self,
        tab: Number,
        topic: Option<&'static str>,
        command: String,
    ) -> u64 {
        self.issued += 1;
        let ticket = Ticket { tab, topic, number: self.issued };
        self.live.push(ticket.clone());
        self.wishes.push(Wish::Check(ticket, command));
        self.issued
    }

    /// These tickets are not wanted any more.
    pub(super) fn cancel(&mut self, unwanted: impl Fn(&Ticket) -> bool) {
        for ticket in self.live.extract_if(.., |ticket| unwanted(ticket)) {
            self.wishes.push(Wish::Cancel(ticket.number));
        }
    }

    /// The server does what it has decided to do, in that order.
    pub(super) fn carry_out(&mut self) {
        for wish in std::mem::take(&mut self.wishes) {
            match wish {
                Wish::Check(ticket, command) => self.add(ticket, command),
                Wish::Cancel(number) => self.remove(number),
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

    /// Whether this check is one that was to be started.
    pub(super) fn start(&mut self, id: JobId, command: &str) -> bool {
        let is_it = |state| move |job: &Job| job.state == state && job.command == command;
        let index = self.jobs.iter().position(is_it(State::Again(id)));
        let index = index.or_else(|| self.jobs.iter().position(is_it(State::Queued)));
        let job = index.map(|index| &mut self.jobs[index]);
        job.map(|job| job.state = State::Running(id)).is_some()
    }

    pub(super) fn finish(&mut self, now: Time, id: JobId, verdict: &Verdict) {
        let index = self.jobs.iter().position(|job| job.state == State::Running(id));
        let index = index.expect("only what runs can end");
        let job = &mut self.jobs[index];
        let is_login = job.tickets.iter().any(|ticket| ticket.topic.is_none());
        let failed = matches!(verdict, Verdict::Unchecked(_));
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

    /// What has been found out for those who still wait for it.
    pub(super) fn take_answers(&mut self) -> Vec<(Ticket, Verdict)> {
        let mut answers = std::mem::take(&mut self.answers);
        answers.retain(|(ticket, _)| self.live.contains(ticket));
        self.live.retain(|live| !answers.iter().any(|(ticket, _)| ticket == live));
        answers
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    pub(super) fn waiting(&self) -> usize {
        self.jobs.iter().map(|job| job.tickets.len()).sum()
    }
}
