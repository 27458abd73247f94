//! A random environment: files that change at any time, probes that succeed, fail, name another PHP
//! or change files themselves, administrators, and clients that come and go.

use std::collections::BTreeMap;

use super::*;
use crate::engine::random::Random;
use crate::engine::seeds;

const SEEDS: u64 = 500;
const STEPS: usize = 400;

const ERRORS: [&str; 2] = ["out of memory", "parse error"];

#[test]
fn each_change_is_read_and_each_request_is_answered_once() {
    seeds::run(SEEDS, &EXPECTED_EVENTS, 10, |seed, verbose| World::new(seed, verbose).run());
}

const EXPECTED_EVENTS: [&str; 12] = [
    "applied",
    "changed during a probe",
    "changed by a probe",
    "failed again",
    "failed",
    "initial PHP",
    "invalid",
    "named PHP",
    "not started",
    "requested during a probe",
    "retried",
    "unstable PHP",
];

#[allow(clippy::struct_excessive_bools, reason = "any combination is possible")]
struct World {
    random: Random,
    reload: Reload,
    now: Time,
    has_clients: bool,
    /// Each probe changes a file.
    probes_write: bool,
    /// Number of changes of the files, and those that were made before the current run.
    changes: u64,
    read_changes: u64,
    /// The PHP of the running probe.
    probe: Option<Php>,
    /// The probes of this run with another PHP than the first one.
    switches: u32,
    /// Requests without a report, and whether all of them were made before the current run.
    requests: u32,
    are_requests_covered: bool,
    /// A run has begun and was not reported.
    is_running: bool,
    /// Begin another run only for this reason.
    may_begin: bool,
    /// Requests since the last outcome.
    is_requested: bool,
    checked_in_turn: bool,
    last_check: Time,
    last_probe: Option<Time>,
    /// The last failure since the last success.
    failure: Option<(Time, String)>,
    /// The outcome of the last probe.
    outcome: Option<Outcome>,
    seen: BTreeMap<&'static str, u64>,
    verbose: bool,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        Self {
            reload: Reload::default(),
            now: Time::default(),
            has_clients: true,
            probes_write: random.chance(20),
            changes: 0,
            read_changes: 0,
            probe: None,
            switches: 0,
            requests: 0,
            are_requests_covered: false,
            is_running: false,
            may_begin: false,
            is_requested: false,
            checked_in_turn: false,
            last_check: Time::default(),
            last_probe: None,
            failure: None,
            outcome: None,
            seen: BTreeMap::new(),
            verbose,
            random,
        }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        for _ in 0..STEPS {
            self.turn();
        }
        // Without further changes everything is read and answered.
        (self.has_clients, self.probes_write) = (true, false);
        let end = self.now.after(60 * SECOND);
        while self.now < end {
            if self.probe.is_some() {
                self.end_probe(Outcome::Settings);
            }
            self.wait();
        }
        assert_eq!(self.read_changes, self.changes, "a change was not read");
        assert!(self.requests == 0 && !self.is_running, "a request was not answered");
        assert!(self.failure.is_none(), "a failure was not retried");
        self.seen
    }

    fn turn(&mut self) {
        match self.random.below(100) {
            0..15 => {
                self.changes += 1;
                if self.probe.is_some() {
                    self.seen("changed during a probe");
                }
            }
            15..22 => self.request(),
            22..45 if self.probe.is_some() => {
                let outcome = self.outcome();
                self.end_probe(outcome);
            }
            45..60 => {
                self.reload.check_files(self.now);
                self.execute();
            }
            60..63 => self.has_clients = !self.has_clients,
            63..70 => {
                // Another event in the same turn.
                self.reload.check_files(self.now);
                self.execute();
                self.request();
            }
            _ => self.wait(),
        }
    }

    /// Waits as the event loop does, and begins a turn.
    fn wait(&mut self) {
        let longest = *self.random.pick(&[10, 500, 3_000, 20_000]);
        let until = self.now.after(Duration::from_millis(self.random.below(longest) as u64));
        let due = self.reload.poll_timeout();
        let latest = self.last_check.after(10 * SECOND);
        let latest = latest.max(self.last_probe.unwrap_or_default().after(SECOND));
        assert_eq!(due.is_none(), self.is_running, "files are checked unless a probe is running");
        assert!(due.is_none_or(|due| due <= latest), "files are not checked every 10 s");
        self.now = match due {
            Some(due) if self.has_clients => until.min(due).max(self.now),
            _ => until,
        };
        self.reload.begin_turn();
        self.checked_in_turn = false;
        if self.has_clients {
            self.reload.handle_timeout(self.now);
            self.execute();
            let is_overdue = self.reload.poll_timeout().is_some_and(|due| due <= self.now);
            assert!(!is_overdue, "the event loop spins");
        }
    }

    fn request(&mut self) {
        self.requests += 1;
        (self.are_requests_covered, self.is_requested, self.may_begin) = (false, true, true);
        if self.probe.is_some() {
            self.seen("requested during a probe");
        }
        self.reload.request();
        self.execute();
    }

    fn outcome(&mut self) -> Outcome {
        let error = (*self.random.pick(&ERRORS)).to_owned();
        match self.random.below(10) {
            0..4 => Outcome::Settings,
            4 => Outcome::Invalid(error),
            5 => Outcome::OtherPhp(error),
            6 => Outcome::Replaced(error),
            _ => Outcome::Failed(error),
        }
    }

    fn end_probe(&mut self, outcome: Outcome) {
        assert!(self.probe.take().is_some());
        if self.probes_write {
            self.changes += 1;
            self.seen("changed by a probe");
        }
        self.last_probe = Some(self.now);
        self.outcome = Some(outcome.clone());
        self.reload.handle_probe_result(self.now, outcome);
        self.execute();
    }

    fn execute(&mut self) {
        self.reload.check_invariants();
        while let Some(action) = self.reload.poll() {
            seeds::print_step(self.verbose, self.now.as_millis(), format_args!("{action:?}"));
            match action {
                Action::CheckFiles => self.check_files(),
                Action::Begin => self.begin(),
                Action::Probe(php) => self.start_probe(php),
                Action::Apply { requested } => {
                    assert_eq!(self.outcome.take(), Some(Outcome::Settings));
                    assert_eq!(requested, self.is_requested);
                    self.failure = None;
                    self.decided("applied");
                }
                Action::Keep { error, should_log } => self.keep(error, should_log),
                Action::Report => self.report(),
            }
            self.reload.check_invariants();
        }
        assert_eq!(self.probe.is_some(), self.reload.is_running());
    }

    fn check_files(&mut self) {
        assert!(self.probe.is_none() && !self.is_running, "files are checked during a reload");
        assert!(!self.checked_in_turn, "files are checked twice in a turn");
        let is_paused = self.last_probe.is_some_and(|last| self.now.since(last) < SECOND);
        assert!(!is_paused, "endless reloads");
        (self.checked_in_turn, self.last_check) = (true, self.now);
        let is_changed = self.changes > self.read_changes;
        let files = if is_changed { Files::Changed } else { Files::Unchanged };
        let failed = self.failure.as_ref().map(|(at, _)| self.now.since(*at));
        let is_due = failed.is_some_and(|since| since >= 10 * SECOND);
        if is_due && !is_changed {
            self.seen("retried");
        }
        self.may_begin = is_changed || is_due;
        self.reload.handle_file_check(self.now, files);
        assert_eq!(self.reload.is_running(), self.may_begin, "a change or a failure is ignored");
    }

    fn begin(&mut self) {
        assert!(self.probe.is_none(), "two probes at once");
        assert!(std::mem::take(&mut self.may_begin), "a run without a reason");
        (self.read_changes, self.switches, self.is_running) = (self.changes, 0, true);
        self.are_requests_covered = true;
    }

    fn start_probe(&mut self, mut php: Php) {
        assert!(self.probe.is_none(), "two probes at once");
        assert!(self.is_running, "a probe without a run");
        match self.outcome.take() {
            None => assert_eq!(php, Php::Current),
            Some(Outcome::OtherPhp(_)) => {
                assert!(php == Php::Named && self.switches < 2, "endless switches");
                self.switches += 1;
                self.seen("named PHP");
            }
            Some(Outcome::Replaced(_)) => {
                assert!(php == Php::Initial && self.switches == 0, "endless switches");
                self.switches += 1;
                self.seen("initial PHP");
            }
            Some(outcome) => panic!("a probe after {outcome:?}"),
        }
        while self.random.chance(10) {
            self.seen("not started");
            let error = (*self.random.pick(&ERRORS)).to_owned();
            self.reload.handle_probe_not_started(self.now, error.clone());
            if php != Php::Current {
                self.outcome = Some(Outcome::Failed(error));
                return;
            }
            php = Php::Initial;
            assert_eq!(self.reload.poll(), Some(Action::Probe(php)));
        }
        self.probe = Some(php);
    }

    fn keep(&mut self, error: String, should_log: bool) {
        let outcome = self.outcome.take();
        if outcome == Some(Outcome::Invalid(error.clone())) {
            assert!(should_log);
            self.failure = None;
            return self.decided("invalid");
        }
        match outcome {
            Some(Outcome::Failed(text)) => assert_eq!(text, error),
            Some(Outcome::OtherPhp(text)) => {
                assert_eq!((text, self.switches), (error.clone(), 2));
                self.seen("unstable PHP");
            }
            Some(Outcome::Replaced(text)) => {
                assert_eq!(text, error);
                assert!(self.switches > 0, "the initial PHP was not tried");
            }
            other => panic!("{error} after {other:?}"),
        }
        let is_known = self.failure.as_ref().is_some_and(|(_, known)| *known == error);
        assert_eq!(should_log, self.is_requested || !is_known, "logged wrongly: {error}");
        self.failure = Some((self.now, error));
        self.decided(if is_known { "failed again" } else { "failed" });
    }

    fn decided(&mut self, event: &'static str) {
        assert!(self.probe.is_none() && self.is_running);
        self.is_requested = false;
        self.seen(event);
    }

    fn report(&mut self) {
        assert!(std::mem::take(&mut self.is_running), "a reload is reported twice");
        assert!(self.requests == 0 || self.are_requests_covered, "a report before the reload");
        self.requests = 0;
    }

    fn seen(&mut self, event: &'static str) {
        *self.seen.entry(event).or_default() += 1;
    }
}
