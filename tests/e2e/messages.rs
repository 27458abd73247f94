//! From EspoCRM's PHP to browsers.

use serde_json::json;

use crate::support::{Daemon, Php, Standin};

#[test]
fn the_topics_of_espocrm_reach_those_who_may_see_them() {
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
    Php::send(&daemon.zeromq, &messages);
    Php::send(&daemon.zeromq, std::slice::from_ref(&last));
    for message in &messages {
        alice.expect_event(message);
    }
    for message in &messages[3..] {
        bob.expect_event(message);
    }
    bob.expect_event(&last);
    alice.expect_silence();
}
