//! The address that browsers connect to, and the response there.

use std::fmt::Write;
use std::time::Duration;

use super::Stop;
use super::pages;
use super::proxy::Proxy;
use super::report::{Finding, Report, State, span};
use crate::admin::doctor::context::Context;
use crate::admin::doctor::public_address::PublicAddress;
use crate::admin::setup::Files;
use crate::admin::ws_probe::{
    Attempt, Certificate, Outcome, Phase, PhpClient, Response, Tls, upgrade,
};
use crate::engine::protocol::origin::Origin;

/// The daemon behind the proxy.
pub(super) struct Daemon<'a> {
    /// Whether it answers at its own port.
    pub serves: bool,
    /// Its address for a proxy on this machine.
    pub address: &'a str,
    pub port: u16,
    /// Whether the daemon itself terminates TLS.
    pub tls: bool,
    /// Allowed origins; empty if every origin is allowed.
    pub origins: &'a [Origin],
}

const STEP: &str = "public-url";
const ADDRESS: &str = "address";

/// The daemon closes a WebSocket without a token with this code (RFC 6455, section 7.4.1).
const POLICY: Outcome = Outcome::Closed(Some(1008));

/// For each phase of a connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Examines the address and connects to it. Returns the address and its proxy if it is reachable.
pub(super) fn examine(
    context: &Context,
    files: &Files,
    daemon: &Daemon<'_>,
    report: &mut Report,
    stop: Stop<'_>,
) -> Option<(PublicAddress, Proxy)> {
    let site = context.espo_settings.text("siteUrl").unwrap_or_default();
    let url = pages::url(&context.espo_settings, &context.internal);
    let (address, finding) = address(&site, url.as_deref(), daemon);
    report.add(redirected(&site, context, stop).unwrap_or(finding));
    let Some(address) = address else {
        report.skip(&[(STEP, "Response at the public address")], "the address is unknown");
        return None;
    };
    if address.tls && !context.php_info.openssl {
        let why = "PHP has no openssl extension, which is needed to connect";
        report.skip(&[(STEP, &address.to_string())], why);
        return None;
    }
    let origin = Origin::of(&site).map(|origin| origin.to_string()).unwrap_or_default();
    match connect(context, &address, &upgrade(&address.path, &address.host_header(), &origin), stop)
    {
        Ok(attempt) => {
            let proxy = Proxy::find(server(&attempt.response).as_deref(), files);
            report.add(attempt.judge(&address, daemon, &proxy.snippet(&address, daemon)));
            (attempt.phase != Phase::Connect).then_some((address, proxy))
        }
        Err(error) => {
            report.add(Finding::unknown(STEP, format!("{address} could not be tested: {error}")));
            None
        }
    }
}

/// Sends a request to the address. If its certificate is invalid, the response is that of a second
/// connection without verification. If it cannot be reached, it is sent to this machine instead.
fn connect(
    context: &Context,
    address: &PublicAddress,
    request: &str,
    stop: Stop<'_>,
) -> Result<Attempt, String> {
    let client = PhpClient {
        host: &address.host,
        tls: if address.tls { Tls::Verified } else { Tls::Off },
        proxy_header: "",
        request,
        timeout: TIMEOUT,
    };
    let at = |host: &str| format!("{host}:{}", address.port);
    let mut attempt = client.send(&at(client.host), &context.espocrm, stop)?;
    let (client, host) = match attempt.phase {
        Phase::Connect => (client, "127.0.0.1"),
        Phase::Tls => (PhpClient { tls: Tls::Unverified, ..client }, client.host),
        Phase::Response => return Ok(attempt),
    };
    let second = client.send(&at(host), &context.espocrm, stop)?;
    attempt.response = second.response;
    attempt.certificate = second.certificate.filter(|_| attempt.phase == Phase::Tls);
    Ok(attempt)
}

/// EspoCRM's siteUrl is http, but the web server redirects to https: its pages may then not connect
/// to the ws:// address derived from siteUrl.
fn redirected(site: &str, context: &Context, stop: Stop<'_>) -> Option<Finding> {
    let (scheme, rest) = site.split_once("://")?;
    let address =
        PublicAddress::parse(false, rest, 80).filter(|_| scheme.eq_ignore_ascii_case("http"))?;
    let (path, host) = (&address.path, address.host_header());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let response = connect(context, &address, &request, stop).ok()?.response;
    let to = response.header("Location").filter(|it| it.starts_with("https://"))?;
    matches!(response.outcome(), Outcome::Http(301..=308)).then(|| {
        Finding::failure(
            ADDRESS,
            format!("EspoCRM's siteUrl is {site}, but the web server redirects to {to}"),
            "A page loaded from https:// may not connect to ws://. In EspoCRM, Administration, \
             Settings, set siteUrl to https://…: pages then connect to wss://SITE/wss.",
        )
    })
}

