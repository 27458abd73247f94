//! The PHP workers: on what a check runs, and when a worker is started, stopped or given up.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::time::Time;

/// Names one worker; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(u32);

/// On what a check is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// A process of its own.
    Plain,
    /// This worker, which waits for something to do.
    Idle(WorkerId),
    /// This worker, which is to be started.
    New(WorkerId),
}

/// What a worker is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for another check.
    Wait,
    /// End: it is forgotten by now.
    Stop,
    /// The same, and with it the workers are given up for now.
    GiveUp,
}

/// Decides about the workers; starts and stops none itself.
///
/// Each runs one check at a time. An idle daemon has none: they are started when there is something
/// to be checked, a second one only if many checks wait, and stopped a minute after the last one.
#[derive(Debug)]
pub struct Pool {
    /// Workers at a time; 0 if there shall be none.
    limit: usize,
    workers: Vec<Worker>,
    next_id: u32,
    /// Workers that were killed and have not exited: they keep their place.
    stuck: usize,
    /// Workers that were no good, since one has answered.
    failures: u32,
    /// Workers that began no check, whether others have answered in between or not: whoever
    /// obstructs them may let some checks pass.
    obstructions: Window,
    /// Workers that ended by themselves or were no good, with or without answers in between.
    losses: Window,
    /// After [`MAX_FAILURES`] every check is run plainly until then.
    given_up_until: Option<Time>,
}

/// How often something happened within [`REST`].
#[derive(Debug, Default)]
struct Window {
    since: Time,
    count: u32,
}

#[derive(Debug)]
struct Worker {
    id: WorkerId,
    /// Since when it has nothing to do, if it has nothing.
    idle: Option<Time>,
    answers: u32,
    /// It has rejected a random token, so that what it grants counts.
    verified: bool,
    /// It was started before something has changed: its next answer is its last.
    outdated: bool,
}

/// An idle worker takes 23 MB: it is kept for as long as people who work need a check now and then.
const IDLE: Duration = Duration::from_secs(60);

/// Answers of one worker. Starting another costs as much as thirty; whatever EspoCRM's extensions
/// leave behind in the process is gone by then.
const MAX_ANSWERS: u32 = 1_000;

/// Checks that wait for each worker before another one is started: that costs as much as thirty.
const BACKLOG: usize = 16;

/// Workers in a row that were no good before they are given up.
const MAX_FAILURES: u32 = 2;

/// Workers that began no check before workers are given up: each delays a check by seconds.
const MAX_OBSTRUCTIONS: u32 = 2;

/// Workers that were lost before workers are given up: starting one costs more than a plain check.
const MAX_LOSSES: u32 = 10;

/// For how long they are given up. What was wrong may be mended.
const REST: Duration = Duration::from_secs(600);

impl Pool {
    /// Has at most `limit` workers at a time.
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

    /// How many workers were killed and have not exited.
    pub fn set_stuck(&mut self, count: usize) {
        self.stuck = count;
    }

    /// On what the next check is to run; `None` if it has to wait for a worker. `waiting` is how
    /// many checks wait with it.
    pub fn take(&mut self, now: Time, waiting: usize) -> Option<Runner> {
        if self.limit == 0 || self.given_up_until.is_some_and(|until| now < until) {
            return Some(Runner::Plain);
        }
        // The one that was busy last: others can be stopped the sooner.
        let idle = self.workers.iter_mut().filter(|worker| worker.idle.is_some());
        if let Some(worker) = idle.max_by_key(|worker| worker.idle) {
            worker.idle = None;
            return Some(Runner::Idle(worker.id));
        }
        let count = self.workers.len();
        if count == 0 && self.stuck >= self.limit {
            // There is none to wait for.
            return Some(Runner::Plain);
        }
        if count + self.stuck >= self.limit || waiting < count * BACKLOG {
            return None;
        }
        let id = WorkerId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.workers.push(Worker { id, idle: None, answers: 0, verified: false, outdated: false });
        Some(Runner::New(id))
    }

