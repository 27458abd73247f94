//! WAMP v1: every message that a browser can send.

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Pusher, Standin, eventually};

const RECORD: &str = "recordUpdate.Account.1";
const RECORD_CHECK: &str = "AclCheck --userId=alice --scope=Account --id=1 --action=read";

/// A message for all subscribers.
fn to_all(topic: &str) -> Value {
    json!({ "topicId": topic })
}

#[test]
fn subscribe_and_unsubscribe_get_no_response() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    client.subscribe("noSuchCategory.Account.1");
    client.subscribe("");
    client.subscribe("recordUpdate.Account.deny1");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1 for user alice");
    daemon.subscribe(&mut client, "alice", RECORD);
    client.unsubscribe(RECORD);
    for unknown in [RECORD, "newNotification", "noSuchCategory", "", "recordUpdate.Account.deny1"] {
        client.unsubscribe(unknown);
    }
    client.expect_silence();
    let pusher = Pusher::connect(&daemon.zeromq);
    daemon.subscribe(&mut client, "alice", "appParamsUpdate");
    for topic in [RECORD, "recordUpdate.Account.deny1", "noSuchCategory", "appParamsUpdate"] {
        pusher.send(&to_all(topic));
    }
    client.expect_event(&to_all("appParamsUpdate"));
}

#[test]
fn the_keep_alive_of_the_client_gets_no_response() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    for _ in 0..3 {
        client.send_json(&json!([7, "", ""]));
    }
    client.send_json(&json!([7, ""]));
    client.expect_silence();
}

#[test]
fn any_other_publication_ends_in_a_clean_close_and_is_not_delivered() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut bob = daemon.connect("bob");
    daemon.subscribe(&mut bob, "bob", "newNotification");
    let event = to_all("newNotification");
    for publication in [
        json!([7, "newNotification", event]),
        json!([7, "newNotification", event, false]),
        json!([7, "newNotification"]),
        json!([7, "no such topic", null, [], ["everybody"]]),
        json!([7, " ", ""]),
    ] {
        let mut client = daemon.connect("alice");
        client.subscribe("newNotification");
        client.send_json(&publication);
        client.expect_close(1008);
    }
    bob.expect_silence();
}

#[test]
fn a_call_is_answered_with_an_error_and_a_clean_close() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    for (call, id, procedure) in [
        (
            json!([2, "7DK6TdN4wLiUJgNM", "http://example.com/api#howdy"]),
            "7DK6TdN4wLiUJgNM",
            "http://example.com/api#howdy",
        ),
        (json!([2, "1", "add", 23, [99, {"x": null}]]), "1", "add"),
        (json!([2, "\"\\ü\u{1}", "\n😀"]), "\"\\ü\u{1}", "\n😀"),
    ] {
        let mut client = daemon.connect("alice");
        client.send_json(&call);
        let error = json!([4, id, procedure, "You are not allowed to make calls"]);
        assert_eq!(client.next_message(), error);
        client.expect_close(1008);
    }
}

#[test]
fn a_prefix_is_stored_silently_and_expanded_in_later_messages() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    client.send_json(&json!([1, "n", "newNotification."]));
    client.send_json(&json!([1, "p", "procedures"]));
    client.send_json(&json!([1, "n", "appParamsUpdate."]));
    client.expect_silence();
    client.subscribe("n:rest:rest");
    daemon.wait_for("add topic appParamsUpdate.#rest:rest for user alice");
    client.subscribe("other:rest");
    daemon.wait_for("check access failed for topic other:rest for user alice");
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send(&to_all("appParamsUpdate.#rest:rest"));
    client.expect_event(&to_all("appParamsUpdate.#rest:rest"));
    client.unsubscribe("n:rest:rest");
    daemon.wait_for("remove topic appParamsUpdate.#rest:rest for user alice");
    client.send_json(&json!([2, "1", "p:add"]));
    let error = json!([4, "1", "procedures#add", "You are not allowed to make calls"]);
    assert_eq!(client.next_message(), error);
    client.expect_close(1008);
}

