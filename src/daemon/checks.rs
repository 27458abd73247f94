//! Running access checks.

mod plain;
mod self_check;
mod workers;

use std::time::Duration;

use log::{info, warn};
use mio::Registry;

use super::event_loop::Backend;
use super::seam::{Children, Clock};
use super::token::EventSource;
use crate::daemon::reload::Reloader;
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::queue::{Answer, CheckQueue, JobId, QueueFull};
use crate::engine::checks::self_check::SelfCheck;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::checks::worker_pool::Pool;
use crate::engine::espocrm::version::Convention;
use crate::engine::printable::plural;
use crate::engine::rate_limited_log::RateLimitedLog;
use crate::engine::telemetry::stats::{LimitHit, Stats};
use crate::engine::time::Time;
use crate::espocrm::Router;
use crate::espocrm::process::Finished;
use crate::espocrm::workers::Workers;
use crate::platform::{process_stats, sys};
use crate::settings::Settings;

/// Runs access checks and the self-check, on PHP workers or by plain commands.
///
/// - Requests: [`request`](Self::request), [`cancel`](Self::cancel),
///   [`forget_verdict`](Self::forget_verdict), [`request_self_check`](Self::request_self_check).
/// - Events: [`child_ready`](Self::child_ready) and [`worker_ready`](Self::worker_ready) for their
///   tokens; after a `SIGCHLD`, [`reap_children`](Self::reap_children), for each of them
///   [`handle_finished`](Self::handle_finished), then [`reap_workers`](Self::reap_workers);
///   [`expire`](Self::expire) at [`poll_timeout`](Self::poll_timeout).
/// - After requests and events: [`start_due`](Self::start_due), then
///   [`take_answers`](Self::take_answers).
/// - A reload: [`set_reloading`](Self::set_reloading), [`apply`](Self::apply).
pub(crate) struct CheckRunner {
    queue: CheckQueue,
    answers: Vec<Answer>,
    /// The processes of plain commands, of the self-check and of the probe.
    children: Children,
    pool: Pool,
    workers: Workers,
    /// The script of the workers.
    router: Option<Router>,
    self_check: SelfCheck,
    /// A self-check has passed since the daemon started.
    self_check_passed: bool,
    /// EspoCRM's settings are being read, so no check is started.
    reloading: bool,
    /// While all access checks fail: when the first and the latest one failed.
    failing: Option<(Time, Time)>,
    /// Outages of login checks and of subscription checks.
    outages: RateLimitedLog<&'static str>,
}

/// What running checks requires of the event loop.
pub(crate) struct Context<'a> {
    pub now: Time,
    pub clock: Clock,
    pub registry: &'a Registry,
    pub settings: &'a Settings,
    pub backend: &'a Backend,
    pub reloader: Option<&'a Reloader>,
    pub stats: &'a mut Stats,
}

/// What the caller has to handle.
pub(crate) enum Event {
    /// The probe of EspoCRM's settings has ended.
    Probed(Finished),
    /// EspoCRM has accepted a random token: end all connections.
    Untrusted,
}

/// All access checks must have failed for this long to be reported as a problem.
const OUTAGE: Duration = Duration::from_secs(60);

/// Without a further failed check for this long, the problem is no longer reported.
const OUTAGE_EXPIRY: Duration = Duration::from_secs(300);

