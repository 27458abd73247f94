//! The checks that must be made, as simply as it can be said.

use crate::core::access::JobId;
use crate::core::verdict::Verdict;
use crate::shell::script::Number;

/// Who waits for a verdict: this connection, for its login or a topic. No number is used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub tab: Number,
    pub topic: Option<&'static str>,
    pub number: u64,
}

/// Every check that somebody waits for or that runs.
#[derive(Debug, Default)]
pub struct Checks {
    jobs: Vec<Job>,
    issued: u64,
    /// What has been found out and is not applied yet.
    answers: Vec<(Ticket, Verdict)>,
}

#[derive(Debug)]
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
    /// It has failed.
    Again(JobId),
}

/// Attempts of a subscription's check before it is given up.
const ATTEMPTS: usize = 5;

impl Checks {
    pub fn request(&mut self, tab: Number, topic: Option<&'static str>, command: String) -> u64 {
        self.issued += 1;
        let ticket = Ticket { tab, topic, number: self.issued };
        match self.jobs.iter_mut().find(|job| job.is_shared && job.command == command) {
            Some(job) => {
                job.tickets.push(ticket);
                if matches!(job.state, State::Again(_)) {
                    job.failures = 0;
                }
            }
            None => self.jobs.push(Job {
                command,
                state: State::Queued,
                tickets: vec![ticket],
                is_shared: true,
                failures: 0,
            }),
        }
        self.issued
    }

    /// These tickets are not wanted any more.
    pub fn cancel(&mut self, unwanted: impl Fn(&Ticket) -> bool) {
        self.answers.retain(|(ticket, _)| !unwanted(ticket));
        self.jobs.retain_mut(|job| {
            let before = job.tickets.len();
            job.tickets.retain(|ticket| !unwanted(ticket));
            if job.tickets.len() == before {
                return true;
            }
            let runs = matches!(job.state, State::Running(_));
            job.is_shared &= !runs;
            runs || !job.tickets.is_empty()
        });
    }

    /// Whether this check is one that was to be started.
    pub fn start(&mut self, id: JobId, command: &str) -> bool {
        let is_it = |job: &&mut Job| {
            let waits = match job.state {
                State::Queued => true,
                State::Again(before) => before == id,
                State::Running(_) => false,
            };
            waits && job.command == command
        };
        let job = self.jobs.iter_mut().find(is_it);
        job.map(|job| job.state = State::Running(id)).is_some()
    }

    pub fn finish(&mut self, id: JobId, verdict: &Verdict) {
        let index = self.jobs.iter().position(|job| job.state == State::Running(id));
        let index = index.expect("only what runs can end");
        let job = &mut self.jobs[index];
        job.failures += 1;
        let is_login = job.tickets.iter().any(|ticket| ticket.topic.is_none());
        let failed = matches!(verdict, Verdict::Unchecked(_));
        if failed && !is_login && !job.tickets.is_empty() && job.failures < ATTEMPTS {
            job.state = State::Again(id);
            return;
        }
        let tickets = self.jobs.swap_remove(index).tickets;
        self.answers.extend(tickets.into_iter().map(|ticket| (ticket, verdict.clone())));
    }

    pub fn take_answers(&mut self) -> Vec<(Ticket, Verdict)> {
        std::mem::take(&mut self.answers)
    }

    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.jobs.iter().map(|job| job.tickets.len()).sum()
    }

    pub fn running(&self) -> usize {
        self.jobs.iter().filter(|job| matches!(job.state, State::Running(_))).count()
    }
}
