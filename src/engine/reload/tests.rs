//! Tests of single decisions, and a random environment that checks the rules of all reloads.

mod random;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn failed(error: &str) -> Outcome {
    Outcome::Failed(error.to_owned())
}

fn keep(error: &str, should_log: bool) -> Action {
    Action::Keep { error: error.to_owned(), should_log }
}

fn actions(reload: &mut Reload) -> Vec<Action> {
    reload.check_invariants();
    let actions = std::iter::from_fn(|| reload.poll()).collect();
    reload.check_invariants();
    actions
}

/// A reload whose probe with the current PHP is running.
fn probing() -> Reload {
    let mut reload = Reload::default();
    reload.request();
    assert_eq!(actions(&mut reload), [Action::Begin, Action::Probe(Php::Current)]);
    reload
}

/// Ends the probe, and returns the actions that follow.
fn end(reload: &mut Reload, millis: u64, outcome: Outcome) -> Vec<Action> {
    reload.handle_probe_result(at(millis), outcome);
    actions(reload)
}

/// Whether the files are checked in a new turn.
fn checks(reload: &mut Reload, millis: u64) -> bool {
    reload.begin_turn();
    reload.check_files(at(millis));
    actions(reload) == [Action::CheckFiles]
}

/// Checks the files in a new turn, and returns the actions that follow.
fn check(reload: &mut Reload, millis: u64, files: Files) -> Vec<Action> {
    assert!(checks(reload, millis));
    reload.handle_file_check(at(millis), files);
    actions(reload)
}

#[test]
fn files_are_checked_once_per_turn_and_every_ten_seconds() {
    let mut reload = Reload::default();
    assert_eq!(reload.poll_timeout(), Some(at(10_000)));
    assert_eq!(check(&mut reload, 3_000, Files::Unchanged), []);
    reload.check_files(at(3_000));
    assert_eq!(actions(&mut reload), []);
    assert_eq!(reload.poll_timeout(), Some(at(13_000)));
    reload.begin_turn();
    reload.handle_timeout(at(12_999));
    assert_eq!(actions(&mut reload), []);
    reload.handle_timeout(at(13_000));
    assert_eq!(actions(&mut reload), [Action::CheckFiles]);
}

#[test]
fn a_change_starts_one_probe_and_is_reported() {
    let mut reload = Reload::default();
    let begun = [Action::Begin, Action::Probe(Php::Current)];
    assert_eq!(check(&mut reload, 0, Files::Changed), begun);
    assert!(reload.is_running() && reload.is_in_doubt());
    assert!(!checks(&mut reload, 500));
    assert_eq!(reload.poll_timeout(), None);
    let applied = [Action::Apply { requested: false }, Action::Report];
    assert_eq!(end(&mut reload, 20_000, Outcome::Settings), applied);
    assert!(!reload.is_running() && !reload.is_in_doubt());
    // A probe may change a file.
    assert_eq!(reload.poll_timeout(), Some(at(21_000)));
    assert!(!checks(&mut reload, 20_999));
    assert!(checks(&mut reload, 21_000));
}

#[test]
fn a_request_during_a_probe_leads_to_another_one() {
    let mut reload = probing();
    reload.request();
    reload.request();
    assert_eq!(actions(&mut reload), []);
    let applied = Action::Apply { requested: true };
    let again = [applied, Action::Begin, Action::Probe(Php::Current)];
    assert_eq!(end(&mut reload, 0, Outcome::Settings), again);
    let failed = [keep("error", true), Action::Report];
    assert_eq!(end(&mut reload, 0, Outcome::Failed("error".to_owned())), failed);
    assert_eq!(actions(&mut reload), []);
}

#[test]
fn a_request_counts_while_a_decision_is_executed() {
    let mut reload = probing();
    reload.handle_probe_result(at(0), Outcome::Settings);
    assert_eq!(reload.poll(), Some(Action::Apply { requested: true }));
    reload.request();
    assert_eq!(actions(&mut reload), [Action::Begin, Action::Probe(Php::Current)]);
    // A request while the files are checked replaces the check.
    let mut reload = Reload::default();
    reload.check_files(at(0));
    reload.request();
    reload.request();
    assert_eq!(actions(&mut reload), [Action::Begin, Action::Probe(Php::Current)]);
}

