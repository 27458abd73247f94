//! Where a browser connects, and what answers there.

use std::fmt::Write;

use base64ct::{Base64, Encoding};
use serde_json::Value;

use super::Stop;
use super::pages;
use super::php;
use super::proxy::Proxy;
use super::report::{Finding, Report, State, span};
use crate::admin::doctor::context::Context;
use crate::admin::doctor::public_address::Place;
use crate::admin::health;
use crate::admin::setup::Files;
use crate::engine::printable::printable;
use crate::engine::protocol::origin::Origin;

/// What is known of the daemon.
pub(super) struct Daemon<'a> {
    /// Whether it answers at its own port.
    pub serves: bool,
    /// Where a proxy of this machine finds it.
    pub address: &'a str,
    /// The port that it listens at.
    pub port: u16,
    /// Whether it does TLS by itself.
    pub tls: bool,
    /// Origins of pages that may connect, if not all may.
    pub origins: &'a [Origin],
}

const STEP: &str = "public-url";
const ADDRESS: &str = "address";

/// Ours closes a WebSocket without a token by this code (RFC 6455, section 7.4.1).
const POLICY: [u8; 2] = [3, 240];

/// Looks at both: which address it is, and what answers there. Returns that, if anything does.
pub(super) fn look(
    context: &Context,
    files: &Files,
    daemon: &Daemon<'_>,
    report: &mut Report,
    stop: Stop<'_>,
) -> Option<(Place, Proxy)> {
    let site = context.espo_settings.text("siteUrl").unwrap_or_default();
    let url = pages::url(&context.espo_settings, &context.internal);
    let (place, finding) = address(&site, url.as_deref(), daemon);
    report.add(redirected(&site, context, stop).unwrap_or(finding));
    let Some(place) = place else {
        report.skip(&[(STEP, "The address for browsers")], "there is none");
        return None;
    };
    if place.tls && !context.about.openssl {
        let why = "PHP has no openssl, by which it would be visited";
        report.skip(&[(STEP, &place.to_string())], why);
        return None;
    }
    let origin = Origin::of(&site).map(|origin| origin.to_string()).unwrap_or_default();
    match php::ask(&context.espocrm, &place.task(&origin), stop) {
        Ok(answer) => {
            let visit = Visit::of(&answer);
            let proxy = Proxy::find(visit.server().as_deref(), files);
            report.add(visit.judge(&place, daemon, &|| proxy.snippet(&place, daemon)));
            (visit.phase != "connect").then_some((place, proxy))
        }
        Err(error) => {
            report.add(Finding::unknown(STEP, format!("{place} could not be visited: {error}")));
            None
        }
    }
}

/// EspoCRM's siteUrl is http, but browsers are sent to https: their pages may then not connect to what
/// is made of it.
fn redirected(site: &str, context: &Context, stop: Stop<'_>) -> Option<Finding> {
    let (scheme, rest) = site.split_once("://")?;
    let place = Place::parse(false, rest, 80).filter(|_| scheme.eq_ignore_ascii_case("http"))?;
    let (path, host) = (&place.path, place.host_header());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let visit = Visit::of(&php::ask(&context.espocrm, &place.visit(&request), stop).ok()?);
    let to = visit.header("Location").filter(|it| it.starts_with("https://"))?;
    matches!(visit.status()?, 301..=308).then(|| {
        Finding::bad(
            ADDRESS,
            format!("EspoCRM's siteUrl is {site}, but browsers are sent on to {to}"),
            "Their pages may then not connect to ws://. Set siteUrl to https:// in EspoCRM, \
             Administration, Settings: pages then connect to wss://SITE/wss.",
        )
    })
}

