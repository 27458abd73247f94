//! A real access check with a random token: it must be denied, and must not fail.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::Stop;
use super::report::{Finding, Report};
use crate::admin::doctor::context::Context;
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict;
use crate::engine::checks::verdict::{Failure, ProcessExit, Verdict};
use crate::engine::checks::worker_pool::{Pool, Problem, Runner};
use crate::engine::checks::worker_protocol::Reply;
use crate::espocrm::process::Children;
use crate::espocrm::workers::{CheckRequest, Outcome, Workers};
use crate::espocrm::{Installation, Router};
use crate::platform::clock::Clock;
use crate::platform::random;
use crate::settings::{CheckMode, Settings};

/// A browser tab waits for one check when it connects, and for two when it opens a record.
const SLOW: Duration = Duration::from_secs(2);

/// Runs a check by a plain command and by a worker.
pub(super) fn examine(context: &Context, report: &mut Report, stop: Stop<'_>) {
    let token = random::hex().unwrap_or_default();
    let check = Check::authentication(&token, "doctor");
    let (verdict, took) = run_plain(context, &check, stop);
    let is_ok = report.add(judge_plain(&verdict, took, context));
    match context.settings.check_mode.value {
        CheckMode::Plain(why) => {
            report.add(Finding::unknown("worker", format!("PHP workers are not used: {why}")));
        }
        CheckMode::Workers(_) if is_ok => {
            let result = run_worker(&context.espocrm, &context.settings, &check, stop);
            report.add(judge_worker(result.map_err(|error| check.redact(&error))));
        }
        CheckMode::Workers(_) => {
            report.skip(
                &[("worker", "Access check by a PHP worker")],
                "the check by a plain command does not work",
            );
        }
    }
}

fn run_plain(context: &Context, check: &Check, stop: Stop<'_>) -> (Verdict, Duration) {
    let start = Instant::now();
    let timeout = context.settings.check_timeout.value;
    let verdict = match Children::run(context.espocrm.check(check), timeout, stop) {
        Err(error) => Verdict::Failed(Failure::NotStarted(error.to_string())),
        Ok(finished) => match &finished.exit {
            Err(failure) => Verdict::Failed(failure.clone()),
            Ok(exit) => {
                let complaint = || check.redact(&finished.first_line());
                read(&context.settings, check, *exit, &finished.stdout, complaint)
            }
        },
    };
    (verdict, start.elapsed())
}

fn read(
    settings: &Settings,
    check: &Check,
    exit: ProcessExit,
    output: &[u8],
    complaint: impl FnOnce() -> String,
) -> Verdict {
    verdict::read(settings.version.convention(), &check.affirmation, exit, output, complaint)
}

fn judge_plain(verdict: &Verdict, took: Duration, context: &Context) -> Finding {
    const STEP: &str = "check";
    let took_ms = took.as_millis();
    let root = context.espocrm.root().display();
    match verdict {
        Verdict::Denied if took < SLOW => {
            Finding::ok(STEP, format!("A plain command denies an invalid token, in {took_ms} ms"))
        }
        Verdict::Denied => Finding::warning(
            STEP,
            format!("A plain command denies an invalid token, but only after {took_ms} ms"),
            "Each browser tab waits this long when it connects. Check whether this machine or \
             EspoCRM's database is overloaded.",
        ),
        Verdict::Granted => Finding::failure(
            STEP,
            "EspoCRM accepted an invalid token",
            format!(
                "{root}/command.php or EspoCRM's code was modified. Anyone could connect as any \
                 user. Restore the original files."
            ),
        ),
        Verdict::Failed(failure) => {
            let fix = format!(
                "{failure}.\nBrowsers retry every 3 s until checks work. See {root}/data/logs, and \
                 try the check as root:\n  {}; echo $?\n\
                 The correct output is only 1 (0 before EspoCRM 9.2).",
                context.espocrm.manual_command("AuthTokenCheck x y")
            );
            Finding::failure(STEP, "Access checks fail", fix)
        }
    }
}

/// The verdicts of a new worker and of the same worker once it is warm, and how long they took.
type Answers = Result<[(Verdict, Duration); 2], String>;