#[test]
fn a_failure_is_retried_and_logged_once() {
    let mut reload = probing();
    let kept = [keep("no", true), Action::Report];
    assert_eq!(end(&mut reload, 0, failed("no")), kept);
    assert!(reload.is_in_doubt() && !reload.is_running());
    assert_eq!(check(&mut reload, 9_999, Files::Unchanged), []);
    for (millis, error, should_log) in
        [(10_000, "no", false), (20_000, "no", false), (30_000, "other", true)]
    {
        let begun = [Action::Begin, Action::Probe(Php::Current)];
        assert_eq!(check(&mut reload, millis, Files::Unchanged), begun);
        let kept = [keep(error, should_log), Action::Report];
        assert_eq!(end(&mut reload, millis, failed(error)), kept);
    }
    // The administrator gets an answer in any case.
    reload.request();
    actions(&mut reload);
    let kept = [keep("other", true), Action::Report];
    assert_eq!(end(&mut reload, 40_000, failed("other")), kept);
    // After a success the same failure is news.
    check(&mut reload, 50_000, Files::Unchanged);
    end(&mut reload, 50_000, Outcome::Settings);
    assert!(!reload.is_in_doubt());
    check(&mut reload, 60_000, Files::Changed);
    assert_eq!(end(&mut reload, 60_000, failed("other")), kept);
}

#[test]
fn invalid_settings_are_kept_until_a_file_changes() {
    let mut reload = probing();
    let kept = [keep("no port", true), Action::Report];
    assert_eq!(end(&mut reload, 0, Outcome::Invalid("no port".to_owned())), kept);
    assert!(!reload.is_in_doubt());
    assert_eq!(check(&mut reload, 60_000, Files::Unchanged), []);
    let begun = [Action::Begin, Action::Probe(Php::Current)];
    assert_eq!(check(&mut reload, 70_000, Files::Changed), begun);
    // The administrator has been answered.
    let applied = [Action::Apply { requested: false }, Action::Report];
    assert_eq!(end(&mut reload, 70_000, Outcome::Settings), applied);
}

#[test]
fn a_php_that_does_not_start_is_replaced_by_the_initial_one() {
    let mut reload = probing();
    reload.handle_probe_not_started(at(0), "no current".to_owned());
    assert_eq!(actions(&mut reload), [Action::Probe(Php::Initial)]);
    reload.handle_probe_not_started(at(0), "no initial".to_owned());
    assert_eq!(actions(&mut reload), [keep("no initial", true), Action::Report]);
    // No probe has run, so none has changed a file.
    assert!(checks(&mut reload, 0));
}

#[test]
fn another_php_prints_the_settings_again() {
    let named = || Outcome::OtherPhp("not stable".to_owned());
    let replaced = || Outcome::Replaced("no command line".to_owned());
    let mut reload = probing();
    assert_eq!(end(&mut reload, 0, replaced()), [Action::Probe(Php::Initial)]);
    assert_eq!(end(&mut reload, 0, named()), [Action::Probe(Php::Named)]);
    let kept = [keep("not stable", true), Action::Report];
    assert_eq!(end(&mut reload, 0, named()), kept);

    // The next run may switch again.
    reload.request();
    actions(&mut reload);
    assert_eq!(end(&mut reload, 0, named()), [Action::Probe(Php::Named)]);
    let kept = [keep("no command line", true), Action::Report];
    assert_eq!(end(&mut reload, 0, replaced()), kept);

    reload.request();
    actions(&mut reload);
    assert_eq!(end(&mut reload, 0, named()), [Action::Probe(Php::Named)]);
    reload.handle_probe_not_started(at(0), "not found".to_owned());
    assert_eq!(actions(&mut reload), [keep("not found", true), Action::Report]);
}
