//! Which requests a worker serves, and what other users can learn about it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use super::worker;
use crate::support::{DEADLINE, Daemon, Standin, serving};

/// An extension's command that writes down everything that EspoCRM and its children can see.
const RECORD_ENVIRONMENT: &str = "<?php
$seen = array($_SERVER, $_ENV, $_GET, $_POST, $_COOKIE, $_REQUEST, getenv(), array_keys(get_defined_vars()));
$seen[] = shell_exec('env');
$seen[] = array('STDIN' => is_resource(STDIN), 'STDOUT' => is_resource(STDOUT), 'root' => getcwd());
file_put_contents('data/standin/seen', json_encode($seen));
return 0;
";

/// The secret that only the daemon and the worker know.
fn secret(worker: u32) -> String {
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mut entries = environment.split('\0');
    let secret = entries.find_map(|entry| entry.strip_prefix("ESPOCRM_WEBSOCKET_SECRET="));
    let secret = secret.unwrap();
    assert!(secret.len() >= 32, "{secret}");
    secret.to_owned()
}

/// The addresses where a process listens, as the kernel writes them.
pub(super) fn listeners(pid: u32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| {
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_open = matches!(fields[3], "0A" | "07");
            if is_open && sockets.iter().any(|inode| inode == fields[9]) {
                found.push(fields[1].to_owned());
            }
        }
    }
    found
}

/// The address of the worker.
pub(super) fn address(worker: u32) -> SocketAddr {
    let listeners = listeners(worker);
    assert_eq!(listeners.len(), 1, "{listeners:?}");
    let (host, port) = listeners[0].split_once(':').unwrap();
    assert_eq!(host, "0100007F", "only 127.0.0.1");
    SocketAddr::from(([127, 0, 0, 1], u16::from_str_radix(port, 16).unwrap()))
}

/// Sends a request to the worker and returns the complete response.
fn ask(address: SocketAddr, start: &str, headers: &str, body: &str) -> String {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    let request = format!(
        "{start} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    tcp.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_worker_listens_on_loopback_and_rejects_requests_without_its_secret() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &[]);
    daemon.connect("alice");
    let worker = worker(&daemon);
    let (address, secret) = (address(worker), secret(worker));
    let body = r#"["AuthTokenCheck","tok-alice","alice"]"#;
    let good = format!("X-Secret: {secret}\r\nX-Nonce: 7\r\n");

    let answer = ask(address, "POST /", &good, body);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let runs = standin.runs().len();
    assert_eq!(runs, 2);
    let shorter = &secret[1..];
    for (start, headers, body) in [
        ("POST /", "X-Nonce: 7\r\n".to_owned(), body),
        ("POST /", "X-Secret:\r\nX-Nonce: 7\r\n".to_owned(), body),
        ("POST /", format!("X-Secret: {shorter}\r\nX-Nonce: 7\r\n"), body),
        ("POST /", format!("X-Secret: {secret}0\r\nX-Nonce: 7\r\n"), body),
        ("POST /", format!("X-Secret: {}\r\nX-Nonce: 7\r\n", "0".repeat(secret.len())), body),
        // EspoCRM's own files are not served.
        ("GET /", String::new(), ""),
        ("GET /data/config.php", good.clone(), ""),
        ("GET /data/standin/how", String::new(), ""),
        ("GET /data/standin/how", good.clone(), ""),
        ("POST /command.php", good.clone(), body),
        // Commands that no category has.
        ("POST /", good.clone(), r#"["CustomCheck","yes"]"#),
        ("POST /", good.clone(), r#"["authtokencheck","tok-alice","alice"]"#),
        ("POST /", good.clone(), r#"[""]"#),
        ("POST /", good.clone(), "[]"),
        ("POST /", good.clone(), r#""AuthTokenCheck""#),
        ("POST /", good.clone(), r#"[["AuthTokenCheck"]]"#),
        ("POST /", good.clone(), r#"["AuthTokenCheck","a\u0000b"]"#),
        ("POST /", good.clone(), "nonsense"),
    ] {
        let answer = ask(address, start, headers.as_str(), body);
        assert!(answer.starts_with("HTTP/1.1 4"), "{start} {headers} {body}: {answer}");
        assert!(!answer.contains(&secret), "{answer}");
        assert!(!answer.to_lowercase().contains("x-exit-status"), "{answer}");
    }
    assert_eq!(standin.runs().len(), runs);
    // It still serves the daemon.
    daemon.connect("bob");
    assert_eq!(self::worker(&daemon), worker);
}

#[test]
fn secrets_appear_neither_in_argument_lists_nor_in_the_log() {
    let standin = Standin::new();
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    let worker = worker(&daemon);
    let secret = secret(worker);
    standin.hold("AclCheck");
    tab.subscribe("recordUpdate.Account.1");
    for pid in [worker, daemon.pid()] {
        let list = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let list = String::from_utf8_lossy(&list);
        assert!(!list.contains(&secret) && !list.contains("tok-alice"), "{list}");
    }
    standin.release();
    daemon.wait_for("add topic recordUpdate.Account.1");
    assert_eq!(daemon.count(&secret), 0);
    // Another worker has another secret.
    standin.state("10.0.0");
    daemon.reload("settings have changed");
    daemon.connect("alice");
    assert_ne!(self::secret(self::worker(&daemon)), secret);
}

#[test]
fn espocrm_sees_the_same_environment_in_a_worker_as_on_the_command_line() {
    let standin = Standin::new();
    std::fs::create_dir_all(standin.path().join("custom/commands")).unwrap();
    std::fs::write(standin.path().join("custom/commands/Inspect.php"), RECORD_ENVIRONMENT).unwrap();
    standin
        .custom_categories(&json!({"inspect": {"accessCheckCommand": "Inspect --user=:userId"}}));
    let mut seen = Vec::new();
    for more in [&["--no-worker"][..], &[]] {
        let mut run = serving(&standin);
        run.args(["--listen", "127.0.0.1", "--debug"]).args(more);
        run.env("ESPOCRM_LIKES", "this").env("NOTIFY_SOCKET", standin.path().join("nobody"));
        let mut daemon = Daemon::spawn(run);
        let mut tab = daemon.connect("alice");
        let secret = daemon.workers().first().map(|worker| secret(*worker));
        daemon.subscribe(&mut tab, "alice", "inspect");
        let text = std::fs::read_to_string(standin.path().join("data/standin/seen")).unwrap();
        assert!(text.contains("ESPOCRM_LIKES") && !text.contains("ESPOCRM_WEBSOCKET"), "{text}");
        assert!(!text.contains("tok-alice") && !text.contains("NOTIFY_SOCKET"), "{text}");
        assert!(secret.is_none_or(|secret| !text.contains(&secret)), "{text}");
        let mut values: Value = serde_json::from_str(&text).unwrap();
        for name in ["REQUEST_TIME", "REQUEST_TIME_FLOAT"] {
            assert!(values[0].as_object_mut().unwrap().remove(name).is_some());
        }
        seen.push(values);
    }
    assert_eq!(standin.modes(), ["plain", "plain", "worker", "worker"]);
    assert_eq!(seen[0], seen[1]);
}
