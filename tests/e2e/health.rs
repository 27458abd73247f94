//! `espocrm-websocket health`, with which a container checks its daemon.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;

use crate::support::{Daemon, Standin, command, run};
use crate::tls::authority::{Authority, EC};
use crate::tls::secure;

fn health(standin: &Standin, flags: &[&str]) -> Output {
    let mut health = command();
    health.arg("health").arg("--espocrm").arg(standin.path());
    health.args(["--config", "/dev/null"]).args(flags);
    run(health)
}

fn of(daemon: &Daemon, standin: &Standin, flags: &[&str]) -> Output {
    health(standin, &[&["--listen", &daemon.address.to_string()], flags].concat())
}

fn expect_good(output: &Output) {
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*printed), (Some(0), ""));
}

#[test]
fn a_running_daemon_is_healthy_and_the_health_command_causes_no_check() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    expect_good(&of(&daemon, &standin, &[]));
    assert_eq!(standin.runs(), Vec::<String>::new());
}

#[test]
fn health_sends_the_required_origin_and_proxy_header() {
    let standin = Standin::new();
    let flags = ["--origin", "https://crm.example.com"];
    let daemon = Daemon::start_with(&standin, &flags);
    expect_good(&of(&daemon, &standin, &flags));
    let flags = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol"];
    let daemon = Daemon::start_with(&standin, &flags);
    expect_good(&of(&daemon, &standin, &flags));
    assert_eq!(of(&daemon, &standin, &[]).status.code(), Some(1));
}

#[test]
fn no_server_or_another_server_is_reported() {
    let standin = Standin::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.write_all(b"HTTP/1.1 418 teapot\r\n\r\n").unwrap();
    });
    let output = health(&standin, &["--listen", &address]);
    other.join().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains(&address) && printed.contains("HTTP/1.1 418 teapot"), "{printed}");
    assert_eq!(output.status.code(), Some(1));
    let output = health(&standin, &["--listen", &address]);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains(&format!("The daemon does not answer at {address}")), "{printed}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn health_opens_a_websocket_over_tls() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let daemon = Daemon::start(&standin);
    expect_good(&of(&daemon, &standin, &[]));
    drop(daemon);
    let proxied = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol"];
    let daemon = Daemon::start_with(&standin, &proxied);
    expect_good(&of(&daemon, &standin, &proxied));
    assert_eq!(standin.runs(), Vec::<String>::new());
}

#[test]
fn with_tls_any_response_is_not_enough() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    // A TLS alert, which any TLS server sends in response to plain text; an HTTP response; and
    // nothing.
    for answer in [&[21, 3, 3, 0, 2, 2, 40][..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let other = std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let _ = tcp.read(&mut [0; 512]);
            tcp.write_all(answer).unwrap();
        });
        let output = health(&standin, &["--listen", &address]);
        other.join().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(printed.contains(&address), "{printed}");
        assert_eq!(output.status.code(), Some(1));
    }
}
