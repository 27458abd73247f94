//! Reloading EspoCRM's settings: when files are checked, when the probe runs and with which PHP, and
//! what its outcome means.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::time::Time;

/// Decides about reloads. It reads no files and runs nothing.
///
/// A reload consists of one or more runs. A run starts the probe, possibly again with another PHP,
/// and ends when the new settings are applied or the previous ones are kept. A request during a run
/// leads to another run, since that probe may have read files before they were changed.
///
/// Inputs:
/// - [`begin_turn`](Self::begin_turn), before each turn of the event loop;
/// - [`request`](Self::request): the administrator requests a reload;
/// - [`check_files`](Self::check_files): a decision depends on the settings on disk;
/// - [`handle_timeout`](Self::handle_timeout), while clients are connected, at the time that
///   [`poll_timeout`](Self::poll_timeout) returns;
/// - [`handle_file_check`](Self::handle_file_check),
///   [`handle_probe_not_started`](Self::handle_probe_not_started) and
///   [`handle_probe_result`](Self::handle_probe_result): the results of actions.
///
/// Outputs:
/// - [`poll`](Self::poll): the next action. Call it after each input until it returns `None`, and
///   execute each action before the next call.
#[derive(Debug)]
pub(crate) struct Reload {
    phase: Phase,
    /// A reload was requested during the current run.
    run_again: bool,
    /// The administrator requested the reload, so its result is logged in any case.
    requested: bool,
    /// How often the current run has switched to another PHP.
    php_switches: u32,
    /// Set if reading the settings failed: when to retry.
    retry_at: Option<Time>,
    /// The error of that attempt.
    last_error: String,
    /// The files have been checked in this turn.
    checked_files: bool,
    next_file_check: Time,
    /// No file check before this time.
    paused_until: Time,
}

/// An action for the caller to execute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Compare the files with their last known state, and pass the result to
    /// [`Reload::handle_file_check`].
    CheckFiles,
    /// A run begins. Record the state of the files: changes from now on cause another reload. Start
    /// no access check before the end of the reload, because EspoCRM's version determines how PHP's
    /// answers are interpreted.
    Begin,
    /// Start the probe with this PHP, and pass its outcome to [`Reload::handle_probe_result`], or the
    /// error to [`Reload::handle_probe_not_started`].
    Probe(Php),
    /// Apply the settings that the probe printed. If they were requested, log them even if they are
    /// unchanged.
    Apply { requested: bool },
    /// Keep the previous settings.
    Keep { error: String, should_log: bool },
    /// The reload has ended: report its result to those who wait for it.
    Report,
}

/// A PHP that can run the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Php {
    /// The one that printed the settings in force.
    Current,
    /// The one that runs the first probe at startup.
    Initial,
    /// The one that EspoCRM names according to the last probe.
    Named,
}

/// The state of the files at a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    Unchanged,
    Changed,
}

/// The outcome of a probe, with the error if the previous settings have to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It printed the settings.
    Settings,
    /// It printed settings that cannot be used.
    Invalid(String),
    /// It printed settings that name another PHP, which has to print them, too.
    OtherPhp(String),
    /// The program is not PHP's command line, and [`Php::Initial`] is another program.
    Replaced(String),
    /// It failed.
    Failed(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The files have to be checked.
    CheckFiles,
    /// A run has to begin.
    Due,
    /// The probe has to be started.
    Start(Php),
    Probing(Php),
    /// The run ends with this action.
    Decided(Action),
    /// The run has ended.
    Ended,
}

/// Interval of file checks while no access check is started, and of retries after a failed reload.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// How often one run may switch to another PHP: from the one in force to the one of our own
/// settings, and from there to the one that EspoCRM names.
const MAX_PHP_SWITCHES: u32 = 2;

/// Pause of file checks after a probe: a file that is written by each probe must not cause endless
/// reloads.
const PAUSE: Duration = Duration::from_secs(1);

impl Default for Reload {
    fn default() -> Self {
        Self {
            phase: Phase::Idle,
            run_again: false,
            requested: false,
            php_switches: 0,
            retry_at: None,
            last_error: String::new(),
            checked_files: false,
            next_file_check: Time::default().after(FILE_CHECK_INTERVAL),
            paused_until: Time::default(),
        }
    }
}

impl Reload {
    /// Begins a turn of the event loop, in which files are checked once.
    pub(crate) fn begin_turn(&mut self) {
        self.checked_files = false;
    }

    /// The administrator requests a reload.
    pub(crate) fn request(&mut self) {
        self.requested = true;
        self.begin();
    }

