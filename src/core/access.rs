//! The queue of access checks: which command is to be run next, and who waits for its verdict.

mod queue;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use super::check::{Check, Ticket, Urgency};
use super::limits::{MAX_WAITING_CHECKS, MAX_WAITING_REVIEWS};
use super::time::Time;
use super::verdict::Verdict;
use queue::Queue;

/// Names one run of checks; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// The verdict for one ticket.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub ticket: Ticket,
    /// What came of it. [`Verdict::Unchecked`] means that there will be no further attempt.
    pub verdict: Verdict,
}

/// [`MAX_WAITING_CHECKS`] are waiting already, or, for a review, [`MAX_WAITING_REVIEWS`].
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull;

/// Decides when which check runs. Identical checks that wait are run once; logins come before
/// subscriptions, and those before reviews; users take turns; a subscription's check that failed is
/// tried again a few times.
#[derive(Debug)]
pub struct Access {
    /// How many checks may run at a time.
    limit: usize,
    running: usize,
    paused: bool,
    jobs: HashMap<JobId, Job>,
    by_check: HashMap<Rc<Check>, JobId>,
    by_ticket: HashMap<Ticket, JobId>,
    queue: Queue,
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
    Running,
    Retry(Time),
}

/// After how long a failed check of a subscription is tried again. Together they outlast the
/// restart of a database.
const RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

