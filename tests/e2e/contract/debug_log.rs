//! The debug log: what it contains for administrators, and what it must never contain.

use serde_json::json;

use crate::support::{Client, Daemon, Pusher, Standin, serving};

/// As long as a real token; no part of it occurs elsewhere in the log.
const TOKEN: &str = "zqxj7kvw9yzqjxk4vwqz8xjkqvzw3xqj";

/// The debug lines without their timestamps.
fn lines(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.iter().filter_map(|line| line.split_once(" [DEBUG] "));
    lines.map(|(_, text)| text.to_owned()).collect()
}

#[test]
fn the_debug_log_has_the_lines_known_to_administrators() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    daemon.subscribe(&mut client, "alice", "newNotification");
    daemon.subscribe(&mut client, "alice", "recordUpdate.Account.1");
    client.subscribe("recordUpdate.Account.deny1");
    daemon.wait_for("check access failed");
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send(&json!({"topicId": "newNotification", "userId": "alice"}));
    pusher.send(&json!({"topicId": "recordUpdate.Account.1"}));
    client.next_message();
    client.next_message();
    client.unsubscribe("newNotification");
    daemon.wait_for("remove topic");
    drop(client);
    daemon.wait_for("1: close");
    assert_eq!(
        lines(&daemon),
        [
            "1: open",
            "1: user alice subscribed",
            "1: add topic newNotification for user alice",
            "1: add topic recordUpdate.Account.1 for user alice",
            "1: check access failed for topic recordUpdate.Account.deny1 for user alice",
            "send newNotification for connection 1",
            "message newNotification for user alice",
            "send recordUpdate.Account.1 for connection 1",
            "1: remove topic newNotification for user alice",
            "1: close",
        ]
    );
}

#[test]
fn without_debug_mode_debug_lines_are_absent() {
    for debug in [false, true] {
        let mut standin = Standin::new();
        standin.config("webSocketDebugMode", debug);
        let mut run = serving(&standin);
        run.args(["--listen", "127.0.0.1"]);
        let mut daemon = Daemon::spawn(run);
        let mut client = daemon.connect("alice");
        client.subscribe("newNotification");
        client.expect_silence();
        let message = json!({"topicId": "newNotification", "userId": "alice"});
        Pusher::connect(&daemon.zeromq).send(&message);
        client.expect_event(&message);
        daemon.signal("TERM");
        daemon.wait();
        daemon.wait_for("Stopped");
        assert_eq!(lines(&daemon).len(), if debug { 5 } else { 0 });
    }
}

#[test]
fn input_of_a_peer_cannot_forge_log_lines() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    client.subscribe("x\n2: user admin subscribed\u{1b}[2J");
    daemon.wait_for("x\\n2: user admin subscribed\\u{1b}[2J for user alice");
    daemon.subscribe(&mut client, "alice", "newNotification");
    let topic = "newNotification.\n\r";
    client.subscribe(topic);
    client.expect_silence();
    let message = json!({"topicId": topic, "userId": "alice"});
    let pusher = Pusher::connect(&daemon.zeromq);
    pusher.send(&json!({"topicId": "newNotification", "userId": "nobody\nat all"}));
    pusher.send(&message);
    client.expect_event(&message);
    daemon.wait_for("message newNotification.\\n\\r for user alice");
    let log = daemon.log();
    assert!(log.iter().all(|line| line.starts_with("20") && !line.contains('\u{1b}')), "{log:?}");
}

#[test]
fn a_token_is_never_logged() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    Client::open(daemon.address, "alice", TOKEN).expect_close(1008);
    Client::open(daemon.address, "a%20b", TOKEN).expect_close(1008);
    Client::open(daemon.address, "alice", &format!("{TOKEN}%20")).expect_close(1008);
    let mut refused = Client::tcp(daemon.address);
    refused.send(format!("POST /?authToken={TOKEN}&userId=alice HTTP/1.1\r\n\r\n").as_bytes());
    refused.read_to_end();
    daemon.wait_for("was rejected");
    expect_no_token(daemon);
}

/// The output of a failing PHP that contains its arguments.
#[test]
fn a_token_printed_by_php_is_not_logged() {
    let shapes = [
        // As the message of an extension.
        "echo 'Error: bad token ', $token; exit(1);",
        "fwrite(STDERR, \"PHP Fatal error:  check('$token', '$user')\"); exit(255);",
        // As in a stack trace, which cuts arguments off at 15 characters by default.
        "fwrite(STDERR, '#0 command.php(1): check(\\'' . substr($token, 0, 15) . '...\\')'); exit(255);",
        "fwrite(STDERR, implode(' ', $argv)); exit(3);",
        "fwrite(STDERR, \"$token$token\\n\"); exit(255);",
        "throw new RuntimeException(\"no $token\");",
        "trigger_error(\"no $token\", E_USER_ERROR);",
    ];
    for shape in shapes {
        expect_no_token_if_php_prints(shape);
    }
}

#[test]
fn a_token_cut_off_at_the_end_of_a_long_line_is_not_logged_in_part() {
    // As in the SQL text of a database error.
    for before in [270, 280, 290] {
        let shape = format!("echo 'Error: ', str_repeat('.', {before}), $token; exit(1);");
        expect_no_token_if_php_prints(&shape);
    }
}

#[test]
fn a_longer_than_usual_token_prefix_printed_by_php_is_not_logged() {
    // zend.exception_string_param_max_len may have any value.
    let shape = "fwrite(STDERR, 'check(\\'' . substr($token, 0, 25) . '...\\')'); exit(255);";
    expect_no_token_if_php_prints(shape);
}

fn expect_no_token_if_php_prints(shape: &str) {
    let standin = Standin::new();
    let script = format!("<?php\n[, , $token, $user] = $argv;\n{shape}\n");
    std::fs::write(standin.path().join("command.php"), script).unwrap();
    let mut daemon = Daemon::start(&standin);
    Client::open(daemon.address, "alice", TOKEN).expect_drop();
    daemon.wait_for("The access check of a login failed: PHP exited with status");
    expect_no_token(daemon);
}

/// Not even a part from which the rest could be guessed.
fn expect_no_token(mut daemon: Daemon) {
    daemon.signal("TERM");
    daemon.wait();
    daemon.wait_for("Stopped");
    let parts: Vec<&[u8]> = TOKEN.as_bytes().windows(5).collect();
    for line in daemon.log() {
        let mut windows = line.as_bytes().windows(5);
        assert!(!windows.any(|window| parts.contains(&window)), "{line}");
    }
}
