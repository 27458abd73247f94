//! Rechecks of granted access.

use super::*;
use crate::engine::time::Time;

const INTERVAL: Duration = Duration::from_secs(300);
const LOGIN: &str = "AuthTokenCheck t ann";
const RECORD: &str = "recordUpdate.Account.1";

/// A requested check.
type Request = (Ticket, Urgency, String);

impl World {
    /// A world with a connection of ann's that is subscribed to a record and to her notifications.
    fn rechecked() -> Self {
        let mut world = Self::with(A, "ann");
        world.hub.set_recheck_interval(at(0), INTERVAL);
        world.subscribe_granted(A);
        world
    }

    fn subscribe_granted(&mut self, conn: ConnId) {
        self.subscribe(conn, RECORD);
        self.subscribe(conn, "newNotification");
        let (ticket, _) = self.check();
        self.answer(ticket, &Verdict::Granted);
    }

    /// Rechecks a connection and returns the requested checks.
    fn recheck(&mut self, seconds: u64, conn: ConnId) -> Vec<Request> {
        self.hub.recheck(at(seconds), conn);
        self.requests()
    }

    /// The requested checks; there must be no other actions.
    fn requests(&mut self) -> Vec<Request> {
        let request = |action| match action {
            Action::Check(ticket, urgency, check) => (ticket, urgency, check.arguments.join(" ")),
            other => panic!("{other:?}"),
        };
        self.actions().into_iter().map(request).collect()
    }

    /// Begins a recheck of the only connection.
    fn begin(&mut self, conn: ConnId) -> Ticket {
        self.recheck(0, conn);
        only(&self.recheck(INTERVAL.as_secs(), conn), LOGIN)
    }

    /// Begins a recheck of the only connection and grants its token.
    fn begin_topics(&mut self, conn: ConnId) -> Ticket {
        let token = self.begin(conn);
        self.answer(token, &Verdict::Granted);
        only(&self.requests(), READ_1)
    }
}

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1_000)
}

/// The ticket of the only recheck.
fn only(requests: &[Request], arguments: &str) -> Ticket {
    let [(ticket, urgency, words)] = requests else { panic!("{requests:?}") };
    assert_eq!((urgency, words.as_str()), (&Urgency::Recheck, arguments));
    *ticket
}

#[test]
fn the_token_is_rechecked_first_and_then_each_topic_that_needs_a_check() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    assert_ne!(token, login(A));
    assert_eq!(world.receivers(RECORD, None), [A]);
    world.answer(token, &Verdict::Granted);
    let topic = only(&world.requests(), READ_1);
    assert_eq!(world.receivers(RECORD, None), [A]);
    world.answer(topic, &Verdict::Granted);
    assert_eq!(world.actions(), []);
    for topic in [RECORD, "newNotification"] {
        assert_eq!(world.receivers(topic, None), [A]);
    }
    assert_eq!(world.hub.user(A), Some("ann"));
}

#[test]
fn a_token_that_has_become_invalid_closes_the_connection_cleanly() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    world.answer(token, &Verdict::Denied);
    assert_eq!(world.actions(), [Action::Close(A, CloseReason::Refused)]);
    assert!(world.hub.is_empty());
}

#[test]
fn a_topic_that_is_no_longer_allowed_is_removed_silently() {
    let mut world = World::rechecked();
    world.hub.set_log(true);
    let topic = world.begin_topics(A);
    world.answer(topic, &Verdict::Denied);
    let line = "1: check access failed for topic recordUpdate.Account.1 for user ann";
    assert_eq!(world.actions(), [Action::Log(line.into())]);
    assert_eq!(world.receivers(RECORD, None), []);
    assert_eq!(world.receivers("newNotification", None), [A]);
    // The client may subscribe again.
    world.subscribe(A, RECORD);
    world.check();
}

#[test]
fn a_failed_recheck_changes_nothing() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    world.answer(token, &failed());
    assert_eq!(world.actions(), []);
    // The topics are rechecked only if the token is valid.
    let token = only(&world.recheck(600, A), LOGIN);
    world.answer(token, &Verdict::Granted);
    let topic = only(&world.requests(), READ_1);
    world.answer(topic, &failed());
    assert_eq!(world.actions(), []);
    assert_eq!(world.receivers(RECORD, None), [A]);
    // They are rechecked again the next time.
    let token = only(&world.recheck(900, A), LOGIN);
    world.answer(token, &Verdict::Granted);
    only(&world.requests(), READ_1);
}

