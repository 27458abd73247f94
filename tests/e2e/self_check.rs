//! PHP also exits with status 0 when nothing was checked: neither the plain command nor workers
//! accept a token or grant a record because of that. If EspoCRM accepts a random token, all clients
//! are rejected. After a repair everything works without a restart.

use std::process::Command;

use serde_json::json;

use crate::support::{Client, Control, Daemon, Php, Standin, eventually, request, run, serving};

/// While `data/standin/broken` exists, commands exit with status 0 and print nothing.
const SWALLOWS: &str = "case $1 in command.php) \
    if [ -e data/standin/broken ]; then php \"$@\" >/dev/null 2>&1; exit 0; fi;; esac";

/// The same, but their output is passed on.
const HIDES_STATUS: &str = "case $1 in command.php) \
    if [ -e data/standin/broken ]; then php \"$@\"; exit 0; fi;; esac";

/// The same, with a CGI binary.
const CGI: &str = "if [ -e data/standin/broken ]; then exec php-cgi \"$@\"; fi";

/// Accepts any token.
const OPEN: &str = "case $1-$2 in command.php-AuthTokenCheck) \
    if [ -e data/standin/broken ]; then printf %s \"$4\"; exit 0; fi;; esac";

/// The error about a token that EspoCRM accepts from everyone.
const ACCEPTED: &str = "Self-check failed: EspoCRM accepted a random token";

#[test]
fn a_wrapper_that_hides_the_output_of_php_grants_nothing() {
    for (with_workers, shell) in
        [(false, SWALLOWS), (true, SWALLOWS), (false, HIDES_STATUS), (true, HIDES_STATUS)]
    {
        let standin = Standin::new();
        let broken = || standin.set("broken", "");
        grants_nothing(&standin, with_workers, shell, broken, || standin.unset("broken"));
    }
}

#[test]
fn a_cgi_binary_instead_of_php_grants_nothing() {
    for with_workers in [false, true] {
        let standin = Standin::new();
        let broken = || standin.set("broken", "");
        grants_nothing(&standin, with_workers, CGI, broken, || standin.unset("broken"));
    }
}

#[test]
fn an_empty_or_truncated_command_php_grants_nothing() {
    for with_workers in [false, true] {
        for text in ["", "<?php\n", "<?php\ninclude 'bootstrap.php';\n"] {
            let standin = Standin::new();
            let file = standin.path().join("command.php");
            let whole = std::fs::read_to_string(&file).unwrap();
            let replace = |text: &str| std::fs::write(&file, text).unwrap();
            grants_nothing(&standin, with_workers, "", || replace(text), || replace(&whole));
        }
    }
}

#[test]
fn a_missing_class_grants_nothing() {
    for with_workers in [false, true] {
        for failure in ["missing-class", "nothing"] {
            let standin = Standin::new();
            let fail = || standin.set("failure", failure);
            grants_nothing(&standin, with_workers, "", fail, || standin.unset("failure"));
        }
    }
}

/// Breaks an EspoCRM whose PHP runs `shell` first, and repairs it.
fn grants_nothing(
    standin: &Standin,
    with_workers: bool,
    shell: &str,
    fail: impl Fn(),
    repair: impl Fn(),
) {
    let php = standin.php("php", shell);
    let flags = ["--php", &php, "--check-cache", "0"];
    let start = if with_workers { Daemon::with_workers } else { Daemon::start_with };
    let mut daemon = start(standin, &flags);
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    for reload in [false, true] {
        fail();
        if reload {
            let lines = daemon.log().len();
            daemon.signal("HUP");
            daemon.wait_for_after(lines, "elf-check");
        }
        for (user, token) in [("alice", "guessed"), ("alice", "tok-bob"), ("bob", "0")] {
            expect_no_welcome(&mut Client::open(daemon.address, user, token));
        }
        let lines = daemon.log().len();
        let topic = format!("recordUpdate.Account.deny{reload}");
        alice.subscribe(&topic);
        eventually("the check has ended", || {
            let log = daemon.log();
            let mut later = log.iter().skip(lines);
            later.any(|line| line.contains("The access check of a") || line.contains(&topic))
                || standin.count(&check(&topic)) > 0
                || daemon.children().is_empty()
        });
        Php::send(&daemon.zeromq, &[json!({ "topicId": topic })]);
        let event = json!({"topicId": "recordUpdate.Account.1"});
        Php::send(&daemon.zeromq, std::slice::from_ref(&event));
        alice.expect_event(&event);
        repair();
        if reload {
            daemon.reload("elf-check");
        }
        // A file that is written in place may be read half.
        eventually("good tokens are accepted again", || {
            let mut bob = Client::open(daemon.address, "bob", "tok-bob");
            bob.next().is_some_and(|frame| frame.opcode == 1)
        });
    }
    let mut bob = daemon.connect("bob");
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    daemon.subscribe(&mut bob, "bob", "recordUpdate.Account.2");
    bob.subscribe("recordUpdate.Account.deny2");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny2");
    assert_eq!(daemon.count(ACCEPTED), 0);
}

