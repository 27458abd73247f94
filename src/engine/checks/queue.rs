//! The queue of access checks: which command is to be run next, and who waits for its verdict.

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

/// Names one run of checks; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// The verdict for one ticket.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub ticket: Ticket,
    /// What came of it. [`Verdict::Unchecked`] means that there will be no further attempt.
    pub verdict: Verdict,
}

/// Why a check was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFull {
    /// As many checks of this urgency wait as may wait.
    ForAll,
    /// This user has as many of them as the room that is left allows.
    ForUser,
}

/// How many tickets of each urgency may wait. None takes room from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Logins.
    pub logins: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Rechecks.
    pub rechecks: usize,
}

/// Decides when which check runs. Identical checks that wait are run once; logins come before
/// subscriptions, and those before rechecks; users take turns; a subscription's check that failed is
/// tried again a few times.
#[derive(Debug)]
pub struct CheckQueue {
    /// How many checks may run at a time.
    limit: usize,
    running: usize,
    paused: bool,
    jobs: HashMap<JobId, Job>,
    by_check: HashMap<Rc<Check>, JobId>,
    /// With the urgency for which each ticket counts.
    by_ticket: HashMap<Ticket, (JobId, Urgency)>,
    capacity: Capacity,
    /// How many tickets wait.
    waiting: Waiting,
    /// How many tickets of each user wait; logins count for no user, who is not known before.
    by_user: HashMap<Rc<str>, Waiting>,
    queue: Queue,
    recent: VerdictCache,
    /// Jobs that failed and wait for another attempt.
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
    /// Since this moment.
    Running(Time),
    Retry(Time),
}

/// Tickets by urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    logins: usize,
    subscriptions: usize,
    rechecks: usize,
}

