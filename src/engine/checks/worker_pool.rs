//! The PHP workers: where a check runs, and when workers are started, stopped or given up.

mod outcome;
#[cfg(test)]
mod random;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::time::Time;
pub use outcome::{CheckAction, Decision, Fault, Outcome, Problem};

/// Identifies a worker; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(u32);

/// Where a check runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// A new process that runs only this check.
    Plain,
    /// This idle worker.
    Idle(WorkerId),
    /// This worker, which must be started first.
    New(WorkerId),
}

/// What happens to a worker next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Keep it: it waits for another check, or is being verified.
    Wait,
    /// Stop it; the pool no longer knows it.
    Stop,
    /// Stop it; the pool has also given up workers for now.
    GiveUp,
}

/// Decides when workers are started and stopped. It does neither itself.
///
/// Each runs one check at a time. An idle daemon has none: the first is started for the first
/// check, a second one only if many checks wait, and they are stopped after a minute without
/// checks.
///
/// - Before each check: [`set_stuck`](Self::set_stuck), then [`take`](Self::take). Start the worker
///   if it is new, and send the check; or return it with [`release`](Self::release).
/// - The end of each request, a failed start, and an idle worker that exits:
///   [`handle_outcome`](Self::handle_outcome).
/// - [`expire`](Self::expire) at [`next_deadline`](Self::next_deadline).
/// - A reload: [`retire_all`](Self::retire_all).
#[derive(Debug)]
pub struct Pool {
    /// Maximum number of workers; 0 to use none.
    limit: usize,
    workers: Vec<Worker>,
    next_id: u32,
    /// Workers that were killed but have not exited: they still count.
    stuck: usize,
    /// Workers that failed since one has answered.
    failures: u32,
    /// Workers that began no check, even if others have answered in between: an attacker who
    /// obstructs workers may let some checks pass.
    obstructions: Window,
    /// Workers that exited or failed, even if others have answered in between.
    losses: Window,
    /// After too many failures every check is run as a plain command until then.
    given_up_until: Option<Time>,
}

/// Number of events within [`PAUSE`].
#[derive(Debug, Default)]
struct Window {
    since: Time,
    count: u32,
}

#[derive(Debug)]
struct Worker {
    id: WorkerId,
    /// Since when it is idle.
    idle: Option<Time>,
    answers: u32,
    trust: Trust,
    /// It was started before a change: its next answer is its last.
    outdated: bool,
}

/// Whether the grants of a worker can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Not known.
    Unverified,
    /// It has granted a check, and runs a check of a random token.
    Verifying,
    /// It has denied a random token.
    Verified,
}

/// An idle worker uses 23 MB; keep it while active users need a check now and then.
const IDLE: Duration = Duration::from_secs(60);

/// Answers of one worker. Starting another costs as much as thirty checks; a new process discards
/// everything that EspoCRM's extensions have left behind.
const MAX_ANSWERS: u32 = 1_000;

/// Waiting checks per worker before another is started, which costs as much as thirty checks.
const BACKLOG: usize = 16;

/// Consecutive failures of workers before workers are given up.
const MAX_FAILURES: u32 = 2;

/// Workers that began no check before workers are given up: each delays a check by seconds.
const MAX_OBSTRUCTIONS: u32 = 2;

/// Lost workers before workers are given up: starting one costs more than a plain command.
const MAX_LOSSES: u32 = 10;

/// How long workers are given up. The cause may be fixed by then.
const PAUSE: Duration = Duration::from_secs(600);