fn check(topic: &str) -> String {
    let id = topic.rsplit('.').next().unwrap();
    format!("AclCheck --userId=alice --scope=Account --id={id} --action=read")
}

/// The connection may be closed or dropped.
fn expect_no_welcome(client: &mut Client) {
    let frame = client.next();
    assert!(frame.as_ref().is_none_or(|frame| frame.opcode == 8), "{frame:?}");
}

/// The status of the upgrade response.
fn status(daemon: &Daemon, user: &str, token: &str) -> String {
    let mut client = Client::tcp(daemon.address);
    client.send(request(&format!("/?authToken={token}&userId={user}")).as_bytes());
    let head = client.read_head();
    head.lines().next().unwrap()[9..12].to_owned()
}

#[test]
fn a_random_token_accepted_for_any_user_is_detected() {
    let standin = Standin::version("9.1.9");
    let php = standin.php("php", &OPEN.replace("printf %s \"$4\"", "printf %s system"));
    let mut daemon = Daemon::start_with(&standin, &["--php", &php]);
    standin.set("broken", "");
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    daemon.reload(ACCEPTED);
    assert_eq!(status(&daemon, "system", "guessed"), "503");
}

#[test]
fn the_plain_command_and_each_worker_must_reject_a_random_token() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    assert_eq!(standin.self_checks(), ["plain"]);
    daemon.connect("alice");
    daemon.connect("bob");
    assert_eq!(standin.self_checks(), ["plain", "worker"]);
    daemon.reload("settings have not changed");
    daemon.connect("alice");
    assert_eq!(standin.self_checks(), ["plain", "worker", "plain", "worker"]);
    let arguments = standin.arguments();
    assert!(arguments.iter().all(|words| words[1].starts_with("tok-")), "{arguments:?}");
}

#[test]
fn an_espocrm_that_accepts_any_token_at_startup_rejects_all_clients_until_repaired() {
    let standin = Standin::new();
    standin.set("broken", "");
    let php = standin.php("php", OPEN);
    let (mut daemon, control) = Control::start(&standin, &["--php", &php]);
    let line = daemon.wait_for(ACCEPTED);
    assert!(line.contains("[ERROR]") && line.contains("phpExecutablePath"), "{line}");
    for (user, token) in [("alice", "guessed"), ("alice", "tok-alice")] {
        assert_eq!(status(&daemon, user, token), "503");
    }
    let (code, body) = control.ask("GET", "/healthz", "");
    assert!(code == 503 && body.contains("EspoCRM accepts any token"), "{body}");
    assert_eq!(control.number("/connections/refused/self_check"), 2);
    standin.unset("broken");
    daemon.wait_for("Clients are accepted again");
    daemon.connect("alice");
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    assert_eq!(control.ask("GET", "/healthz", ""), (200, "ok\n".to_owned()));
    assert_eq!(standin.runs(), ["AuthTokenCheck tok-alice alice", "AuthTokenCheck guessed alice"]);
}

#[test]
fn an_espocrm_that_accepts_any_token_after_a_reload_ends_its_connections() {
    for with_workers in [false, true] {
        let standin = Standin::new();
        let php = standin.php("php", OPEN);
        let start = if with_workers { Daemon::with_workers } else { Daemon::start_with };
        let mut daemon = start(&standin, &["--php", &php]);
        let mut alice = daemon.connect("alice");
        daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
        standin.set("broken", "");
        daemon.reload(ACCEPTED);
        // Without a Close frame: the browser reconnects.
        alice.expect_drop();
        assert_eq!(status(&daemon, "alice", "tok-alice"), "503");
        // Each reload reports it again.
        daemon.reload(ACCEPTED);
        standin.unset("broken");
        daemon.reload("Self-check passed");
        let mut alice = daemon.connect("alice");
        daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
        Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    }
}