#[test]
fn prefixes_are_limited_in_number_and_do_not_bypass_the_access_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    for number in 0..200 {
        client.send_json(&json!([1, format!("p{number}"), "newNotification."]));
    }
    client.subscribe("p0:x");
    client.subscribe("p199:x");
    daemon.wait_for("add topic newNotification.#x for user alice");
    daemon.wait_for("check access failed for topic p199:x for user alice");
    // On another connection the prefix is undefined.
    let mut other = daemon.connect("bob");
    other.subscribe("p0:x");
    daemon.wait_for("check access failed for topic p0:x for user bob");
    let mut client = daemon.connect("carol");
    client.send_json(&json!([1, "r", "recordUpdate.Account.deny1."]));
    client.subscribe("r:x");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1.#x for user carol");
    assert_eq!(
        standin.count("AclCheck --userId=carol --scope=Account --id=deny1 --action=read"),
        1
    );
}

#[test]
fn any_other_message_ends_in_a_clean_close_1007() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut other = daemon.connect("bob");
    daemon.subscribe(&mut other, "bob", "newNotification");
    let nested = format!("[7,\"\",{}", "[".repeat(60_000));
    let deep = format!("[{}{}]", "[".repeat(30_000), "]".repeat(30_000));
    let malformed = [
        "",
        " ",
        "hello",
        "null",
        "5",
        "\"5\"",
        "{}",
        "{\"0\":5,\"1\":\"newNotification\"}",
        "[]",
        "[5]",
        "[6]",
        "[7]",
        "[1]",
        "[1,\"p\"]",
        "[2]",
        "[2,\"id\"]",
        "[5,1]",
        "[5,null]",
        "[6,[]]",
        "[7,{}]",
        "[7,null]",
        "[1,1,2]",
        "[2,1,\"p\"]",
        "[\"5\",\"newNotification\"]",
        "[5.5,\"newNotification\"]",
        "[-5,\"newNotification\"]",
        "[1e3,\"newNotification\"]",
        "[0,\"id\",1]",
        "[3,\"id\",1]",
        "[4,\"id\",\"p\",\"x\"]",
        "[8,\"newNotification\",{}]",
        "[9]",
        "[256]",
        "[99999999999999999999]",
        "[5,\"newNotification\"",
        "[5,\"newNotification\"]]",
        "[5,\"newNotification\"] [5]",
        "[5,'newNotification']",
        "[5,\"new\nNotification\"]",
        "[5,\"\\ud800\"]",
        "[5,\"\\x\"]",
        &nested,
        &deep,
    ];
    let open = |_: &&str| Client::open(daemon.address, "alice", "tok-alice");
    let mut clients: Vec<Client> = malformed.iter().map(open).collect();
    for client in &mut clients {
        client.expect_welcome();
    }
    for (client, text) in clients.iter_mut().zip(malformed) {
        client.send_text(text);
    }
    for client in &mut clients {
        client.expect_close(1007);
    }
    let message = json!({"topicId": "newNotification", "userId": "bob"});
    Pusher::connect(&daemon.zeromq).send(&message);
    other.expect_event(&message);
}

#[test]
fn a_protocol_violation_during_the_login_check_closes_the_connection() {
    let standin = Standin::new();
    standin.hold("");
    let daemon = Daemon::start(&standin);
    for (text, code) in [("[7,\"newNotification\",1]", 1008), ("[]", 1007)] {
        let mut client = Client::open(daemon.address, "alice", "tok-alice");
        client.send_text(text);
        client.expect_close(code);
    }
    standin.release();
}

#[test]
fn a_repeated_subscription_causes_no_second_check_and_no_second_delivery() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--max-checks", "1"]);
    let mut client = daemon.connect("alice");
    standin.hold("AclCheck");
    client.subscribe(RECORD);
    eventually("the check has started", || standin.count(RECORD_CHECK) == 1);
    client.subscribe(RECORD);
    client.expect_silence();
    standin.release();
    daemon.wait_for(&format!("add topic {RECORD} for user alice"));
    client.subscribe(RECORD);
    // With one concurrent check, a second check would have run before this one.
    daemon.subscribe(&mut client, "alice", "calendarUpdate");
    assert_eq!(standin.count(RECORD_CHECK), 1);
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send(&to_all(RECORD));
    pusher.send(&to_all("calendarUpdate"));
    client.expect_event(&to_all(RECORD));
    client.expect_event(&to_all("calendarUpdate"));
    // One unsubscription is enough.
    client.unsubscribe(RECORD);
    client.expect_silence();
    pusher.send(&to_all(RECORD));
    pusher.send(&to_all("calendarUpdate"));
    client.expect_event(&to_all("calendarUpdate"));
}

