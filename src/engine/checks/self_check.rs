//! The self-check: does EspoCRM deny a random token? The answer must be known before any access is
//! granted.

use std::rc::Rc;
use std::time::Duration;

use super::check::Check;
use super::verdict::{self, Failure, ProcessExit, Verdict, is_id};
use crate::engine::espocrm::version::Convention;
use crate::engine::time::Time;

/// Decides when the self-check runs and what its result means. It runs nothing itself.
///
/// A broken installation, a modified `AuthTokenCheck` or a script in place of PHP can accept every
/// token. So after each load and reload, EspoCRM checks a random token. No other check is started
/// until the result is known. If the token is accepted, clients are rejected, and the self-check is
/// repeated until the token is denied. A self-check without a result, for example while the
/// database is down, changes nothing, since other checks then have no result either. It is
/// repeated, too.
#[derive(Debug, Default)]
pub struct SelfCheck {
    trust: Trust,
    /// The check that is running, or the last one that ran.
    question: Option<Rc<Check>>,
    is_running: bool,
    /// Requested again while it was running: its result is outdated.
    again: bool,
    due: Option<Time>,
    /// Report the next result even if it is unchanged.
    announce: bool,
}

/// What is known about EspoCRM's checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trust {
    /// The random token was denied, or there is no EspoCRM (demo).
    #[default]
    Passed,
    /// Not checked since the last load.
    Unknown,
    /// The self-check had no result.
    Inconclusive,
    /// The random token was accepted.
    Accepted,
}

/// What a result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// EspoCRM may have changed meanwhile: the self-check runs again.
    Superseded,
    /// EspoCRM denies the token, as before.
    Passed,
    /// EspoCRM denies the token after it had accepted it.
    Recovered,
    /// No result, for the first time since the last load.
    Inconclusive,
    /// EspoCRM accepts the token. Close all connections.
    Accepted,
    /// As before; do not log it.
    Unchanged,
}

/// Delay until the next attempt, while there is no result or the token is accepted.
const RETRY: Duration = Duration::from_secs(10);

impl SelfCheck {
    /// EspoCRM was loaded or may have changed: run the self-check at once.
    pub fn request(&mut self, now: Time) {
        if self.trust != Trust::Accepted {
            self.trust = Trust::Unknown;
        }
        self.again = self.is_running;
        self.due = Some(now);
    }

    /// Whether the self-check must be started now.
    #[must_use]
    pub fn is_due(&self, now: Time) -> bool {
        !self.is_running && self.due.is_some_and(|due| due <= now)
    }