#[test]
fn repaired_settings_are_noticed_while_all_clients_are_rejected() {
    let mut standin = Standin::new();
    let open = standin.php("open", &OPEN.replace("[ -e data/standin/broken ]", "true"));
    standin.config("phpExecutablePath", open);
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for(ACCEPTED);
    let php = standin.php("php", "");
    standin.config("phpExecutablePath", php);
    daemon.wait_for("Clients are accepted again");
    daemon.connect("alice");
}

#[test]
fn a_worker_that_accepts_any_token_grants_nothing() {
    let standin = Standin::new();
    let dir = standin.path().join("custom/commands");
    std::fs::create_dir_all(&dir).unwrap();
    let code = "<?php
        if (PHP_SAPI !== 'cli') { echo $arguments[1]; return 0; }
        $check = new \\Espo\\Core\\Utils\\AccessCheck($container->get('config'));
        $text = $check->run('AuthTokenCheck', $arguments);
        echo $text;
        return $text === '' ? 1 : 0;";
    std::fs::write(dir.join("AuthTokenCheck.php"), code).unwrap();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    daemon.wait_for("A PHP worker accepted a random token");
    daemon.connect("alice");
    daemon.wait_for("PHP workers cannot be used");
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    assert_eq!(daemon.count(ACCEPTED), 0);
}

#[test]
fn commands_of_extensions_still_grant_by_exit_status() {
    for with_workers in [false, true] {
        let standin = Standin::new();
        let dir = standin.path().join("custom/commands");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("Quiet.php"), "<?php return $arguments[0] === 'yes' ? 0 : 1;")
            .unwrap();
        standin.custom_categories(&json!({
            "quiet": {"paramList": ["answer"], "accessCheckCommand": "Quiet :answer"},
        }));
        let start = if with_workers { Daemon::with_workers } else { Daemon::start_with };
        let mut daemon = start(&standin, &[]);
        let mut alice = daemon.connect("alice");
        daemon.subscribe(&mut alice, "alice", "quiet.yes");
        alice.subscribe("quiet.no");
        daemon.wait_for("check access failed for topic quiet.no");
    }
}

/// Expects that an error explains the problem with php-cgi.
fn expect_explanation(text: &str) {
    for word in ["php-cgi", "cgi-fcgi", "php-cli", "phpExecutablePath", "--php PATH"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn php_cgi() -> String {
    let output = Command::new("sh").args(["-c", "command -v php-cgi"]).output().unwrap();
    assert!(output.status.success(), "php-cgi is missing: tools/install test");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_cgi_binary_is_rejected_at_startup() {
    for flag in [true, false] {
        let mut standin = Standin::new();
        let mut command = serving(&standin);
        if flag {
            command.args(["--php", &php_cgi()]);
        } else {
            standin.config("phpExecutablePath", php_cgi());
        }
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        expect_explanation(&String::from_utf8(output.stderr).unwrap());
        assert!(standin.runs().is_empty() && standin.self_checks().is_empty());
    }
}

#[test]
fn a_cgi_binary_is_rejected_on_reload_and_the_previous_settings_stay() {
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    standin.config("phpExecutablePath", php_cgi());
    let line = daemon.reload("is not the PHP CLI");
    expect_explanation(&line);
    assert!(line.contains("Keeping the previous settings"), "{line}");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    Client::open(daemon.address, "alice", "guessed").expect_close(1008);
    let php = standin.php("php", "");
    standin.config("phpExecutablePath", &*php);
    daemon.reload(&php);
    daemon.connect("bob");
}

#[test]
fn a_php_replaced_by_a_cgi_binary_is_superseded_by_the_php_configured_in_espocrm() {
    let mut standin = Standin::new();
    let old = standin.php("old", CGI);
    standin.config("phpExecutablePath", &*old);
    let mut daemon = Daemon::start(&standin);
    daemon.connect("alice");
    standin.set("broken", "");
    expect_no_welcome(&mut Client::open(daemon.address, "alice", "guessed"));
    daemon.reload("is not the PHP CLI");
    let new = standin.php("new", "");
    standin.config("phpExecutablePath", &*new);
    daemon.reload(&new);
    daemon.connect("alice");
}
