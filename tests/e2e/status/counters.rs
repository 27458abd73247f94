//! The reported numbers match what has happened.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Client, Control, Daemon, Pusher, Standin, eventually, request};

/// The counters by reason, without those that are zero.
fn counted(status: &Value, pointer: &str) -> BTreeMap<String, u64> {
    let counts = status.pointer(pointer).and_then(Value::as_object).unwrap();
    let counts = counts.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap()));
    counts.filter(|(_, count)| *count > 0).collect()
}

fn expect_counted(control: &Control, pointer: &str, expected: &[(&str, u64)]) {
    let expected: BTreeMap<String, u64> =
        expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let mut counts = BTreeMap::new();
    eventually(&format!("{pointer} is {expected:?}"), || {
        let now = counted(&control.json("/status"), pointer);
        if now != counts {
            println!("{pointer} is {now:?}");
        }
        counts = now;
        counts == expected
    });
}

#[test]
fn the_status_matches_known_traffic() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    let status = control.json("/status");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["espocrm"], "9.2.7");
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["listen"], daemon.address.to_string());
    assert_eq!(status["zeromq"], daemon.zeromq);
    assert_eq!(status["problems"], json!([]));

    let mut tabs = [daemon.connect("alice"), daemon.connect("alice")];
    let mut bob = daemon.connect("bob");
    for tab in &mut tabs {
        daemon.subscribe(tab, "alice", "recordUpdate.Account.1");
    }
    daemon.subscribe(&mut bob, "bob", "newNotification");
    bob.subscribe("recordUpdate.Account.deny");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny");
    let pusher = Pusher::connect(&daemon.zeromq);
    let update = json!({"topicId": "recordUpdate.Account.1"});
    pusher.send(&update);
    pusher.send(&update);
    pusher.send(&json!({"topicId": "recordUpdate.Account.2"}));
    let notification = json!({"topicId": "newNotification", "userId": "bob"});
    pusher.send(&notification);
    for tab in &mut tabs {
        tab.expect_events([&update, &update]);
    }
    bob.expect_event(&notification);

    let status = control.json("/status");
    let is = |pointer: &str| status.pointer(pointer).unwrap().as_u64().unwrap();
    for (pointer, number) in [
        ("/connections/open", 3),
        ("/connections/users", 2),
        ("/connections/opened", 3),
        ("/subscriptions/recordUpdate", 2),
        ("/subscriptions/newNotification", 1),
        ("/subscriptions/streamUpdate", 0),
        ("/messages/received", 4),
        ("/messages/deliveries", 5),
        ("/checks/login/granted", 3),
        ("/checks/subscription/denied", 1),
        ("/checks/count", is("/checks/runs/plain")),
        ("/checks/running", 0),
        ("/checks/queued", 0),
        ("/last_minute/messages", 4),
        ("/last_minute/deliveries", 5),
        ("/last_minute/connections", 3),
        ("/settings/max_per_user", 250),
    ] {
        assert_eq!(is(pointer), number, "{pointer}");
    }
    assert!((1..=2).contains(&is("/checks/subscription/granted")));
    assert!(is("/checks/php_cpu_milliseconds") > 0 && is("/checks/milliseconds") > 0);
    let (resident, worst) = (is("/memory/resident_bytes"), is("/memory/worst_case_bytes"));
    assert!(resident > 1_000_000 && worst > resident, "{resident} of {worst}");

    let users = json!({"total": 2, "users": [
        {"user": "alice", "connections": 2}, {"user": "bob", "connections": 1}]});
    assert_eq!(control.json("/users"), users);
    let topics = json!({"total": 2, "topics": [
        {"topic": "recordUpdate.Account.1", "receivers": 2},
        {"topic": "newNotification", "receivers": 1}]});
    assert_eq!(control.json("/topics"), topics);
    let one = control.json("/connections?limit=1");
    assert_eq!(one["total"], 3);
    let latest = &one["connections"][0];
    assert_eq!((&latest["user"], &latest["stage"]), (&json!("bob"), &json!("open")));
    assert_eq!(latest["subscriptions"], 1);
    let table = control.output_of(&["status", "connections"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    let table = control.output_of(&["status", "users"]);
    assert_eq!(table, "CONNECTIONS  USER\n          2  alice\n          1  bob\n");
    let table = control.output_of(&["status", "topics"]);
    assert!(table.contains("\n        2  recordUpdate.Account.1\n"), "{table}");
    let reported: Value = serde_json::from_str(&control.output_of(&["status", "--json"])).unwrap();
    assert_eq!(reported["connections"]["users"], 2);

    drop(tabs);
    control.expect("/connections/ended/peer_closed", 2);
    control.expect("/connections/open", 1);
    control.expect("/subscriptions/recordUpdate", 0);
}

#[test]
fn worker_checks_and_worker_cpu_time_are_counted() {
    let standin = Standin::new();
    let path = Control::path(&standin);
    let daemon = Daemon::with_workers(&standin, &["--control", path.to_str().unwrap()]);
    let control = Control::at(&path);
    for user in ["alice", "bob", "alice"] {
        daemon.connect(user);
    }
    assert_eq!(control.number("/checks/runs/worker"), 2);
    assert_eq!(control.number("/checks/runs/plain"), 0);
    // The worker still runs.
    assert!(control.number("/checks/php_cpu_milliseconds") > 0);
    assert_eq!(control.number("/checks/cached"), 1);
}

#[test]
fn each_reason_for_dropping_a_message_is_counted() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send_bytes(&vec![b'x'; 1024 * 1024 + 1]);
    pusher.send_parts(&[b"{", b"}"]);
    pusher.send_bytes(b"{}");
    pusher.send_bytes(b"hello");
    pusher.send_bytes(&b"[".repeat(600));
    pusher.send(&json!({"topicId": "unknown.topic"}));
    pusher.send(&json!({"topicId": "newNotification"}));
    let reasons =
        [("too_big", 1), ("multipart", 1), ("malformed", 2), ("too_deep", 1), ("unknown_topic", 1)];
    expect_counted(&control, "/messages/dropped", &reasons);
    control.expect("/messages/received", 7);
    let status = control.json("/status");
    let mut warnings = status["warnings"].as_array().unwrap().iter();
    let reported = |line: &Value| line["text"].as_str().unwrap().contains("it is too big");
    assert!(warnings.any(|line| line["level"] == "WARN" && reported(line)), "{status}");
}

