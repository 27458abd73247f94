//! Messages from EspoCRM's PHP to browsers.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Php, Pusher, Standin};

mod burst;
mod flood;

/// The limits of a message: bytes, and levels of nesting.
const MAX_MESSAGE: usize = 1024 * 1024;
const MAX_DEPTH: usize = 512;

/// Logged once per burst.
const REJECTED: &str = "A ZeroMQ message was dropped";

/// The number of log lines about invalid messages.
fn warnings(daemon: &Daemon) -> usize {
    daemon.log().iter().filter(|line| line.contains("WARN") && line.contains(REJECTED)).count()
}

/// A user who is subscribed to notifications.
fn notified(daemon: &mut Daemon, user: &str) -> Client {
    let mut client = daemon.connect(user);
    daemon.subscribe(&mut client, user, "newNotification");
    client
}

#[test]
fn the_topics_of_espocrm_are_delivered_to_permitted_users() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    let mut bob = daemon.connect("bob");
    let topics = [
        "newNotification",
        "popupNotifications.event",
        "appParamsUpdate",
        "calendarUpdate",
        "recordUpdate.Account.1",
        "streamUpdate.Account.1",
    ];
    for topic in topics {
        daemon.subscribe(&mut alice, "alice", topic);
        daemon.subscribe(&mut bob, "bob", topic);
    }
    let messages = [
        json!({"userId": "alice", "topicId": "newNotification"}),
        json!({"list": [{"id": "1", "data": {"name": "Meet \"Київ\" \\ it's"}}],
               "userId": "alice", "topicId": "popupNotifications.event"}),
        json!({"userId": "alice", "topicId": "calendarUpdate"}),
        json!({"topicId": "appParamsUpdate"}),
        json!({"topicId": "recordUpdate.Account.1"}),
        json!({"createdById": "bob", "topicId": "streamUpdate.Account.1"}),
    ];
    let last = json!({"userId": "bob", "topicId": "newNotification", "last": true});
    for (number, message) in messages.iter().enumerate() {
        Php::send(&daemon.zeromq, std::slice::from_ref(message));
        alice.expect_event(message);
        if number >= 3 {
            bob.expect_event(message);
        }
    }
    Php::send(&daemon.zeromq, std::slice::from_ref(&last));
    bob.expect_event(&last);
    alice.expect_silence();
}

#[test]
fn a_message_for_a_user_reaches_all_subscribed_tabs_of_that_user() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut tabs = [notified(&mut daemon, "alice"), notified(&mut daemon, "alice")];
    let mut without = daemon.connect("alice");
    let mut bob = notified(&mut daemon, "bob");
    let pusher = Pusher::connect(&daemon.zeromq);
    let message = json!({"userId": "alice", "topicId": "newNotification"});
    pusher.send(&message);
    pusher.send(&json!({"userId": "nobody", "topicId": "newNotification"}));
    // PHP and the daemon treat these values as no user.
    let to_all = [
        json!({"topicId": "newNotification", "n": 1}),
        json!({"topicId": "newNotification", "n": 2, "userId": null}),
        json!({"topicId": "newNotification", "n": 3, "userId": ""}),
    ];
    pusher.send_all(&to_all);
    for tab in &mut tabs {
        tab.expect_event(&message);
        tab.expect_events(&to_all);
    }
    bob.expect_events(&to_all);
    without.expect_silence();
}

#[test]
fn a_broadcast_reaches_only_users_with_a_granted_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let [mut denied, mut unchecked] = ["alice", "bob"].map(|user| daemon.connect(user));
    let mut granted = daemon.connect("carol");
    standin.set("denied", "1");
    denied.subscribe("recordUpdate.Account.1");
    daemon.wait_for("check access failed for topic recordUpdate.Account.1 for user alice");
    standin.unset("denied");
    standin.hold("--userId=bob");
    unchecked.subscribe("recordUpdate.Account.1");
    daemon.subscribe(&mut granted, "carol", "recordUpdate.Account.1");
    for (client, user) in [(&mut denied, "alice"), (&mut unchecked, "bob")] {
        daemon.subscribe(client, user, "newNotification");
    }
    let pusher = Pusher::connect(&daemon.zeromq);
    let record = json!({"topicId": "recordUpdate.Account.1"});
    pusher.send(&record);
    // Not even if the message is sent to the user: the check is about the topic.
    for user in ["alice", "bob"] {
        pusher.send(&json!({"topicId": "recordUpdate.Account.1", "userId": user}));
    }
    let notification = json!({"topicId": "newNotification"});
    pusher.send(&notification);
    granted.expect_event(&record);
    denied.expect_event(&notification);
    unchecked.expect_event(&notification);
    standin.release();
    daemon.wait_for("add topic recordUpdate.Account.1 for user bob");
    pusher.send(&record);
    unchecked.expect_event(&record);
    denied.expect_silence();
}