impl CheckRunner {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut queue = CheckQueue::new(settings.max_checks.value);
        queue.set_cache_lifetime(settings.check_cache.value);
        Self {
            queue,
            answers: Vec::new(),
            children: Children::new(EventSource::Child(0).token().0),
            pool: Pool::new(settings.workers()),
            workers: Workers::new(EventSource::Worker(0).token().0),
            router: None,
            self_check: SelfCheck::default(),
            self_check_passed: false,
            reloading: false,
            failing: None,
            outages: RateLimitedLog::new(),
        }
    }

    /// The waiting and running checks.
    pub(crate) fn queue(&self) -> &CheckQueue {
        &self.queue
    }

    /// Requests a check. [`take_answers`](Self::take_answers) returns its verdict.
    ///
    /// # Errors
    /// If there is no room for a login or a subscription. A recheck without room fails.
    pub(crate) fn request(
        &mut self,
        now: Time,
        ticket: Ticket,
        urgency: Urgency,
        check: Check,
        stats: &mut Stats,
    ) -> Result<(), QueueFull> {
        match self.queue.request(now, ticket, check, urgency) {
            Ok(true) => {
                stats.checks_cached += 1;
                self.answers.push(Answer { ticket, verdict: Verdict::Granted });
            }
            Ok(false) => {}
            Err(_) if urgency == Urgency::Recheck => {
                stats.hit_limit(LimitHit::Rechecks);
                let verdict = Verdict::Failed(Failure::NotStarted(String::new()));
                self.answers.push(Answer { ticket, verdict });
            }
            Err(full) => return Err(full),
        }
        Ok(())
    }

    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        self.queue.cancel(ticket);
    }

    /// Removes a check from the cache.
    pub(crate) fn forget_verdict(&mut self, check: &Check) {
        self.queue.forget_verdict(check);
    }

    /// Removes all checks of this user from the cache.
    pub(crate) fn forget_user(&mut self, user: &str) {
        self.queue.forget_user(user);
    }

    /// Starts as many checks as may run. Checks that cannot start fail immediately.
    pub(crate) fn start_due(&mut self, context: &mut Context<'_>) {
        while self.queue.can_start() {
            let waiting = self.queue.queued().saturating_sub(1);
            let Some(runner) = self.runner(context, waiting) else { return };
            let Some((job, check)) = self.queue.start(context.now) else { return };
            if context.excludes(&check) {
                self.pool.release(context.now, runner);
                self.queue.finish(context.now, job, &Verdict::Denied, &mut self.answers);
                continue;
            }
            match context.backend {
                Backend::Espocrm(installation) => {
                    self.start(context, installation, job, &check, runner);
                }
                Backend::Demo(demo) => self.finish(context, job, &check, &demo.check(&check)),
            }
        }
    }

    /// Takes the verdicts of checks that have ended.
    pub(crate) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Whether [`take_answers`](Self::take_answers) would return any.
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Stops checks, workers and processes that exceed their time, and queues retries.
    pub(crate) fn expire(&mut self, context: &mut Context<'_>) {
        self.children.expire(context.now);
        self.expire_workers(context);
        self.queue.expire(context.now);
        debug_assert!(
            !matches!(context.backend, Backend::Espocrm(_))
                || self.queue.running() == self.children.checks() + self.workers.busy(),
            "each running check has one process"
        );
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let deadlines = [
            self.queue.next_deadline(),
            self.children.next_deadline(),
            self.workers.next_deadline(),
            self.pool.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Pauses the start of checks while EspoCRM's settings are being read, since its version
    /// determines how PHP's answers are interpreted.
    pub(crate) fn set_reloading(&mut self, reloading: bool) {
        self.reloading = reloading;
        self.update_pause();
    }

    /// Applies new settings.
    pub(crate) fn apply(&mut self, settings: &Settings) {
        self.queue.set_limit(settings.max_checks.value);
        // Always, since EspoCRM's code may have changed, too, and workers may run an old version.
        self.discard_grants(settings);
    }

    /// Clears the check cache and replaces all workers.
    fn discard_grants(&mut self, settings: &Settings) {
        self.queue.set_cache_lifetime(settings.check_cache.value);
        for worker in self.pool.retire_all(settings.workers()) {
            self.workers.stop(worker);
        }
    }

    /// Pauses the queue during a reload, and until EspoCRM has rejected a random token.
    fn update_pause(&mut self) {
        self.queue.set_paused(self.reloading || !self.self_check.allows_checks());
    }

    /// Releases unused memory.
    pub(crate) fn shrink(&mut self) {
        self.queue.shrink();
    }

    /// Kills all processes and waits for a limited time until they exit.
    pub(crate) fn kill_all(&mut self) {
        self.children.kill_all();
        self.workers.kill_all();
    }

    /// Whether all checks have failed for some time.
    pub(crate) fn are_failing(&self, now: Time) -> bool {
        self.failing.is_some_and(|(since, last)| {
            last.since(since) >= OUTAGE && now.since(last) < OUTAGE_EXPIRY
        })
    }

    /// CPU time of PHP. It decreases for a moment when a process has exited and is not reaped.
    pub(crate) fn cpu_time(&self) -> Duration {
        sys::children_cpu_time()
            + self.processes().map(process_stats::cpu_time_of).sum::<Duration>()
    }

    /// The process ids of PHP processes that are not reaped yet.
    fn processes(&self) -> impl Iterator<Item = u32> {
        self.children.processes().chain(self.workers.processes())
    }

    fn finish(&mut self, context: &mut Context<'_>, job: JobId, check: &Check, verdict: &Verdict) {
        // Nothing is granted while EspoCRM accepts any token.
        let untrusted = Verdict::Failed(Failure::Untrusted);
        let is_untrusted = self.self_check.rejects_clients() && *verdict == Verdict::Granted;
        let verdict = if is_untrusted { &untrusted } else { verdict };
        let answered = self.answers.len();
        let urgency = self.queue.urgency(job);
        let began = self.queue.began(job);
        debug_assert!(began.is_some(), "only running checks end");
        if let Some((urgency, began)) = urgency.zip(began) {
            // A check may end in the turn that started it, so this turn's time would be too early.
            let took = context.clock.now().since(began).as_millis();
            context.stats.check(urgency, verdict, u64::try_from(took).unwrap_or(u64::MAX));
            let is_answer = !matches!(verdict, Verdict::Failed(_));
            self.failing = match self.failing {
                _ if is_answer => None,
                Some((since, _)) => Some((since, context.now)),
                None => Some((context.now, context.now)),
            };
        }
        self.queue.finish(context.now, job, verdict, &mut self.answers);
        // Logged separately, so that a topic with failing checks does not hide that users cannot log
        // in.
        let kind = if check.is_authentication() { "login" } else { "subscription" };
        let Verdict::Failed(failure) = verdict else {
            if let Some(count) = self.outages.succeeded(&kind) {
                let failures = plural(count, "failure", "failures");
                info!("Access checks work again for {kind}s, after {failures}.");
            }
            return;
        };
        if !self.outages.failed(kind, context.now) {
            return;
        }
        let consequence = if urgency == Some(Urgency::Recheck) {
            "It remains granted until the next recheck"
        } else if check.is_authentication() {
            "The browser will retry"
        } else if self.answers.len() > answered {
            "All retries failed: the tab gets no events of this topic until it subscribes again"
        } else {
            "The check will be retried"
        };
        warn!(
            "The access check of a {kind} failed: {failure}. {consequence}. Further failures are \
             not logged until {kind} checks succeed again. See EspoCRM's data/logs."
        );
    }
}

impl Context<'_> {
    /// The convention for interpreting the outcome of a check that was started under `at_start`. If
    /// EspoCRM's version may have changed meanwhile, only outcomes that mean the same in every
    /// version count as granted or denied.
    fn convention(&self, at_start: Convention) -> Convention {
        if self.is_in_doubt() || at_start != self.settings.version.convention() {
            Convention::InDoubt
        } else {
            at_start
        }
    }

    /// Whether a check is denied without running it, because EspoCRM has no such entity type.
    fn excludes(&self, check: &Check) -> bool {
        self.settings.entity_types.exclude(check) && !self.is_in_doubt()
    }

    /// Whether EspoCRM's files have changed since its settings were read.
    fn is_in_doubt(&self) -> bool {
        self.reloader.is_some_and(Reloader::is_in_doubt)
    }
}

