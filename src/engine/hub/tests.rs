//! Unit tests of the hub with single messages; the simulation covers all combinations.

mod delayed;
mod rechecks;

use serde_json::json;

use super::*;
use crate::engine::checks::verdict::Failure;
use crate::engine::espocrm::category;
use crate::engine::espocrm::submission;
use crate::engine::limits::MAX_SUBSCRIPTIONS;

struct World {
    hub: Hub,
}

const A: ConnId = ConnId::new(0, 1);
const B: ConnId = ConnId::new(1, 2);

impl World {
    fn new() -> Self {
        Self { hub: Hub::new(category::tests::out_of_the_box()) }
    }

    /// A world with an authenticated connection.
    fn with(conn: ConnId, user: &str) -> Self {
        let mut world = Self::new();
        world.log_in(conn, user);
        world
    }

    fn log_in(&mut self, conn: ConnId, user: &str) {
        self.open(conn, user);
        self.answer(login(conn), &Verdict::Granted);
        self.actions();
    }

    fn open(&mut self, conn: ConnId, user: &str) {
        let credentials = Credentials { user: user.into(), token: "t".into() };
        self.hub.open(conn, &credentials);
    }

    fn send(&mut self, conn: ConnId, text: &str) {
        self.hub.receive(conn, text);
    }

    fn subscribe(&mut self, conn: ConnId, topic: &str) {
        self.send(conn, &json!([5, topic]).to_string());
    }

    fn unsubscribe(&mut self, conn: ConnId, topic: &str) {
        self.send(conn, &json!([6, topic]).to_string());
    }

    fn answer(&mut self, ticket: Ticket, verdict: &Verdict) {
        self.hub.verdict(ticket, verdict);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.hub.poll()).collect()
    }

    /// The requested check, which must be the only action.
    fn check(&mut self) -> (Ticket, String) {
        let actions = self.actions();
        let [Action::Check(ticket, _, check)] = &actions[..] else { panic!("{actions:?}") };
        (*ticket, check.arguments.join(" "))
    }

    fn receivers(&self, topic: &str, user: Option<&str>) -> Vec<ConnId> {
        let json = match user {
            Some(user) => json!({"topicId": topic, "userId": user}),
            None => json!({"topicId": topic}),
        };
        let json = json.to_string();
        let submission = submission::parse(json.as_bytes()).unwrap();
        self.hub.receivers(&submission).unwrap().collect()
    }
}

fn login(conn: ConnId) -> Ticket {
    Ticket { conn, serial: Ticket::AUTHENTICATION }
}

fn failed() -> Verdict {
    Verdict::Failed(Failure::TimedOut)
}

const READ_1: &str = "AclCheck --userId=ann --scope=Account --id=1 --action=read";

#[test]
fn a_login_is_checked_and_welcomed() {
    let mut world = World::new();
    world.open(A, "ann");
    assert_eq!(world.check(), (login(A), "AuthTokenCheck t ann".to_owned()));
    assert_eq!(world.hub.user(A), None);
    world.answer(login(A), &Verdict::Granted);
    assert_eq!(world.actions(), [Action::Welcome(A)]);
    assert_eq!(world.hub.user(A), Some("ann"));
    // There is no second welcome.
    world.answer(login(A), &Verdict::Granted);
    assert_eq!(world.actions(), []);
}

#[test]
fn a_denied_token_closes_the_connection_cleanly_and_a_failed_check_does_not() {
    for (verdict, action) in
        [(Verdict::Denied, Action::Close(A, CloseReason::Refused)), (failed(), Action::Drop(A))]
    {
        let mut world = World::new();
        world.open(A, "ann");
        world.actions();
        world.answer(login(A), &verdict);
        assert_eq!(world.actions(), [Action::Cancel(login(A)), action]);
        assert!(world.hub.is_empty());
    }
}

