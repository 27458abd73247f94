//! A random environment: workers that answer, hang, are obstructed, exit or accept every token,
//! plain commands, self-checks, reloads, and killed workers that do not exit.

use std::collections::BTreeMap;

use super::*;
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::queue::{CheckQueue, JobId};
use crate::engine::checks::self_check::{self, SelfCheck};
use crate::engine::checks::verdict::{self, Verdict};
use crate::engine::id::ConnId;
use crate::engine::random::Random;
use crate::engine::seeds;

const SEEDS: u64 = 300;
const STEPS: usize = 500;

#[test]
fn each_check_ends_and_only_verified_workers_grant() {
    seeds::run(SEEDS, &EXPECTED_EVENTS, 10, |seed, verbose| World::new(seed, verbose).run());
}

const EXPECTED_EVENTS: [&str; 16] = [
    "exited while idle",
    "given up",
    "given up because of losses",
    "given up because of obstructions",
    "granted",
    "no worker because of stuck ones",
    "not sent",
    "released",
    "retried",
    "stopped after a reload",
    "stopped after a minute",
    "third worker",
    "untrusted",
    "used again after the pause",
    "verified",
    "waited for a worker",
];

/// A worker process as the world knows it.
#[derive(Debug)]
struct Process {
    job: Option<JobId>,
    idle_since: Time,
    trust: Trust,
    has_answered: bool,
    /// It was started before a reload.
    is_retired: bool,
}

/// A failure of a worker.
#[derive(Debug)]
struct Failure {
    at: Time,
    is_obstruction: bool,
    /// It need not lead to giving up workers again.
    is_forgiven: bool,
}

