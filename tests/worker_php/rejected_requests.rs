//! Requests that a worker rejects, and secrets that it does not expose.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::standin::Standin;
use super::worker::{SECRET, Worker};

#[test]
fn requests_without_the_secret_or_for_other_commands_are_rejected() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let good = json!(["AuthTokenCheck", "tok-alice", "alice"]).to_string();
    let head = format!("Host: x\r\nX-Secret: {SECRET}\r\nConnection: close\r\n");
    let nonce = "X-Nonce: 1\r\n";
    let posted = |body: &str| worker.post(SECRET, body);
    let length = good.len();
    let content =
        format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{good}");
    let answers = [
        (403, worker.post("", &good)),
        (403, worker.post("wrong", &good)),
        (403, worker.post(&SECRET[1..], &good)),
        (403, worker.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
        (403, worker.send("GET /index.php HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
        (403, worker.send("GET /data/config.php HTTP/1.0\r\n\r\n")),
        (403, worker.send("GET /../../etc/passwd HTTP/1.0\r\n\r\n")),
        (403, worker.send("GET /README.md HTTP/1.0\r\n\r\n")),
        (405, worker.send(&format!("GET / HTTP/1.1\r\n{head}{nonce}\r\n"))),
        (405, worker.send(&format!("PUT / HTTP/1.1\r\n{head}{nonce}{content}"))),
        (404, worker.send(&format!("POST /command.php HTTP/1.1\r\n{head}{nonce}{content}"))),
        (404, worker.send(&format!("POST /?a=b HTTP/1.1\r\n{head}{nonce}{content}"))),
        (400, worker.send(&format!("POST / HTTP/1.1\r\n{head}{content}"))),
        (400, worker.send(&format!("POST / HTTP/1.1\r\n{head}X-Nonce: a\u{e9} b\r\n{content}"))),
        (400, posted("")),
        (400, posted("x")),
        (400, posted("[]")),
        (400, posted("{}")),
        (400, posted("null")),
        (400, posted("\"AuthTokenCheck\"")),
        (400, posted("{\"0\": \"AuthTokenCheck\"}")),
        (400, posted("[\"AuthTokenCheck\", 1]")),
        (400, posted("[\"AuthTokenCheck\", [\"x\"]]")),
        (400, posted("[\"AuthTokenCheck\", \"a\\u0000b\"]")),
        (400, posted("[\"AuthTokenCheck\", \"tok-alice\", \"alice\"")),
        (400, posted("[\"AuthTokenCheck\", \"\u{e9}\"] [")),
        (403, posted("[\"\"]")),
        (403, posted("[\"Rebuild\"]")),
        (403, posted("[\"authTokenCheck\"]")),
        (403, posted("[\"AuthTokenCheck AclCheck\"]")),
        (403, posted("[\" AuthTokenCheck\", \"tok-alice\", \"alice\"]")),
    ];
    for (number, (code, answer)) in answers.iter().enumerate() {
        assert_eq!((answer.code, answer.header("X-Exit-Status")), (*code, None), "{number}");
        assert_eq!(answer.body, b"", "{number} {answer:?}");
    }
    assert_eq!(worker.send("nonsense\r\n\r\n").header("X-Exit-Status"), None);
    assert_eq!(standin.lines("runs").len() + standin.lines("probes").len(), 0);
    standin.both(&worker, &["AuthTokenCheck", "tok-alice", "alice"]);
}

#[test]
fn silent_connections_do_not_delay_others() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let connect = |text: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let silent = ["", "POST / HT", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n[", "\r\n"];
    let _open: Vec<TcpStream> = silent.into_iter().cycle().take(40).map(connect).collect();
    standin.both(&worker, &["AuthTokenCheck", "tok-alice", "alice"]);
}

#[test]
fn the_secret_is_neither_in_the_arguments_nor_in_a_variable() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    standin.extension(
        "ob_start(); var_dump($GLOBALS, getenv(), getenv('ESPOCRM_WEBSOCKET_SECRET'), $_SERVER, $_ENV);
        $all = ob_get_clean();
        $child = shell_exec('env');
        return strpos($all . $child, 'ESPOCRM_WEBSOCKET') === false
            && strpos($all . $child, substr(__FILE__, 0, 0) . '5ecre7a') === false ? 0 : 1;",
    );
    for _ in 0..3 {
        assert_eq!(worker.run(&["Extension"]).outcome().unwrap().status, 0);
    }
    let pid = worker.process.id();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8_lossy(&arguments);
    assert!(arguments.contains("127.0.0.1:0") && !arguments.contains(SECRET), "{arguments}");
}

#[test]
fn auto_prepend_and_auto_append_files_are_left_to_the_command_line() {
    let standin = Standin::new();
    standin.write("prepended.php", "<?php echo 'prepended';");
    let file = standin.0.join("prepended.php");
    for name in ["auto_prepend_file", "auto_append_file"] {
        let worker = Worker::start_with(&standin, &[&format!("{name}={}", file.display())]);
        let answer = worker.run(&["AuthTokenCheck", "tok-alice", "alice"]);
        // PHP 8.4 sends a status before the router runs.
        assert!([200, 501].contains(&answer.code), "{}", answer.code);
        assert_eq!(answer.header("X-Exit-Status"), None);
    }
}

#[test]
fn a_thousand_checks_do_not_increase_its_memory() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.process.id()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    standin.age();
    // New files are compiled again.
    std::thread::sleep(Duration::from_secs(4));
    let run = |count| {
        for _ in 0..count {
            let answer = worker.run(&["AuthTokenCheck", "tok-alice", "alice"]);
            assert_eq!(answer.outcome().unwrap().status, 0);
        }
    };
    run(200);
    let before = resident();
    run(1000);
    assert!(resident() < before + 1024, "{before} {} kB", resident());
}