/// After how long a failed check of a subscription is tried again. Together they outlast the
/// restart of a database.
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
            recent: VerdictCache::default(),
            retries: BTreeSet::new(),
            next_id: 0,
        }
    }

    /// Asks for a check. Its answer comes out of [`finish`](Self::finish), unless
    /// [`cancel`](Self::cancel) comes first. An identical check that is waiting or running is
    /// joined; one that waits for another attempt waits no longer. Call [`start`](Self::start)
    /// afterwards.
    ///
    /// True if the answer is known already, from a moment ago: then it is yes, and nothing was asked.
    ///
    /// # Errors
    /// [`QueueFull`]; nothing was asked.
    pub fn request(
        &mut self,
        now: Time,
        ticket: Ticket,
        check: Check,
        urgency: Urgency,
    ) -> Result<bool, QueueFull> {
        let is_recheck = urgency == Urgency::Recheck;
        if !is_recheck && !self.paused && self.recent.holds(now, &check) {
            return Ok(true);
        }
        if self.free(urgency) == 0 {
            return Err(QueueFull::ForAll);
        }
        if self.room(urgency, &check.user) == 0 {
            return Err(QueueFull::ForUser);
        }
        *self.waiting.of(urgency) += 1;
        if urgency != Urgency::Authentication {
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
            // If it fails, it is tried again for whoever is in the greatest hurry.
            State::Queued | State::Running(_) => job.urgency = urgency.min(job.urgency),
        }
        Ok(false)
    }

    /// The asker is gone or has lost interest. A check that nobody waits for is not run. One that
    /// runs already is joined by nobody any more: whoever asks again wants to know anew.
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

    /// The check that is to be run now; call until `None`. Each one that is returned must come back
    /// through [`finish`](Self::finish).
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

    /// Takes the verdict of a check that ran. Appends the answers for all who wait for it, unless
    /// it failed and is to be tried again.
    pub fn finish(&mut self, now: Time, id: JobId, verdict: &Verdict, answers: &mut Vec<Answer>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let State::Running(began) = job.state else { return };
        match verdict {
            // Unless somebody has lost interest: who asks again wants to know anew.
            Verdict::Granted if self.by_check.get(&job.check) == Some(&id) => {
                self.recent.granted(now, &job.check, began);
            }
            Verdict::Denied => self.recent.forget(&job.check),
            Verdict::Granted | Verdict::Unchecked(_) => {}
        }
        self.running = self.running.saturating_sub(1);
        let failed = matches!(verdict, Verdict::Unchecked(_));
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

    /// Queues what is due for another attempt. Call [`start`](Self::start) afterwards.
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

    /// The check that runs as `id`.
    #[must_use]
    pub fn check(&self, id: JobId) -> Option<Rc<Check>> {
        self.jobs.get(&id).map(|job| Rc::clone(&job.check))
    }

    /// For what the check that runs as `id` is wanted most.
    #[must_use]
    pub fn urgency(&self, id: JobId) -> Option<Urgency> {
        self.jobs.get(&id).map(|job| job.urgency)
    }

    /// When the check that runs as `id` was started.
    #[must_use]
    pub fn began(&self, id: JobId) -> Option<Time> {
        match self.jobs.get(&id)?.state {
            State::Running(began) => Some(began),
            State::Queued | State::Retry(_) => None,
        }
    }

    /// Whether [`start`](Self::start) may find something.
    #[must_use]
    pub fn can_start(&self) -> bool {
        !self.queue.is_empty() && !self.paused && self.running < self.limit
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Whoever asks for this again wants to know anew.
    pub fn forget_verdict(&mut self, check: &Check) {
        self.recent.forget(check);
    }

    /// Whatever was granted to this user has to be checked anew.
    pub fn forget_user(&mut self, user: &str) {
        self.recent.forget_user(user);
    }

    /// For how long a grant counts for whoever asks for the same, from the beginning of its check.
    /// What is remembered is forgotten.
    pub fn set_reuse(&mut self, reuse: Duration) {
        self.recent.renew(reuse);
    }

    /// Changes how many checks may run at a time.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether checks may be started. They are held back while EspoCRM's settings are being read
    /// again, since its version tells how a verdict is to be understood.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Changes how many tickets may wait.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Whether so many logins wait that new tabs are to come back later.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.free(Urgency::Authentication) == 0
    }

    /// How many more tickets of this user would be taken for this: a part of what is left for all.
    #[must_use]
    pub fn room(&self, urgency: Urgency, user: &str) -> usize {
        let free = self.free(urgency);
        let of_user = self.by_user.get(user).copied().unwrap_or_default();
        match urgency {
            Urgency::Authentication => free,
            Urgency::Subscription => share(free, of_user.subscriptions),
            Urgency::Recheck => share(free, of_user.rechecks),
        }
    }

    /// Releases memory that was needed for more tickets than there are.
    pub fn shrink(&mut self) {
        self.jobs.shrink_to(FEW);
        self.by_check.shrink_to(FEW);
        self.by_ticket.shrink_to(FEW);
        self.by_user.shrink_to(FEW);
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

    /// Whether nobody waits for anything and nothing runs.
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
            Urgency::Authentication => (logins, self.waiting.logins),
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

    /// Removes a job and returns who waited for it.
    fn forget(&mut self, id: JobId) -> Vec<Ticket> {
        let Some(job) = self.jobs.remove(&id) else { return Vec::new() };
        forget_check(&mut self.by_check, &job.check, id);
        if self.jobs.is_empty() {
            // After a storm its memory is given back.
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
            Urgency::Authentication => &mut self.logins,
            Urgency::Subscription => &mut self.subscriptions,
            Urgency::Recheck => &mut self.rechecks,
        }
    }
}

/// Entries for which a collection keeps its memory.
const FEW: usize = 64;

/// How many more tickets a user may have who has so many, if so many more may wait in all.
fn share(free: usize, has: usize) -> usize {
    free.div_ceil(SHARE_OF_USER).saturating_sub(has)
}

/// A ticket of this user's waits no longer.
fn uncount(
    waiting: &mut Waiting,
    by_user: &mut HashMap<Rc<str>, Waiting>,
    urgency: Urgency,
    user: &Rc<str>,
) {
    let less = |count: &mut usize| *count = count.saturating_sub(1);
    less(waiting.of(urgency));
    if urgency != Urgency::Authentication
        && let Entry::Occupied(mut of_user) = by_user.entry(Rc::clone(user))
    {
        less(of_user.get_mut().of(urgency));
        if *of_user.get() == Waiting::default() {
            of_user.remove();
        }
    }
}

/// Lets nobody join a job any more.
fn forget_check(by_check: &mut HashMap<Rc<Check>, JobId>, check: &Check, id: JobId) {
    if by_check.get(check) == Some(&id) {
        by_check.remove(check);
    }
}
