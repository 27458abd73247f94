//! The public address as browsers use it: names, certificates, proxies.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Site;
use crate::support::{Port, Proxy, ProxyKind};
use crate::tls::authority::{Authority, EC, Issued};

/// A running site whose proxy forwards to its daemon.
fn site_behind(kind: ProxyKind, changes: &[(&str, &str)]) -> Site {
    let mut site = Site::without_proxy();
    site.serve();
    let proxy = Proxy::start_with(kind, site.port.address(), changes);
    site.put_proxy(proxy);
    site
}

const UPGRADE: &str = "        proxy_set_header Upgrade $http_upgrade;\n";

#[test]
fn a_proxy_that_does_not_forward_the_upgrade_is_reported() {
    let site = site_behind(ProxyKind::Nginx, &[(UPGRADE, "")]);
    let fix = ["nginx", "upgrade request", "proxy_set_header Upgrade $http_upgrade;"];
    let diagnosis = site.examine();
    diagnosis.only_failure("public-url", &fix);
    let target = format!("proxy_pass http://{};", site.port.address());
    diagnosis.failure("public-url", &["location /wss {", &target]);
    let site = site_behind(ProxyKind::Nginx, &[("        proxy_http_version 1.1;\n", "")]);
    site.examine().only_failure("public-url", &fix);
}

#[test]
fn the_printed_snippet_is_indented() {
    let site = site_behind(ProxyKind::Nginx, &[("location /wss", "location /other")]);
    let text = site.text_output(&[]);
    for line in ["      location /wss {\n          proxy_pass http", ";\n      }\n"] {
        assert!(text.contains(line), "{line:?}: {text}");
    }
}

#[test]
fn a_proxy_that_logs_tokens_is_reported() {
    for (from, to, log) in [
        ("/access.log without_token;", "/crm.log;", "/crm.log"),
        ("\"$request_without_token\"", "\"$request\"", "/access.log"),
    ] {
        let site = Site::healthy();
        let text = site.proxy.as_ref().unwrap().site();
        assert!(text.contains(from), "{text}");
        let text = text.replace(from, to);
        site.put("/etc/nginx/nginx.conf", &format!("http {{\n{text}\n}}\n"));
        site.examine().only_warning("proxy-log", &["access tokens", log, "access_log off;"]);
        let text = text.replace("error_log /dev/null;", "error_log /dev/null; access_log off;");
        site.put("/etc/nginx/nginx.conf", &format!("http {{\n{text}\n}}\n"));
        site.examine().good("proxy-log", "does not log");
    }
}

#[test]
fn a_proxy_without_a_websocket_location_is_reported() {
    let site = site_behind(ProxyKind::Nginx, &[("location /wss", "location /other")]);
    site.examine().only_failure("public-url", &["404", "location /wss {"]);
    let site = site_behind(ProxyKind::Apache, &[("\"/wss\"", "\"/other\"")]);
    site.examine().only_failure("public-url", &["Apache", "404", "ProxyPass \"/wss\""]);
    let site = site_behind(ProxyKind::Caddy, &[("reverse_proxy /wss*", "reverse_proxy /other*")]);
    site.examine().only_failure("public-url", &["Caddy", "reverse_proxy /wss* 127.0.0.1:"]);
}

#[test]
fn each_proxy_as_documented_is_good() {
    let site = site_behind(ProxyKind::Apache, &[]);
    site.put("/etc/apache2/sites-enabled/crm.conf", &site.proxy.as_ref().unwrap().site());
    let diagnosis = site.examine();
    diagnosis.good("public-url", "answers correctly");
    diagnosis.good("idle-timeout", "after 60 s (timeout= of ProxyPass)");
    for kind in [ProxyKind::Caddy, ProxyKind::Traefik] {
        let diagnosis = site_behind(kind, &[]).examine();
        diagnosis.good("public-url", "answers correctly");
        assert_eq!(diagnosis.status, 0);
    }
}

#[test]
fn a_proxy_that_forwards_elsewhere_is_reported() {
    let mut site = Site::without_proxy();
    site.serve();
    let unused = Port::reserve();
    site.put_proxy(Proxy::start(ProxyKind::Nginx, unused.address()));
    let here = site.port.address().to_string();
    let diagnosis = site.examine();
    diagnosis.only_failure("public-url", &["502", "The daemon answers at", &here]);
    diagnosis.unknown("idle-timeout", &["forwards to port"]);
}

/// nginx with this directive instead of forwarding the request.
fn nginx_with(directive: &str) -> Site {
    let line = "proxy_pass http://127.0.0.1:8080;";
    site_behind(ProxyKind::Nginx, &[(line, &format!("{directive} # 127.0.0.1:8080"))])
}