/// The address that a browser derives from EspoCRM's settings, and whether it can work.
fn address(site: &str, url: Option<&str>, daemon: &Daemon<'_>) -> (Option<PublicAddress>, Finding) {
    let address = match PublicAddress::of(site, url) {
        Ok(address) => address,
        Err(error) => {
            let fix = "In EspoCRM, Administration, Settings, set siteUrl to the address that users \
                       type. webSocketUrl is in data/config.php and is rarely needed.";
            return (None, Finding::failure(ADDRESS, error, fix));
        }
    };
    let source = if url.is_some() { "webSocketUrl" } else { "siteUrl" };
    let found = format!("Browsers connect to {address}, according to EspoCRM's {source}");
    let is_https = site.to_ascii_lowercase().starts_with("https://");
    let behind = site.split_once("://").map_or("", |(_, rest)| rest);
    let authority = behind.split(['/', '?', '#']).next().unwrap_or_default();
    let has_port = !authority.ends_with(']') && authority.contains(':');
    let may_connect =
        daemon.origins.is_empty() || daemon.origins.iter().any(|it| it.is(site.as_bytes()));
    let finding = if !may_connect {
        Finding::failure(
            ADDRESS,
            format!("{found}; but the daemon rejects the origin of EspoCRM's siteUrl, {site}"),
            "Add this origin, or \"same-site\", to origins in the configuration file.",
        )
    } else if is_https && !address.tls {
        Finding::failure(
            ADDRESS,
            found,
            "A page loaded from https:// may not connect to ws://. Set webSocketUrl to a wss:// \
             address, or remove it: browsers then use wss://SITE/wss.",
        )
    } else if !address.tls && daemon.tls && address.is_direct(daemon.port, false) {
        Finding::failure(
            ADDRESS,
            found,
            "But the daemon requires TLS at this port (webSocketUseSecureServer). Set siteUrl to \
             https://…, and webSocketUrl to wss://HOST:PORT.",
        )
    } else if url.is_none() && !address.tls && daemon.port != address.port {
        Finding::warning(
            ADDRESS,
            found,
            format!(
                "But the daemon listens on port {}. In EspoCRM's data/config.php, set webSocketUrl \
                 to ws://{}:{}, or webSocketPort to 8080.",
                daemon.port, address.host, daemon.port
            ),
        )
    } else if address.is_here() {
        Finding::warning(
            ADDRESS,
            found,
            "Only browsers on this machine can reach this address. In EspoCRM, Administration, \
             Settings, set siteUrl to the address that users type.",
        )
    } else if url.is_none() && has_port {
        Finding::warning(
            ADDRESS,
            found,
            "EspoCRM's pages ignore the port in siteUrl when they derive this address. Set \
             webSocketUrl in data/config.php, for example to wss://HOST:PORT/wss.",
        )
    } else {
        Finding::ok(ADDRESS, found)
    };
    (Some(address), finding)
}

fn server(response: &Response) -> Option<String> {
    response.header("Server").or_else(|| response.header("Via"))
}

impl Attempt {
    fn judge(&self, address: &PublicAddress, daemon: &Daemon<'_>, snippet: &str) -> Finding {
        match self.phase {
            Phase::Connect => self.unreached(address, daemon),
            Phase::Tls => {
                let finding = self.distrusted(address);
                if self.response.0.is_empty() {
                    return finding;
                }
                // That of the connection without verification.
                let second = self.answered(address, daemon, snippet);
                if second.state != State::Failure {
                    return finding;
                }
                let prefix = format!("{address}: ");
                let more = second.found.strip_prefix(&prefix).unwrap_or(&second.found);
                Finding::failure(
                    STEP,
                    format!("{}; and {more}", finding.found),
                    [&*finding.fix, "\n", &*second.fix].concat(),
                )
            }
            Phase::Response => self.answered(address, daemon, snippet),
        }
    }