/// Which address a browser makes of EspoCRM's settings, and whether it makes sense.
fn address(site: &str, url: Option<&str>, daemon: &Daemon<'_>) -> (Option<Place>, Finding) {
    let place = match Place::of(site, url) {
        Ok(place) => place,
        Err(error) => {
            let fix = "Set siteUrl in EspoCRM, Administration, Settings, to what users type; \
                       webSocketUrl stands in data/config.php and is rarely needed.";
            return (None, Finding::bad(ADDRESS, error, fix));
        }
    };
    let source = if url.is_some() { "webSocketUrl" } else { "siteUrl" };
    let found = format!("Browsers connect to {place}, by EspoCRM's {source}");
    let is_https = site.to_ascii_lowercase().starts_with("https://");
    let behind = site.split_once("://").map_or("", |(_, rest)| rest);
    let authority = behind.split(['/', '?', '#']).next().unwrap_or_default();
    let has_port = !authority.ends_with(']') && authority.contains(':');
    let may_connect =
        daemon.origins.is_empty() || daemon.origins.iter().any(|it| it.is(site.as_bytes()));
    let finding = if !may_connect {
        Finding::bad(
            ADDRESS,
            format!("{found}; but the daemon refuses pages from EspoCRM's siteUrl, {site}"),
            "Add its origin, or \"same-site\", to origins in our configuration.",
        )
    } else if is_https && !place.tls {
        Finding::bad(
            ADDRESS,
            found,
            "A page from https:// may not connect to ws://. Set webSocketUrl to an address with \
             wss://, or remove it: then browsers use wss://SITE/wss.",
        )
    } else if !place.tls && daemon.tls && place.is_direct(daemon.port, false) {
        Finding::bad(
            ADDRESS,
            found,
            "There the daemon speaks TLS (webSocketUseSecureServer). Set siteUrl to https://, and \
             webSocketUrl to wss://HOST:PORT.",
        )
    } else if url.is_none() && !place.tls && daemon.port != place.port {
        Finding::doubt(
            ADDRESS,
            found,
            format!(
                "But the daemon listens at port {}. Set webSocketUrl to ws://{}:{} in EspoCRM's \
                 data/config.php, or webSocketPort to 8080.",
                daemon.port, place.host, daemon.port
            ),
        )
    } else if place.is_here() {
        Finding::doubt(
            ADDRESS,
            found,
            "Only a browser on this very machine finds that. Set siteUrl in EspoCRM, \
             Administration, Settings, to what users type.",
        )
    } else if url.is_none() && has_port {
        Finding::doubt(
            ADDRESS,
            found,
            "EspoCRM's siteUrl names a port, of which its pages make no good address for the \
             WebSocket. Set webSocketUrl, such as wss://HOST:PORT/wss, in data/config.php.",
        )
    } else {
        Finding::good(ADDRESS, found)
    };
    (Some(place), finding)
}

/// What came of a visit.
#[derive(Debug, Default)]
struct Visit {
    /// How far it got: connect, tls, answer.
    phase: String,
    error: String,
    answer: Vec<u8>,
    certificate: Option<Certificate>,
    now: i64,
}

#[derive(Debug, Default)]
struct Certificate {
    names: String,
    issuer: String,
    from: i64,
    until: i64,
    /// It signs itself.
    own: bool,
    /// With those that were sent along.
    length: i64,
}