    /// A runner that was taken is not needed.
    pub fn put_back(&mut self, now: Time, runner: Runner) {
        match runner {
            Runner::Plain => {}
            Runner::Idle(id) => {
                if let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) {
                    worker.idle = Some(now);
                }
            }
            // It was not started.
            Runner::New(id) => self.workers.retain(|worker| worker.id != id),
        }
    }

    /// A worker has answered a check.
    pub fn answered(&mut self, now: Time, id: WorkerId) -> Next {
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

    /// A worker has rejected a random token.
    pub fn verified(&mut self, id: WorkerId) {
        if let Some(worker) = self.find(id).and_then(|index| self.workers.get_mut(index)) {
            worker.verified = true;
        }
    }

    /// Whether it has.
    #[must_use]
    pub fn is_verified(&self, id: WorkerId) -> bool {
        self.find(id).and_then(|index| self.workers.get(index)).is_some_and(|it| it.verified)
    }

    /// A worker could not be started, has ended, or has answered nonsense.
    pub fn failed(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        let worker = self.workers.swap_remove(index);
        let too_many = self.losses.add(now) >= MAX_LOSSES;
        // No check was lost with one that was idle.
        if worker.idle.is_none() {
            self.failures += 1;
        }
        if too_many || self.failures >= MAX_FAILURES { self.give_up(now) } else { Next::Stop }
    }

    /// A worker has not begun a check, though it had nothing else to do: it accepts no requests.
    pub fn obstructed(&mut self, now: Time, id: WorkerId) -> Next {
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
        // Tried again later, which is not worth a word.
        let again = self.given_up_until.replace(now.after(REST)).is_some();
        if again { Next::Stop } else { Next::GiveUp }
    }

    /// A worker could not run a check to its end, though PHP goes on. That is the check's fault,
    /// unless the worker has never answered any.
    pub fn unable(&mut self, now: Time, id: WorkerId) -> Next {
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

    /// A worker was stopped because a check took too long. That tells nothing about the worker,
    /// unless it has never answered any.
    pub fn stopped(&mut self, now: Time, id: WorkerId) -> Next {
        let Some(index) = self.find(id) else { return Next::Stop };
        if self.workers.get(index).is_some_and(|worker| worker.answers == 0) {
            return self.failed(now, id);
        }
        self.workers.swap_remove(index);
        Next::Stop
    }

    /// Something has changed that a worker may not see. Returns those that are to be stopped now;
    /// the others are as soon as they have answered.
    pub fn renew(&mut self, limit: usize) -> Vec<WorkerId> {
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

    /// Returns the workers that have had nothing to do for so long that they are to be stopped.
    pub fn expire(&mut self, now: Time) -> Vec<WorkerId> {
        self.take_idle(|since| since.after(IDLE) <= now)
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.workers.iter().filter_map(|worker| worker.idle).min().map(|since| since.after(IDLE))
    }

    /// Checks the relations between workers and limits. For tests.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check_invariants(&self) {
        let ids: BTreeSet<_> = self.workers.iter().map(|worker| worker.id).collect();
        assert_eq!(ids.len(), self.workers.len(), "two workers have the same id");
        for worker in &self.workers {
            assert!(worker.answers < MAX_ANSWERS, "{:?} should have been stopped", worker.id);
            assert!(worker.idle.is_none() || !worker.outdated, "{:?} waits in vain", worker.id);
        }
        assert!(self.failures < MAX_FAILURES);
        assert!(self.given_up_until.is_none() || self.limit > 0);
    }

    fn find(&self, id: WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == id)
    }

    fn take_idle(&mut self, which: impl Fn(Time) -> bool) -> Vec<WorkerId> {
        let leaves = |worker: &Worker| worker.idle.is_some_and(&which);
        let leaving = self.workers.iter().filter(|worker| leaves(worker)).map(|it| it.id).collect();
        self.workers.retain(|worker| !leaves(worker));
        leaving
    }
}

