//! The check queue: decides which check runs next, and returns verdicts to the waiting tickets.

mod invariants;
mod order;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use super::cache::VerdictCache;
use super::check::{Check, Ticket, Urgency};
use super::verdict::Verdict;
use crate::engine::limits::{
    MAX_WAITING_LOGINS, MAX_WAITING_RECHECKS, MAX_WAITING_SUBSCRIPTIONS, SHARE_OF_USER,
};
use crate::engine::time::Time;
use order::Queue;

/// Identifies one run of a check; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// The verdict for one ticket.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The ticket of the connection that requested the check.
    pub ticket: Ticket,
    /// The verdict. [`Verdict::Failed`] means that there will be no further attempt.
    pub verdict: Verdict,
}

/// Why a check was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFull {
    /// The limit of waiting checks of this urgency is reached.
    ForAll,
    /// This user's share of the free room is used up.
    ForUser,
}

/// How many tickets of each urgency may wait. They do not share room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Logins.
    pub logins: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Rechecks.
    pub rechecks: usize,
}

/// Decides which check runs when. Identical waiting checks are run once; logins precede
/// subscriptions, and subscriptions precede rechecks; users take turns; a failed check of a
/// subscription is retried a few times.
#[derive(Debug)]
pub struct CheckQueue {
    /// How many checks may run at a time.
    limit: usize,
    running: usize,
    paused: bool,
    jobs: HashMap<JobId, Job>,
    by_check: HashMap<Rc<Check>, JobId>,
    /// With the urgency that the ticket was counted for.
    by_ticket: HashMap<Ticket, (JobId, Urgency)>,
    capacity: Capacity,
    /// How many tickets wait.
    waiting: Waiting,
    /// Waiting tickets by user, without logins, since their users are not verified.
    by_user: HashMap<Rc<str>, Waiting>,
    queue: Queue,
    cache: VerdictCache,
    /// Failed jobs that wait for another attempt.
    retries: BTreeSet<(Time, JobId)>,
    next_id: u64,
}

#[derive(Debug)]
struct Job {
    check: Rc<Check>,
    urgency: Urgency,
    tickets: Vec<Ticket>,
    state: State,
    failures: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    /// Since this time.
    Running(Time),
    Retry(Time),
}

/// Number of tickets by urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    logins: usize,
    subscriptions: usize,
    rechecks: usize,
}

/// Delays before a failed check of a subscription is retried. Together they outlast the restart of
/// a database.
const RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

