//! A real access check, with a token that is nobody's: it must be denied, and not fail.

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
use crate::engine::checks::worker_pool::{Pool, Runner};
use crate::engine::checks::worker_protocol::Reply;
use crate::espocrm::process::Children;
use crate::espocrm::workers::{CheckRequest, Outcome, Problem, Workers};
use crate::espocrm::{Installation, Router};
use crate::platform::clock::Clock;
use crate::platform::random;
use crate::settings::{CheckMode, Settings};

/// A tab waits for one when it connects, and for two when a record is opened.
const SLOW: Duration = Duration::from_secs(2);

/// Goes through both ways of checking.
pub(super) fn look(context: &Context, report: &mut Report, stop: Stop<'_>) {
    let token = random::hex().unwrap_or_default();
    let check = Check::authentication(&token, "doctor");
    let (verdict, took) = plainly(context, &check, stop);
    let is_good = report.add(plain(&verdict, took, context));
    match context.settings.check_mode.value {
        CheckMode::Plain(why) => {
            report.add(Finding::unknown("worker", format!("PHP workers are not used: {why}")));
        }
        CheckMode::Workers(_) if is_good => {
            let result = by_worker(&context.espocrm, &context.settings, &check, stop);
            report.add(worker(result.map_err(|error| check.redact(&error))));
        }
        CheckMode::Workers(_) => {
            report.skip(&[("worker", "PHP workers")], "a plain check does not work");
        }
    }
}

fn plainly(context: &Context, check: &Check, stop: Stop<'_>) -> (Verdict, Duration) {
    let start = Instant::now();
    let timeout = context.settings.check_timeout.value;
    let verdict = match Children::run(context.espocrm.check(check), timeout, stop) {
        Err(error) => Verdict::Unchecked(Failure::NotStarted(error.to_string())),
        Ok(finished) => match &finished.exit {
            Err(failure) => Verdict::Unchecked(failure.clone()),
            Ok(exit) => {
                let said = || check.redact(&finished.first_line());
                read(&context.settings, check, *exit, &finished.stdout, said)
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
    said: impl FnOnce() -> String,
) -> Verdict {
    verdict::read(settings.version.convention(), &check.affirmation, exit, output, said)
}

fn plain(verdict: &Verdict, took: Duration, context: &Context) -> Finding {
    const STEP: &str = "check";
    let took_ms = took.as_millis();
    let root = context.espocrm.root().display();
    match verdict {
        Verdict::Denied if took < SLOW => Finding::good(
            STEP,
            format!("An access check with a wrong token is denied, in {took_ms} ms"),
        ),
        Verdict::Denied => Finding::doubt(
            STEP,
            format!("An access check with a wrong token is denied, but only after {took_ms} ms"),
            "Each tab waits so long for its welcome. Is the machine or EspoCRM's database \
             overloaded?",
        ),
        Verdict::Granted => Finding::bad(
            STEP,
            "A wrong token was accepted",
            format!(
                "Somebody has changed what {root}/command.php does. Nobody is to be let in so."
            ),
        ),
        Verdict::Unchecked(failure) => {
            let fix = format!(
                "{failure}.\nTabs come back every 3 s for as long as this is so. Look into \
                 {root}/data/logs, and try it, as root:\n  {}; echo $?\n\
                 Nothing and a 1 would be right (a 0 before EspoCRM 9.2).",
                context.espocrm.manual_command("AuthTokenCheck x y")
            );
            Finding::bad(STEP, "An access check fails", fix)
        }
    }
}

/// The verdict of a worker that has just been started, and of a warm one, with how long they took.
type Answers = Result<[(Verdict, Duration); 2], String>;

fn by_worker(
    espocrm: &Installation,
    settings: &Settings,
    check: &Check,
    stop: Stop<'_>,
) -> Answers {
    let mut workers = Workers::new(0);
    let answers = ask_twice(&mut workers, espocrm, settings, check, stop);
    workers.kill_all();
    answers
}

fn ask_twice(
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
    let mut ask = || {
        let start = Instant::now();
        let errand = CheckRequest {
            job: JobId::default(),
            convention: settings.version.convention(),
            verifies: false,
        };
        let (now, timeout) = (clock.now(), settings.check_timeout.value);
        workers.run(poll.registry(), id, errand, &check.arguments, now, timeout).map_err(failed)?;
        let mut outcomes = Vec::new();
        let mut ended = Vec::new();
        let mut events = Events::with_capacity(8);
        while outcomes.is_empty() {
            // Without a handler for SIGCHLD its end is found by looking.
            let _ = poll.poll(&mut events, Some(Duration::from_millis(10)));
            for event in &events {
                workers.ready(poll.registry(), event.token(), &mut outcomes);
            }
            workers.expire(clock.now(), &mut outcomes);
            workers.reap(&mut outcomes, &mut ended);
            if stop() || !ended.is_empty() {
                return Err("it ended".to_owned());
            }
        }
        match outcomes.pop().map(|Outcome { result, .. }| result) {
            Some(Ok(Reply::Done(done))) => {
                let said = || check.redact(&verdict::first_line(&done.output));
                let exit = ProcessExit::Status(done.status);
                Ok((read(settings, check, exit, &done.output, said), start.elapsed()))
            }
            Some(Ok(Reply::Unable)) => Err("it cannot run EspoCRM's commands".to_owned()),
            Some(Err(Problem::Failed(why))) => Err(why),
            Some(Err(Problem::NotBegun)) => Err("it did not accept the request".to_owned()),
            Some(Err(Problem::TimedOut { .. })) | None => {
                Err("it did not answer in time".to_owned())
            }
        }
    };
    Ok([ask()?, ask()?])
}

fn worker(answers: Answers) -> Finding {
    const STEP: &str = "worker";
    let why = match answers {
        Ok([(Verdict::Denied, first), (Verdict::Denied, second)]) => {
            return Finding::good(
                STEP,
                format!(
                    "A PHP worker denies it as well: in {} ms, and in {} ms once it is warm",
                    first.as_millis(),
                    second.as_millis()
                ),
            );
        }
        Ok(answers) => {
            let odd = answers.into_iter().find_map(|(verdict, _)| match verdict {
                Verdict::Unchecked(failure) => Some(failure.to_string()),
                Verdict::Granted => Some("it accepted a wrong token".to_owned()),
                Verdict::Denied => None,
            });
            odd.unwrap_or_default()
        }
        Err(why) => why,
    };
    Finding::doubt(
        STEP,
        "A PHP worker does not answer as the plain command does",
        format!(
            "{why}.\nThe daemon then runs each check in a PHP process of its own, which costs more. \
             worker = false in our configuration keeps it so without trying."
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
        assert!(worker(Ok([denied(), denied()])).is_good());
        let failed = (Verdict::Unchecked(Failure::TimedOut), Duration::ZERO);
        for (answers, why) in [
            (Ok([denied(), failed]), "did not finish"),
            (Ok([(Verdict::Granted, Duration::ZERO), denied()]), "accepted"),
            (Err("no good".to_owned()), "no good."),
        ] {
            let finding = worker(answers);
            assert_eq!(finding.state, State::Doubt);
            assert!(finding.fix.contains(why), "{}", finding.fix);
        }
    }
}