#[cfg(test)]
impl CheckRunner {
    pub(crate) fn children(&self) -> &Children {
        &self.children
    }

    /// Checks the invariants.
    pub(crate) fn check_invariants(&self) {
        self.queue.check_invariants();
        self.pool.check_invariants();
        let is_paused = self.reloading || !self.self_check.allows_checks();
        assert!(!is_paused || !self.queue.can_start(), "a check would start during a pause");
        assert!(self.failing.is_none_or(|(first, last)| first <= last));
    }
}

#[cfg(test)]
mod tests {
    use mio::Poll;
    use serde_json::{Map, Value};

    use super::*;
    use crate::daemon::script::{Entry, Journal};
    use crate::engine::checks::queue::Capacity;
    use crate::engine::id::ConnId;
    use crate::espocrm::{EspoSettings, Installation};
    use crate::settings::{CheckMode, Layers, Overrides};

    /// A runner with scripted PHP processes.
    struct Fixture {
        runner: CheckRunner,
        settings: Settings,
        backend: Backend,
        journal: Journal,
        stats: Stats,
        poll: Poll,
        now: Time,
    }

    impl Fixture {
        fn new() -> Self {
            let espo_settings = EspoSettings::new(Map::new(), &Value::Null);
            let mut settings =
                Settings::resolve(&Layers::of_flags(Overrides::default()), &espo_settings).unwrap();
            settings.check_mode.value = CheckMode::Plain("");
            let journal = Journal::default();
            let runner = CheckRunner::new(&settings);
            runner.children.record(&journal);
            Self {
                runner,
                settings,
                backend: Backend::Espocrm(Installation::scripted()),
                journal,
                stats: Stats::default(),
                poll: Poll::new().unwrap(),
                now: Time::from_millis(1_000),
            }
        }