impl CheckQueue {
    /// Runs at most `limit` checks at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            running: 0,
            paused: false,
            jobs: HashMap::new(),
            by_check: HashMap::new(),
            by_ticket: HashMap::new(),
            capacity: Capacity::default(),
            waiting: Waiting::default(),
            by_user: HashMap::new(),
            queue: Queue::default(),
            cache: VerdictCache::default(),
            retries: BTreeSet::new(),
            next_id: 0,
        }
    }

    /// Requests a check. [`finish`](Self::finish) returns its verdict, unless
    /// [`cancel`](Self::cancel) is called first. The ticket joins an identical check that is
    /// waiting or running; one that waits for another attempt is queued at once. Call
    /// [`start`](Self::start) afterwards.
    ///
    /// Returns true if the check is in the cache: then it is granted, and nothing was queued.
    ///
    /// # Errors
    /// [`QueueFull`]; nothing was queued.
    pub fn request(
        &mut self,
        now: Time,
        ticket: Ticket,
        check: Check,
        urgency: Urgency,
    ) -> Result<bool, QueueFull> {
        let is_recheck = urgency == Urgency::Recheck;
        if !is_recheck && !self.paused && self.cache.contains(now, &check) {
            return Ok(true);
        }
        if self.free(urgency) == 0 {
            return Err(QueueFull::ForAll);
        }
        if self.room(urgency, &check.user) == 0 {
            return Err(QueueFull::ForUser);
        }
        *self.waiting.of(urgency) += 1;
        if urgency != Urgency::Login {
            *self.by_user.entry(Rc::clone(&check.user)).or_default().of(urgency) += 1;
        }
        let id = match self.by_check.get(&check) {
            Some(id) => *id,
            None => self.add(check, urgency),
        };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(false) };
        job.tickets.push(ticket);
        self.by_ticket.insert(ticket, (id, urgency));
        match job.state {
            State::Queued if urgency < job.urgency => {
                self.queue.remove(job.urgency, &job.check.user, id);
                job.urgency = urgency;
                self.queue.push(urgency, &job.check.user, id);
            }
            State::Retry(at) => {
                job.state = State::Queued;
                job.failures = 0;
                job.urgency = urgency.min(job.urgency);
                self.retries.remove(&(at, id));
                self.queue.push(job.urgency, &job.check.user, id);
            }
            // If it fails, the most urgent ticket decides whether it is retried.
            State::Queued | State::Running(_) => job.urgency = urgency.min(job.urgency),
        }
        Ok(false)
    }

    /// The ticket is no longer wanted. A check without tickets is not run. If the check is running,
    /// no further ticket joins it: the next request runs the check again.
    pub fn cancel(&mut self, ticket: Ticket) {
        let Some((id, urgency)) = self.by_ticket.remove(&ticket) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        uncount(&mut self.waiting, &mut self.by_user, urgency, &job.check.user);
        job.tickets.retain(|other| *other != ticket);
        if matches!(job.state, State::Running(_)) {
            forget_check(&mut self.by_check, &job.check, id);
            return;
        }
        if !job.tickets.is_empty() {
            return;
        }
        match job.state {
            State::Retry(at) => drop(self.retries.remove(&(at, id))),
            State::Queued => self.queue.remove(job.urgency, &job.check.user, id),
            State::Running(_) => {}
        }
        self.forget(id);
    }

    /// The check to be run now; call until `None`. Pass the outcome of each to
    /// [`finish`](Self::finish).
    pub fn start(&mut self, now: Time) -> Option<(JobId, Rc<Check>)> {
        if !self.can_start() {
            return None;
        }
        let id = self.queue.pop()?;
        let job = self.jobs.get_mut(&id)?;
        job.state = State::Running(now);
        self.running += 1;
        Some((id, Rc::clone(&job.check)))
    }

    /// Takes the verdict of a check that ran. Appends the answers for all waiting tickets, unless
    /// the check failed and will be retried.
    pub fn finish(&mut self, now: Time, id: JobId, verdict: &Verdict, answers: &mut Vec<Answer>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let State::Running(began) = job.state else { return };
        match verdict {
            // Not if a ticket was canceled meanwhile: the next request must run the check again.
            Verdict::Granted if self.by_check.get(&job.check) == Some(&id) => {
                self.cache.insert(now, &job.check, began);
            }
            Verdict::Denied => self.cache.remove(&job.check),
            Verdict::Granted | Verdict::Failed(_) => {}
        }
        self.running = self.running.saturating_sub(1);
        let failed = matches!(verdict, Verdict::Failed(_));
        let is_wanted = job.urgency == Urgency::Subscription && !job.tickets.is_empty();
        if failed
            && is_wanted
            && let Some(delay) = RETRIES.get(job.failures)
        {
            job.failures += 1;
            let at = now.after(*delay);
            job.state = State::Retry(at);
            self.retries.insert((at, id));
            return;
        }
        let user = Rc::clone(&job.check.user);
        for ticket in self.forget(id) {
            if let Some((_, urgency)) = self.by_ticket.remove(&ticket) {
                uncount(&mut self.waiting, &mut self.by_user, urgency, &user);
            }
            answers.push(Answer { ticket, verdict: verdict.clone() });
        }
    }

    /// Queues the failed checks whose delay has passed. Call [`start`](Self::start) afterwards.
    pub fn expire(&mut self, now: Time) {
        while let Some(&(at, id)) = self.retries.first() {
            if at > now {
                return;
            }
            self.retries.pop_first();
            if let Some(job) = self.jobs.get_mut(&id) {
                job.state = State::Queued;
                self.queue.push(job.urgency, &job.check.user, id);
            }
        }
    }

    /// The check with this `id`.
    #[must_use]
    pub fn check(&self, id: JobId) -> Option<Rc<Check>> {
        self.jobs.get(&id).map(|job| Rc::clone(&job.check))
    }

    /// The most urgent purpose of the check with this `id`.
    #[must_use]
    pub fn urgency(&self, id: JobId) -> Option<Urgency> {
        self.jobs.get(&id).map(|job| job.urgency)
    }

    /// When the check with this `id` was started.
    #[must_use]
    pub fn began(&self, id: JobId) -> Option<Time> {
        match self.jobs.get(&id)?.state {
            State::Running(began) => Some(began),
            State::Queued | State::Retry(_) => None,
        }
    }

    /// Whether [`start`](Self::start) would return a check.
    #[must_use]
    pub fn can_start(&self) -> bool {
        !self.queue.is_empty() && !self.paused && self.running < self.limit
    }

    /// When [`expire`](Self::expire) must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Removes a check from the cache: the next request runs it.
    pub fn forget_verdict(&mut self, check: &Check) {
        self.cache.remove(check);
    }

    /// Removes all checks of this user from the cache.
    pub fn forget_user(&mut self, user: &str) {
        self.cache.remove_user(user);
    }

    /// Sets for how long a granted check is reused, counted from its start, and clears the cache.
    pub fn set_cache_lifetime(&mut self, lifetime: Duration) {
        self.cache.reset(lifetime);
    }

    /// Changes how many checks may run at the same time.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Pauses or resumes the start of checks. They are paused while EspoCRM's settings are
    /// reloaded, since its version determines how an outcome is interpreted.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Changes how many tickets may wait.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Whether no further login can be queued, so that new connections must be rejected.
    #[must_use]
    pub fn is_full_for_logins(&self) -> bool {
        self.free(Urgency::Login) == 0
    }

    /// How many more tickets of this user and urgency would be accepted: a share of the free room.
    #[must_use]
    pub fn room(&self, urgency: Urgency, user: &str) -> usize {
        let free = self.free(urgency);
        let of_user = self.by_user.get(user).copied().unwrap_or_default();
        match urgency {
            Urgency::Login => free,
            Urgency::Subscription => share(free, of_user.subscriptions),
            Urgency::Recheck => share(free, of_user.rechecks),
        }
    }

    /// Releases unused capacity after a burst.
    pub fn shrink(&mut self) {
        self.jobs.shrink_to(MIN_CAPACITY);
        self.by_check.shrink_to(MIN_CAPACITY);
        self.by_ticket.shrink_to(MIN_CAPACITY);
        self.by_user.shrink_to(MIN_CAPACITY);
    }

    /// How many checks wait to be started.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.jobs.len().saturating_sub(self.running + self.retries.len())
    }

    /// How many checks are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// How many tickets wait for a verdict.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.by_ticket.len()
    }

    /// Whether no ticket waits and no check is queued or running.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && self.by_ticket.is_empty()
            && self.by_user.is_empty()
            && self.waiting == Waiting::default()
            && self.retries.is_empty()
    }

    /// How many more tickets of this urgency may wait.
    fn free(&self, urgency: Urgency) -> usize {
        let Capacity { logins, subscriptions, rechecks } = self.capacity;
        let (most, waiting) = match urgency {
            Urgency::Login => (logins, self.waiting.logins),
            Urgency::Subscription => (subscriptions, self.waiting.subscriptions),
            Urgency::Recheck => (rechecks, self.waiting.rechecks),
        };
        most.saturating_sub(waiting)
    }

    fn add(&mut self, check: Check, urgency: Urgency) -> JobId {
        let id = JobId(self.next_id);
        self.next_id += 1;
        let check = Rc::new(check);
        self.queue.push(urgency, &check.user, id);
        self.by_check.insert(Rc::clone(&check), id);
        let job = Job { check, urgency, tickets: Vec::new(), state: State::Queued, failures: 0 };
        self.jobs.insert(id, job);
        id
    }

    /// Removes a job and returns its tickets.
    fn forget(&mut self, id: JobId) -> Vec<Ticket> {
        let Some(job) = self.jobs.remove(&id) else { return Vec::new() };
        forget_check(&mut self.by_check, &job.check, id);
        if self.jobs.is_empty() {
            // Release the memory of a burst.
            self.jobs = HashMap::new();
            self.by_check = HashMap::new();
        }
        job.tickets
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            logins: MAX_WAITING_LOGINS,
            subscriptions: MAX_WAITING_SUBSCRIPTIONS,
            rechecks: MAX_WAITING_RECHECKS,
        }
    }
}