#[test]
fn a_proxy_that_redirects_forbids_or_requires_a_password_is_reported() {
    for (directive, parts) in [
        (
            "return 301 https://crm.example.org/wss;",
            ["redirects to https://crm.example.org/wss", "does not follow redirects"],
        ),
        ("return 403;", ["answers 403", "Allow it"]),
        ("return 401;", ["answers 401", "Exclude /wss"]),
        ("return 200 page;", ["answers 200", "location /wss {"]),
        ("return 503;", ["answers 503", "cannot reach"]),
        ("return 444;", ["does not answer", "log"]),
    ] {
        nginx_with(directive).examine().only_failure("public-url", &parts);
    }
}

/// Answers each connection with these bytes once its request has arrived.
fn serve_response(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.unwrap();
            let mut request = [0; 4096];
            let _ = tcp.read(&mut request);
            let _ = tcp.write_all(bytes);
        }
    });
    address
}

#[test]
fn a_websocket_of_another_server_is_reported() {
    let other = serve_response(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x88\x02\x03\xe8",
    );
    let mut site = Site::without_proxy();
    site.serve();
    site.url(&format!("ws://localhost:{}/", other.port()));
    site.standin.config("siteUrl", "http://localhost");
    site.examine().only_failure("public-url", &["not one of espocrm-websocket"]);
    let nonsense = serve_response(b"SSH-2.0-OpenSSH\r\n");
    site.url(&format!("ws://localhost:{}/", nonsense.port()));
    site.examine().only_failure("public-url", &["SSH-2.0-OpenSSH", "not HTTP"]);
}

/// A site behind nginx with this certificate, whose chain is trusted.
fn site_with_certificate(trusted: &Path, issued: &Issued) -> Site {
    let mut site = Site::without_proxy();
    site.serve();
    let proxy = Proxy::start_as(ProxyKind::Nginx, site.port.address(), &[], |dir| {
        fs::copy(&issued.certificate, dir.join("certificate.pem")).unwrap();
        fs::copy(&issued.key, dir.join("key.pem")).unwrap();
    });
    site.distrust(proxy);
    site.trust(trusted.to_owned());
    site
}

/// Issues this certificate again, valid for this many days.
fn issue_for_days(authority: &Authority, name: &str, days: i32) {
    authority.openssl(&format!(
        "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -set_serial 77 -extfile openssl.cnf \
         -extensions server -days {days} -out {name}.pem"
    ));
}

#[test]
fn the_validity_period_of_a_certificate_is_checked() {
    let authority = Authority::new();
    let trusted = authority.path("ca.pem");
    let issued = authority.issue("good", EC);
    let examine = || site_with_certificate(&trusted, &issued).examine();
    examine().only_warning("public-url", &["expires soon", "certbot renew"]);
    issue_for_days(&authority, "good", 90);
    examine().good("public-url", ", with a certificate valid for ");
    // OpenSSL 3.5 does not create a certificate that expires before it becomes valid: this one
    // expires in the current second.
    issue_for_days(&authority, "good", 0);
    thread::sleep(Duration::from_secs(2));
    examine().only_failure("public-url", &["has expired", "certbot renew"]);
}

#[test]
fn an_untrusted_certificate_is_reported() {
    let authority = Authority::new();
    let issued = authority.issue("good", EC);
    let stranger = Authority::new();
    let site = site_with_certificate(&stranger.path("ca.pem"), &issued);
    site.examine().only_failure("public-url", &["not trusted", "fullchain.pem", "Authority"]);
    // The intermediate certificate's issuer is trusted, but the server does not send the
    // intermediate certificate.
    authority.issue_authority("middle");
    let leaf = authority.issue_by("middle", "leaf", EC, "server");
    let site = site_with_certificate(&authority.path("ca.pem"), &leaf);
    site.examine().only_failure("public-url", &["not trusted", "fullchain.pem", "middle"]);
}

#[test]
fn a_self_signed_certificate_is_reported() {
    let mut site = Site::without_proxy();
    site.serve();
    let proxy = Proxy::start(ProxyKind::Nginx, site.port.address());
    site.distrust(proxy);
    site.examine().only_failure("public-url", &["self-signed certificate", "certbot"]);
    // Two simultaneous faults are both reported.
    let proxy = Proxy::start_with(ProxyKind::Nginx, site.port.address(), &[(UPGRADE, "")]);
    site.distrust(proxy);
    let parts =
        ["self-signed certificate; and nginx", "upgrade request", "certbot", "location /wss {"];
    site.examine().only_failure("public-url", &parts);
}

#[test]
fn a_certificate_for_another_name_is_reported() {
    let authority = Authority::new();
    let config = authority.path("openssl.cnf");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, text.replace("DNS:localhost", "DNS:crm.example.org")).unwrap();
    let issued = authority.issue("other", EC);
    let site = site_with_certificate(&authority.path("ca.pem"), &issued);
    let parts = ["another name", "It is for crm.example.org, not for localhost"];
    site.examine().only_failure("public-url", &parts);
}