    /// Checks the files, unless they have been checked in this turn, a reload is running or has
    /// just ended.
    pub(crate) fn check_files(&mut self, now: Time) {
        let may_check = self.phase == Phase::Idle && self.paused_until <= now;
        if may_check && !std::mem::replace(&mut self.checked_files, true) {
            self.next_file_check = now.after(FILE_CHECK_INTERVAL);
            self.phase = Phase::CheckFiles;
        }
    }

    /// Checks the files if that is due.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.check_files(now);
        }
    }

    /// Takes the result of [`Action::CheckFiles`].
    pub(crate) fn handle_file_check(&mut self, now: Time, files: Files) {
        if files == Files::Changed || self.retry_at.is_some_and(|at| at <= now) {
            self.begin();
        }
    }

    /// Takes the error if the probe could not be started.
    pub(crate) fn handle_probe_not_started(&mut self, now: Time, error: String) {
        match self.phase {
            // That PHP may have been replaced by another one, which EspoCRM will name.
            Phase::Probing(Php::Current) => self.phase = Phase::Start(Php::Initial),
            Phase::Probing(_) => self.fail(now, error),
            _ => debug_assert!(false, "no probe was started: {self:?}"),
        }
    }

    /// Takes the outcome of the probe.
    pub(crate) fn handle_probe_result(&mut self, now: Time, outcome: Outcome) {
        if !matches!(self.phase, Phase::Probing(_)) {
            debug_assert!(false, "no probe is running: {self:?}");
            return;
        }
        self.paused_until = now.after(PAUSE);
        match outcome {
            Outcome::Settings => {
                let requested = self.requested;
                self.decide(Action::Apply { requested });
            }
            Outcome::Invalid(error) => self.decide(Action::Keep { error, should_log: true }),
            Outcome::OtherPhp(_) if self.php_switches < MAX_PHP_SWITCHES => {
                self.switch_to(Php::Named);
            }
            // That PHP was replaced; EspoCRM may name another one by now.
            Outcome::Replaced(_) if self.php_switches == 0 => self.switch_to(Php::Initial),
            Outcome::OtherPhp(error) | Outcome::Replaced(error) | Outcome::Failed(error) => {
                self.fail(now, error);
            }
        }
    }

    /// Returns the next action.
    pub(crate) fn poll(&mut self) -> Option<Action> {
        let (action, phase) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => return None,
            Phase::CheckFiles => (Action::CheckFiles, Phase::Idle),
            Phase::Ended if !self.run_again => (Action::Report, Phase::Idle),
            Phase::Due | Phase::Ended => {
                (self.run_again, self.php_switches) = (false, 0);
                (Action::Begin, Phase::Start(Php::Current))
            }
            Phase::Start(php) => (Action::Probe(php), Phase::Probing(php)),
            Phase::Probing(php) => {
                self.phase = Phase::Probing(php);
                return None;
            }
            Phase::Decided(action) => (action, Phase::Ended),
        };
        self.phase = phase;
        Some(action)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) while clients are connected.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        (self.phase == Phase::Idle).then(|| self.next_file_check.max(self.paused_until))
    }

    /// Whether a reload is running.
    #[must_use]
    pub(crate) fn is_running(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::CheckFiles)
    }

    /// Whether EspoCRM's version may differ from that of the settings in force, even if its files
    /// have not changed since the last check.
    #[must_use]
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_running() || self.retry_at.is_some()
    }

    fn begin(&mut self) {
        match self.phase {
            Phase::Idle | Phase::CheckFiles => self.phase = Phase::Due,
            _ => self.run_again = true,
        }
    }

    fn switch_to(&mut self, php: Php) {
        self.php_switches += 1;
        self.phase = Phase::Start(php);
    }

    /// Schedules a retry. Retries that fail with the same error are not logged.
    fn fail(&mut self, now: Time, error: String) {
        let should_log = self.requested || self.last_error != error;
        self.decide(Action::Keep { error: error.clone(), should_log });
        (self.retry_at, self.last_error) = (Some(now.after(FILE_CHECK_INTERVAL)), error);
    }

    fn decide(&mut self, action: Action) {
        self.phase = Phase::Decided(action);
        self.requested = false;
        self.retry_at = None;
        self.last_error.clear();
    }
}

#[cfg(test)]
impl Reload {
    /// Checks that the fields agree with each other.
    pub(crate) fn check_invariants(&self) {
        assert!(self.php_switches <= MAX_PHP_SWITCHES, "{self:?}");
        assert_eq!(self.retry_at.is_some(), !self.last_error.is_empty(), "{self:?}");
        assert!(self.is_running() || !(self.run_again || self.requested), "{self:?}");
    }
}