#[test]
fn subscriptions_before_the_login_wait_for_it() {
    let mut world = World::new();
    world.open(A, "ann");
    world.subscribe(A, "newNotification");
    world.subscribe(A, "recordUpdate.Account.1");
    world.subscribe(A, "calendarUpdate");
    world.unsubscribe(A, "calendarUpdate");
    world.check();
    assert_eq!(world.receivers("newNotification", None), []);
    world.answer(login(A), &Verdict::Granted);
    let actions = world.actions();
    let [Action::Welcome(A), Action::Check(_, _, check)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(check.arguments.join(" "), READ_1);
    assert_eq!(world.receivers("newNotification", None), [A]);
}

#[test]
fn a_topic_is_delivered_after_its_check_was_granted() {
    let mut world = World::with(A, "ann");
    world.subscribe(A, "recordUpdate.Account.1");
    let (ticket, arguments) = world.check();
    assert_eq!(arguments, READ_1);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), [A]);
    assert_eq!(world.receivers("recordUpdate.Account.2", None), []);
    assert_eq!(world.receivers("streamUpdate.Account.1", None), []);
    assert_eq!(world.actions(), []);
}

#[test]
fn after_a_denied_or_failed_check_the_connection_may_subscribe_again() {
    for verdict in [Verdict::Denied, failed()] {
        let mut world = World::with(A, "ann");
        world.subscribe(A, "recordUpdate.Account.1");
        let (ticket, _) = world.check();
        world.answer(ticket, &verdict);
        assert_eq!(world.actions(), []);
        assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
        world.subscribe(A, "recordUpdate.Account.1");
        let (ticket, _) = world.check();
        world.answer(ticket, &Verdict::Granted);
        assert_eq!(world.receivers("recordUpdate.Account.1", None), [A]);
    }
}

