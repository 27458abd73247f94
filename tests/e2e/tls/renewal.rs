//! Certificates are renewed while the daemon runs.

use std::process::Command;

use serde_json::json;

use super::authority::{Authority, EC, Issued, RSA};
use super::{BOTH, Tab, alice, connect, expect_alive, notification, secure};
use crate::support::{Client, Daemon, Php, Standin, eventually};

/// Whether the daemon has presented this certificate.
fn has_seen(tab: &Tab, issued: &Issued) -> bool {
    tab.stream.conn.peer_certificates().unwrap()[0] == issued.der()
}

#[test]
fn a_renewed_certificate_applies_to_new_connections_and_existing_ones_stay() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let installed = authority.issue("server", EC);
    let mut standin = Standin::new();
    secure(&mut standin, &installed);
    let mut daemon = Daemon::start(&standin);
    let mut before = alice(&daemon, &client);
    assert!(has_seen(&before, &installed));

    authority.issue("renewed", RSA).replace(&installed);
    daemon.reload("have not changed");
    let mut after = alice(&daemon, &client);
    assert!(has_seen(&after, &installed) && !has_seen(&before, &installed));

    // An invalid one changes nothing.
    let good = installed.der();
    std::fs::write(&installed.certificate, "renewal failed").unwrap();
    daemon.reload("server.pem: it contains no certificate in PEM format");
    daemon.wait_for("Keeping the previous settings.");
    let mut third = alice(&daemon, &client);
    assert_eq!(third.stream.conn.peer_certificates().unwrap()[0], good);
    // The same applies to one with the old key, as in the middle of a renewal.
    let half = authority.issue("half", EC);
    std::fs::copy(&half.certificate, &installed.certificate).unwrap();
    daemon.reload("it does not match the key");
    let fourth = alice(&daemon, &client);
    assert_eq!(fourth.stream.conn.peer_certificates().unwrap()[0], good);
    drop(fourth);
    half.replace(&installed);
    daemon.reload("have not changed");
    assert!(has_seen(&alice(&daemon, &client), &installed));

    let event = json!({"topicId": "newNotification", "userId": "alice"});
    Php::send(&daemon.zeromq, std::slice::from_ref(&event));
    for tab in [&mut before, &mut after, &mut third] {
        tab.expect_event(&event);
    }
}

#[test]
fn a_renewed_certificate_is_noticed() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let installed = authority.issue("server", EC);
    let mut standin = Standin::new();
    secure(&mut standin, &installed);
    let daemon = Daemon::start(&standin);
    let _listener = alice(&daemon, &client);
    authority.issue("renewed", RSA).replace(&installed);
    eventually("it is shown", || has_seen(&alice(&daemon, &client), &installed));
}

#[test]
fn tls_is_turned_on_and_off_for_new_connections() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let issued = authority.issue("server", EC);
    let mut standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut plain = daemon.connect("bob");
    // Not with a certificate that does not exist.
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", "missing.pem");
    daemon.reload("missing.pem: No such file");
    daemon.connect("bob").expect_silence();

    secure(&mut standin, &issued);
    daemon.reload("settings have changed");
    let mut secured = alice(&daemon, &client);
    standin.config("webSocketUseSecureServer", "0");
    daemon.reload("settings have changed");
    daemon.connect("bob").expect_silence();
    plain.expect_silence();
    expect_alive(&daemon, &mut secured, 1);
}

#[test]
fn a_session_is_resumed() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let mut daemon = Daemon::start(&standin);
    for version in BOTH {
        let client = authority.client(&[version]);
        let kind = |tab: &Tab| tab.stream.conn.handshake_kind();
        let first = alice(&daemon, &client);
        assert_eq!(kind(&first), Some(rustls::HandshakeKind::Full));
        drop(first);
        let mut second = alice(&daemon, &client);
        assert_eq!(kind(&second), Some(rustls::HandshakeKind::Resumed));
        expect_alive(&daemon, &mut second, 1);
        // An unknown ticket only costs a full handshake.
        daemon.reload("have not changed");
        let mut third = alice(&daemon, &client);
        expect_alive(&daemon, &mut third, 2);
        second.expect_event(&notification(2));
    }
}

#[test]
fn clean_and_unclean_closes_are_distinguished_as_without_tls() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let mut daemon = Daemon::start(&standin);
    let mut refused = connect(daemon.address, &client);
    refused.upgrade("/?authToken=guessed&userId=alice");
    refused.expect_close(1008);
    standin.set("failure", "error");
    let mut unchecked = connect(daemon.address, &client);
    unchecked.upgrade("/?authToken=tok-alice&userId=alice");
    unchecked.expect_drop();
    standin.unset("failure");
    let mut open = alice(&daemon, &client);
    daemon.signal("TERM");
    open.expect_drop();
    assert!(daemon.wait().success());
}

#[test]
fn the_log_says_that_the_port_speaks_tls() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    secure(&mut standin, &authority.issue("server", EC));
    let mut daemon = Daemon::start(&standin);
    daemon.wait_for(&format!("Browsers are served at wss://{}", daemon.address));
    let mut plain = Client::tcp(daemon.address);
    plain.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    plain.read_to_end();
    let line = daemon.wait_for("A TLS handshake failed");
    assert!(line.contains("wss://"), "{line}");
}

#[test]
fn the_log_states_the_expiry_of_a_certificate() {
    let authority = Authority::new();
    let installed = authority.issue("server", EC);
    let mut standin = Standin::new();
    secure(&mut standin, &installed);
    let mut daemon = Daemon::start(&standin);
    let certificate = installed.certificate.display().to_string();
    let reported = format!("The certificate {certificate} is valid until {}.", end(&installed));
    daemon.wait_for(&reported);
    // The same certificate is not logged again, but one with a later expiry is.
    daemon.reload("have not changed");
    assert_eq!(daemon.count(&reported), 1);
    sign(&authority, 400);
    daemon.reload(&format!("is valid until {}.", end(&installed)));
    sign(&authority, 0);
    let reported = daemon.reload("expired on");
    assert!(reported.contains("[WARN ]") && reported.contains(&end(&installed)), "{reported}");
}

/// Renews `server.pem` with its key.
fn sign(authority: &Authority, days: usize) {
    authority.openssl(&format!(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial {} -extfile openssl.cnf \
         -extensions server -days {days} -out new.pem",
        1_000 + days
    ));
    std::fs::rename(authority.path("new.pem"), authority.path("server.pem")).unwrap();
}

/// The last day of a certificate, as reported by openssl.
fn end(issued: &Issued) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"]);
    let reported = openssl.arg(&issued.certificate).output().unwrap().stdout;
    let reported = String::from_utf8(reported).unwrap();
    reported.strip_prefix("notAfter=").unwrap()[..10].to_owned()
}