    fn unreached(&self, address: &PublicAddress, daemon: &Daemon<'_>) -> Finding {
        let found = format!("{address} cannot be reached: {}", self.error);
        if self.response.outcome() == POLICY {
            return Finding::warning(
                STEP,
                found,
                "But this machine answers correctly under that name. Most likely the network does \
                 not route this machine's connections back to its own public address (NAT \
                 loopback). Test with a browser on another machine.",
            );
        }
        if self.error.contains("getaddrinfo") || self.error.contains("not known") {
            return Finding::failure(
                STEP,
                found,
                format!(
                    "This machine cannot resolve {}. Check that EspoCRM's siteUrl is the address \
                     that users type, and that its name is in DNS.",
                    address.host
                ),
            );
        }
        let fix = if !address.is_direct(daemon.port, daemon.tls) {
            "Check that the web server runs and listens on that port, and that no firewall blocks \
             it."
        } else if daemon.serves {
            "The daemon answers at its own address. Check whether it listens on 127.0.0.1 only \
             (setting listen), and whether a firewall blocks the port."
        } else {
            "The daemon does not answer: see above."
        };
        Finding::failure(STEP, found, fix)
    }

    fn distrusted(&self, address: &PublicAddress) -> Finding {
        let (host, error) = (&address.host, &self.error);
        let failure =
            |what: &str, fix: String| Finding::failure(STEP, format!("{address}: {what}"), fix);
        let Some(certificate) = &self.certificate else {
            let plain = error.contains("wrong version") || error.contains("packet length");
            let what =
                if plain { "the server does not use TLS" } else { "the TLS handshake failed" };
            let port = address.port;
            return failure(
                what,
                format!("{error}\nConfigure TLS for port {port} in the web server."),
            );
        };
        let Certificate { names, issuer, from, until, self_signed, length } = certificate;
        // PHP compares the name only after all other checks have passed.
        if error.contains("did not match") {
            let fix = format!(
                "It is for {names}, not for {host}. Request a certificate that includes {host} \
                 (certbot --expand), or set siteUrl to a name in the certificate."
            );
            return failure("the certificate is for another name", fix);
        }
        if *until < self.now {
            let ago = span(self.now - until, 86_400, "day");
            let fix = format!(
                "It expired {ago} ago. Renew it and reload the web server: certbot renew\n\
                 Then find out why it was not renewed automatically: systemctl list-timers"
            );
            return failure("the certificate has expired", fix);
        }
        if *from > self.now {
            let fix = "Check the clock of this machine: timedatectl".to_owned();
            return failure("the certificate is not valid yet", fix);
        }
        if *self_signed {
            let fix = format!(
                "Browsers reject a WebSocket with such a certificate without asking the user. Get \
                 a certificate for {host} (certbot), or make browsers and this machine trust this \
                 one."
            );
            return failure("self-signed certificate", fix);
        }
        let chain = if *length <= 1 {
            format!(
                "The web server sends only its own certificate. It should also send the \
                 intermediate certificates of {issuer}: use fullchain.pem instead of cert.pem \
                 (nginx: ssl_certificate, Apache: SSLCertificateFile)."
            )
        } else {
            format!("This machine does not know the issuer, {issuer}.")
        };
        let fix = format!(
            "{chain}\nIf the issuer is your own authority and browsers trust it, make this machine \
             trust it too: update-ca-certificates\n{error}"
        );
        failure("the certificate is not trusted", fix)
    }

    fn daemon_answered(&self, address: &PublicAddress, server: Option<String>) -> Finding {
        let mut found = format!("{address} answers correctly");
        if let Some(server) = server {
            let _ = write!(found, ", through {server}");
        }
        if let Some(certificate) = &self.certificate {
            let left = certificate.until - self.now;
            let (days, hours) = (left / 86_400, span(left, 3_600, "hour"));
            if days < 7 {
                return Finding::warning(
                    STEP,
                    found + ", with a certificate that expires soon",
                    format!("It expires in {hours}. Renew it: certbot renew"),
                );
            }
            let _ = write!(found, ", with a certificate valid for {days} more days");
        }
        Finding::ok(STEP, found)
    }