impl Pool {
    /// A pool of at most `limit` workers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            workers: Vec::new(),
            next_id: 0,
            stuck: 0,
            failures: 0,
            obstructions: Window::default(),
            losses: Window::default(),
            given_up_until: None,
        }
    }

    /// Sets how many workers were killed but have not exited.
    pub fn set_stuck(&mut self, count: usize) {
        self.stuck = count;
    }

    /// Where the next check runs; `None` if it must wait for a worker. `waiting` is the number of
    /// checks that wait besides this one.
    pub fn take(&mut self, now: Time, waiting: usize) -> Option<Runner> {
        if self.limit == 0 || self.given_up_until.is_some_and(|until| now < until) {
            return Some(Runner::Plain);
        }
        // Prefer the worker that was busy last, so that the others expire sooner.
        let idle = self.workers.iter_mut().filter(|worker| worker.idle.is_some());
        if let Some(worker) = idle.max_by_key(|worker| worker.idle) {
            worker.idle = None;
            return Some(Runner::Idle(worker.id));
        }
        let count = self.workers.len();
        if count == 0 && self.stuck >= self.limit {
            // There is no worker to wait for.
            return Some(Runner::Plain);
        }
        if count + self.stuck >= self.limit || waiting < count * BACKLOG {
            return None;
        }
        let id = WorkerId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let trust = Trust::Unverified;
        self.workers.push(Worker { id, idle: None, answers: 0, trust, outdated: false });
        Some(Runner::New(id))
    }

    /// Returns a runner that was taken but not used.
    pub fn release(&mut self, now: Time, runner: Runner) {
        match runner {
            Runner::Plain => {}
            Runner::Idle(id) => {
                if let Some(worker) = self.get_mut(id) {
                    worker.idle = Some(now);
                }
            }
            // It was not started.
            Runner::New(id) => self.workers.retain(|worker| worker.id != id),
        }
    }

    /// A worker has answered a check.
    fn answered(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        self.failures = 0;
        self.given_up_until = None;
        if let Some(worker) = self.workers.get_mut(index) {
            worker.answers += 1;
            worker.idle = Some(now);
            if worker.answers < MAX_ANSWERS && !worker.outdated {
                return Next::Wait;
            }
        }
        self.workers.swap_remove(index);
        Next::Stop
    }

    /// Whether this worker runs a check of a random token.
    #[must_use]
    pub fn is_verifying(&self, id: WorkerId) -> bool {
        self.workers.iter().any(|worker| worker.id == id && worker.trust == Trust::Verifying)
    }

    fn set_trust(&mut self, id: WorkerId, trust: Trust) {
        if let Some(worker) = self.get_mut(id) {
            worker.trust = trust;
        }
    }

    /// A worker could not be started, has exited, or has sent an invalid response.
    fn failed(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        let worker = self.workers.swap_remove(index);
        let too_many = self.losses.add(now) >= MAX_LOSSES;
        // An idle worker had no check to lose.
        if worker.idle.is_none() {
            self.failures += 1;
        }
        if too_many || self.failures >= MAX_FAILURES { self.give_up(now) } else { Next::Stop }
    }

    /// An idle worker has not begun the check that it was sent: it accepts no requests.
    fn obstructed(&mut self, now: Time, id: WorkerId) -> Next {
        let next = self.failed(now, id);
        if self.obstructions.add(now) < MAX_OBSTRUCTIONS || next == Next::GiveUp {
            return next;
        }
        self.give_up(now)
    }

    fn give_up(&mut self, now: Time) -> Next {
        self.failures = 0;
        self.obstructions = Window::default();
        self.losses = Window::default();
        if self.limit == 0 {
            // The last workers after a reload that disables them.
            return Next::Stop;
        }
        // Renewals of the pause are not reported.
        let again = self.given_up_until.replace(now.after(PAUSE)).is_some();
        if again { Next::Stop } else { Next::GiveUp }
    }

    /// A worker could not complete a check, though PHP keeps running. The check is to blame, unless
    /// the worker has never answered.
    fn unable(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        match self.workers.get_mut(index) {
            Some(worker) if worker.answers > 0 && !worker.outdated => {
                worker.idle = Some(now);
                Next::Wait
            }
            Some(worker) if worker.answers > 0 => {
                self.workers.swap_remove(index);
                Next::Stop
            }
            _ => self.failed(now, id),
        }
    }

    /// A worker was stopped because a check took too long. The check is to blame, unless the worker
    /// has never answered.
    fn stopped(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        if self.workers.get(index).is_some_and(|worker| worker.answers == 0) {
            return self.failed(now, id);
        }
        self.workers.swap_remove(index);
        Next::Stop
    }

    /// EspoCRM has changed in a way that running workers may not notice. Returns the workers to be
    /// stopped now; busy ones are stopped after their answer.
    pub fn retire_all(&mut self, limit: usize) -> Vec<WorkerId> {
        self.limit = limit;
        self.failures = 0;
        self.obstructions = Window::default();
        self.losses = Window::default();
        self.given_up_until = None;
        for worker in &mut self.workers {
            worker.outdated = true;
        }
        self.take_idle(|_| true)
    }

    /// Returns the workers that have been idle for too long and must be stopped.
    pub fn expire(&mut self, now: Time) -> Vec<WorkerId> {
        self.take_idle(|since| since.after(IDLE) <= now)
    }

    /// When [`expire`](Self::expire) must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.workers.iter().filter_map(|worker| worker.idle).min().map(|since| since.after(IDLE))
    }

    /// Checks the invariants of workers and limits. For tests.
    ///
    /// # Panics
    /// If one is violated.
    pub fn check_invariants(&self) {
        let ids: BTreeSet<_> = self.workers.iter().map(|worker| worker.id).collect();
        assert_eq!(ids.len(), self.workers.len(), "two workers have the same id");
        for worker in &self.workers {
            assert!(worker.answers < MAX_ANSWERS, "{:?} must have been stopped", worker.id);
            assert!(
                worker.idle.is_none() || !worker.outdated,
                "{:?} is idle but outdated",
                worker.id
            );
            let is_verifying = worker.trust == Trust::Verifying;
            assert!(worker.idle.is_none() || !is_verifying, "{:?} is idle", worker.id);
        }
        assert!(self.failures < MAX_FAILURES);
        assert!(self.given_up_until.is_none() || self.limit > 0);
    }

    fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    fn find(&self, id: WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == id)
    }

    fn take_idle(&mut self, which: impl Fn(Time) -> bool) -> Vec<WorkerId> {
        let expires = |worker: &Worker| worker.idle.is_some_and(&which);
        let ids = self.workers.iter().filter(|worker| expires(worker)).map(|it| it.id).collect();
        self.workers.retain(|worker| !expires(worker));
        ids
    }
}