impl Waiting {
    fn of(&mut self, urgency: Urgency) -> &mut usize {
        match urgency {
            Urgency::Login => &mut self.logins,
            Urgency::Subscription => &mut self.subscriptions,
            Urgency::Recheck => &mut self.rechecks,
        }
    }
}

/// Capacity that collections keep.
const MIN_CAPACITY: usize = 64;

/// How many more tickets a user with `own` tickets may queue, if `free` more may wait in total.
fn share(free: usize, own: usize) -> usize {
    free.div_ceil(SHARE_OF_USER).saturating_sub(own)
}

/// Updates the counts for a ticket that no longer waits.
fn uncount(
    waiting: &mut Waiting,
    by_user: &mut HashMap<Rc<str>, Waiting>,
    urgency: Urgency,
    user: &Rc<str>,
) {
    let less = |count: &mut usize| *count = count.saturating_sub(1);
    less(waiting.of(urgency));
    if urgency != Urgency::Login
        && let Entry::Occupied(mut of_user) = by_user.entry(Rc::clone(user))
    {
        less(of_user.get_mut().of(urgency));
        if *of_user.get() == Waiting::default() {
            of_user.remove();
        }
    }
}

/// Prevents further tickets from joining a job.
fn forget_check(by_check: &mut HashMap<Rc<Check>, JobId>, check: &Check, id: JobId) {
    if by_check.get(check) == Some(&id) {
        by_check.remove(check);
    }
}