struct World {
    random: Random,
    now: Time,
    queue: CheckQueue,
    pool: Pool,
    self_check: SelfCheck,
    is_self_check_running: bool,
    limit: usize,
    max_checks: usize,
    processes: BTreeMap<WorkerId, Process>,
    next_worker: u32,
    stuck: usize,
    /// All started checks that have not ended, with their worker unless it is a plain command.
    running: BTreeMap<JobId, Option<WorkerId>>,
    /// All tickets without an answer.
    tickets: Vec<Ticket>,
    /// In the last minutes, since the last reload.
    failures: Vec<Failure>,
    /// Failures of busy workers since one has answered or workers were given up.
    in_a_row: u32,
    /// Workers were given up, and none has answered since.
    given_up: Option<Time>,
    max_tickets: usize,
    /// In milliseconds.
    waits: [usize; 3],
    /// In percent: how often a worker fails, exits while it is idle, and accepts every token.
    failing: usize,
    exiting: usize,
    untrusted: usize,
    seen: BTreeMap<&'static str, u64>,
    verbose: bool,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let limit = random.below(5);
        let max_checks = 1 + random.below(8);
        let mut queue = CheckQueue::new(max_checks);
        queue.set_cache_lifetime(Duration::from_secs(2));
        Self {
            // The first window of failures begins at 0, the others with a failure.
            now: Time::default().after(PAUSE),
            queue,
            pool: Pool::new(limit),
            self_check: SelfCheck::default(),
            is_self_check_running: false,
            limit,
            max_checks,
            processes: BTreeMap::new(),
            next_worker: 0,
            stuck: 0,
            running: BTreeMap::new(),
            tickets: Vec::new(),
            failures: Vec::new(),
            in_a_row: 0,
            given_up: None,
            failing: *random.pick(&[0, 2, 10, 60]),
            waits: *random.pick(&[[10, 100, 5_000], [10, 20_000, 200_000]]),
            max_tickets: *random.pick(&[1, 4, 100]),
            exiting: *random.pick(&[0, 2, 50]),
            untrusted: *random.pick(&[0, 5, 50]),
            seen: BTreeMap::new(),
            verbose,
            random,
        }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        self.request_self_check();
        for _ in 0..STEPS {
            self.turn();
            self.start_due();
            self.check_invariants();
        }
        self.queue.check_invariants();
        // When nothing fails any more, all checks end.
        (self.failing, self.untrusted) = (0, 0);
        for _ in 0..10_000 {
            if self.queue.is_idle() {
                break;
            }
            self.finish_self_check(&Verdict::Denied);
            for job in self.running.keys().copied().collect::<Vec<_>>() {
                self.end(job, &Verdict::Granted);
            }
            self.wait();
            self.start_due();
            self.check_invariants();
        }
        assert!(self.queue.is_idle() && self.running.is_empty(), "a check does not end");
        self.queue.check_invariants();
        assert_eq!(self.tickets, [], "a ticket has no answer");
        self.seen
    }

    fn turn(&mut self) {
        if let Some(id) = self.idle()
            && self.random.chance(self.exiting)
        {
            self.seen("exited while idle");
            self.handle_outcome(id, Outcome::Exited);
        }
        match self.random.below(100) {
            0..25 if self.tickets.len() < self.max_tickets => {
                let free = self.max_tickets - self.tickets.len();
                (0..=self.random.below(free)).for_each(|_| self.request());
            }
            25..28 if !self.tickets.is_empty() => {
                let index = self.random.below(self.tickets.len());
                self.queue.cancel(self.tickets.swap_remove(index));
            }
            28..70 if !self.running.is_empty() => {
                let index = self.random.below(self.running.len());
                let job = *self.running.keys().nth(index).unwrap();
                let verdict = self.verdict();
                self.end(job, &verdict);
            }
            70..74 => self.stuck = self.stuck.saturating_sub(1),
            74 if self.random.chance(30) => self.reload(),
            75..80 => {
                let is_random = self.random.chance(20);
                let verdict = if is_random { self.verdict() } else { Verdict::Denied };
                self.finish_self_check(&verdict);
            }
            _ => self.wait(),
        }
    }

    /// Requests one of many checks.
    fn request(&mut self) {
        self.seen("requested");
        let serial = u32::try_from(self.seen["requested"]).unwrap();
        let ticket = Ticket { conn: ConnId::new(0, 1), serial };
        let (user, topic) = (self.random.below(8).to_string(), self.random.below(30).to_string());
        let urgency = *self.random.pick(&[Urgency::Login, Urgency::Subscription, Urgency::Recheck]);
        let check = Check::topic(&user, [Check::ACCESS.into(), topic.into()].into());
        if !self.queue.request(self.now, ticket, check, urgency).unwrap() {
            self.tickets.push(ticket);
        }
    }

    /// Starts checks as the daemon does.
    fn start_due(&mut self) {
        while self.queue.can_start() {
            self.pool.set_stuck(self.stuck);
            let Some(runner) = self.pool.take(self.now, self.queue.queued() - 1) else {
                assert!(!self.processes.is_empty(), "a check waits for no worker");
                assert_eq!(self.idle(), None, "an idle worker is not used");
                assert!(!self.is_given_up(), "a check waits though workers were given up");
                return self.seen("waited for a worker");
            };
            self.log(&format!("start on {runner:?}"));
            let worker = self.worker(runner);
            let (job, _) = self.queue.start(self.now).unwrap();
            assert_eq!(self.running.insert(job, worker), None, "{job:?} runs twice");
            assert!(self.self_check.allows_checks() && self.running.len() <= self.max_checks);
            if self.random.chance(2) {
                // EspoCRM has no such entity type.
                self.pool.release(self.now, runner);
                match runner {
                    Runner::New(id) => drop(self.processes.remove(&id)),
                    Runner::Idle(id) => self.process(id).idle_since = self.now,
                    Runner::Plain => {}
                }
                self.finish(job, &Verdict::Denied);
                self.seen("released");
            } else if let Some(id) = worker {
                self.process(id).job = Some(job);
                self.send(id);
            }
        }
    }

    fn send(&mut self, id: WorkerId) {
        if self.random.chance(self.failing / 5) {
            self.seen("not sent");
            self.handle_outcome(id, failed());
        }
    }

    /// Checks whether a runner may be used. Returns its worker.
    fn worker(&mut self, runner: Runner) -> Option<WorkerId> {
        match runner {
            Runner::Plain => {
                if self.limit > 0 && self.stuck >= self.limit && self.processes.is_empty() {
                    self.seen("no worker because of stuck ones");
                } else if self.limit > 0 {
                    assert!(self.given_up.is_some(), "workers are not used");
                    let last = self.failures.last().map(|failure| self.now.since(failure.at));
                    assert!(last.is_some_and(|since| since < PAUSE), "workers are not used again");
                }
                return None;
            }
            Runner::Idle(id) => {
                let process = self.processes.get(&id).expect("a stopped worker is used");
                assert!(process.job.is_none() && !process.is_retired, "{id:?} must not be used");
            }
            Runner::New(WorkerId(number)) => {
                assert!(number >= self.next_worker, "an id is reused");
                self.next_worker = number + 1;
                let process = Process {
                    job: None,
                    idle_since: self.now,
                    trust: Trust::Unverified,
                    has_answered: false,
                    is_retired: false,
                };
                self.processes.insert(WorkerId(number), process);
                assert!(self.processes.len() + self.stuck <= self.limit, "too many workers");
                if self.processes.len() == 3 {
                    self.seen("third worker");
                }
                if self.given_up.is_some() {
                    self.seen("used again after the pause");
                }
            }
        }
        assert!(!self.is_given_up(), "a worker is used though workers were given up");
        let (Runner::Idle(id) | Runner::New(id)) = runner else { return None };
        Some(id)
    }

    fn process(&mut self, id: WorkerId) -> &mut Process {
        self.processes.get_mut(&id).unwrap()
    }

    fn idle(&self) -> Option<WorkerId> {
        self.processes.iter().find(|(_, it)| it.job.is_none()).map(|(id, _)| *id)
    }

    fn is_given_up(&self) -> bool {
        self.given_up.is_some_and(|since| self.now.since(since) < PAUSE)
    }

    fn verdict(&mut self) -> Verdict {
        match self.random.below(10) {
            0..6 => Verdict::Granted,
            6..8 => Verdict::Denied,
            _ => Verdict::Failed(verdict::Failure::TimedOut),
        }
    }

    /// Ends a check on a worker or of a plain command, or the verification of a worker.
    fn end(&mut self, job: JobId, verdict: &Verdict) {
        let Some(id) = self.running[&job] else { return self.finish(job, verdict) };
        let outcome = if self.random.chance(self.failing) {
            match self.random.below(7) {
                0 => Outcome::Unable,
                1 => Outcome::ScriptRemoved,
                2 => Outcome::Unanswered(Problem::TimedOut { begun: true }),
                3 => Outcome::Unanswered(Problem::TimedOut { begun: false }),
                4 => Outcome::Unanswered(Problem::NotBegun),
                _ => failed(),
            }
        } else if self.processes[&id].trust != Trust::Verifying
            || self.random.chance(self.untrusted)
        {
            Outcome::Answered(verdict.clone())
        } else {
            Outcome::Answered(Verdict::Denied)
        };
        self.handle_outcome(id, outcome);
    }

    /// Executes a decision as the daemon does, and checks it.
    fn handle_outcome(&mut self, id: WorkerId, outcome: Outcome) {
        self.log(&format!("{id:?}: {outcome:?}"));
        let (is_exit, is_unable) = (outcome == Outcome::Exited, outcome == Outcome::Unable);
        let is_timeout = matches!(outcome, Outcome::Unanswered(Problem::TimedOut { .. }));
        let answer = match &outcome {
            Outcome::Answered(verdict) => Some(verdict.clone()),
            _ => None,
        };
        let decision = self.pool.handle_outcome(self.now, id, outcome);
        self.log(&format!("  {decision:?}"));

        let process = self.processes.get_mut(&id).unwrap();
        let (job, was_verifying) = (process.job, process.trust == Trust::Verifying);
        if was_verifying {
            let has_denied = answer == Some(Verdict::Denied);
            process.trust = if has_denied { Trust::Verified } else { Trust::Unverified };
        }
        let is_verified = process.trust == Trust::Verified;
        let has_granted = answer == Some(Verdict::Granted);
        let is_untrusted = has_granted && was_verifying;
        assert_eq!(decision.fault == Some(Fault::Untrusted), is_untrusted);
        let must_verify = has_granted && !is_verified && !was_verifying;
        assert_eq!(decision.check == CheckAction::Verify, must_verify);
        if must_verify {
            process.trust = Trust::Verifying;
            assert_eq!((decision.worker, decision.fault), (Next::Wait, None));
            return self.send(id);
        }
        let is_good = answer.is_some() && !is_untrusted;
        let is_failure = decision.fault.is_some() || !is_good && !process.has_answered;
        process.has_answered |= is_good;
        if decision.worker == Next::Wait {
            assert!((is_good || is_unable) && !is_failure, "{id:?} must be stopped");
            assert!(!process.is_retired, "{id:?} must be stopped after the reload");
            (process.job, process.idle_since) = (None, self.now);
        } else {
            if process.is_retired {
                self.seen("stopped after a reload");
            }
            self.stop(id);
        }
        if is_failure {
            let is_obstruction = decision.fault == Some(Fault::Obstructed);
            self.count_failure(decision.worker, is_obstruction, is_exit);
        } else if is_good {
            if self.given_up.take().is_some() {
                self.forgive();
            }
            self.in_a_row = 0;
        }
        if is_untrusted {
            self.seen("untrusted");
            self.request_self_check();
        }
        let Some(job) = job else { return assert_eq!(decision.check, CheckAction::Nothing) };
        match decision.check {
            CheckAction::Finish(verdict) => {
                assert!(is_timeout || is_good, "a check ends without an answer");
                if verdict == Verdict::Granted {
                    assert!(is_good && is_verified, "a worker grants before it has denied");
                    self.seen(if was_verifying { "verified" } else { "granted" });
                }
                self.finish(job, &verdict);
            }
            CheckAction::RunPlain => {
                assert!(!is_timeout, "a check exceeds its time");
                self.running.insert(job, None);
            }
            action => panic!("{action:?}"),
        }
    }

    /// Checks that workers are given up after too many failures, and not earlier.
    fn count_failure(&mut self, next: Next, is_obstruction: bool, is_exit: bool) {
        let now = self.now;
        self.failures.retain(|failure| now.since(failure.at) < PAUSE);
        self.failures.push(Failure { at: now, is_obstruction, is_forgiven: false });
        self.in_a_row += u32::from(!is_exit);
        if self.given_up.is_some() || self.limit == 0 {
            return assert_eq!(next, Next::Stop, "given up twice, or without workers");
        }
        let obstructions = |it: &&Failure| is_obstruction && it.is_obstruction;
        let unforgiven = self.failures.iter().filter(|it| !it.is_forgiven);
        // Losses are counted in two consecutive windows at most.
        let is_due = self.in_a_row >= 2
            || unforgiven.clone().filter(obstructions).count() >= 2
            || unforgiven.count() > 18;
        assert!(!is_due || next == Next::GiveUp, "workers are not given up");
        if next == Next::GiveUp {
            self.seen("given up");
            if self.in_a_row < 2 && self.failures.iter().filter(obstructions).count() >= 2 {
                self.seen("given up because of obstructions");
            } else if self.in_a_row < 2 {
                assert!(self.failures.len() >= 10, "given up too early");
                self.seen("given up because of losses");
            }
            (self.in_a_row, self.given_up) = (0, Some(now));
            self.forgive();
        }
    }

    fn forgive(&mut self) {
        self.failures.iter_mut().for_each(|failure| failure.is_forgiven = true);
    }

    /// A killed worker may be stuck.
    fn stop(&mut self, id: WorkerId) {
        assert!(self.processes.remove(&id).is_some(), "{id:?} is stopped twice");
        self.stuck += usize::from(self.random.chance(10));
    }

    /// Ends a check.
    fn finish(&mut self, job: JobId, verdict: &Verdict) {
        assert!(self.running.remove(&job).is_some(), "{job:?} ends twice");
        let mut answers = Vec::new();
        self.queue.finish(self.now, job, verdict, &mut answers);
        if self.queue.check(job).is_some() {
            assert!(matches!(verdict, Verdict::Failed(_)) && answers.is_empty());
            assert!(self.queue.next_deadline().is_some());
            self.seen("retried");
        }
        for answer in answers {
            assert_eq!(answer.verdict, *verdict);
            let index = self.tickets.iter().position(|ticket| *ticket == answer.ticket);
            self.tickets.swap_remove(index.expect("a ticket is answered twice"));
        }
    }

    fn reload(&mut self) {
        self.limit = self.random.below(5);
        self.max_checks = 1 + self.random.below(8);
        self.queue.set_limit(self.max_checks);
        self.retire_all();
        self.request_self_check();
    }

    fn retire_all(&mut self) {
        self.log(&format!("retire all, {} workers", self.limit));
        self.queue.set_cache_lifetime(Duration::from_secs(2));
        self.failures.clear();
        (self.in_a_row, self.given_up) = (0, None);
        for id in self.pool.retire_all(self.limit) {
            assert_eq!(self.processes[&id].job, None, "a busy worker is stopped");
            self.stop(id);
        }
        for process in self.processes.values_mut() {
            assert!(process.job.is_some(), "an idle worker is not stopped");
            process.is_retired = true;
        }
    }

    fn request_self_check(&mut self) {
        self.self_check.request(self.now);
        self.queue.set_paused(!self.self_check.allows_checks());
    }

    fn finish_self_check(&mut self, verdict: &Verdict) {
        if !std::mem::take(&mut self.is_self_check_running) {
            return;
        }
        self.log(&format!("self-check: {verdict:?}"));
        if self.self_check.finish(self.now, verdict) == self_check::Outcome::Accepted {
            self.retire_all();
        }
        self.queue.set_paused(!self.self_check.allows_checks());
    }

    /// Waits as the event loop does.
    fn wait(&mut self) {
        let longest = *self.random.pick(&self.waits);
        let until = self.now.after(Duration::from_millis(self.random.below(longest) as u64));
        let due = [
            self.queue.next_deadline(),
            self.pool.next_deadline(),
            self.self_check.next_deadline(),
        ];
        let due = due.into_iter().flatten().min();
        self.now = due.map_or(until, |due| due.min(until)).max(self.now);
        self.queue.expire(self.now);
        for id in self.pool.expire(self.now) {
            let process = &self.processes[&id];
            let idle = self.now.since(process.idle_since);
            assert!(process.job.is_none() && idle >= IDLE, "{id:?} is stopped after {idle:?}");
            self.seen("stopped after a minute");
            self.stop(id);
        }
        let is_overdue = self.pool.next_deadline().is_some_and(|due| due <= self.now);
        assert!(!is_overdue, "the event loop spins");
        if self.self_check.is_due(self.now) {
            self.self_check.start(Check::authentication("token", "user"));
            self.is_self_check_running = true;
        }
    }

    fn check_invariants(&self) {
        self.pool.check_invariants();
        assert_eq!(self.queue.running(), self.running.len());
        let on_workers = self.running.iter().filter_map(|(job, id)| Some(((*id)?, *job)));
        let busy = self.processes.iter().filter_map(|(id, it)| Some((*id, it.job?)));
        assert_eq!(on_workers.collect::<BTreeMap<_, _>>(), busy.collect());
    }

    fn seen(&mut self, event: &'static str) {
        *self.seen.entry(event).or_default() += 1;
    }

    fn log(&self, event: &str) {
        seeds::print_step(self.verbose, self.now.as_millis(), event);
    }
}

fn failed() -> Outcome {
    Outcome::Unanswered(Problem::Failed(String::new()))
}