impl Visit {
    fn of(answer: &Value) -> Self {
        let text = |value: &Value, name: &str| {
            value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let number =
            |value: &Value, name: &str| value.get(name).and_then(Value::as_i64).unwrap_or_default();
        let certificate = answer.get("certificate").filter(|it| it.is_object());
        Self {
            phase: text(answer, "phase"),
            error: text(answer, "error"),
            answer: Base64::decode_vec(&text(answer, "answer")).unwrap_or_default(),
            certificate: certificate.map(|it| Certificate {
                names: text(it, "names"),
                issuer: text(it, "issuer"),
                from: number(it, "from"),
                until: number(it, "until"),
                own: it.get("own") == Some(&Value::Bool(true)),
                length: number(it, "length"),
            }),
            now: number(answer, "now"),
        }
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.answer);
        let (head, _) = text.split_once("\r\n\r\n")?;
        head.lines().skip(1).find_map(|line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then(|| value.trim().chars().take(200).collect())
        })
    }

    fn server(&self) -> Option<String> {
        self.header("Server").or_else(|| self.header("Via"))
    }

    fn status(&self) -> Option<u16> {
        let digits = self.answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    fn is_ours(&self) -> bool {
        let end = self.answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let code = end.and_then(|end| self.answer.get(end + 6..end + 8));
        health::is_closed(&self.answer) && code == Some(&POLICY)
    }

    fn judge(&self, place: &Place, daemon: &Daemon<'_>, snippet: &dyn Fn() -> String) -> Finding {
        match &*self.phase {
            "connect" => self.unreached(place, daemon),
            "tls" => {
                let finding = self.distrusted(place);
                if self.answer.is_empty() {
                    return finding;
                }
                // It was visited in spite of the certificate.
                let behind = self.answered(place, daemon, snippet);
                if behind.state != State::Bad {
                    return finding;
                }
                let beginning = format!("{place}: ");
                let more = behind.found.strip_prefix(&beginning).unwrap_or(&behind.found);
                Finding::bad(
                    STEP,
                    format!("{}; and {more}", finding.found),
                    [&*finding.fix, "\n", &*behind.fix].concat(),
                )
            }
            "answer" => self.answered(place, daemon, snippet),
            _ => Finding::unknown(STEP, format!("{place} could not be visited: {}", self.error)),
        }
    }

    fn unreached(&self, place: &Place, daemon: &Daemon<'_>) -> Finding {
        let found = format!("{place} cannot be reached: {}", self.error);
        if self.is_ours() {
            return Finding::doubt(
                STEP,
                found,
                "But this machine itself answers well under that name: most likely the way out and \
                 back in (NAT) is what is missing. Try it by a browser from elsewhere.",
            );
        }
        if self.error.contains("getaddrinfo") || self.error.contains("not known") {
            return Finding::bad(
                STEP,
                found,
                format!(
                    "The name {} is not known here. Is EspoCRM's siteUrl what users type? Is it in \
                     DNS?",
                    place.host
                ),
            );
        }
        let fix = if !place.is_direct(daemon.port, daemon.tls) {
            "Does the web server run, and listen at that port? Does a firewall keep it?"
        } else if daemon.serves {
            "The daemon answers at its own address. Does it listen at 127.0.0.1 only (listen)? Does \
             a firewall keep that port?"
        } else {
            "The daemon does not answer: see above."
        };
        Finding::bad(STEP, found, fix)
    }

    fn distrusted(&self, place: &Place) -> Finding {
        let host = &place.host;
        let found = |what: &str| format!("{place}: {what}");
        let error = &self.error;
        let Some(certificate) = &self.certificate else {
            let plain = error.contains("wrong version") || error.contains("packet length");
            let what = if plain { "no TLS is spoken there" } else { "TLS fails" };
            return Finding::bad(
                STEP,
                found(what),
                format!("{error}\nHave the web server speak TLS at port {}.", place.port),
            );
        };
        let Certificate { names, issuer, from, until, own, length } = certificate;
        // PHP asks for the name only after everything else was right.
        if error.contains("did not match") {
            return Finding::bad(
                STEP,
                found("the certificate is for another name"),
                format!(
                    "It is for {names}, not for {host}. Get one for {host} too (certbot --expand), \
                     or let siteUrl be a name that it is for."
                ),
            );
        }
        if *until < self.now {
            let ago = span(self.now - until, 86_400, "day");
            return Finding::bad(
                STEP,
                found("the certificate has expired"),
                format!(
                    "It did so {ago} ago. Renew it and reload the web server: certbot renew. \
                     Then find out why that did not happen by itself: systemctl list-timers."
                ),
            );
        }
        if *from > self.now {
            return Finding::bad(
                STEP,
                found("the certificate is not valid yet"),
                "Is the clock of this machine right? See: timedatectl",
            );
        }
        if *own {
            return Finding::bad(
                STEP,
                found("the certificate signs itself"),
                format!(
                    "Browsers refuse a WebSocket to it without asking anybody. Get a certificate \
                     for {host} (certbot), or have browsers and this machine trust this one."
                ),
            );
        }
        let chain = if *length <= 1 {
            format!(
                "The web server sends the certificate alone. It should send those of its authority \
                 ({issuer}) along: fullchain.pem rather than cert.pem (nginx: ssl_certificate, \
                 Apache: SSLCertificateFile)."
            )
        } else {
            format!("Its authority ({issuer}) is not known to this machine.")
        };
        Finding::bad(
            STEP,
            found("the certificate is not trusted"),
            format!(
                "{chain}\nIf that authority is your own and browsers trust it, have this machine \
                 trust it, too: update-ca-certificates.\n{error}"
            ),
        )
    }

    fn answered(
        &self,
        place: &Place,
        daemon: &Daemon<'_>,
        snippet: &dyn Fn() -> String,
    ) -> Finding {
        let server = self.server();
        let who = server.as_deref().unwrap_or("a server without a name");
        let what = |it: &str| format!("{place}: {who} {it}");
        let bad = |found: String, fix: String| Finding::bad(STEP, found, fix);
        let Some(status) = self.status() else {
            let begin = String::from_utf8_lossy(&self.answer);
            let line = printable(begin.lines().next().unwrap_or_default());
            let said = if line.is_empty() {
                "does not answer".to_owned()
            } else {
                format!("answers {line:.100}, which is no HTTP")
            };
            return bad(what(&said), "Look into the log of the web server.".to_owned());
        };
        let location = place.location();
        match status {
            101 if self.is_ours() => {
                let mut found = format!("{place} answers as it should");
                if let Some(server) = server {
                    let _ = write!(found, ", through {server}");
                }
                if let Some(certificate) = &self.certificate {
                    let left = certificate.until - self.now;
                    let days = left / 86_400;
                    if days < 7 {
                        return Finding::doubt(
                            STEP,
                            found + ", with a certificate that expires soon",
                            format!("In {}. Renew it: certbot renew", span(left, 3_600, "hour")),
                        );
                    }
                    let _ = write!(found, ", with a certificate for {days} more days");
                }
                Finding::good(STEP, found)
            }
            101 => bad(
                what("opens a WebSocket that is not ours"),
                format!(
                    "EspoCRM's own daemon, or another: have {location} lead to {}.\n{}",
                    daemon.address,
                    snippet()
                ),
            ),
            301 | 302 | 303 | 307 | 308 => bad(
                what(&format!(
                    "redirects to {}",
                    self.header("Location").unwrap_or_else(|| "elsewhere".to_owned())
                )),
                format!(
                    "A browser's WebSocket follows no redirect. Set EspoCRM's siteUrl (or \
                     webSocketUrl) to the final address, or except {location} from it.\n{}",
                    snippet()
                ),
            ),
            400 | 426 | 505 => bad(
                what(&format!("answers {status}: the request does not arrive as an upgrade")),
                format!(
                    "The proxy passes {location} on, but without the headers Upgrade and \
                     Connection, or by HTTP/1.0.\n{}",
                    snippet()
                ),
            ),
            401 => bad(
                what("answers 401: it wants a password"),
                format!("Browsers cannot be asked for one there: except {location} from it."),
            ),
            403 => bad(
                what("answers 403"),
                format!("A rule of the web server forbids {location}: allow it.\n{}", snippet()),
            ),
            502..=504 if daemon.serves => bad(
                what(&format!("answers {status}: it does not reach the daemon")),
                format!(
                    "But the daemon answers at {}. Does the proxy lead there? On SELinux: setsebool \
                     -P httpd_can_network_connect 1. Apache without retry=0 waits for a minute \
                     after a restart of the daemon.\n{}",
                    daemon.address,
                    snippet()
                ),
            ),
            502..=504 => bad(
                what(&format!("answers {status}: it does not reach the daemon")),
                "The daemon does not answer: see above.".to_owned(),
            ),
            _ => bad(
                what(&format!("answers {status}: it does not pass {location} on to the daemon")),
                snippet(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON: Daemon<'_> =
        Daemon { serves: true, address: "127.0.0.1:8080", port: 8080, tls: false, origins: &[] };

    #[test]
    fn odd_addresses_are_told() {
        for (site, url, state) in [
            ("https://crm.example.com", None, State::Good),
            ("http://crm.example.com", None, State::Good),
            ("https://crm.example.com", Some("ws://crm.example.com"), State::Bad),
            ("http://localhost", None, State::Doubt),
            ("https://127.0.0.1/x", None, State::Doubt),
            ("https://crm.example.com:8443", None, State::Doubt),
            ("https://[2001:db8::1]", None, State::Good),
            ("nonsense", None, State::Bad),
        ] {
            assert_eq!(address(site, url, &DAEMON).1.state, state, "{site} {url:?}");
        }
        let elsewhere = Daemon { port: 8081, ..DAEMON };
        assert_eq!(address("http://crm", None, &elsewhere).1.state, State::Doubt);
        assert_eq!(address("https://crm", None, &elsewhere).1.state, State::Good);
        let origins = [Origin::of("https://a").unwrap()];
        let picky = Daemon { origins: &origins, ..DAEMON };
        assert_eq!(address("https://a/x", None, &picky).1.state, State::Good);
        assert_eq!(address("https://b", None, &picky).1.state, State::Bad);
        let secure = Daemon { tls: true, ..DAEMON };
        assert_eq!(address("http://crm", None, &secure).1.state, State::Bad);
    }

    fn judged(visit: &Visit, daemon: &Daemon<'_>) -> Finding {
        let place = Place::of("https://crm.example.com", None).unwrap();
        visit.judge(&place, daemon, &|| "SNIPPET".to_owned())
    }

    fn answer(head: &str, frame: &[u8]) -> Visit {
        let answer = [head.as_bytes(), b"\r\nServer: nginx/1.22\r\n\r\n", frame].concat();
        Visit { phase: "answer".to_owned(), answer, ..Visit::default() }
    }

    /// The end of a WebSocket as our daemon sends it.
    const CLOSE: &[u8] = b"\x88\x06\x03\xf0text";

    fn switched() -> String {
        let accept = health::ACCEPT;
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}")
    }

    #[test]
    fn our_own_answer_is_good_for_as_long_as_the_certificate_is() {
        let mut visit = answer(&switched(), CLOSE);
        assert!(judged(&visit, &DAEMON).is_good());
        let until = |days: i64| Some(Certificate { until: days * 86_400, ..Default::default() });
        visit.certificate = until(60);
        assert!(judged(&visit, &DAEMON).found.contains("nginx/1.22, with a certificate for 60"));
        visit.certificate = until(3);
        assert_eq!(judged(&visit, &DAEMON).state, State::Doubt);
        // Another's.
        let finding = judged(&answer(&switched(), &[0x88, 2, 3, 232]), &DAEMON);
        assert_eq!(finding.state, State::Bad);
        assert!(finding.found.contains("not ours"), "{}", finding.found);
    }

    #[test]
    fn each_other_answer_is_explained() {
        let down = Daemon { serves: false, ..DAEMON };
        for (head, daemon, found, fix) in [
            ("HTTP/1.1 200 OK", &DAEMON, "200", "SNIPPET"),
            ("HTTP/1.1 404 Not Found", &DAEMON, "does not pass /wss on", "SNIPPET"),
            ("HTTP/1.1 400 Bad Request", &DAEMON, "as an upgrade", "SNIPPET"),
            ("HTTP/1.1 426 Upgrade Required", &DAEMON, "as an upgrade", "SNIPPET"),
            ("HTTP/1.1 505 x", &DAEMON, "as an upgrade", "SNIPPET"),
            ("HTTP/1.1 301 x\r\nLocation: https://a/b", &DAEMON, "to https://a/b", "SNIPPET"),
            ("HTTP/1.1 401 x", &DAEMON, "password", "except /wss"),
            ("HTTP/1.1 403 x", &DAEMON, "403", "SNIPPET"),
            ("HTTP/1.1 502 x", &DAEMON, "does not reach", "127.0.0.1:8080"),
            ("HTTP/1.1 503 x", &down, "does not reach", "see above"),
            ("it's \"x\"", &DAEMON, "answers it's \"x\", which is no HTTP", "log"),
        ] {
            let finding = judged(&answer(head, b""), daemon);
            assert_eq!(finding.state, State::Bad);
            assert!(finding.found.contains(found), "{}", finding.found);
            assert!(finding.fix.contains(fix), "{}", finding.fix);
        }
        let nothing = Visit { phase: "answer".to_owned(), ..Visit::default() };
        assert!(judged(&nothing, &DAEMON).found.contains("does not answer"));
    }

    #[test]
    fn each_bad_certificate_is_explained() {
        let good = || Certificate { until: 200, length: 2, ..Default::default() };
        for (error, certificate, expected) in [
            ("Peer certificate CN=`x' did not match expected CN=`y'", good(), "another name"),
            ("verify failed", Certificate { until: 50, ..good() }, "expired"),
            ("verify failed", Certificate { from: 150, ..good() }, "not valid yet"),
            ("verify failed", Certificate { own: true, ..good() }, "signs itself"),
            ("verify failed", Certificate { length: 1, ..good() }, "not trusted"),
            ("verify failed", good(), "not trusted"),
        ] {
            let visit = Visit {
                phase: "tls".to_owned(),
                error: error.to_owned(),
                certificate: Some(certificate),
                now: 100,
                ..Visit::default()
            };
            let finding = judged(&visit, &DAEMON);
            assert_eq!(finding.state, State::Bad);
            assert!(finding.found.contains(expected), "{}", finding.found);
        }
        let tls = |error: &str| {
            let (phase, error) = ("tls".to_owned(), error.to_owned());
            judged(&Visit { phase, error, ..Visit::default() }, &DAEMON).found
        };
        assert!(tls("SSL routines::wrong version number").contains("no TLS is spoken"));
        assert!(tls("handshake failure").contains("TLS fails"));
    }

    #[test]
    fn who_cannot_be_reached_is_told() {
        let unreached = |error: &str, answer: Vec<u8>| Visit {
            phase: "connect".to_owned(),
            error: error.to_owned(),
            answer,
            ..Visit::default()
        };
        let refused = unreached("Connection refused", Vec::new());
        assert!(judged(&refused, &DAEMON).fix.contains("firewall"));
        let unknown = unreached("php_network_getaddresses: getaddrinfo failed", Vec::new());
        assert!(judged(&unknown, &DAEMON).fix.contains("DNS"));
        let ours = [switched().as_bytes(), b"\r\n\r\n", CLOSE].concat();
        let hairpin = unreached("Connection timed out", ours);
        assert_eq!(judged(&hairpin, &DAEMON).state, State::Doubt);
        assert_eq!(judged(&Visit::default(), &DAEMON).state, State::Unknown);
    }
}