impl Access {
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
            queue: Queue::default(),
            retries: BTreeSet::new(),
            next_id: 0,
        }
    }

    /// Asks for a check. Its answer comes out of [`finish`](Self::finish), unless
    /// [`cancel`](Self::cancel) comes first. An identical check that is waiting or running is
    /// joined; one that waits for another attempt waits no longer. Call [`start`](Self::start)
    /// afterwards.
    ///
    /// # Errors
    /// [`QueueFull`]; nothing was asked.
    pub fn request(
        &mut self,
        ticket: Ticket,
        check: Check,
        urgency: Urgency,
    ) -> Result<(), QueueFull> {
        let is_review = urgency == Urgency::Review;
        if self.is_full() || (is_review && self.waiting() >= MAX_WAITING_REVIEWS) {
            return Err(QueueFull);
        }
        let id = match self.by_check.get(&check) {
            Some(id) => *id,
            None => self.add(check, urgency),
        };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        job.tickets.push(ticket);
        self.by_ticket.insert(ticket, id);
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
            State::Queued | State::Running => job.urgency = urgency.min(job.urgency),
        }
        Ok(())
    }

    /// The asker is gone or has lost interest. A check that nobody waits for is not run. One that
    /// runs already is joined by nobody any more: whoever asks again wants to know anew.
    pub fn cancel(&mut self, ticket: Ticket) {
        let Some(id) = self.by_ticket.remove(&ticket) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.tickets.retain(|other| *other != ticket);
        if job.state == State::Running {
            forget_check(&mut self.by_check, &job.check, id);
            return;
        }
        if !job.tickets.is_empty() {
            return;
        }
        match job.state {
            State::Retry(at) => drop(self.retries.remove(&(at, id))),
            State::Queued => self.queue.remove(job.urgency, &job.check.user, id),
            State::Running => {}
        }
        self.forget(id);
    }

    /// The check that is to be run now; call until `None`. Each one that is returned must come back
    /// through [`finish`](Self::finish).
    pub fn start(&mut self) -> Option<(JobId, Rc<Check>)> {
        if !self.can_start() {
            return None;
        }
        let id = self.queue.pop()?;
        let job = self.jobs.get_mut(&id)?;
        job.state = State::Running;
        self.running += 1;
        Some((id, Rc::clone(&job.check)))
    }

    /// Takes the verdict of a check that ran. Appends the answers for all who wait for it, unless
    /// it failed and is to be tried again.
    pub fn finish(&mut self, now: Time, id: JobId, verdict: &Verdict, answers: &mut Vec<Answer>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state != State::Running {
            return;
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
        for ticket in self.forget(id) {
            self.by_ticket.remove(&ticket);
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

    /// Changes how many checks may run at a time.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether checks may be started. They are held back while EspoCRM's settings are being read
    /// again, since its version tells how a verdict is to be understood.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether [`request`](Self::request) would fail, whatever is asked.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.by_ticket.len() >= MAX_WAITING_CHECKS
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
        self.jobs.is_empty() && self.by_ticket.is_empty() && self.retries.is_empty()
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

/// Lets nobody join a job any more.
fn forget_check(by_check: &mut HashMap<Rc<Check>, JobId>, check: &Check, id: JobId) {
    if by_check.get(check) == Some(&id) {
        by_check.remove(check);
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::ConnId;
    use super::super::verdict::Failure;
    use super::Urgency::{Authentication, Review, Subscription};
    use super::*;

    const NOW: Time = Time::from_millis(0);

    fn ticket(conn: u32, serial: u32) -> Ticket {
        Ticket { conn: ConnId::new(conn, conn), serial }
    }

    fn check(name: &str) -> Check {
        Check::topic("u", Box::new([name.into()]))
    }

    fn started(access: &mut Access) -> Option<(JobId, String)> {
        let (id, check) = access.start()?;
        Some((id, check.arguments.join(" ")))
    }

    fn finish(access: &mut Access, now: Time, id: JobId, verdict: &Verdict) -> Vec<Ticket> {
        let mut answers = Vec::new();
        access.finish(now, id, verdict, &mut answers);
        assert!(answers.iter().all(|answer| answer.verdict == *verdict));
        answers.iter().map(|answer| answer.ticket).collect()
    }

    fn failed() -> Verdict {
        Verdict::Unchecked(Failure::TimedOut)
    }

    #[test]
    fn identical_checks_share_one_run() {
        let mut access = Access::new(4);
        for conn in 1..=3 {
            access.request(ticket(conn, 1), check("a"), Subscription).unwrap();
        }
        let (a, name) = started(&mut access).unwrap();
        assert_eq!((name.as_str(), access.start()), ("a", None));
        access.request(ticket(4, 1), check("a"), Subscription).unwrap();
        access.request(ticket(4, 2), check("b"), Subscription).unwrap();
        assert_eq!(started(&mut access).unwrap().1, "b");
        let all = (1..=4).map(|conn| ticket(conn, 1)).collect::<Vec<_>>();
        assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), all);
        access.request(ticket(5, 1), check("a"), Subscription).unwrap();
        assert_eq!(started(&mut access).unwrap().1, "a");
    }

    #[test]
    fn authentications_come_first_and_the_limit_holds() {
        let mut access = Access::new(2);
        for serial in 1..=3 {
            access.request(ticket(1, serial), check(&serial.to_string()), Subscription).unwrap();
        }
        access.request(ticket(2, 0), Check::authentication("t", "u"), Authentication).unwrap();
        let (first, name) = started(&mut access).unwrap();
        assert_eq!(name, "AuthTokenCheck t u");
        assert_eq!(started(&mut access).unwrap().1, "1");
        assert_eq!(started(&mut access), None);
        finish(&mut access, NOW, first, &Verdict::Denied);
        assert_eq!(started(&mut access).unwrap().1, "2");
        assert_eq!(access.running(), 2);
    }

    #[test]
    fn a_cancelled_check_is_not_run_unless_somebody_else_waits() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        access.request(ticket(2, 1), check("b"), Subscription).unwrap();
        access.request(ticket(3, 1), check("b"), Subscription).unwrap();
        access.cancel(ticket(1, 1));
        access.cancel(ticket(2, 1));
        access.cancel(ticket(9, 9));
        let (b, name) = started(&mut access).unwrap();
        assert_eq!(name, "b");
        access.cancel(ticket(3, 1));
        assert_eq!(access.running(), 1);
        assert_eq!(finish(&mut access, NOW, b, &Verdict::Granted), []);
        assert!(access.is_idle());
        assert_eq!(access.running(), 0);
    }

    #[test]
    fn one_users_many_subscriptions_do_not_hold_up_anothers() {
        let mut access = Access::new(usize::MAX);
        for serial in 1..500 {
            let many = Check::topic("greedy", Box::new([serial.to_string().into()]));
            access.request(ticket(1, serial), many, Subscription).unwrap();
        }
        access
            .request(ticket(2, 1), Check::topic("b", Box::new(["b".into()])), Subscription)
            .unwrap();
        access.request(ticket(3, 0), Check::authentication("t", "c"), Authentication).unwrap();
        let order: Vec<_> = (0..4).map(|_| started(&mut access).unwrap().1).collect();
        assert_eq!(order, ["AuthTokenCheck t c", "1", "b", "2"]);
    }

    #[test]
    fn a_review_is_hurried_when_a_tab_waits_for_its_answer_and_is_not_tried_again() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("other"), Review).unwrap();
        access.request(ticket(1, 2), check("a"), Review).unwrap();
        access.request(ticket(2, 1), check("a"), Subscription).unwrap();
        let (a, name) = started(&mut access).unwrap();
        assert_eq!(name, "a");
        assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), [ticket(1, 2), ticket(2, 1)]);
        let (other, _) = started(&mut access).unwrap();
        assert_eq!(finish(&mut access, NOW, other, &failed()), [ticket(1, 1)]);
        assert!(access.is_idle());
    }

    #[test]
    fn a_subscription_that_joins_a_review_that_runs_is_tried_again() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Review).unwrap();
        let (a, _) = access.start().unwrap();
        access.request(ticket(2, 1), check("a"), Subscription).unwrap();
        assert_eq!(access.urgency(a), Some(Subscription));
        assert_eq!(finish(&mut access, NOW, a, &failed()), []);
        access.expire(NOW.after(RETRIES[0]));
        let (a, _) = access.start().unwrap();
        assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), [ticket(1, 1), ticket(2, 1)]);
    }

    #[test]
    fn reviews_leave_room_for_those_who_wait() {
        let mut access = Access::new(0);
        for number in 0..MAX_WAITING_REVIEWS as u32 {
            access.request(ticket(number, 1), check("a"), Review).unwrap();
        }
        assert_eq!(access.request(ticket(0, 2), check("a"), Review), Err(QueueFull));
        access.request(ticket(0, 2), check("a"), Subscription).unwrap();
        assert!(!access.is_full());
        access.cancel(ticket(1, 1));
        access.cancel(ticket(2, 1));
        access.request(ticket(1, 2), check("a"), Review).unwrap();
    }

    #[test]
    fn a_failed_subscription_is_tried_again_a_few_times() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        let mut now = NOW;
        for delay in RETRIES {
            let (id, _) = access.start().unwrap();
            assert_eq!(finish(&mut access, now, id, &failed()), []);
            assert_eq!((access.start(), access.running()), (None, 0));
            now = now.after(delay);
            assert_eq!(access.next_deadline(), Some(now));
            access.expire(now);
        }
        let (id, _) = access.start().unwrap();
        assert_eq!(finish(&mut access, now, id, &failed()), [ticket(1, 1)]);
        assert!(access.is_idle());
    }

    #[test]
    fn a_failed_authentication_is_answered_at_once() {
        let mut access = Access::new(1);
        access.request(ticket(1, 0), Check::authentication("t", "u"), Authentication).unwrap();
        let (id, _) = access.start().unwrap();
        assert_eq!(finish(&mut access, NOW, id, &failed()), [ticket(1, 0)]);
    }

    #[test]
    fn a_check_that_waits_for_another_attempt_is_cancelled() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        let (id, _) = access.start().unwrap();
        finish(&mut access, NOW, id, &failed());
        access.cancel(ticket(1, 1));
        assert!(access.is_idle());
        assert_eq!(access.next_deadline(), None);
    }

    #[test]
    fn who_joins_a_check_that_waits_for_another_attempt_has_it_run_at_once() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        for number in 2..20 {
            let (id, _) = access.start().unwrap();
            assert_eq!(finish(&mut access, NOW, id, &failed()), []);
            assert_eq!(access.start(), None);
            access.request(ticket(number, 1), check("a"), Subscription).unwrap();
            assert_eq!(access.next_deadline(), None);
        }
        let (id, _) = access.start().unwrap();
        assert_eq!(finish(&mut access, NOW, id, &Verdict::Granted).len(), 19);
        assert!(access.is_idle());
    }

    #[test]
    fn who_asks_again_gets_no_answer_of_before() {
        let mut access = Access::new(3);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        access.request(ticket(2, 1), check("a"), Subscription).unwrap();
        let (first, _) = access.start().unwrap();
        access.cancel(ticket(1, 1));
        access.request(ticket(1, 2), check("a"), Subscription).unwrap();
        let (second, _) = access.start().unwrap();
        assert_eq!(finish(&mut access, NOW, first, &Verdict::Granted), [ticket(2, 1)]);
        // Which does not keep others from joining the second one.
        access.request(ticket(3, 1), check("a"), Subscription).unwrap();
        assert_eq!(access.start(), None);
        let both = [ticket(1, 2), ticket(3, 1)];
        assert_eq!(finish(&mut access, NOW, second, &Verdict::Denied), both);
        assert!(access.is_idle());
    }

    #[test]
    fn paused_nothing_starts() {
        let mut access = Access::new(1);
        access.request(ticket(1, 1), check("a"), Subscription).unwrap();
        access.set_paused(true);
        assert_eq!(access.start(), None);
        access.set_paused(false);
        assert!(access.start().is_some());
    }

    #[test]
    fn the_queue_is_bounded_whatever_is_cancelled() {
        let mut access = Access::new(0);
        for number in 0..MAX_WAITING_CHECKS as u32 {
            access.request(ticket(number, 1), check(&number.to_string()), Subscription).unwrap();
        }
        assert!(access.is_full());
        assert_eq!(access.request(ticket(0, 2), check("x"), Subscription), Err(QueueFull));
        for round in 0..100_000 {
            let number = round % MAX_WAITING_CHECKS as u32;
            access.cancel(ticket(number, 1));
            access.request(ticket(number, 1), check(&number.to_string()), Subscription).unwrap();
        }
        assert_eq!(access.waiting(), MAX_WAITING_CHECKS);
    }

    #[test]
    fn a_token_is_never_shown() {
        let mut access = Access::new(1);
        access.request(ticket(1, 0), Check::authentication("s3cret", "u"), Authentication).unwrap();
        assert!(!format!("{access:?}").contains("s3cret"));
    }
}