#[test]
fn a_plain_port_where_browsers_use_tls_is_reported() {
    let mut site = Site::without_proxy();
    site.serve();
    site.url(&format!("wss://localhost:{}/", site.port.address().port()));
    let diagnosis = site.examine();
    diagnosis.only_failure("public-url", &["the server does not use TLS"]);
}

#[test]
fn a_public_address_without_a_server_is_reported() {
    let mut site = Site::without_proxy();
    site.serve();
    let unused = Port::reserve();
    site.url(&format!("wss://localhost:{}/", unused.address().port()));
    let diagnosis = site.examine();
    diagnosis.only_failure("public-url", &["cannot be reached", "Connection refused", "firewall"]);
    diagnosis.unknown("idle-timeout", &["was not found"]);
}

#[test]
fn a_daemon_without_a_proxy_is_examined() {
    let mut site = Site::without_proxy();
    site.serve();
    site.standin.config("siteUrl", "http://localhost");
    site.url(&format!("ws://localhost:{}/", site.port.address().port()));
    let diagnosis = site.examine();
    diagnosis.good("public-url", "answers correctly");
    diagnosis.good("idle-timeout", "without a proxy");
    assert_eq!(diagnosis.status, 0);
}

#[test]
fn a_daemon_with_its_own_tls_is_examined() {
    let authority = Authority::new();
    let issued = authority.issue("good", EC);
    let mut site = Site::without_proxy();
    issue_for_days(&authority, "good", 90);
    crate::tls::secure(&mut site.standin, &issued);
    site.serve();
    site.trust(authority.path("ca.pem"));
    site.url(&format!("wss://localhost:{}/", site.port.address().port()));
    let diagnosis = site.examine();
    diagnosis.good("daemon", "answers");
    diagnosis.good("public-url", "answers correctly, with a certificate");
    assert_eq!(diagnosis.status, 0);
    // Pages without TLS would not reach the daemon.
    site.standin.config("siteUrl", "http://localhost");
    site.url(&format!("ws://localhost:{}/", site.port.address().port()));
    site.examine().failure("address", &["the daemon requires TLS"]);
}

#[test]
fn a_site_that_redirects_to_https_is_reported() {
    let plain = serve_response(b"HTTP/1.1 301 Moved\r\nLocation: https://crm.example.org/\r\n\r\n");
    let mut site = Site::without_proxy();
    site.serve();
    site.standin.config("siteUrl", format!("http://localhost:{}", plain.port()));
    site.url(&format!("ws://localhost:{}/", site.port.address().port()));
    let diagnosis = site.examine();
    diagnosis
        .only_failure("address", &["redirects to https://crm.example.org/", "siteUrl to https"]);
    let plain = serve_response(b"HTTP/1.1 200 OK\r\n\r\n");
    site.standin.config("siteUrl", format!("http://localhost:{}", plain.port()));
    assert_eq!(site.examine().status, 0);
}

#[test]
fn invalid_public_addresses_are_reported() {
    let mut site = Site::healthy();
    site.url("https://localhost/wss");
    let diagnosis = site.examine();
    diagnosis.only_failure("address", &["must begin with wss://"]);
    diagnosis.unknown("public-url", &[]);
    site.url(&format!("ws://localhost:{}/", site.port.address().port()));
    site.examine().only_failure("address", &["may not connect to ws://"]);
    site.url("");
    site.standin.config("siteUrl", "localhost");
    site.examine().only_failure("address", &["siteUrl", "not a valid address"]);
}

#[test]
fn origins_rejected_by_the_daemon_are_reported() {
    let site = Site::healthy();
    site.settings("origins = ['https://crm.example.org']");
    site.examine().only_failure("address", &["rejects the origin", "same-site"]);
}

#[test]
fn a_proxy_with_a_short_idle_timeout_is_reported() {
    let with = |time: &str| {
        site_behind(
            ProxyKind::Nginx,
            &[("proxy_read_timeout 60s", &format!("proxy_read_timeout {time}"))],
        )
    };
    let diagnosis = with("10s").examine();
    diagnosis.only_failure("idle-timeout", &["after 10 s", "proxy_read_timeout 60s;"]);
    with("40s").examine().only_warning("idle-timeout", &["after 40 s"]);
    let site = site_behind(ProxyKind::Apache, &[("timeout=60", "timeout=9")]);
    site.put("/etc/apache2/sites-enabled/crm.conf", &site.proxy.as_ref().unwrap().site());
    site.examine().only_failure("idle-timeout", &["after 9 s", "timeout=60"]);
    let site = with("60s");
    site.settings("ping_interval = '59s'");
    site.examine().only_warning("idle-timeout", &["pings are sent every 59 s"]);
}