#[test]
fn each_reason_for_rejecting_a_connection_is_counted() {
    let standin = Standin::new();
    let origin = ["--origin", "https://crm.example.com"];
    let (daemon, control) = Control::start(&standin, &origin);
    let send = |head: &str| {
        let mut client = Client::tcp(daemon.address);
        client.send(head.as_bytes());
        client
    };
    let allowed =
        |target: &str| request(target).replace("http://localhost", "https://crm.example.com");
    let _clients: Vec<_> = [
        send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        send("\0\r\n\r\n"),
        send(&request("/?authToken=tok-alice&userId=alice")),
        send(&allowed("/")),
        send(&allowed("/?authToken=tok-alice&userId=al%20ice")),
    ]
    .into_iter()
    .collect();
    let reasons = [("not_websocket", 2), ("origin", 1), ("no_token", 2)];
    expect_counted(&control, "/connections/refused", &reasons);
    assert_eq!(counted(&control.json("/status"), "/connections/ended"), BTreeMap::new());

    let flags = ["--max-connections", "3", "--max-per-user", "2"];
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &flags);
    let mut tabs = vec![daemon.connect("alice"), daemon.connect("alice")];
    Client::tcp(daemon.address).send(request("/?authToken=tok-alice&userId=alice").as_bytes());
    expect_counted(&control, "/connections/refused", &[("user_limit", 1)]);
    control.expect("/connections/open", 2);
    tabs.push(daemon.connect("bob"));
    let _rejected = [Client::tcp(daemon.address), Client::tcp(daemon.address)];
    let reasons = [("user_limit", 1), ("connection_limit", 2)];
    expect_counted(&control, "/connections/refused", &reasons);

    let flags = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "--max-per-address", "1"];
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &flags);
    let send = |bytes: &str| {
        let mut client = Client::tcp(daemon.address);
        client.send(bytes.as_bytes());
        client
    };
    let _clients = [
        send("GET / HTTP/1.1\r\n\r\n"),
        send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
    ];
    let reasons = [("proxy_header", 1), ("address_limit", 1)];
    expect_counted(&control, "/connections/refused", &reasons);
    // A client that sends nothing.
    control.expect("/connections/refused/handshake_timeout", 1);
}

#[test]
fn each_reason_for_ending_a_connection_is_counted() {
    let standin = Standin::new();
    let flags = ["--recheck-interval", "100ms", "--ping-interval", "1s"];
    let (daemon, control) = Control::start(&standin, &flags);
    let output_of = |message: &str| {
        let mut client = daemon.connect("bob");
        client.send_text(message);
        client
    };
    Client::open(daemon.address, "bob", "tok-wrong").expect_close(1008);
    output_of("[7,\"newNotification\",1]").expect_close(1008);
    output_of("[2,\"1\",\"x\"]").next().unwrap();
    output_of("{}").expect_close(1007);
    output_of(&"x".repeat(70_000)).expect_close(1009);
    let mut client = daemon.connect("bob");
    client.send_frame(0xf1, b"");
    client.expect_close(1002);
    let mut client = daemon.connect("bob");
    client.send(&Client::<std::net::TcpStream>::frame(0x8a, b"").repeat(150));
    client.expect_close(1008);
    let mut client = daemon.connect("bob");
    client.send_frame(0x88, &[3, 232]);
    assert_eq!(client.next().unwrap().opcode, 8);
    standin.set("failure", "exit255");
    Client::open(daemon.address, "carol", "tok-carol").expect_drop();
    standin.unset("failure");
    let mut client = daemon.connect("dave");
    standin.set("bad-tokens", "tok-dave\n");
    client.expect_close(1008);
    let lost = daemon.connect("eve");
    let reasons = [
        ("token_denied", 1),
        ("forbidden", 2),
        ("malformed", 1),
        ("too_big", 1),
        ("protocol", 1),
        ("flood", 1),
        ("peer_closed", 1),
        ("check_failed", 1),
        ("token_revoked", 1),
        ("ping_timeout", 1),
    ];
    expect_counted(&control, "/connections/ended", &reasons);
    drop(lost);
    assert!(control.number("/checks/recheck/granted") > 0);
    assert!(control.number("/checks/recheck/denied") > 0);
    assert!(control.number("/checks/login/failed") > 0);
    control.expect("/connections/open", 0);
    let status = control.json("/status");
    let ended: u64 = counted(&status, "/connections/ended").values().sum();
    assert_eq!(status["connections"]["opened"].as_u64().unwrap(), ended);
}

#[test]
fn reloads_and_limit_hits_are_counted() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    daemon.reload("EspoCRM's settings have not changed");
    standin.set("probe-failure", "exit255");
    daemon.reload("Keeping the previous settings");
    let reloads = control.json("/status")["reloads"].clone();
    assert_eq!(reloads, json!({"done": 1, "failed": 1}));
    standin.unset("probe-failure");
    let mut greedy = daemon.connect("alice");
    for number in 0..130 {
        greedy.subscribe(&format!("newNotification.{number}"));
    }
    greedy.expect_silence();
    control.expect("/limit_hits/subscriptions", 2);
}