#[test]
fn a_verdict_counts_once_and_only_for_its_own_check() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    world.answer(login(A), &Verdict::Denied);
    world.answer(token, &failed());
    world.answer(token, &Verdict::Denied);
    let again = only(&world.recheck(600, A), LOGIN);
    assert_ne!(again, token);
    world.answer(token, &Verdict::Denied);
    world.answer(again, &Verdict::Granted);
    let topic = only(&world.requests(), READ_1);
    world.answer(token, &Verdict::Denied);
    world.answer(again, &Verdict::Denied);

    // Resubscribed during the recheck: the verdict of the recheck is ignored.
    world.unsubscribe(A, RECORD);
    assert_eq!(world.actions(), [Action::Cancel(topic)]);
    assert_eq!(world.receivers(RECORD, None), []);
    world.subscribe(A, RECORD);
    let (subscription, _) = world.check();
    world.answer(topic, &Verdict::Granted);
    assert_eq!(world.receivers(RECORD, None), []);
    world.answer(subscription, &Verdict::Granted);
    world.answer(topic, &Verdict::Denied);
    assert_eq!(world.receivers(RECORD, None), [A]);
    assert_eq!(world.actions(), []);
}

#[test]
fn closing_a_connection_cancels_its_recheck() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    world.hub.close(A);
    assert_eq!(world.actions(), [Action::Cancel(token)]);
    assert!(world.hub.is_empty());

    let mut world = World::rechecked();
    let topic = world.begin_topics(A);
    world.hub.close(A);
    assert_eq!(world.actions(), [Action::Cancel(topic)]);
    assert!(world.hub.is_empty());

    // The verdicts are not applied to the next connection in that slot.
    let next = ConnId::new(0, 9);
    world.log_in(next, "ann");
    world.answer(topic, &Verdict::Denied);
    world.answer(token, &Verdict::Denied);
    assert_eq!((world.actions(), world.hub.user(next)), (vec![], Some("ann")));
}

#[test]
fn all_tabs_of_a_user_are_rechecked_together_without_those_of_other_users() {
    let mut world = World::rechecked();
    world.log_in(B, "ann");
    world.log_in(ConnId::new(2, 3), "bob");
    world.recheck(0, A);
    // The new connection does not change the time of the recheck.
    world.recheck(100, B);
    let first = |second| Some((second, world.recheck(second, B))).filter(|it| !it.1.is_empty());
    let (due, requests) = (100..=300).find_map(first).unwrap();
    assert_eq!(due, A.part_of(INTERVAL).as_secs());
    let words: Vec<_> = requests.iter().map(|(ticket, _, words)| (ticket.conn, &**words)).collect();
    assert_eq!(words, [(A, LOGIN), (B, LOGIN)]);
    let tickets = requests.iter().map(|(ticket, ..)| *ticket);
    tickets.for_each(|ticket| world.answer(ticket, &failed()));
    for conn in [A, B] {
        assert_eq!(world.recheck(due + 299, conn), []);
    }
}

#[test]
fn a_connection_that_has_not_logged_in_is_not_rechecked() {
    let mut world = World::rechecked();
    world.open(B, "ann");
    world.actions();
    assert_eq!(world.recheck(0, B), []);
    assert_eq!(world.recheck(900, B), []);
    world.begin(A);
}

#[test]
fn a_recheck_in_progress_is_not_repeated() {
    let mut world = World::rechecked();
    let token = world.begin(A);
    assert_eq!(world.recheck(600, A), []);
    world.answer(token, &Verdict::Granted);
    only(&world.requests(), READ_1);
    let token = only(&world.recheck(900, A), LOGIN);
    world.answer(token, &Verdict::Granted);
    assert_eq!(world.requests(), []);
}

#[test]
fn a_subscription_is_not_rechecked_during_its_first_check() {
    let mut world = World::with(A, "ann");
    world.hub.set_recheck_interval(at(0), INTERVAL);
    world.subscribe(A, RECORD);
    let (first, _) = world.check();
    let token = world.begin(A);
    world.answer(token, &Verdict::Granted);
    assert_eq!(world.requests(), []);
    world.answer(first, &Verdict::Granted);
    assert_eq!(world.receivers(RECORD, None), [A]);
}