#[test]
fn a_message_is_delivered_unchanged() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    daemon.subscribe(&mut client, "alice", "recordUpdate.Account.1");
    for text in [
        r#"{"z":1,"a":[],"userId":"alice","m":{},"topicId":"newNotification","b":null}"#,
        r#"{"topicId":"newNotification","text":"\u041a\u0438\u0457\u0432 \/ \"\\ \ud83d\ude00"}"#,
        r#"{"topicId":"newNotification","text":"Київ / 😀 é"}"#,
        r#"{"topicId":"new\u004eotification","userId":"al\u0069ce"}"#,
        r#"{"topicId":"recordUpdate.Account.1","numbers":[1.50,-0,1e2,12345678901234567890]}"#,
        r#"{ "topicId" : "newNotification" , "nested" : { "topicId" : 1 , "userId" : [ ] } }"#,
    ] {
        // Sent by PHP, like all messages of EspoCRM.
        Php::send_raw(&daemon.zeromq, text);
        let frame = client.next().unwrap();
        let payload = String::from_utf8(frame.payload).unwrap();
        let message: Value = serde_json::from_str(text).unwrap();
        let event: Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(event, json!([8, message["topicId"], message]));
        assert!(payload.contains(text), "{payload}");
    }
}

#[test]
fn invalid_messages_are_dropped_and_each_reason_is_logged_once() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!("{{\"topicId\":\"newNotification\",\"userId\":\"alice\",\"deep\":{open}1{close}}}")
    };
    let pusher = Pusher::connect(&daemon.zeromq);
    for bad in [
        "",
        " ",
        "\n",
        "hello",
        "null",
        "true",
        "5",
        "\"newNotification\"",
        "[]",
        "[\"newNotification\"]",
        "{}",
        "{\"userId\":\"alice\"}",
        "{\"topicId\":null}",
        "{\"topicId\":5}",
        "{\"topicId\":[\"newNotification\"]}",
        "{\"topicId\":{}}",
        "{\"topicId\":\"\"}",
        "{\"topicId\":\"noSuchCategory\"}",
        "{\"topicid\":\"newNotification\"}",
        "{\"topicId\":\"newNotification\",\"userId\":5}",
        "{\"topicId\":\"newNotification\",\"userId\":true}",
        "{\"topicId\":\"newNotification\",\"userId\":[\"alice\"]}",
        "{\"topicId\":\"newNotification\",\"userId\":{\"id\":\"alice\"}}",
        "{\"topicId\":\"newNotification\"",
        "{\"topicId\":\"newNotification\"}}",
        "{\"topicId\":\"newNotification\"} {\"topicId\":\"newNotification\"}",
        "{\"topicId\":\"newNotification\",}",
        "{'topicId':'newNotification'}",
        "{\"topicId\":\"newNotification\",\"x\":\"\\ud800\"",
        "{\"topicId\":\"newNotification\",\"x\":NaN}",
        "\u{feff}{\"topicId\":\"newNotification\"}",
        &nested(MAX_DEPTH),
        &nested(100_000),
        &"[".repeat(500_000),
        &"{\"a\":".repeat(100_000),
    ] {
        pusher.send_bytes(bad.as_bytes());
    }
    pusher.send_bytes(b"{\"topicId\":\"newNotification\",\"x\":\"\xff\"}");
    pusher.send_bytes(&[0; 1000]);
    pusher.send_bytes(&[0xff; 1000]);
    let good = json!({"topicId": "newNotification", "userId": "alice"});
    let bytes = good.to_string().into_bytes();
    pusher.send_parts(&[&bytes, &bytes]);
    pusher.send_parts(&[b"", &bytes]);
    pusher.send_parts(&[&bytes, b"", b""]);
    pusher.send(&good);
    client.expect_event(&good);
    // The limit itself: the deepest permitted message.
    let deepest = nested(MAX_DEPTH - 1);
    pusher.send_bytes(deepest.as_bytes());
    let frame = client.next().unwrap();
    assert!(String::from_utf8(frame.payload).unwrap().contains(&deepest));
    client.expect_silence();
    // Malformed, without a category, nested too deeply, multipart.
    assert_eq!(warnings(&daemon), 4);
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    // All of them were counted.
    daemon.wait_for(", 41 messages dropped.");
}