fn run_worker(
    espocrm: &Installation,
    settings: &Settings,
    check: &Check,
    stop: Stop<'_>,
) -> Answers {
    let mut workers = Workers::new(0);
    let answers = check_twice(&mut workers, espocrm, settings, check, stop);
    workers.kill_all();
    answers
}

fn check_twice(
    workers: &mut Workers,
    espocrm: &Installation,
    settings: &Settings,
    check: &Check,
    stop: Stop<'_>,
) -> Answers {
    let failed = |error: io::Error| error.to_string();
    let clock = Clock::start();
    let Some(Runner::New(id)) = Pool::new(1).take(clock.now(), 0) else {
        return Err(String::new());
    };
    let router = Router::write().map_err(failed)?;
    let mut poll = Poll::new().map_err(failed)?;
    let command = espocrm.worker(&router, Check::AUTHENTICATION);
    workers.start(poll.registry(), clock.now(), id, command).map_err(failed)?;
    let mut run = || {
        let start = Instant::now();
        let request =
            CheckRequest { job: JobId::default(), convention: settings.version.convention() };
        let (now, timeout) = (clock.now(), settings.check_timeout.value);
        workers
            .run(poll.registry(), id, request, &check.arguments, now, timeout)
            .map_err(failed)?;
        let mut outcomes = Vec::new();
        let mut ended = Vec::new();
        let mut events = Events::with_capacity(8);
        while outcomes.is_empty() {
            // There is no handler for SIGCHLD, so the loop polls for the end of the worker.
            let _ = poll.poll(&mut events, Some(Duration::from_millis(10)));
            for event in &events {
                workers.ready(poll.registry(), event.token().0, &mut outcomes);
            }
            workers.expire(clock.now(), &mut outcomes);
            workers.reap(&mut outcomes, &mut ended);
            if stop() || !ended.is_empty() {
                return Err("the worker ended".to_owned());
            }
        }
        match outcomes.pop().map(|Outcome { result, .. }| result) {
            Some(Ok(Reply::Done(done))) => {
                let complaint = || check.redact(&verdict::first_line(&done.output));
                let exit = ProcessExit::Status(done.status);
                Ok((read(settings, check, exit, &done.output, complaint), start.elapsed()))
            }
            Some(Ok(Reply::Unable)) => Err("the worker cannot run EspoCRM's commands".to_owned()),
            Some(Err(Problem::Failed(why))) => Err(why),
            Some(Err(Problem::NotBegun)) => Err("the worker did not accept the request".to_owned()),
            Some(Err(Problem::TimedOut { .. })) | None => {
                Err("the worker did not answer in time".to_owned())
            }
        }
    };
    Ok([run()?, run()?])
}

fn judge_worker(answers: Answers) -> Finding {
    const STEP: &str = "worker";
    let why = match answers {
        Ok([(Verdict::Denied, first), (Verdict::Denied, second)]) => {
            return Finding::ok(
                STEP,
                format!(
                    "A PHP worker denies it too: in {} ms, and in {} ms once it is warm",
                    first.as_millis(),
                    second.as_millis()
                ),
            );
        }
        Ok(answers) => {
            let problem = answers.into_iter().find_map(|(verdict, _)| match verdict {
                Verdict::Failed(failure) => Some(failure.to_string()),
                Verdict::Granted => Some("the worker accepted an invalid token".to_owned()),
                Verdict::Denied => None,
            });
            problem.unwrap_or_default()
        }
        Err(why) => why,
    };
    Finding::warning(
        STEP,
        "A PHP worker does not give the same result as the plain command",
        format!(
            "{why}.\nThe daemon then runs a plain command for each check, which costs more. To use \
             plain commands only, set worker = false in the configuration file."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn a_worker_must_deny_twice() {
        let denied = || (Verdict::Denied, Duration::from_millis(7));
        assert!(judge_worker(Ok([denied(), denied()])).is_ok());
        let failed = (Verdict::Failed(Failure::TimedOut), Duration::ZERO);
        for (answers, why) in [
            (Ok([denied(), failed]), "did not finish"),
            (Ok([(Verdict::Granted, Duration::ZERO), denied()]), "accepted an invalid token"),
            (Err("no good".to_owned()), "no good."),
        ] {
            let finding = judge_worker(answers);
            assert_eq!(finding.state, State::Warning);
            assert!(finding.fix.contains(why), "{}", finding.fix);
        }
    }
}