    /// When [`is_due`](Self::is_due) becomes true.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.due.filter(|_| !self.is_running)
    }

    /// Starts a self-check with this check of a random token. Pass its verdict to
    /// [`finish`](Self::finish).
    pub fn start(&mut self, question: Check) -> Rc<Check> {
        let question = Rc::new(question);
        self.question = Some(Rc::clone(&question));
        self.is_running = true;
        self.again = false;
        self.due = None;
        question
    }

    /// The last check of a random token, which no EspoCRM may accept. Workers must deny it, too.
    #[must_use]
    pub fn question(&self) -> Option<&Rc<Check>> {
        self.question.as_ref()
    }

    /// Takes the verdict. Without a running self-check it is ignored.
    pub fn finish(&mut self, now: Time, verdict: &Verdict) -> Outcome {
        if !std::mem::take(&mut self.is_running) {
            return Outcome::Unchanged;
        }
        let before = self.trust;
        let again = std::mem::take(&mut self.again);
        if again && *verdict != Verdict::Granted {
            return Outcome::Superseded;
        }
        if !again {
            self.due = (*verdict != Verdict::Denied).then(|| now.after(RETRY));
        }
        let announce = std::mem::take(&mut self.announce);
        match verdict {
            Verdict::Denied => {
                self.trust = Trust::Passed;
                if before == Trust::Accepted { Outcome::Recovered } else { Outcome::Passed }
            }
            Verdict::Granted => {
                self.trust = Trust::Accepted;
                let is_known = before == Trust::Accepted && !announce;
                if is_known { Outcome::Unchanged } else { Outcome::Accepted }
            }
            // Trust is restored only by a denial.
            Verdict::Failed(_) if before == Trust::Accepted => Outcome::Unchanged,
            Verdict::Failed(_) => {
                self.trust = Trust::Inconclusive;
                let is_known = before == Trust::Inconclusive && !announce;
                if is_known { Outcome::Unchanged } else { Outcome::Inconclusive }
            }
        }
    }

    /// Interprets the outcome of the [`question`](Self::question). A token that is accepted for
    /// another user counts as accepted: any token could then impersonate that user.
    #[must_use]
    pub fn read(
        &self,
        convention: Convention,
        exit: ProcessExit,
        output: &[u8],
        message: impl FnOnce() -> String,
    ) -> Verdict {
        if exit == ProcessExit::Status(0) && is_id(output.trim_ascii()) {
            return Verdict::Granted;
        }
        let affirmation = self.question.as_ref().map(|question| &question.affirmation);
        match affirmation {
            Some(affirmation) => verdict::read(convention, affirmation, exit, output, message),
            None => Verdict::Failed(Failure::NothingChecked),
        }
    }

    /// The administrator waits for a result: report the next one even if it is unchanged.
    pub fn announce(&mut self) {
        self.announce = true;
    }

    /// Whether checks may be started.
    #[must_use]
    pub fn allows_checks(&self) -> bool {
        matches!(self.trust, Trust::Passed | Trust::Inconclusive)
    }

    /// Whether clients are rejected because EspoCRM accepts any token.
    #[must_use]
    pub fn rejects_clients(&self) -> bool {
        self.trust == Trust::Accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(5);

    fn run(check: &mut SelfCheck, now: Time, verdict: &Verdict) -> Outcome {
        assert!(check.is_due(now));
        check.start(Check::authentication("t", "u"));
        assert_eq!(check.next_deadline(), None);
        assert!(!check.is_due(now));
        check.finish(now, verdict)
    }

    fn failed() -> Verdict {
        Verdict::Failed(Failure::TimedOut)
    }

    #[test]
    fn no_check_starts_before_the_first_result() {
        let mut check = SelfCheck::default();
        assert!(check.allows_checks() && !check.is_due(NOW));
        check.request(NOW);
        assert!(!check.allows_checks() && !check.rejects_clients());
        assert_eq!(run(&mut check, NOW, &Verdict::Denied), Outcome::Passed);
        assert!(check.allows_checks() && !check.rejects_clients());
        assert_eq!(check.next_deadline(), None);
        check.request(NOW);
        assert!(!check.allows_checks());
    }

    #[test]
    fn clients_are_rejected_until_the_accepted_token_is_denied() {
        let mut check = SelfCheck::default();
        check.request(NOW);
        assert_eq!(run(&mut check, NOW, &Verdict::Granted), Outcome::Accepted);
        let mut now = NOW;
        // Neither a failure nor a reload restores trust.
        for (verdict, reload) in [(Verdict::Granted, false), (failed(), false), (failed(), true)] {
            assert!(check.rejects_clients() && !check.allows_checks());
            assert_eq!(check.next_deadline(), Some(now.after(RETRY)));
            now = now.after(RETRY);
            if reload {
                check.request(now);
                assert!(check.rejects_clients());
            }
            assert_eq!(run(&mut check, now, &verdict), Outcome::Unchanged);
        }
        now = now.after(RETRY);
        check.announce();
        assert_eq!(run(&mut check, now, &Verdict::Granted), Outcome::Accepted);
        now = now.after(RETRY);
        assert_eq!(run(&mut check, now, &Verdict::Denied), Outcome::Recovered);
        assert!(check.allows_checks() && !check.rejects_clients());
        assert_eq!(check.next_deadline(), None);
    }

    #[test]
    fn without_a_result_checks_run_and_the_self_check_is_repeated() {
        let mut check = SelfCheck::default();
        check.request(NOW);
        assert_eq!(run(&mut check, NOW, &failed()), Outcome::Inconclusive);
        assert!(check.allows_checks() && !check.rejects_clients());
        let later = NOW.after(RETRY);
        assert_eq!(run(&mut check, later, &failed()), Outcome::Unchanged);
        let later = later.after(RETRY);
        assert_eq!(run(&mut check, later, &Verdict::Granted), Outcome::Accepted);
        assert!(check.rejects_clients());
    }

    #[test]
    fn a_token_accepted_for_any_user_counts_as_accepted() {
        let mut check = SelfCheck::default();
        check.start(Check::authentication("t", "u"));
        let read = |convention, status, output: &str| {
            check.read(convention, ProcessExit::Status(status), output.as_bytes(), String::new)
        };
        for convention in [Convention::ExitStatus, Convention::Output, Convention::InDoubt] {
            assert_eq!(read(convention, 0, "u"), Verdict::Granted);
            assert_eq!(read(convention, 0, "6b030f5b450565077\n"), Verdict::Granted);
            assert_eq!(read(convention, 1, ""), Verdict::Denied);
            for (status, output) in [(1, "u"), (255, "u"), (0, "Error: x")] {
                let verdict = read(convention, status, output);
                assert!(matches!(verdict, Verdict::Failed(_)), "{status} {output}");
            }
        }
        assert_eq!(read(Convention::Output, 0, ""), Verdict::Denied);
        let nothing = Verdict::Failed(Failure::NothingChecked);
        assert_eq!(read(Convention::ExitStatus, 0, ""), nothing);
    }

    #[test]
    fn an_outdated_result_counts_only_if_the_token_was_accepted() {
        let mut check = SelfCheck::default();
        for verdict in [Verdict::Denied, failed()] {
            check.request(NOW);
            check.start(Check::authentication("t", "u"));
            check.request(NOW);
            assert_eq!(check.finish(NOW, &verdict), Outcome::Superseded);
            assert!(!check.allows_checks());
            assert_eq!(run(&mut check, NOW, &Verdict::Denied), Outcome::Passed);
        }
        check.request(NOW);
        check.start(Check::authentication("t", "u"));
        check.request(NOW);
        assert_eq!(check.finish(NOW, &Verdict::Granted), Outcome::Accepted);
        assert_eq!(run(&mut check, NOW, &Verdict::Denied), Outcome::Recovered);
        // A verdict without a running self-check is ignored.
        assert_eq!(check.finish(NOW, &Verdict::Granted), Outcome::Unchanged);
        assert!(!check.rejects_clients());
    }
}
