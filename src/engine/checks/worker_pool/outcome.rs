//! What the outcome of a check request means for the worker and for the check.

use std::fmt;

use super::{Next, Pool, Trust, WorkerId};
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::time::Time;

/// How a check request to a worker, or a worker without one, has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The worker has answered the check, or the random token if it
    /// [is being verified](Pool::is_verifying).
    Answered(Verdict),
    /// The worker could not complete the command.
    Unable,
    /// As [`Unable`](Self::Unable), and the script of the workers no longer exists.
    ScriptRemoved,
    /// The worker has not answered.
    Unanswered(Problem),
    /// The worker has exited without a request.
    Exited,
}

/// Why a worker has not answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// The check exceeded the timeout.
    TimedOut {
        /// The worker had begun the check. Otherwise something prevents it from accepting requests.
        begun: bool,
    },
    /// The worker has not begun the check although it was idle.
    NotBegun,
    /// The worker failed to start, exited or sent an invalid response: the reason, for the log.
    Failed(String),
}

/// What an outcome means.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens to the worker.
    pub worker: Next,
    /// What the worker has done wrong. `None` if the check may be the cause.
    pub fault: Option<Fault>,
    /// What happens to the check.
    pub check: CheckAction,
}

/// What happens to a check.
#[derive(Debug, PartialEq, Eq)]
pub enum CheckAction {
    /// Send the random token of the self-check to the worker: the grant counts only after the worker
    /// has denied it.
    Verify,
    /// The check has this verdict.
    Finish(Verdict),
    /// Run the check by a plain command.
    RunPlain,
    /// There was no check.
    Nothing,
}

/// What a worker has done wrong.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// See [`Problem::Failed`].
    Failed(String),
    /// It did not begin a check.
    Obstructed,
    /// Its script no longer exists.
    ScriptRemoved,
    /// It accepted a random token. Request a self-check.
    Untrusted,
    /// It exited without a request.
    Exited,
}

impl Pool {
    /// Takes an outcome. The caller executes the decision; if it cannot send the random token, the
    /// outcome of that is [`Problem::Failed`].
    #[must_use]
    pub fn handle_outcome(&mut self, now: Time, id: WorkerId, outcome: Outcome) -> Decision {
        use CheckAction::{Finish, Nothing, RunPlain};
        use Problem::{Failed, NotBegun, TimedOut};
        let trust = self.get_mut(id).map_or(Trust::Unverified, |worker| worker.trust);
        if trust == Trust::Verifying {
            self.set_trust(id, Trust::Unverified);
        }
        let timed_out = Finish(Verdict::Failed(Failure::TimedOut));
        let obstructed = Some(Fault::Obstructed);
        let (worker, fault, check) = match outcome {
            Outcome::Answered(verdict) => return self.handle_answer(now, id, trust, verdict),
            Outcome::Unable => (self.unable(now, id), None, RunPlain),
            Outcome::ScriptRemoved => (self.failed(now, id), Some(Fault::ScriptRemoved), RunPlain),
            Outcome::Exited => (self.failed(now, id), Some(Fault::Exited), Nothing),
            Outcome::Unanswered(problem) => match problem {
                TimedOut { begun: true } => (self.stopped(now, id), None, timed_out),
                TimedOut { begun: false } => (self.obstructed(now, id), obstructed, timed_out),
                NotBegun => (self.obstructed(now, id), obstructed, RunPlain),
                Failed(reason) => (self.failed(now, id), Some(Fault::Failed(reason)), RunPlain),
            },
        };
        Decision { worker, fault, check }
    }

    fn handle_answer(
        &mut self,
        now: Time,
        id: WorkerId,
        trust: Trust,
        verdict: Verdict,
    ) -> Decision {
        let check = match (trust, verdict) {
            (Trust::Unverified, Verdict::Granted) => {
                self.set_trust(id, Trust::Verifying);
                return Decision { worker: Next::Wait, fault: None, check: CheckAction::Verify };
            }
            (Trust::Verifying, Verdict::Granted) => {
                let (worker, fault) = (self.failed(now, id), Some(Fault::Untrusted));
                return Decision { worker, fault, check: CheckAction::RunPlain };
            }
            (Trust::Verifying, Verdict::Denied) => {
                self.set_trust(id, Trust::Verified);
                CheckAction::Finish(Verdict::Granted)
            }
            (Trust::Verifying, Verdict::Failed(_)) => CheckAction::RunPlain,
            (Trust::Unverified | Trust::Verified, verdict) => CheckAction::Finish(verdict),
        };
        Decision { worker: self.answered(now, id), fault: None, check }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(reason) => reason,
            Self::Obstructed => {
                "it did not begin a check. Either the machine is overloaded, or a local user holds \
                 many connections to its port on 127.0.0.1 (ss -tnp shows their processes)"
            }
            Self::ScriptRemoved => "its script was removed",
            Self::Untrusted => "it accepted a random token",
            Self::Exited => "it exited while idle",
        })
    }
}