        fn run<T>(&mut self, act: impl FnOnce(&mut CheckRunner, &mut Context<'_>) -> T) -> T {
            let mut context = Context {
                now: self.now,
                clock: Clock(self.now),
                registry: self.poll.registry(),
                settings: &self.settings,
                backend: &self.backend,
                reloader: None,
                stats: &mut self.stats,
            };
            let result = act(&mut self.runner, &mut context);
            self.runner.check_invariants();
            result
        }

        fn request(&mut self, serial: u32, urgency: Urgency) -> Result<(), QueueFull> {
            let ticket = Ticket { conn: ConnId::new(0, 1), serial };
            let check = Check::authentication(&serial.to_string(), "user");
            let now = self.now;
            self.run(|runner, context| runner.request(now, ticket, urgency, check, context.stats))
        }

        /// Starts the checks that may start, and returns the last one.
        fn start(&mut self) -> Option<JobId> {
            self.run(CheckRunner::start_due);
            match self.journal.borrow_mut().pop_back()? {
                Entry::Started(job, _) => Some(job),
                other => panic!("{other:?}"),
            }
        }

        fn answer(&mut self, job: JobId, verdict: Verdict) -> Vec<Verdict> {
            self.runner.children.answer(job, verdict);
            assert!(self.reap().is_none());
            self.answers()
        }

        fn reap(&mut self) -> Option<Event> {
            let finished = self.runner.reap_children().pop().unwrap();
            let event = self.run(|runner, context| runner.handle_finished(context, finished));
            self.journal.borrow_mut().clear();
            event
        }

        fn answers(&mut self) -> Vec<Verdict> {
            self.runner.take_answers().into_iter().map(|answer| answer.verdict).collect()
        }

        fn self_check(&mut self, verdict: &Verdict) -> Option<Event> {
            self.run(CheckRunner::start_self_check);
            self.runner.children.end_self_check(verdict.clone());
            self.reap()
        }
    }

    #[test]
    fn no_check_starts_during_a_reload_and_before_the_self_check_has_passed() {
        let mut fixture = Fixture::new();
        fixture.request(1, Urgency::Login).unwrap();
        fixture.runner.set_reloading(true);
        fixture.runner.request_self_check(fixture.now);
        assert_eq!(fixture.runner.next_self_check(), None);
        assert_eq!(fixture.start(), None);
        fixture.runner.set_reloading(false);
        assert_eq!(fixture.runner.next_self_check(), Some(fixture.now));
        assert_eq!(fixture.start(), None);
        assert!(fixture.self_check(&Verdict::Denied).is_none());
        let check = fixture.start().unwrap();
        assert_eq!(fixture.answer(check, Verdict::Granted), [Verdict::Granted]);
        assert_eq!(fixture.stats.checks[0], [1, 0, 0]);
    }

    #[test]
    fn nothing_is_granted_while_espocrm_accepts_a_random_token() {
        let mut fixture = Fixture::new();
        let untrusted = Verdict::Failed(Failure::Untrusted);
        fixture.request(1, Urgency::Login).unwrap();
        let cached = fixture.start().unwrap();
        fixture.answer(cached, Verdict::Granted);
        fixture.request(2, Urgency::Login).unwrap();
        let running = fixture.start().unwrap();
        fixture.runner.request_self_check(fixture.now);
        assert!(matches!(fixture.self_check(&Verdict::Granted), Some(Event::Untrusted)));
        assert!(fixture.runner.rejects_clients());
        assert_eq!(fixture.answer(running, Verdict::Granted), [untrusted]);
        fixture.request(3, Urgency::Login).unwrap();
        assert_eq!(fixture.start(), None);
        fixture.runner.request_self_check(fixture.now);
        assert!(fixture.self_check(&Verdict::Denied).is_none());
        assert!(!fixture.runner.rejects_clients() && fixture.start().is_some());
        // Earlier grants are not reused.
        fixture.request(1, Urgency::Login).unwrap();
        assert_eq!(fixture.answers(), []);
        assert!(fixture.start().is_some());
    }

    #[test]
    fn a_cached_check_is_answered_without_running_it() {
        let mut fixture = Fixture::new();
        fixture.request(1, Urgency::Login).unwrap();
        let check = fixture.start().unwrap();
        fixture.answer(check, Verdict::Granted);
        fixture.request(1, Urgency::Login).unwrap();
        assert_eq!((fixture.start(), fixture.answers()), (None, vec![Verdict::Granted]));
        assert_eq!(fixture.stats.checks_cached, 1);
        fixture.runner.forget_user("user");
        fixture.request(1, Urgency::Login).unwrap();
        assert!(fixture.start().is_some());
    }

    #[test]
    fn without_room_a_recheck_fails_and_other_checks_are_refused() {
        let mut fixture = Fixture::new();
        let capacity = Capacity { logins: 0, subscriptions: 0, rechecks: 0 };
        fixture.runner.queue.set_capacity(capacity);
        for urgency in [Urgency::Login, Urgency::Subscription] {
            fixture.request(1, urgency).unwrap_err();
        }
        assert_eq!(fixture.answers(), []);
        fixture.request(1, Urgency::Recheck).unwrap();
        assert!(matches!(fixture.answers()[..], [Verdict::Failed(Failure::NotStarted(_))]));
        assert_eq!(fixture.stats.limit_hits[LimitHit::Rechecks as usize], 1);
    }
}
