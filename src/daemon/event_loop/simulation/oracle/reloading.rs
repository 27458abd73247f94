//! A simple model of reloads: when the server must check the files and start the probe.

use std::time::Duration;

use super::super::tab::{Stage, Status};
use super::{Oracle, model};
use crate::daemon::script::Entry;
use crate::engine::reload::{Outcome, Php};
use crate::engine::time::Time;

/// The state of EspoCRM's files and of the probe.
#[allow(clippy::struct_excessive_bools, reason = "any combination is possible")]
pub(crate) struct Reloads {
    /// A probe is running.
    pub(crate) is_running: bool,
    /// The settings on disk.
    pub(crate) edition: u32,
    /// The files have changed since the last run began.
    pub(crate) is_stale: bool,
    /// The administrator has requested another reload meanwhile.
    pub(crate) run_again: bool,
    /// The PHP of the next probe.
    php: Php,
    switches: u32,
    retry_at: Option<Time>,
    checked_in_turn: bool,
    next_check: Time,
    paused_until: Time,
}

const INTERVAL: Duration = Duration::from_secs(10);

impl Default for Reloads {
    fn default() -> Self {
        Self {
            is_running: false,
            edition: 0,
            is_stale: false,
            run_again: false,
            php: Php::Current,
            switches: 0,
            retry_at: None,
            checked_in_turn: false,
            next_check: Time::default().after(INTERVAL),
            paused_until: Time::default(),
        }
    }
}

impl Reloads {
    pub(crate) fn begin_turn(&mut self) {
        self.checked_in_turn = false;
    }

    /// When the files must be checked while browsers are connected.
    pub(crate) fn latest_check(&self) -> Option<Time> {
        (!self.is_running).then(|| self.next_check.max(self.paused_until))
    }

    /// Whether the timer of file checks is due.
    pub(crate) fn is_check_due(&self, now: Time) -> bool {
        self.next_check <= now
    }

    /// Whether a check of the files would begin a reload.
    pub(crate) fn would_begin(&self, now: Time) -> bool {
        self.may_check(now) && self.has_reason(now)
    }

    fn may_check(&self, now: Time) -> bool {
        !self.is_running && self.paused_until <= now
    }

    fn has_reason(&self, now: Time) -> bool {
        self.is_stale || self.retry_at.is_some_and(|at| at <= now)
    }
}

impl Oracle {
    /// The server decides something that depends on the settings on disk.
    pub(super) fn expect_file_check(&mut self) {
        let is_checked = self.reloads.checked_in_turn || !self.reloads.may_check(self.now);
        assert!(is_checked || self.take_file_check(), "the files were not checked");
    }

    /// Takes the check of the files before a check is started.
    pub(super) fn take_file_check_before_start(&mut self) {
        let is_paused = self.reloads.is_running || !self.self_check.allows_checks();
        let has_room = self.running.len() < self.max_checks;
        if has_room && !is_paused && self.checks.has_queued() {
            self.take_file_check();
        }
    }

    pub(super) fn started_after_file_check(&self) -> bool {
        self.reloads.checked_in_turn || self.now < self.reloads.paused_until
    }

    /// Takes a check of the files, and the reload that it begins, if that is what follows.
    pub(super) fn take_file_check(&mut self) -> bool {
        if self.take_if(|entry| matches!(entry, Entry::FilesChecked)).is_none() {
            return false;
        }
        let (now, reloads) = (self.now, &mut self.reloads);
        assert!(reloads.may_check(now), "the files were checked at the wrong time");
        assert!(!reloads.checked_in_turn, "the files were checked twice in a turn");
        (reloads.checked_in_turn, reloads.next_check) = (true, now.after(INTERVAL));
        let begins = reloads.has_reason(now);
        let event = if reloads.is_stale { "reload by a change" } else { "reload by a retry" };
        assert_eq!(self.take_probes(), begins, "stale: {}", self.reloads.is_stale);
        if begins {
            self.seen(event);
        }
        true
    }

    /// The administrator has requested a reload.
    pub(crate) fn requested(&mut self) {
        let was_running = self.reloads.is_running;
        self.reloads.run_again |= was_running;
        assert_eq!(self.take_probes(), !was_running);
        self.seen(if was_running { "request during a reload" } else { "requested" });
    }

    /// The probe has ended.
    pub(crate) fn probed(&mut self, outcome: &Outcome, edition: u32) {
        let reloads = &mut self.reloads;
        reloads.paused_until = self.now.after(Duration::from_secs(1));
        reloads.php = match outcome {
            Outcome::OtherPhp(_) if reloads.switches < 2 => Php::Named,
            Outcome::Replaced(_) if reloads.switches == 0 => Php::Initial,
            Outcome::Settings => return self.end_run(edition, None, "reloaded"),
            Outcome::Invalid(_) => return self.end_run(self.edition, None, "invalid settings"),
            _ => return self.fail_run(),
        };
        reloads.switches += 1;
        assert!(self.take_probes(), "no probe with another PHP");
        self.seen("other PHP");
    }

    fn fail_run(&mut self) {
        self.end_run(self.edition, Some(self.now.after(INTERVAL)), "reload failed");
    }

    /// Takes the start of a probe, if that is what follows, and its end if none could be started.
    fn take_probes(&mut self) -> bool {
        let is_probe =
            |it: &Entry| matches!(it, Entry::ProbeStarted(_) | Entry::ProbeNotStarted(_));
        let mut is_taken = false;
        while let Some(entry) = self.take_if(is_probe) {
            is_taken = true;
            let (Entry::ProbeStarted(php) | Entry::ProbeNotStarted(php)) = entry else { break };
            let reloads = &mut self.reloads;
            assert_eq!(php, reloads.php);
            if php == Php::Current {
                assert!(!reloads.is_running, "two probes at once");
                (reloads.is_stale, reloads.run_again, reloads.switches) = (false, false, 0);
            }
            reloads.is_running = true;
            if matches!(entry, Entry::ProbeStarted(_)) {
                break;
            }
            reloads.php = Php::Initial;
            if php == Php::Current {
                self.seen("PHP not started");
            } else {
                self.fail_run();
                break;
            }
        }
        is_taken
    }

    /// The run has ended with this edition of the settings.
    fn end_run(&mut self, edition: u32, retry_at: Option<Time>, event: &'static str) {
        let reloads = &mut self.reloads;
        (reloads.is_running, reloads.php, reloads.retry_at) = (false, Php::Current, retry_at);
        self.self_check.request(self.now);
        let old = std::mem::replace(&mut self.edition, edition);
        let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open);
        for number in open.map(|tab| tab.number).collect::<Vec<_>>() {
            for (topic, status) in &mut self.tab(number).topics {
                if model::rule(old, topic) != model::rule(edition, topic) {
                    *status = Status::Pending;
                }
            }
            let tab = &self.tabs[&number];
            self.checks.cancel(|it| {
                let topic = it.topic.filter(|_| it.tab == number);
                topic.is_some_and(|topic| tab.topics.get(topic) == Some(&Status::Pending))
            });
            if tab.is_logged_in {
                self.resolve_all(number);
            }
        }
        self.seen(event);
        let runs_again = self.reloads.run_again;
        assert_eq!(self.take_probes(), runs_again, "another run");
    }

    /// Takes the first entry other than output if it matches.
    fn take_if(&mut self, matches: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let mut journal = self.journal.borrow_mut();
        let index = journal.iter().position(|entry| !matches!(entry, Entry::Wrote(..)))?;
        if matches(journal.get(index)?) { journal.remove(index) } else { None }
    }
}