#[test]
fn a_repeated_subscription_needs_no_check_unless_unsubscribed_in_between() {
    let mut world = World::with(A, "ann");
    world.subscribe(A, "recordUpdate.Account.1");
    let (first, name) = world.check();
    world.subscribe(A, "recordUpdate.Account.1");
    assert_eq!(world.actions(), []);
    world.answer(first, &Verdict::Granted);
    world.subscribe(A, "recordUpdate.Account.1");
    assert_eq!(world.actions(), []);
    world.unsubscribe(A, "recordUpdate.Account.1");
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    let actions = world.actions();
    let [Action::Forget(check)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(check.arguments.join(" "), name);
    world.subscribe(A, "recordUpdate.Account.1");
    let (second, _) = world.check();
    assert_ne!(first, second);
    // A repeated verdict of the first check does not count for the second.
    world.answer(first, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
}

#[test]
fn unsubscribing_or_closing_cancels_a_check() {
    let mut world = World::with(A, "ann");
    world.subscribe(A, "recordUpdate.Account.1");
    let (ticket, _) = world.check();
    world.unsubscribe(A, "recordUpdate.Account.1");
    assert_eq!(world.actions(), [Action::Cancel(ticket)]);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);

    world.subscribe(A, "recordUpdate.Account.1");
    let (ticket, _) = world.check();
    world.hub.close(A);
    assert_eq!(world.actions(), [Action::Cancel(ticket)]);
    assert!(world.hub.is_empty());
}

#[test]
fn a_verdict_is_not_applied_to_the_next_connection_in_that_slot() {
    let next = ConnId::new(0, 9);
    let mut world = World::with(A, "ann");
    world.subscribe(A, "recordUpdate.Account.1");
    let (ticket, _) = world.check();
    world.hub.close(A);
    world.log_in(next, "bob");
    world.subscribe(next, "recordUpdate.Account.1");
    let (new, _) = world.check();
    assert_eq!(new.serial, ticket.serial);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    // A late close does not end it either.
    world.hub.close(A);
    assert_eq!(world.hub.user(next), Some("bob"));
}

#[test]
fn a_message_for_a_user_is_delivered_to_all_tabs_of_that_user_only() {
    let third = ConnId::new(2, 3);
    let mut world = World::with(A, "ann");
    world.log_in(B, "ann");
    world.log_in(third, "bob");
    for conn in [A, B, third] {
        world.subscribe(conn, "newNotification");
    }
    assert_eq!(world.receivers("newNotification", Some("ann")), [A, B]);
    assert_eq!(world.receivers("newNotification", Some("bob")), [third]);
    assert_eq!(world.receivers("newNotification", Some("cyd")), []);
    assert_eq!(world.receivers("newNotification", None), [A, B, third]);
    world.unsubscribe(A, "newNotification");
    assert_eq!(world.receivers("newNotification", Some("ann")), [B]);
}

#[test]
fn subscriptions_to_unknown_topics_are_ignored_and_messages_for_them_rejected() {
    let mut world = World::with(A, "ann");
    for topic in ["nothing", "recordUpdate", "recordUpdate.Account.-1", "", &"x".repeat(600)] {
        world.subscribe(A, topic);
    }
    assert_eq!(world.actions(), []);
    let submission = submission::parse(br#"{"topicId":"nothing"}"#).unwrap();
    assert!(matches!(world.hub.receivers(&submission), Err(Rejection::UnknownTopic)));
    world.hub.close(A);
    assert!(world.hub.is_empty());
}

#[test]
fn keep_alives_are_ignored_and_forbidden_messages_close_the_connection() {
    let mut world = World::with(A, "ann");
    world.send(A, r#"[7,"",""]"#);
    assert_eq!(world.actions(), []);
    world.send(A, r#"[2,"x1","p:add",1]"#);
    let error = r#"[4,"x1","p:add","You are not allowed to make calls"]"#;
    let closed = Action::Close(A, CloseReason::Forbidden);
    assert_eq!(world.actions(), [Action::Send(A, SharedFrame::text(error)), closed]);

    for (text, reason) in [
        (r#"[7,"newNotification","x"]"#, CloseReason::Forbidden),
        ("[5]", CloseReason::Malformed),
        ("hello", CloseReason::Malformed),
    ] {
        let mut world = World::with(A, "ann");
        world.send(A, text);
        assert_eq!(world.actions(), [Action::Close(A, reason)]);
        world.subscribe(A, "newNotification");
        assert_eq!(world.actions(), []);
        assert!(world.hub.is_empty());
    }
}

#[test]
fn prefixes_expand_in_every_message() {
    let mut world = World::with(A, "ann");
    world.send(A, r#"[1,"n","newNotification.x"]"#);
    world.subscribe(A, "n:y");
    assert_eq!(world.receivers("newNotification.x#y", None), [A]);
    world.unsubscribe(A, "n:y");
    assert_eq!(world.receivers("newNotification.x#y", None), []);
    world.send(A, r#"[2,"1","n:add"]"#);
    let error = r#"[4,"1","newNotification.x#add","You are not allowed to make calls"]"#;
    assert_eq!(world.actions()[0], Action::Send(A, SharedFrame::text(error)));
}

#[test]
fn subscriptions_are_bounded() {
    let mut world = World::with(A, "ann");
    for number in 0..MAX_SUBSCRIPTIONS {
        world.subscribe(A, &format!("newNotification.{number}"));
    }
    assert_eq!(world.actions(), []);
    world.subscribe(A, "newNotification.more");
    assert_eq!(world.actions(), [Action::TooManySubscriptions(A)]);
    world.unsubscribe(A, "newNotification.0");
    world.subscribe(A, "newNotification.more");
    assert_eq!(world.receivers("newNotification.more", None), [A]);
}

fn changed(command: &str) -> Categories {
    Categories::from_json(&json!({
        "newNotification": {"accessCheckCommand": "Check :userId"},
        "recordUpdate": {"paramList": ["scope", "id"], "accessCheckCommand": command},
        "extra": {},
    }))
}

const READ: &str = "AclCheck --userId=:userId --scope=:scope --id=:id --action=read";

#[test]
fn after_a_reload_access_by_a_changed_rule_is_checked_again() {
    let mut world = World::with(A, "ann");
    for topic in ["newNotification", "recordUpdate.Account.1", "appParamsUpdate"] {
        world.subscribe(A, topic);
    }
    let (ticket, _) = world.check();
    world.answer(ticket, &Verdict::Granted);

    // The rule of records is unchanged and stays granted. Other topics are checked, or removed.
    world.hub.reload(Some(changed(READ)));
    let (ticket, arguments) = world.check();
    assert_eq!(arguments, "Check ann");
    assert_eq!(world.receivers("recordUpdate.Account.1", None), [A]);
    assert_eq!(world.receivers("newNotification", None), []);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("newNotification", None), [A]);

    world.hub.reload(Some(changed("Other :userId :id")));
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    let (ticket, arguments) = world.check();
    assert_eq!(arguments, "Other ann 1");
    // Its rule changes again during the check.
    world.hub.reload(Some(changed(READ)));
    let actions = world.actions();
    let [Action::Cancel(cancelled), Action::Check(again, _, _)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*cancelled, ticket);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    world.answer(*again, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), [A]);

    world.hub.close(A);
    world.actions();
    assert!(world.hub.is_empty());
}

#[test]
fn an_unknown_topic_waits_while_the_settings_are_reloaded() {
    let mut world = World::with(A, "ann");
    world.hub.begin_reload();
    world.subscribe(A, "extra");
    world.subscribe(A, "nothing");
    world.hub.reload(Some(changed(READ)));
    assert_eq!(world.receivers("extra", None), [A]);
    world.hub.close(A);
    assert!(world.hub.is_empty());

    // It is removed if the reload fails.
    let mut world = World::with(A, "ann");
    world.hub.begin_reload();
    world.subscribe(A, "extra");
    world.hub.reload(None);
    let submission = submission::parse(br#"{"topicId":"extra"}"#).unwrap();
    assert!(world.hub.receivers(&submission).is_err());
    world.hub.close(A);
    assert!(world.hub.is_empty());
}

#[test]
fn the_debug_log_has_espocrms_format_and_escapes_client_input() {
    let mut world = World::new();
    world.hub.set_log(true);
    world.open(A, "ann");
    world.answer(login(A), &Verdict::Granted);
    world.subscribe(A, "newNotification");
    world.subscribe(A, "no\n[INFO] such");
    world.unsubscribe(A, "newNotification");
    world.hub.close(A);
    let lines = world.actions().into_iter().filter_map(|action| match action {
        Action::Log(line) => Some(line),
        _ => None,
    });
    let expected = [
        "1: open",
        "1: user ann subscribed",
        "1: add topic newNotification for user ann",
        "1: check access failed for topic no\\n[INFO] such for user ann",
        "1: remove topic newNotification for user ann",
        "1: close",
    ];
    assert_eq!(lines.collect::<Vec<_>>(), expected);
}

#[test]
fn buffered_bytes_are_counted_and_released() {
    let mut world = World::with(A, "ann");
    assert_eq!(world.hub.buffered(), 0);
    world.subscribe(A, "recordUpdate.Account.1");
    world.subscribe(A, "newNotification");
    let two = world.hub.buffered_by(A);
    assert!(two > "recordUpdate.Account.1newNotification".len());
    world.log_in(B, "bob");
    world.subscribe(B, "recordUpdate.Account.1");
    // A shared topic counts for each connection.
    assert_eq!(world.hub.buffered(), two + world.hub.buffered_by(B));
    world.unsubscribe(A, "newNotification");
    assert!(world.hub.buffered_by(A) < two);
    world.send(A, r#"[1,"p","streamUpdate"]"#);
    world.send(A, r#"[1,"p","streamUpdate.Account"]"#);
    assert_eq!(world.hub.buffered(), world.hub.buffered_by(A) + world.hub.buffered_by(B));
    world.hub.close(A);
    world.hub.close(B);
    assert_eq!((world.hub.buffered(), world.hub.buffered_by(A)), (0, 0));
    world.actions();
    assert!(world.hub.is_empty());
}
