//! The daemon behind common proxies, configured as documented in `docs/proxies`.

use serde_json::json;

use crate::support::{Daemon, Php, Port, Proxy, ProxyKind, Standin, eventually, request};

/// Runs each test with each proxy.
macro_rules! with_each_proxy {
    ($($test:ident)*) => {
        mod nginx {
            $(#[test] fn $test() { super::$test(super::ProxyKind::Nginx); })*
        }
        mod apache {
            $(#[test] fn $test() { super::$test(super::ProxyKind::Apache); })*
        }
        mod caddy {
            $(#[test] fn $test() { super::$test(super::ProxyKind::Caddy); })*
        }
        mod traefik {
            $(#[test] fn $test() { super::$test(super::ProxyKind::Traefik); })*
        }
    };
}

with_each_proxy! {
    a_tab_receives_messages_from_php
    a_denied_token_is_a_clean_close
    a_restart_of_the_daemon_is_an_unclean_close_and_new_connections_work_afterwards
    pings_keep_an_idle_tab_connected
    requests_with_large_cookies_are_accepted
    an_oversized_head_gets_an_error_response
    its_logs_contain_no_token
    its_default_logs_would_contain_the_token
}

fn a_tab_receives_messages_from_php(kind: ProxyKind) {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let proxy = Proxy::start(kind, daemon.address);
    let mut tab = proxy.connect("alice");
    daemon.subscribe(&mut tab, "alice", "newNotification");
    daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
    let messages = [
        json!({"topicId": "recordUpdate.Account.1"}),
        json!({"userId": "alice", "topicId": "newNotification", "text": "Київ ".repeat(5_000)}),
    ];
    for message in &messages {
        Php::send(&daemon.zeromq, std::slice::from_ref(message));
        tab.expect_event(message);
    }
}

fn a_denied_token_is_a_clean_close(kind: ProxyKind) {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let proxy = Proxy::start(kind, daemon.address);
    for _ in 0..5 {
        proxy.open("alice", "tok-bob").expect_close(1008);
    }
    let mut tab = proxy.connect("alice");
    tab.send_json(&json!([2, "1", "anything"]));
    assert_eq!(tab.next_message()[0], 4);
    tab.expect_close(1008);
}

fn a_restart_of_the_daemon_is_an_unclean_close_and_new_connections_work_afterwards(
    kind: ProxyKind,
) {
    let standin = Standin::new();
    let port = Port::reserve();
    let start = || Daemon::start_with(&standin, &["--listen", &port.address().to_string()]);
    let mut daemon = start();
    let proxy = Proxy::start(kind, daemon.address);
    for signal in ["TERM", "KILL"] {
        let mut tab = proxy.connect("alice");
        daemon.stop(signal);
        tab.expect_drop();
        // The browser retries all the while.
        for _ in 0..3 {
            let mut early = proxy.tls();
            early.send(request("/wss?authToken=tok-alice&userId=alice").as_bytes());
            let status = early.read_head();
            let unavailable = ["HTTP/1.1 502 ", "HTTP/1.1 503 "];
            assert!(unavailable.iter().any(|it| status.starts_with(it)), "{status}");
        }
        daemon = start();
        let mut tab = proxy.connect("alice");
        daemon.subscribe(&mut tab, "alice", "newNotification");
        let message = json!({"userId": "alice", "topicId": "newNotification"});
        Php::send(&daemon.zeromq, std::slice::from_ref(&message));
        tab.expect_event(&message);
    }
}

/// Reduces the timeout of idle connections to four seconds.
fn short_timeout(kind: ProxyKind) -> &'static [(&'static str, &'static str)] {
    match kind {
        ProxyKind::Nginx => &[("proxy_read_timeout 60s", "proxy_read_timeout 4s")],
        ProxyKind::Apache => {
            &[("timeout=60", "timeout=4"), ("ServerName", "Timeout 4\nServerName")]
        }
        // By default there is no timeout. Traefik has none for WebSockets even if one is
        // configured.
        ProxyKind::Traefik => &[],
        ProxyKind::Caddy => &[(
            "reverse_proxy /wss* 127.0.0.1:8080",
            "reverse_proxy /wss* 127.0.0.1:8080 {\ntransport http {\nread_timeout 4s\n}\n}",
        )],
    }
}

fn pings_keep_an_idle_tab_connected(kind: ProxyKind) {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--ping-interval", "1s"]);
    let proxy = Proxy::start_with(kind, daemon.address, short_timeout(kind));
    let mut tab = proxy.connect("alice");
    daemon.subscribe(&mut tab, "alice", "newNotification");
    // The six pings take more than five seconds.
    for _ in 0..6 {
        let frame = tab.next_raw().expect("a ping, not the end of TCP");
        assert_eq!(frame.opcode, 9);
        tab.send_frame(0x8a, &frame.payload);
    }
    let message = json!({"userId": "alice", "topicId": "newNotification"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&message));
    tab.expect_event(&message);
}

#[test]
fn without_pings_the_proxy_disconnects_an_idle_tab() {
    let standin = Standin::new();
    for kind in [ProxyKind::Nginx, ProxyKind::Apache, ProxyKind::Caddy] {
        let mut daemon = Daemon::start_with(&standin, &["--ping-interval", "1h"]);
        let proxy = Proxy::start_with(kind, daemon.address, short_timeout(kind));
        let mut tab = proxy.connect("alice");
        tab.expect_drop();
        daemon.wait_for(": close");
    }
}

/// Two headers of this size; by default a proxy accepts 8 KiB each.
fn request_with_cookies(size: usize) -> String {
    let cookie = "x".repeat(size);
    let headers = format!("Cookie: a={cookie}\r\nX-Single-Sign-On: {cookie}\r\nHost:");
    request("/wss?authToken=tok-alice&userId=alice").replace("Host:", &headers)
}

fn requests_with_large_cookies_are_accepted(kind: ProxyKind) {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let proxy = Proxy::start(kind, daemon.address);
    let mut tab = proxy.tls();
    tab.send(request_with_cookies(7_000).as_bytes());
    let response = tab.read_head();
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    tab.expect_welcome();
}

fn an_oversized_head_gets_an_error_response(kind: ProxyKind) {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let proxy = Proxy::start(kind, daemon.address);
    let mut tab = proxy.tls();
    tab.send(request_with_cookies(8_100).as_bytes());
    let response = tab.read_head();
    assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
}

fn its_logs_contain_no_token(kind: ProxyKind) {
    let logs = logs_of_successes_and_failures(kind, &[]);
    assert!(!logs.contains("tok-"), "{logs}");
    assert!(!logs.contains("authToken"), "{logs}");
}

/// Without any one of the documented measures.
fn its_default_logs_would_contain_the_token(kind: ProxyKind) {
    let measures: &[(&str, &str)] = match kind {
        ProxyKind::Nginx => {
            &[("access.log without_token", "access.log combined"), ("error_log /dev/null;", "")]
        }
        ProxyKind::Apache => &[("combined \"expr=%{REQUEST_URI} !~ m#^/wss#\"", "combined")],
        ProxyKind::Caddy => &[
            // The default log is a different one.
            ("\tlog {\n\t\tformat", "\tlog unused {\n\t\tinclude unused\n\t\tformat"),
            (
                "access.log\n\t\tformat filter {\n\t\t\twrap json\n\t\t\tfields {\n\
                 \t\t\t\trequest>uri query {\n\t\t\t\t\tdelete authToken",
                "access.log\n\t\tformat filter {\n\t\t\twrap json\n\t\t\tfields {\n\
                 \t\t\t\trequest>uri query {\n\t\t\t\t\tdelete other",
            ),
        ],
        ProxyKind::Traefik => &[("accessLogs: false", "accessLogs: true")],
    };
    for measure in measures {
        let logs = logs_of_successes_and_failures(kind, &[*measure]);
        assert!(logs.contains("authToken=tok-alice"), "{measure:?}: {logs}");
    }
}

/// The log lines of a proxy about a tab that is welcomed, one whose token is denied, one whose
/// cookies are rejected (by nginx and Apache themselves), one that loses the daemon, and one that
/// finds no daemon.
fn logs_of_successes_and_failures(kind: ProxyKind, changes: &[(&str, &str)]) -> String {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let proxy = Proxy::start_with(kind, daemon.address, changes);
    drop(proxy.connect("alice"));
    proxy.open("alice", "tok-bob").expect_close(1008);
    let mut oversized = proxy.tls();
    oversized.send(request_with_cookies(9_000).as_bytes());
    assert!(oversized.read_head().starts_with("HTTP/1.1 4"));
    drop(oversized);
    let mut lost = proxy.connect("alice");
    daemon.stop("TERM");
    lost.expect_drop();
    drop(lost);
    let mut late = proxy.tls();
    late.send(request("/wss?authToken=tok-alice&userId=alice").as_bytes());
    late.read_head();
    drop(late);
    let lines = match kind {
        // Caddy logs the last one twice.
        ProxyKind::Caddy => 6,
        // As documented, Traefik logs none of them.
        ProxyKind::Traefik if changes.is_empty() => 0,
        ProxyKind::Nginx | ProxyKind::Apache | ProxyKind::Traefik => 5,
    };
    let mut end = proxy.tls();
    end.send(b"GET /the-end HTTP/1.1\r\nHost: localhost\r\n\r\n");
    end.read_head();
    drop(end);
    let mut logs = String::new();
    eventually("it has logged all of them", || {
        logs = proxy.logs();
        logs.contains("/the-end") && logs.matches("/wss").count() >= lines
    });
    logs
}

#[test]
fn a_reload_of_nginx_keeps_tabs_connected() {
    a_reload_keeps_tabs_connected(ProxyKind::Nginx);
}

#[test]
fn a_reload_of_apache_keeps_tabs_connected() {
    a_reload_keeps_tabs_connected(ProxyKind::Apache);
}

fn a_reload_keeps_tabs_connected(kind: ProxyKind) {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let proxy = Proxy::start(kind, daemon.address);
    let mut old = proxy.connect("alice");
    daemon.subscribe(&mut old, "alice", "appParamsUpdate");
    proxy.reload();
    let mut new = proxy.connect("bob");
    daemon.subscribe(&mut new, "bob", "appParamsUpdate");
    let message = json!({"topicId": "appParamsUpdate"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&message));
    old.expect_event(&message);
    new.expect_event(&message);
}

#[test]
fn stopping_nginx_apache_or_traefik_ends_tabs_uncleanly() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    for kind in [ProxyKind::Nginx, ProxyKind::Apache, ProxyKind::Traefik] {
        let proxy = Proxy::start(kind, daemon.address);
        let mut tab = proxy.connect("alice");
        proxy.stop();
        tab.expect_drop();
    }
}

/// Apache then ignores the WebSocket timeouts, but everything else works.
#[test]
fn apache_works_without_mod_proxy_http() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let modules = [("ssl proxy_http proxy_wstunnel", "ssl proxy_wstunnel")];
    let proxy = Proxy::start_with(ProxyKind::Apache, daemon.address, &modules);
    proxy.open("alice", "tok-bob").expect_close(1008);
    let mut tab = proxy.connect("alice");
    daemon.subscribe(&mut tab, "alice", "newNotification");
    let message = json!({"userId": "alice", "topicId": "newNotification"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&message));
    tab.expect_event(&message);
    daemon.stop("TERM");
    tab.expect_drop();
}

/// Undesirable behavior that administrators should know.
#[test]
fn reloading_or_stopping_caddy_closes_tabs_cleanly_as_documented() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let proxy = Proxy::start(ProxyKind::Caddy, daemon.address);
    for end in [Proxy::reload, Proxy::stop] {
        let mut tab = proxy.connect("alice");
        end(&proxy);
        assert_eq!(tab.next().map(|frame| frame.opcode), Some(8));
    }
}