    fn answered(&self, address: &PublicAddress, daemon: &Daemon<'_>, snippet: &str) -> Finding {
        let server = server(&self.response);
        let name = server.as_deref().unwrap_or("a server without a name");
        let found = |it: &str| format!("{address}: {name} {it}");
        let failure = |found: String, fix: String| Finding::failure(STEP, found, fix);
        let (location, target) = (address.location(), daemon.address);
        let status = match self.response.outcome() {
            POLICY => return self.daemon_answered(address, server),
            Outcome::Open | Outcome::Closed(_) => 101,
            Outcome::Http(status) => status,
            Outcome::NotHttp => {
                let line = self.response.first_line();
                let response = if line.is_empty() {
                    "does not answer".to_owned()
                } else {
                    format!("answers {line:.100}, which is not HTTP")
                };
                return failure(found(&response), "See the log of the web server.".to_owned());
            }
        };
        match status {
            101 => failure(
                found("opens a WebSocket, but not one of espocrm-websocket"),
                format!(
                    "EspoCRM's own daemon or another program answers. Forward {location} to \
                     {target}.\n{snippet}"
                ),
            ),
            301 | 302 | 303 | 307 | 308 => failure(
                found(&format!(
                    "redirects to {}",
                    self.response.header("Location").unwrap_or_else(|| "elsewhere".to_owned())
                )),
                format!(
                    "A browser does not follow redirects for a WebSocket. Set EspoCRM's siteUrl \
                     (or webSocketUrl) to the final address, or exclude {location} from the \
                     redirect.\n{snippet}"
                ),
            ),
            400 | 426 | 505 => failure(
                found(&format!("answers {status}: the daemon does not receive an upgrade request")),
                format!(
                    "The proxy forwards {location}, but without the headers Upgrade and \
                     Connection, or with HTTP/1.0.\n{snippet}"
                ),
            ),
            401 => failure(
                found("answers 401: it requires a password"),
                format!(
                    "Browsers cannot ask for a password here. Exclude {location} from \
                     authentication."
                ),
            ),
            403 => failure(
                found("answers 403"),
                format!("A rule of the web server forbids {location}. Allow it.\n{snippet}"),
            ),
            502..=504 if daemon.serves => failure(
                found(&format!("answers {status}: it cannot reach the daemon")),
                format!(
                    "The daemon answers at {target}. Check that the proxy forwards to that \
                     address. With SELinux: setsebool -P httpd_can_network_connect 1\nApache \
                     without retry=0 waits a minute after a restart of the daemon.\n{snippet}"
                ),
            ),
            502..=504 => failure(
                found(&format!("answers {status}: it cannot reach the daemon")),
                "The daemon does not answer: see above.".to_owned(),
            ),
            _ => failure(
                found(&format!("answers {status}: it does not forward {location} to the daemon")),
                snippet.to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ws_probe::ACCEPT;

    const DAEMON: Daemon<'_> =
        Daemon { serves: true, address: "127.0.0.1:8080", port: 8080, tls: false, origins: &[] };

    #[test]
    fn addresses_that_cannot_work_are_reported() {
        for (site, url, state) in [
            ("https://crm.example.com", None, State::Ok),
            ("http://crm.example.com", None, State::Ok),
            ("https://crm.example.com", Some("ws://crm.example.com"), State::Failure),
            ("http://localhost", None, State::Warning),
            ("https://127.0.0.1/x", None, State::Warning),
            ("https://crm.example.com:8443", None, State::Warning),
            ("https://[2001:db8::1]", None, State::Ok),
            ("nonsense", None, State::Failure),
        ] {
            assert_eq!(address(site, url, &DAEMON).1.state, state, "{site} {url:?}");
        }
        let other_port = Daemon { port: 8081, ..DAEMON };
        assert_eq!(address("http://crm", None, &other_port).1.state, State::Warning);
        assert_eq!(address("https://crm", None, &other_port).1.state, State::Ok);
        let origins = [Origin::of("https://a").unwrap()];
        let restricted = Daemon { origins: &origins, ..DAEMON };
        assert_eq!(address("https://a/x", None, &restricted).1.state, State::Ok);
        assert_eq!(address("https://b", None, &restricted).1.state, State::Failure);
        let secure = Daemon { tls: true, ..DAEMON };
        assert_eq!(address("http://crm", None, &secure).1.state, State::Failure);
    }

    fn judged(attempt: &Attempt, daemon: &Daemon<'_>) -> Finding {
        let address = PublicAddress::of("https://crm.example.com", None).unwrap();
        attempt.judge(&address, daemon, "SNIPPET")
    }

    fn answer(head: &str, frame: &[u8]) -> Attempt {
        let answer = [head.as_bytes(), b"\r\nServer: nginx/1.22\r\n\r\n", frame].concat();
        Attempt { phase: Phase::Response, response: Response(answer), ..Attempt::default() }
    }

    /// A Close frame as the daemon sends it.
    const CLOSE: &[u8] = b"\x88\x06\x03\xf0text";

    fn switched() -> String {
        let accept = ACCEPT;
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}")
    }

    #[test]
    fn the_daemons_answer_is_good_unless_the_certificate_expires_soon() {
        let mut attempt = answer(&switched(), CLOSE);
        assert!(judged(&attempt, &DAEMON).is_ok());
        let until = |days: i64| Some(Certificate { until: days * 86_400, ..Default::default() });
        attempt.certificate = until(60);
        let expected = "nginx/1.22, with a certificate valid for 60 more days";
        assert!(judged(&attempt, &DAEMON).found.contains(expected));
        attempt.certificate = until(3);
        assert_eq!(judged(&attempt, &DAEMON).state, State::Warning);
        // Another program.
        let finding = judged(&answer(&switched(), &[0x88, 2, 3, 232]), &DAEMON);
        assert_eq!(finding.state, State::Failure);
        assert!(finding.found.contains("not one of espocrm-websocket"), "{}", finding.found);
    }

    #[test]
    fn each_other_answer_is_explained() {
        let down = Daemon { serves: false, ..DAEMON };
        for (head, daemon, found, fix) in [
            ("HTTP/1.1 200 OK", &DAEMON, "200", "SNIPPET"),
            ("HTTP/1.1 404 Not Found", &DAEMON, "does not forward /wss", "SNIPPET"),
            ("HTTP/1.1 400 Bad Request", &DAEMON, "upgrade request", "SNIPPET"),
            ("HTTP/1.1 426 Upgrade Required", &DAEMON, "upgrade request", "SNIPPET"),
            ("HTTP/1.1 505 x", &DAEMON, "upgrade request", "SNIPPET"),
            ("HTTP/1.1 301 x\r\nLocation: https://a/b", &DAEMON, "to https://a/b", "SNIPPET"),
            ("HTTP/1.1 401 x", &DAEMON, "password", "Exclude /wss"),
            ("HTTP/1.1 403 x", &DAEMON, "403", "SNIPPET"),
            ("HTTP/1.1 502 x", &DAEMON, "cannot reach", "127.0.0.1:8080"),
            ("HTTP/1.1 503 x", &down, "cannot reach", "see above"),
            ("it's \"x\"", &DAEMON, "answers it's \"x\", which is not HTTP", "log"),
        ] {
            let finding = judged(&answer(head, b""), daemon);
            assert_eq!(finding.state, State::Failure);
            assert!(finding.found.contains(found), "{}", finding.found);
            assert!(finding.fix.contains(fix), "{}", finding.fix);
        }
        let nothing = Attempt { phase: Phase::Response, ..Attempt::default() };
        assert!(judged(&nothing, &DAEMON).found.contains("does not answer"));
    }

    #[test]
    fn each_bad_certificate_is_explained() {
        let good = || Certificate { until: 200, length: 2, ..Default::default() };
        for (error, certificate, expected) in [
            ("Peer certificate CN=`x' did not match expected CN=`y'", good(), "another name"),
            ("verify failed", Certificate { until: 50, ..good() }, "expired"),
            ("verify failed", Certificate { from: 150, ..good() }, "not valid yet"),
            ("verify failed", Certificate { self_signed: true, ..good() }, "self-signed"),
            ("verify failed", Certificate { length: 1, ..good() }, "not trusted"),
            ("verify failed", good(), "not trusted"),
        ] {
            let attempt = Attempt {
                phase: Phase::Tls,
                error: error.to_owned(),
                certificate: Some(certificate),
                now: 100,
                ..Attempt::default()
            };
            let finding = judged(&attempt, &DAEMON);
            assert_eq!(finding.state, State::Failure);
            assert!(finding.found.contains(expected), "{}", finding.found);
        }
        let tls = |error: &str| {
            let error = error.to_owned();
            judged(&Attempt { phase: Phase::Tls, error, ..Attempt::default() }, &DAEMON).found
        };
        assert!(tls("SSL routines::wrong version number").contains("does not use TLS"));
        assert!(tls("handshake failure").contains("handshake failed"));
    }

    #[test]
    fn an_unreachable_address_is_explained() {
        let unreached = |error: &str, answer: Vec<u8>| Attempt {
            error: error.to_owned(),
            response: Response(answer),
            ..Attempt::default()
        };
        let refused = unreached("Connection refused", Vec::new());
        assert!(judged(&refused, &DAEMON).fix.contains("firewall"));
        let unknown = unreached("php_network_getaddresses: getaddrinfo failed", Vec::new());
        assert!(judged(&unknown, &DAEMON).fix.contains("DNS"));
        let answer = [switched().as_bytes(), b"\r\n\r\n", CLOSE].concat();
        let hairpin = unreached("Connection timed out", answer);
        assert_eq!(judged(&hairpin, &DAEMON).state, State::Warning);
    }
}
