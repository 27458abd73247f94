//! What the hub does with single messages; the simulation does it with all of them at once.

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

    /// With a connection that is logged in.
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

    fn say(&mut self, conn: ConnId, text: &str) {
        self.hub.receive(conn, text);
    }

    fn subscribe(&mut self, conn: ConnId, topic: &str) {
        self.say(conn, &json!([5, topic]).to_string());
    }

    fn unsubscribe(&mut self, conn: ConnId, topic: &str) {
        self.say(conn, &json!([6, topic]).to_string());
    }

    fn answer(&mut self, ticket: Ticket, verdict: &Verdict) {
        self.hub.verdict(ticket, verdict);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.hub.poll()).collect()
    }

    /// The only check that is asked for, and nothing else.
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

fn unchecked() -> Verdict {
    Verdict::Unchecked(Failure::TimedOut)
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
    // Never a second welcome.
    world.answer(login(A), &Verdict::Granted);
    assert_eq!(world.actions(), []);
}

#[test]
fn a_bad_token_is_refused_cleanly_and_a_failed_check_is_not() {
    for (verdict, action) in
        [(Verdict::Denied, Action::Close(A, CloseReason::Refused)), (unchecked(), Action::Drop(A))]
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
fn what_is_subscribed_before_the_login_waits_for_it() {
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
fn a_topic_is_seen_once_its_check_has_succeeded() {
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
fn denied_or_given_up_the_connection_stays_and_may_ask_again() {
    for verdict in [Verdict::Denied, unchecked()] {
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
fn a_duplicate_asks_nothing_and_unsubscribing_makes_it_asked_anew() {
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
    // The first check's verdict, should it come again, is not the second's.
    world.answer(first, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
}

#[test]
fn unsubscribing_or_closing_takes_a_check_back() {
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
fn a_verdict_is_not_for_the_next_connection_of_that_slot() {
    let next = ConnId::new(0, 9);
    let mut world = World::with(A, "ann");
    world.subscribe(A, "recordUpdate.Account.1");
    let (ticket, _) = world.check();
    world.hub.close(A);
    world.log_in(next, "bob");
    world.subscribe(next, "recordUpdate.Account.1");
    let (its, _) = world.check();
    assert_eq!(its.serial, ticket.serial);
    world.answer(ticket, &Verdict::Granted);
    assert_eq!(world.receivers("recordUpdate.Account.1", None), []);
    // Nor does a late close end it.
    world.hub.close(A);
    assert_eq!(world.hub.user(next), Some("bob"));
}

#[test]
fn a_users_message_is_for_all_tabs_of_that_user_and_nobody_else() {
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
fn topics_of_no_category_are_silently_refused_and_their_messages_rejected() {
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
fn keep_alives_are_silent_and_what_is_forbidden_is_not() {
    let mut world = World::with(A, "ann");
    world.say(A, r#"[7,"",""]"#);
    assert_eq!(world.actions(), []);
    world.say(A, r#"[2,"x1","p:add",1]"#);
    let error = r#"[4,"x1","p:add","You are not allowed to make calls"]"#;
    let closed = Action::Close(A, CloseReason::Forbidden);
    assert_eq!(world.actions(), [Action::Send(A, SharedFrame::text(error)), closed]);

    for (text, reason) in [
        (r#"[7,"newNotification","x"]"#, CloseReason::Forbidden),
        ("[5]", CloseReason::Malformed),
        ("hello", CloseReason::Malformed),
    ] {
        let mut world = World::with(A, "ann");
        world.say(A, text);
        assert_eq!(world.actions(), [Action::Close(A, reason)]);
        world.subscribe(A, "newNotification");
        assert_eq!(world.actions(), []);
        assert!(world.hub.is_empty());
    }
}

#[test]
fn prefixes_expand_in_every_message() {
    let mut world = World::with(A, "ann");
    world.say(A, r#"[1,"n","newNotification.x"]"#);
    world.subscribe(A, "n:y");
    assert_eq!(world.receivers("newNotification.x#y", None), [A]);
    world.unsubscribe(A, "n:y");
    assert_eq!(world.receivers("newNotification.x#y", None), []);
    world.say(A, r#"[2,"1","n:add"]"#);
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
fn after_a_reload_what_was_granted_by_another_rule_is_checked_anew() {
    let mut world = World::with(A, "ann");
    for topic in ["newNotification", "recordUpdate.Account.1", "appParamsUpdate"] {
        world.subscribe(A, topic);
    }
    let (ticket, _) = world.check();
    world.answer(ticket, &Verdict::Granted);

    // The rule of records stays: so does the grant. The others are checked, or gone.
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
    // While it is being checked its rule changes once more.
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
fn while_the_settings_are_read_an_unknown_topic_waits() {
    let mut world = World::with(A, "ann");
    world.hub.begin_reload();
    world.subscribe(A, "extra");
    world.subscribe(A, "nothing");
    world.hub.reload(Some(changed(READ)));
    assert_eq!(world.receivers("extra", None), [A]);
    world.hub.close(A);
    assert!(world.hub.is_empty());

    // And is forgotten if they could not be read.
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
fn the_debug_log_speaks_as_espocrms_does_and_escapes_what_clients_say() {
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
fn what_a_connection_holds_is_counted_and_given_back() {
    let mut world = World::with(A, "ann");
    assert_eq!(world.hub.held(), 0);
    world.subscribe(A, "recordUpdate.Account.1");
    world.subscribe(A, "newNotification");
    let two = world.hub.held_by(A);
    assert!(two > "recordUpdate.Account.1newNotification".len());
    world.log_in(B, "bob");
    world.subscribe(B, "recordUpdate.Account.1");
    // A topic that is shared counts for each.
    assert_eq!(world.hub.held(), two + world.hub.held_by(B));
    world.unsubscribe(A, "newNotification");
    assert!(world.hub.held_by(A) < two);
    world.say(A, r#"[1,"p","streamUpdate"]"#);
    world.say(A, r#"[1,"p","streamUpdate.Account"]"#);
    assert_eq!(world.hub.held(), world.hub.held_by(A) + world.hub.held_by(B));
    world.hub.close(A);
    world.hub.close(B);
    assert_eq!((world.hub.held(), world.hub.held_by(A)), (0, 0));
    world.actions();
    assert!(world.hub.is_empty());
}
