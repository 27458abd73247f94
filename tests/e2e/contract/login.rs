//! Logins: the query parameters, the check of the token, and the welcome message.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Daemon, Pusher, Standin, eventually};

#[test]
fn the_parameters_are_accepted_in_any_order_and_encoding() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let long = "u".repeat(124);
    let mut clients = [
        "/?authToken=tok-alice&userId=alice",
        "/?userId=alice&authToken=tok-alice",
        "/wss?lang=de%20DE&userId=alice&&x&=y&authToken=tok-alice&z=1=2",
        "/?authToken=%74%6Fk%2dalice&userId=%61lic%65",
        "/?auth%54oken=tok-alice&user%49d=alice",
        "/?authToken=tok-6b030f5b450565077&userId=6b030f5b450565077",
        "/?authToken=tok-0f8fad5b-d9cb-469f-a165-70867728950e\
         &userId=0f8fad5b-d9cb-469f-a165-70867728950e",
        &format!("/?authToken=tok-{long}&userId={long}"),
    ]
    .map(|target| {
        let mut client = Client::tcp(daemon.address);
        client.upgrade(target);
        client
    });
    for client in &mut clients {
        client.expect_welcome();
    }
}

#[test]
fn invalid_parameters_are_rejected_without_a_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let long = "a".repeat(129);
    let bad = [
        "",
        "%20",
        "tok+alice",
        "tok_alice",
        "tok.alice",
        "-tok-alice",
        "--help",
        "tok%00",
        "tok%0A",
        "tok%2Falice",
        "tok;id",
        "$(id)",
        "`id`",
        "'",
        "tok%C3%A9",
        "%ff",
        "%",
        "tok%2",
        "%zz",
        &long,
    ];
    let mut targets: Vec<String> =
        ["/", "/?", "/?authToken=tok-alice", "/?userId=alice", "/wss?x=y"]
            .map(str::to_owned)
            .into();
    targets.extend(bad.map(|bad| format!("/?authToken={bad}&userId=alice")));
    targets.extend(bad.map(|bad| format!("/?authToken=tok-alice&userId={bad}")));
    targets.push("/?authtoken=tok-alice&userid=alice".to_owned());
    for target in targets {
        let mut client = Client::tcp(daemon.address);
        // After an HTTP error the browser would reconnect forever.
        client.upgrade(&target);
        client.expect_close(1008);
    }
    // A check requested earlier would have run before this one.
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "calendarUpdate");
    let check = "AclCheck --userId=alice --scope=Calendar";
    assert_eq!(standin.runs(), ["AuthTokenCheck tok-alice alice", check]);
}

#[test]
fn the_check_runs_in_espocrms_root() {
    let standin = Standin::new();
    let script = "<?php file_put_contents('data/standin/root', getcwd());
        if ($argv[2] !== 'tok-alice') { exit(1); }
        echo $argv[3];";
    std::fs::write(standin.path().join("command.php"), script).unwrap();
    let daemon = Daemon::start(&standin);
    daemon.connect("alice");
    let root = std::fs::read_to_string(standin.path().join("data/standin/root")).unwrap();
    assert_eq!(root, standin.path().canonicalize().unwrap().to_str().unwrap());
}

#[test]
fn each_connection_gets_one_welcome_with_its_own_session_id() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let open = |_| Client::open(daemon.address, "alice", "tok-alice");
    let mut clients: Vec<Client> = (0..8).map(open).collect();
    let ids: HashSet<String> = clients.iter_mut().map(Client::expect_welcome).collect();
    assert_eq!(ids.len(), clients.len());
    assert!(ids.iter().all(|id| id.len() >= 16), "{ids:?}");
    for client in &mut clients {
        client.expect_silence();
    }
}

#[test]
fn input_during_the_login_check_is_buffered_and_nothing_is_delivered_before_the_verdict() {
    let standin = Standin::new();
    standin.hold("tok-alice");
    let mut daemon = Daemon::start(&standin);
    let mut bob = daemon.connect("bob");
    let mut alice = Client::open(daemon.address, "alice", "tok-alice");
    for topic in ["newNotification", "recordUpdate.Account.1", "appParamsUpdate"] {
        daemon.subscribe(&mut bob, "bob", topic);
        alice.subscribe(topic);
    }
    alice.unsubscribe("appParamsUpdate");
    alice.send_json(&json!([7, "", ""]));
    alice.expect_silence();
    let pusher = Pusher::connect(&daemon.zeromq);
    let early = [
        json!({"topicId": "recordUpdate.Account.1", "early": true}),
        json!({"topicId": "newNotification", "early": true}),
        json!({"topicId": "newNotification", "userId": "alice", "early": true}),
        json!({"topicId": "newNotification", "userId": "bob", "early": true}),
    ];
    pusher.send_all(&early);
    bob.expect_events([&early[0], &early[1], &early[3]]);
    alice.expect_silence();
    let check = "AclCheck --userId=alice --scope=Account --id=1 --action=read";
    assert_eq!(standin.count(check), 0);

    standin.release();
    alice.expect_welcome();
    daemon.wait_for("add topic newNotification for user alice");
    daemon.wait_for("add topic recordUpdate.Account.1 for user alice");
    let late = [
        json!({"topicId": "appParamsUpdate"}),
        json!({"topicId": "newNotification", "userId": "alice"}),
        json!({"topicId": "recordUpdate.Account.1"}),
    ];
    pusher.send_all(&late);
    alice.expect_events(&late[1..]);
    assert_eq!(standin.count(check), 1);
}

#[test]
fn a_denied_token_ends_with_a_clean_close() {
    let standin = Standin::new();
    standin.set("bad-tokens", "tok-bob");
    let daemon = Daemon::start(&standin);
    for (user, token) in [("alice", "wrong"), ("alice", "tok-carol"), ("bob", "tok-bob")] {
        let mut client = Client::open(daemon.address, user, token);
        client.subscribe("newNotification");
        client.expect_close(1008);
        assert_eq!(standin.count(&format!("AuthTokenCheck {token} {user}")), 1);
    }
}

#[test]
fn after_a_clean_close_tcp_stays_open_until_the_browser_answers() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut other = daemon.connect("alice");
    eventually("the state was observed before the deadline for the answer", || {
        let mut client = Client::open(daemon.address, "alice", "wrong");
        let closed = client.next().unwrap();
        let start = Instant::now();
        assert_eq!(closed.opcode, 8);
        // The event loop has completed an iteration meanwhile.
        other.expect_silence();
        other.expect_silence();
        client.stream.set_nonblocking(true).unwrap();
        let read = client.stream.read(&mut [0]);
        client.stream.set_nonblocking(false).unwrap();
        if start.elapsed() > Duration::from_secs(2) {
            return false;
        }
        assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        client.send_frame(0x88, &closed.payload[..2]);
        assert_eq!(client.next(), None);
        true
    });
}

#[test]
fn a_browser_that_does_not_answer_the_close_frame_is_disconnected() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut silent = Client::open(daemon.address, "alice", "wrong");
    let mut busy = Client::open(daemon.address, "alice", "wrong");
    assert_eq!(silent.next().unwrap().opcode, 8);
    assert_eq!(busy.next().unwrap().opcode, 8);
    // Other input must not extend the deadline.
    let ping = <Client>::frame(0x89, b"still here");
    eventually("the connection is closed", || busy.stream.write_all(&ping).is_err());
    assert_eq!(silent.next(), None);
}