#[test]
fn a_message_of_1_mib_is_delivered() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let mut text = r#"{"topicId":"newNotification","userId":"alice","text":""}"#.to_owned();
    text.insert_str(text.len() - 2, &"x".repeat(MAX_MESSAGE - text.len()));
    assert_eq!(text.len(), MAX_MESSAGE);
    Pusher::connect(&daemon.zeromq).send_bytes(text.as_bytes());
    let payload = client.next().unwrap().payload;
    assert!(payload == format!("[8,\"newNotification\",{text}]").into_bytes());
}

#[test]
fn a_message_over_1_mib_affects_no_other_message() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    for length in [MAX_MESSAGE + 1, 16 * MAX_MESSAGE] {
        let mut huge = r#"{"topicId":"newNotification","userId":"alice","text":""}"#.to_owned();
        huge.insert_str(huge.len() - 2, &"x".repeat(length - huge.len()));
        Php::send_raw(&daemon.zeromq, &huge);
    }
    let good = json!({"topicId": "newNotification", "userId": "alice"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&good));
    client.expect_event(&good);
    client.expect_silence();
}

#[test]
fn a_message_over_1_mib_is_logged() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let mut huge = r#"{"topicId":"newNotification","userId":"alice","text":""}"#.to_owned();
    huge.insert_str(huge.len() - 2, &"x".repeat(MAX_MESSAGE));
    Php::send_raw(&daemon.zeromq, &huge);
    let good = json!({"topicId": "newNotification", "userId": "alice"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&good));
    client.expect_event(&good);
    assert_eq!(warnings(&daemon), 1);
}

#[test]
fn messages_are_delivered_in_order_of_arrival() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = notified(&mut daemon, "alice");
    let mut bob = notified(&mut daemon, "bob");
    daemon.subscribe(&mut alice, "alice", "appParamsUpdate");
    let pusher = Pusher::connect(&daemon.zeromq);
    let message = |number| match number % 3 {
        0 => json!({"topicId": "newNotification", "n": number}),
        1 => json!({"topicId": "newNotification", "userId": "alice", "n": number}),
        _ => json!({"topicId": "appParamsUpdate", "n": number}),
    };
    let messages: Vec<Value> = (0..6000).map(message).collect();
    // Together these are smaller than the outbound queue.
    pusher.send_all(&messages);
    alice.expect_events(&messages);
    bob.expect_events(messages.iter().step_by(3));
    alice.expect_silence();
    bob.expect_silence();
}

#[test]
fn many_concurrent_php_processes_lose_no_message() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let message = |n: usize| json!({"topicId": "newNotification", "userId": "alice", "n": n});
    std::thread::scope(|scope| {
        for process in 0..4 {
            let messages: Vec<Value> = (process * 50..(process + 1) * 50).map(message).collect();
            let zeromq = &daemon.zeromq;
            scope.spawn(move || Php::send(zeromq, &messages));
        }
    });
    // Each message has its own connection, so their order is undefined.
    let mut numbers: Vec<u64> =
        (0..200).map(|_| client.next_message()[2]["n"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..200).collect::<Vec<u64>>());
    client.expect_silence();
}

#[test]
fn other_protocols_on_the_zeromq_port_do_no_harm() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = notified(&mut daemon, "alice");
    let port = daemon.zeromq.strip_prefix("tcp://").unwrap();
    let mut strangers = Vec::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        // The greeting of ZeroMQ, and then something else.
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
          \0\0\0\0\0\0\0\0\0\0\x04\xff\xff\xff\xff\xff\xff\xff\xff",
        &[0; 10_000],
        &[0xff; 10_000],
        b"",
    ] {
        let mut stream = TcpStream::connect(port).unwrap();
        // The connection may be closed before everything was sent.
        let _ = stream.write_all(bytes);
        strangers.push(stream);
    }
    for number in 0..3 {
        let message = json!({"topicId": "newNotification", "userId": "alice", "n": number});
        Php::send(&daemon.zeromq, std::slice::from_ref(&message));
        client.expect_event(&message);
        strangers.pop();
    }
}
