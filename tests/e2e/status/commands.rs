//! `kick`, `send` and `tail`.

use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

use crate::support::{Client, Control, DEADLINE, Daemon, Pusher, Standin, eventually, run};

#[test]
fn a_kicked_user_reconnects_and_is_checked_again() {
    let standin = Standin::new();
    let path = Control::path(&standin);
    // The cached verdict is valid for an hour unless it is removed.
    let flags = ["--check-cache", "1h", "--control", path.to_str().unwrap()];
    let daemon = Daemon::start_with(&standin, &flags);
    let control = Control::at(&path);
    let mut tabs = [daemon.connect("alice"), daemon.connect("alice")];
    let mut bob = daemon.connect("bob");
    let login = "AuthTokenCheck tok-alice alice";
    assert_eq!(standin.count(login), 1);
    let printed = control.output_of(&["kick", "alice"]);
    assert!(printed.starts_with("2 connections of user alice were ended"), "{printed}");
    tabs.iter_mut().for_each(Client::expect_drop);
    bob.expect_silence();
    control.expect("/connections/ended/kicked", 2);
    daemon.connect("alice");
    assert_eq!(standin.count(login), 2);
    // Connections of other users are not affected.
    daemon.connect("bob");
    assert_eq!(standin.count("AuthTokenCheck tok-bob bob"), 1);
    let output = control.run(&["kick", "nobody \u{1b}[2J"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("No user with the id nobody \\u{1b}[2J has connections"), "{errors}");
}

#[test]
fn sent_messages_reach_only_permitted_users() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    let mut alice = daemon.connect("alice");
    let mut bob = daemon.connect("bob");
    let topic = "recordUpdate.Account.1";
    daemon.subscribe(&mut alice, "alice", topic);
    daemon.subscribe(&mut alice, "alice", "newNotification");
    daemon.subscribe(&mut bob, "bob", "newNotification");
    standin.write_raw("standin/denied-bob", "1\n");
    bob.subscribe(topic);
    daemon.wait_for("check access failed for topic recordUpdate.Account.1 for user bob");

    assert_eq!(control.output_of(&["send", topic]), "The message was delivered to 1 connection.\n");
    alice.expect_event(&json!({"topicId": topic}));
    let printed = control.output_of(&["send", "newNotification", "--user", "bob", "{\"a\": [1]}"]);
    assert_eq!(printed, "The message was delivered to 1 connection.\n");
    let message = json!({"a": [1], "topicId": "newNotification", "userId": "bob"});
    bob.expect_event(&message);
    assert_eq!(
        control.output_of(&["send", "newNotification"]),
        "The message was delivered to 2 connections.\n"
    );
    alice.expect_event(&json!({"topicId": "newNotification"}));
    bob.expect_event(&json!({"topicId": "newNotification"}));
    let printed = control.output_of(&["send", topic, "--user", "bob"]);
    assert!(printed.contains("no connection"), "{printed}");
    alice.expect_silence();
    bob.expect_silence();
    assert_eq!(control.number("/messages/received"), 4);
}

#[test]
fn send_rejects_the_messages_that_are_invalid_from_espocrm() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let mut alice = daemon.connect("alice");
    for (arguments, why) in [
        (&["send", "unknown.topic"][..], "belongs to no category"),
        (&["send", "newNotification", "[1]"], "is not a JSON object"),
        (&["send", "newNotification", "{"], "is not a JSON object"),
    ] {
        let output = control.run(arguments);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(printed.contains("The message was dropped") && printed.contains(why), "{printed}");
        assert_eq!(output.status.code(), Some(1));
    }
    let dropped = control.json("/status")["messages"]["dropped"].clone();
    assert_eq!((&dropped["unknown_topic"], &dropped["malformed"]), (&json!(1), &json!(2)));
    let (status, _) = control.ask("POST", "/send?topic=newNotification", &"x".repeat(70_000));
    assert_eq!(status, 413);
    alice.expect_silence();
}

#[test]
fn tail_prints_delivered_messages() {
    let standin = Standin::new();
    let (mut daemon, _) = Control::start(&standin, &[]);
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "newNotification");
    let mut command = crate::support::command();
    command.args(["tail", "--control"]).arg(Control::path(&standin));
    command.stdout(std::process::Stdio::piped());
    let mut process = command.spawn().unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let (lines, shown) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
    });
    // The tail has started once it has shown a message.
    let pusher = Pusher::connect(&daemon.zeromq);
    let next = || shown.recv_timeout(DEADLINE).unwrap();
    let probe = json!({"topicId": "appParamsUpdate"});
    let mut first = None;
    eventually("the tail has started", || {
        pusher.send(&probe);
        first = shown.try_recv().ok();
        first.is_some()
    });
    pusher.send(&json!({"topicId": "newNotification", "userId": "alice"}));
    pusher.send(&json!({"topicId": "newNotification\u{1b}[2J"}));
    pusher.send(&json!({"topicId": "newNotification.\u{1b}[2J\u{202e}"}));
    let mut first = first.unwrap();
    while first.contains("appParamsUpdate") {
        assert!(first.contains("  to all  0 receivers  "), "{first}");
        first = next();
    }
    assert!(first.ends_with("  newNotification  to user alice  1 receiver  46 bytes"), "{first}");
    let dropped = next();
    assert!(dropped.contains("  DROPPED: its topicId belongs to no category"), "{dropped}");
    let odd = next();
    assert!(odd.contains(r"  newNotification.\u{1b}[2J\u{202e}  to all  0 receivers  "), "{odd}");
    // The tail exits when the daemon does.
    daemon.stop("TERM");
    assert_eq!(process.wait().unwrap().code(), Some(1));
}

#[test]
fn an_unread_tail_blocks_nothing_and_reports_missed_messages() {
    const COUNT: usize = 20_000;
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &[]);
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "newNotification");
    let mut tail = control.connect();
    tail.write_all(b"GET /tail HTTP/1.1\r\n\r\n").unwrap();
    let mut lines = BufReader::new(tail).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "HTTP/1.1 200 OK");
    let memory = daemon.status("VmRSS");
    let pusher = Pusher::connect(&daemon.zeromq);
    for number in 0..COUNT {
        let message = json!({"topicId": "newNotification", "userId": "alice", "number": number});
        pusher.send(&message);
        alice.expect_event(&message);
    }
    let grown = daemon.status("VmRSS").saturating_sub(memory);
    assert!(grown < 4 * 1024, "{grown} kB");
    let mut lines = lines.skip_while(|line| !line.is_empty()).skip(1);
    let (mut shown, mut lost) = (0, 0);
    while shown + lost < COUNT {
        let line: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        match line["lost"].as_u64() {
            Some(count) => lost += usize::try_from(count).unwrap(),
            None => shown += 1,
        }
    }
    assert_eq!(shown + lost, COUNT);
    assert!(lost > 0 && shown > 0, "{shown} were shown, {lost} were not");
}

#[test]
fn an_unresponsive_daemon_is_distinguished_from_a_missing_one() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    daemon.signal("STOP");
    let path = Control::path(&standin);
    let mut command = crate::support::command();
    command.args(["status", "--control"]).arg(&path);
    let output = run(command);
    daemon.signal("CONT");
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("does not answer: it is stopped, or overloaded"), "{printed}");
    control.get("/status");
}
