//! Origins of pages that may connect.

use crate::support::{Client, Daemon, GOOD_HEAD, Standin};

fn ask(daemon: &Daemon, origin: &str) -> Client {
    let mut client = Client::tcp(daemon.address);
    let head = GOOD_HEAD.replace("Origin: http://localhost\r\n", origin);
    client.send(format!("GET {} HTTP/1.1\r\n{head}", super::target("alice")).as_bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client
}

#[test]
fn every_origin_may_connect_by_default() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    for origin in ["Origin: https://elsewhere.example\r\n", "Origin: null\r\n", ""] {
        ask(&daemon, origin).expect_welcome();
    }
}

#[test]
fn a_page_of_another_origin_is_rejected_permanently() {
    let mut standin = Standin::new();
    standin.config("siteUrl", "https://CRM.example.com/espo/");
    let flags = ["--origin", "same-site", "--origin", "https://portal.example.com:8443"];
    let mut daemon = Daemon::start_with(&standin, &flags);
    for origin in ["https://crm.example.com", "https://portal.example.com:8443"] {
        ask(&daemon, &format!("Origin: {origin}\r\n")).expect_welcome();
    }
    // Not with an HTTP error, after which it would reconnect every three seconds.
    for origin in [
        "Origin: https://elsewhere.example\u{1b}[31m\r\n",
        "Origin: http://crm.example.com\r\n",
        "Origin: null\r\n",
        "Origin: https://crm.example.com\r\nOrigin: https://crm.example.com\r\n",
        "",
    ] {
        let origin = origin.replace('\u{1b}', "%1b");
        ask(&daemon, &origin).expect_close(1008);
    }
    let line = daemon.wait_for("A page was rejected because its origin is not in");
    assert!(line.contains("https://elsewhere.example"), "{line}");
    assert_eq!(standin.count("AuthTokenCheck tok-alice alice"), 2);
}

#[test]
fn same_site_origins_require_a_site_url() {
    let mut standin = Standin::new();
    standin.config("siteUrl", "");
    let mut command = crate::support::command();
    command.args(["config", "--config", "/dev/null", "--origin", "same-site", "--espocrm"]);
    command.arg(standin.path());
    let output = crate::support::run(command);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("siteUrl") && error.contains("same-site"), "{error}");
}