#[test]
fn unsubscribing_and_subscribing_causes_a_new_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    daemon.subscribe(&mut client, "alice", RECORD);
    client.unsubscribe(RECORD);
    daemon.subscribe(&mut client, "alice", RECORD);
    assert_eq!(standin.count(RECORD_CHECK), 2);
    client.unsubscribe(RECORD);
    standin.set("denied", "1");
    client.subscribe(RECORD);
    daemon.wait_for(&format!("check access failed for topic {RECORD} for user alice"));
    daemon.subscribe(&mut client, "alice", "newNotification");
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send(&to_all(RECORD));
    pusher.send(&to_all("newNotification"));
    client.expect_event(&to_all("newNotification"));
}

#[test]
fn unsubscribing_and_subscribing_during_the_check_causes_a_new_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    standin.hold("AclCheck");
    client.subscribe(RECORD);
    eventually("the check has started", || standin.count(RECORD_CHECK) == 1);
    client.unsubscribe(RECORD);
    client.subscribe(RECORD);
    client.expect_silence();
    standin.release();
    daemon.wait_for(&format!("add topic {RECORD} for user alice"));
    assert_eq!(standin.count(RECORD_CHECK), 2);
}

#[test]
fn a_denied_subscription_may_be_requested_again() {
    let standin = Standin::new();
    standin.set("denied", "1");
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    client.subscribe(RECORD);
    daemon.wait_for(&format!("check access failed for topic {RECORD} for user alice"));
    standin.unset("denied");
    daemon.subscribe(&mut client, "alice", RECORD);
    assert_eq!(standin.count(RECORD_CHECK), 2);
}

#[test]
fn unsubscribing_during_the_check_cancels_it() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--max-checks", "1"]);
    let mut client = daemon.connect("alice");
    standin.hold("AclCheck");
    client.subscribe(RECORD);
    eventually("the check has started", || standin.count(RECORD_CHECK) == 1);
    client.subscribe("recordUpdate.Account.queued");
    client.subscribe("recordUpdate.Account.wanted");
    client.unsubscribe(RECORD);
    client.unsubscribe("recordUpdate.Account.queued");
    client.expect_silence();
    standin.release();
    daemon.wait_for("add topic recordUpdate.Account.wanted for user alice");
    let pusher = Pusher::connect(&daemon.zeromq);
    for topic in [RECORD, "recordUpdate.Account.queued", "recordUpdate.Account.wanted"] {
        pusher.send(&to_all(topic));
    }
    client.expect_event(&to_all("recordUpdate.Account.wanted"));
    // The queued check was not run at all.
    let queued = "AclCheck --userId=alice --scope=Account --id=queued --action=read";
    assert_eq!(standin.count(queued), 0);
}

#[test]
fn a_verdict_for_a_closed_connection_does_not_welcome_its_successor() {
    let standin = Standin::new();
    standin.hold("");
    let mut daemon = Daemon::start(&standin);
    let closed = Client::open(daemon.address, "alice", "tok-alice");
    eventually("the check has started", || standin.count("AuthTokenCheck tok-alice alice") == 1);
    drop(closed);
    daemon.wait_for("1: close");
    let mut successor = Client::open(daemon.address, "mallory", "wrong");
    successor.subscribe("newNotification");
    eventually("its check has started", || standin.count("AuthTokenCheck wrong mallory") == 1);
    standin.release();
    successor.expect_close(1008);
}

#[test]
fn a_verdict_for_a_closed_connection_subscribes_its_successor_to_nothing() {
    let standin = Standin::new();
    standin.hold("AclCheck");
    let mut daemon = Daemon::start(&standin);
    let mut closed = daemon.connect("alice");
    closed.subscribe(RECORD);
    eventually("the check has started", || standin.count(RECORD_CHECK) == 1);
    drop(closed);
    daemon.wait_for("1: close");
    let mut successor = daemon.connect("mallory");
    successor.subscribe("recordUpdate.Account.deny1");
    daemon.subscribe(&mut successor, "mallory", "appParamsUpdate");
    standin.release();
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1 for user mallory");
    let pusher = Pusher::connect(&daemon.zeromq);
    for topic in [RECORD, "recordUpdate.Account.deny1", "appParamsUpdate"] {
        pusher.send(&to_all(topic));
    }
    successor.expect_event(&to_all("appParamsUpdate"));
}