impl Window {
    /// Counts an event; returns the number of events in the window.
    fn add(&mut self, now: Time) -> u32 {
        // The first window begins at its first event, not at the start of the daemon.
        if self.count == 0 || now >= self.since.after(PAUSE) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checks::verdict::{Failure, Verdict};

    #[test]
    fn a_window_begins_at_its_first_event() {
        let at = |seconds| Time::default().after(Duration::from_secs(seconds));
        let mut window = Window::default();
        assert_eq!([590, 610, 1_189, 1_190].map(|seconds| window.add(at(seconds))), [1, 2, 3, 1]);
    }

    const NOW: Time = Time::from_millis(0);

    fn new(runner: Option<Runner>) -> WorkerId {
        let Some(Runner::New(id)) = runner else { panic!("{runner:?}") };
        id
    }

    #[test]
    fn a_second_worker_is_started_only_if_many_checks_wait() {
        let mut pool = Pool::new(2);
        let a = new(pool.take(NOW, 0));
        assert_eq!(pool.take(NOW, BACKLOG - 1), None);
        let b = new(pool.take(NOW, BACKLOG));
        assert_eq!(pool.take(NOW, 10_000), None);
        assert_eq!(pool.answered(NOW, a), Next::Wait);
        assert_eq!(pool.answered(NOW.after(IDLE), b), Next::Wait);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(b)));
        assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(a)));
        assert_eq!(pool.take(NOW, 0), None);
    }

    #[test]
    fn a_grant_counts_after_its_worker_has_denied_a_random_token() {
        let mut pool = Pool::new(2);
        let a = new(pool.take(NOW, 0));
        let b = new(pool.take(NOW, BACKLOG));
        let answer = |pool: &mut Pool, id, verdict| {
            let decision = pool.handle_outcome(NOW, id, Outcome::Answered(verdict));
            assert_eq!(pool.is_verifying(id), decision.check == CheckAction::Verify);
            decision
        };
        let decision = |worker, fault, check| Decision { worker, fault, check };
        let granted = || decision(Next::Wait, None, CheckAction::Finish(Verdict::Granted));
        let verify = || decision(Next::Wait, None, CheckAction::Verify);
        let failed = || Verdict::Failed(Failure::TimedOut);
        // Not after a check that it denied, or a verification without a result.
        assert_eq!(
            answer(&mut pool, a, Verdict::Denied).check,
            CheckAction::Finish(Verdict::Denied)
        );
        assert_eq!(answer(&mut pool, a, Verdict::Granted), verify());
        let plain = decision(Next::Wait, None, CheckAction::RunPlain);
        assert_eq!(answer(&mut pool, a, failed()), plain);
        assert_eq!(answer(&mut pool, a, Verdict::Granted), verify());
        assert_eq!(pool.handle_outcome(NOW, a, Outcome::Unable), plain);
        assert_eq!(answer(&mut pool, a, Verdict::Granted), verify());
        assert_eq!(answer(&mut pool, a, Verdict::Denied), granted());
        assert_eq!(answer(&mut pool, a, Verdict::Granted), granted());
        assert_eq!(answer(&mut pool, a, failed()).check, CheckAction::Finish(failed()));
        // Each worker is verified separately.
        assert_eq!(answer(&mut pool, b, Verdict::Granted), verify());
        let stopped = decision(Next::Stop, Some(Fault::Untrusted), CheckAction::RunPlain);
        assert_eq!(answer(&mut pool, b, Verdict::Granted), stopped);
    }

    #[test]
    fn a_check_without_an_answer_runs_as_a_plain_command_unless_its_time_is_over() {
        let timed_out = || CheckAction::Finish(Verdict::Failed(Failure::TimedOut));
        let failed = || Problem::Failed("x".to_owned());
        for (problem, fault, check) in [
            (Problem::TimedOut { begun: true }, None, timed_out()),
            (Problem::TimedOut { begun: false }, Some(Fault::Obstructed), timed_out()),
            (Problem::NotBegun, Some(Fault::Obstructed), CheckAction::RunPlain),
            (failed(), Some(Fault::Failed("x".to_owned())), CheckAction::RunPlain),
        ] {
            let mut pool = Pool::new(1);
            let id = new(pool.take(NOW, 0));
            let decision = pool.handle_outcome(NOW, id, Outcome::Unanswered(problem));
            assert_eq!(decision, Decision { worker: Next::Stop, fault, check });
        }
    }

    #[test]
    fn an_idle_worker_is_stopped_after_a_while() {
        let mut pool = Pool::new(1);
        let a = new(pool.take(NOW, 0));
        assert_eq!((pool.next_deadline(), pool.expire(NOW.after(IDLE))), (None, vec![]));
        pool.answered(NOW, a);
        let end = NOW.after(IDLE);
        assert_eq!(pool.next_deadline(), Some(end));
        assert_eq!(pool.expire(end), [a]);
        assert_eq!((pool.next_deadline(), pool.expire(end)), (None, vec![]));
        assert_ne!(new(pool.take(end, 0)), a);
    }

    #[test]
    fn a_worker_is_replaced_after_many_answers() {
        let mut pool = Pool::new(1);
        let a = new(pool.take(NOW, 0));
        for _ in 1..MAX_ANSWERS {
            assert_eq!(pool.answered(NOW, a), Next::Wait);
            assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(a)));
        }
        assert_eq!(pool.answered(NOW, a), Next::Stop);
        assert_ne!(new(pool.take(NOW, 0)), a);
    }

    #[test]
    fn after_a_change_workers_answer_at_most_once() {
        let mut pool = Pool::new(2);
        let busy = new(pool.take(NOW, 0));
        let idle = new(pool.take(NOW, BACKLOG));
        pool.answered(NOW, idle);
        assert_eq!(pool.retire_all(1), [idle]);
        assert_eq!(pool.take(NOW, 10_000), None);
        assert_eq!(pool.answered(NOW, busy), Next::Stop);
        assert_eq!(pool.answered(NOW, busy), Next::Stop);
        new(pool.take(NOW, 0));
        pool.retire_all(0);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
    }

    #[test]
    fn workers_are_given_up_for_a_while_after_two_failures_in_a_row() {
        let mut pool = Pool::new(1);
        let fails = |pool: &mut Pool, now| {
            let id = new(pool.take(now, 0));
            pool.failed(now, id)
        };
        assert_eq!(fails(&mut pool, NOW), Next::Stop);
        // A worker that answers resets the count, and an idle worker that exits is not counted.
        let good = new(pool.take(NOW, 0));
        pool.answered(NOW, good);
        assert_eq!(pool.failed(NOW, good), Next::Stop);
        assert_eq!(fails(&mut pool, NOW), Next::Stop);
        assert_eq!(fails(&mut pool, NOW), Next::GiveUp);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
        let later = NOW.after(PAUSE);
        assert_eq!(fails(&mut pool, later), Next::Stop);
        assert_eq!(fails(&mut pool, later), Next::Stop);
        assert_eq!(pool.take(later, 0), Some(Runner::Plain));
        pool.retire_all(1);
        new(pool.take(later, 0));
    }

    #[test]
    fn an_uncompleted_check_counts_only_against_a_worker_that_never_answered() {
        let mut pool = Pool::new(1);
        let a = new(pool.take(NOW, 0));
        assert_eq!(pool.answered(NOW, a), Next::Wait);
        for _ in 0..10 {
            assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(a)));
            assert_eq!(pool.unable(NOW, a), Next::Wait);
        }
        pool.take(NOW, 0);
        pool.retire_all(1);
        assert_eq!(pool.unable(NOW, a), Next::Stop);
        let b = new(pool.take(NOW, 0));
        assert_eq!(pool.unable(NOW, b), Next::Stop);
        let c = new(pool.take(NOW, 0));
        assert_eq!(pool.unable(NOW, c), Next::GiveUp);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
    }

    #[test]
    fn workers_that_begin_no_check_are_given_up_though_others_answered_in_between() {
        let mut pool = Pool::new(1);
        let obstruct = |pool: &mut Pool, now| {
            let id = new(pool.take(now, 0));
            for _ in 0..3 {
                assert_eq!(pool.answered(now, id), Next::Wait);
                assert_eq!(pool.take(now, 0), Some(Runner::Idle(id)));
            }
            pool.obstructed(now, id)
        };
        assert_eq!(obstruct(&mut pool, NOW), Next::Stop);
        // Old events do not count.
        let later = NOW.after(PAUSE);
        assert_eq!(obstruct(&mut pool, later), Next::Stop);
        assert_eq!(obstruct(&mut pool, later), Next::GiveUp);
        assert_eq!(pool.take(later, 0), Some(Runner::Plain));
        let again = later.after(PAUSE);
        assert_eq!(obstruct(&mut pool, again), Next::Stop);
        assert_eq!(obstruct(&mut pool, again), Next::GiveUp);
        // Two workers that never answered.
        let again = again.after(PAUSE);
        for next in [Next::Stop, Next::Stop] {
            let id = new(pool.take(again, 0));
            assert_eq!(pool.obstructed(again, id), next, "not logged twice");
        }
        assert_eq!(pool.take(again, 0), Some(Runner::Plain));
        pool.retire_all(1);
        new(pool.take(again, 0));
    }

    #[test]
    fn workers_that_keep_exiting_while_idle_are_given_up() {
        let mut pool = Pool::new(1);
        for round in 1..=MAX_LOSSES {
            let id = new(pool.take(NOW, 0));
            pool.answered(NOW, id);
            let next = if round < MAX_LOSSES { Next::Stop } else { Next::GiveUp };
            assert_eq!(pool.failed(NOW, id), next, "{round}");
        }
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
        let later = NOW.after(PAUSE);
        assert_eq!(pool.failed(later, new(Pool::new(1).take(later, 0))), Next::Stop);
        new(pool.take(later, 0));
    }

    #[test]
    fn a_worker_that_cannot_be_killed_still_counts() {
        let mut pool = Pool::new(2);
        pool.set_stuck(1);
        let a = new(pool.take(NOW, 10_000));
        assert_eq!(pool.take(NOW, 10_000), None);
        pool.answered(NOW, a);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(a)));
        pool.failed(NOW, a);
        pool.set_stuck(2);
        assert_eq!(pool.take(NOW, 10_000), Some(Runner::Plain));
        pool.set_stuck(0);
        new(pool.take(NOW, 10_000));
    }

    #[test]
    fn a_check_that_took_too_long_counts_only_against_a_worker_that_never_answered() {
        let mut pool = Pool::new(1);
        for _ in 0..10 {
            let id = new(pool.take(NOW, 0));
            pool.answered(NOW, id);
            assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(id)));
            assert_eq!(pool.stopped(NOW, id), Next::Stop);
        }
        for next in [Next::Stop, Next::GiveUp] {
            let id = new(pool.take(NOW, 0));
            assert_eq!(pool.stopped(NOW, id), next);
        }
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
    }
}