impl Window {
    /// Counts once more; returns how often it happened.
    fn add(&mut self, now: Time) -> u32 {
        if now >= self.since.after(REST) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(0);

    fn new(runner: Option<Runner>) -> WorkerId {
        let Some(Runner::New(id)) = runner else { panic!("{runner:?}") };
        id
    }

    #[test]
    fn a_worker_is_started_when_it_is_needed_and_a_second_one_when_many_wait() {
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
    fn each_worker_is_verified_for_itself() {
        let mut pool = Pool::new(2);
        let a = new(pool.take(NOW, 0));
        let b = new(pool.take(NOW, BACKLOG));
        pool.verified(a);
        assert!(pool.is_verified(a) && !pool.is_verified(b));
        pool.renew(2);
        pool.answered(NOW, a);
        pool.verified(a);
        assert!(!pool.is_verified(a));
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
    fn after_a_change_workers_answer_once_at_most() {
        let mut pool = Pool::new(2);
        let busy = new(pool.take(NOW, 0));
        let idle = new(pool.take(NOW, BACKLOG));
        pool.answered(NOW, idle);
        assert_eq!(pool.renew(1), [idle]);
        assert_eq!(pool.take(NOW, 10_000), None);
        assert_eq!(pool.answered(NOW, busy), Next::Stop);
        assert_eq!(pool.answered(NOW, busy), Next::Stop);
        new(pool.take(NOW, 0));
        pool.renew(0);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
    }

    #[test]
    fn workers_that_are_no_good_twice_are_given_up_for_a_while() {
        let mut pool = Pool::new(1);
        let fails = |pool: &mut Pool, now| {
            let id = new(pool.take(now, 0));
            pool.failed(now, id)
        };
        assert_eq!(fails(&mut pool, NOW), Next::Stop);
        // One that answers makes up for it, and an idle one that ends is none.
        let good = new(pool.take(NOW, 0));
        pool.answered(NOW, good);
        assert_eq!(pool.failed(NOW, good), Next::Stop);
        assert_eq!(fails(&mut pool, NOW), Next::Stop);
        assert_eq!(fails(&mut pool, NOW), Next::GiveUp);
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
        let later = NOW.after(REST);
        assert_eq!(fails(&mut pool, later), Next::Stop);
        assert_eq!(fails(&mut pool, later), Next::Stop);
        assert_eq!(pool.take(later, 0), Some(Runner::Plain));
        pool.renew(1);
        new(pool.take(later, 0));
    }

    #[test]
    fn a_check_that_a_worker_is_unable_to_run_spoils_only_one_that_never_answered() {
        let mut pool = Pool::new(1);
        let a = new(pool.take(NOW, 0));
        assert_eq!(pool.answered(NOW, a), Next::Wait);
        for _ in 0..10 {
            assert_eq!(pool.take(NOW, 0), Some(Runner::Idle(a)));
            assert_eq!(pool.unable(NOW, a), Next::Wait);
        }
        pool.take(NOW, 0);
        pool.renew(1);
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
        // Long ago it does not count.
        let later = NOW.after(REST);
        assert_eq!(obstruct(&mut pool, later), Next::Stop);
        assert_eq!(obstruct(&mut pool, later), Next::GiveUp);
        assert_eq!(pool.take(later, 0), Some(Runner::Plain));
        let again = later.after(REST);
        assert_eq!(obstruct(&mut pool, again), Next::Stop);
        assert_eq!(obstruct(&mut pool, again), Next::GiveUp);
        // Two that never answered.
        let again = again.after(REST);
        for next in [Next::Stop, Next::Stop] {
            let id = new(pool.take(again, 0));
            assert_eq!(pool.obstructed(again, id), next, "not logged twice");
        }
        assert_eq!(pool.take(again, 0), Some(Runner::Plain));
        pool.renew(1);
        new(pool.take(again, 0));
    }

    #[test]
    fn workers_that_end_again_and_again_while_idle_are_given_up() {
        let mut pool = Pool::new(1);
        for round in 1..=MAX_LOSSES {
            let id = new(pool.take(NOW, 0));
            pool.answered(NOW, id);
            let next = if round < MAX_LOSSES { Next::Stop } else { Next::GiveUp };
            assert_eq!(pool.failed(NOW, id), next, "{round}");
        }
        assert_eq!(pool.take(NOW, 0), Some(Runner::Plain));
        let later = NOW.after(REST);
        assert_eq!(pool.failed(later, new(Pool::new(1).take(later, 0))), Next::Stop);
        new(pool.take(later, 0));
    }

    #[test]
    fn a_worker_that_cannot_be_killed_keeps_its_place() {
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
    fn a_check_that_took_too_long_spoils_only_a_worker_that_never_answered() {
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