#[test]
fn a_changed_rule_takes_precedence_over_the_recheck() {
    let mut world = World::rechecked();
    let topic = world.begin_topics(A);
    world.hub.reload(Some(changed("Other :userId :id")));
    let actions = world.actions();
    let [
        Action::Cancel(cancelled),
        Action::Check(ticket, Urgency::Subscription, _),
        Action::Check(..),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(*cancelled, topic);
    world.answer(topic, &Verdict::Granted);
    assert_eq!(world.receivers(RECORD, None), []);
    world.answer(*ticket, &Verdict::Granted);
    world.answer(topic, &Verdict::Denied);
    assert_eq!(world.receivers(RECORD, None), [A]);
}

#[test]
fn an_unchanged_rule_does_not_affect_the_recheck() {
    let mut world = World::rechecked();
    let topic = world.begin_topics(A);
    world.hub.begin_reload();
    world.hub.reload(None);
    assert_eq!(world.actions(), []);
    world.answer(topic, &Verdict::Denied);
    assert_eq!(world.receivers(RECORD, None), []);
}

#[test]
fn without_an_interval_there_are_no_rechecks() {
    let mut world = World::rechecked();
    world.hub.set_recheck_interval(at(0), Duration::ZERO);
    for second in [0, 300, 10_000] {
        assert_eq!(world.recheck(second, A), []);
    }
    // When they are enabled again, none is overdue.
    world.hub.set_recheck_interval(at(10_000), INTERVAL);
    assert_eq!(world.recheck(10_000, A), []);
    assert_eq!(world.recheck(10_000, A), []);
    only(&world.recheck(10_300, A), LOGIN);
}

#[test]
fn a_changed_interval_applies_at_once_and_the_same_one_changes_nothing() {
    let mut world = World::rechecked();
    world.recheck(0, A);
    world.hub.set_recheck_interval(at(0), INTERVAL);
    only(&world.recheck(300, A), LOGIN);

    let mut world = World::rechecked();
    world.recheck(0, A);
    world.hub.set_recheck_interval(at(0), Duration::from_secs(10));
    world.recheck(1, A);
    only(&world.recheck(11, A), LOGIN);
}

#[test]
fn the_next_recheck_of_a_connection_is_known() {
    let mut world = World::rechecked();
    world.recheck(0, A);
    let due = world.hub.next_recheck(A).unwrap();
    assert_eq!(due, at(A.part_of(INTERVAL).as_secs()));
    let seconds = due.as_millis() / 1_000;
    assert_eq!(world.recheck(seconds - 1, A), []);
    only(&world.recheck(seconds, A), LOGIN);
    assert_eq!(world.hub.next_recheck(A), Some(at(seconds + INTERVAL.as_secs())));
    // A new connection shares the time of its user.
    world.log_in(B, "ann");
    assert_eq!(world.hub.next_recheck(B), None);
    world.recheck(seconds + 10, B);
    assert_eq!(world.hub.next_recheck(B), world.hub.next_recheck(A));
    // Another interval applies at once, to all connections of a user together.
    let minute = Duration::from_secs(60);
    assert!(world.hub.set_recheck_interval(at(1_000), minute));
    assert!(!world.hub.set_recheck_interval(at(2_000), minute));
    let due = world.hub.next_recheck(A).unwrap();
    assert_eq!(world.hub.next_recheck(B), Some(due));
    assert!((at(1_000)..=at(1_060)).contains(&due));
    world.hub.set_recheck_interval(at(1_000), Duration::ZERO);
    assert_eq!(world.hub.next_recheck(A), None);
    world.hub.close(A);
    assert_eq!(world.hub.next_recheck(A), None);
}

#[test]
fn first_rechecks_are_spread_over_the_interval() {
    let mut world = World::new();
    world.hub.set_recheck_interval(at(0), INTERVAL);
    let conns = (0..3_000).map(|number| ConnId::new(number, number));
    let conns: Vec<ConnId> = conns.collect();
    for conn in &conns {
        world.log_in(*conn, &format!("user{conn}"));
        world.recheck(1_000, *conn);
    }
    for minute in 1..=5 {
        let count: usize =
            conns.iter().map(|conn| world.recheck(1_000 + minute * 60, *conn).len()).sum();
        assert!((550..=650).contains(&count), "{count} in minute {minute}");
    }
}

#[test]
fn tokens_are_kept_with_their_sessions_and_never_shown() {
    let mut world = World::new();
    let credentials = Credentials { user: "ann".into(), token: "s3cret".into() };
    for conn in [A, B] {
        world.hub.open(conn, &credentials);
    }
    assert!(!format!("{:?}", world.hub).contains("s3cret"));
    world.hub.close(A);
    world.answer(login(B), &Verdict::Granted);
    world.actions();
    world.hub.set_recheck_interval(at(0), INTERVAL);
    world.recheck(0, B);
    only(&world.recheck(300, B), "AuthTokenCheck s3cret ann");
    world.hub.close(B);
    world.actions();
    assert!(world.hub.is_empty());
}
