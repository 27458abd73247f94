//! The HTTP request that opens a WebSocket (RFC 6455, section 4.2).

use std::borrow::Cow;
use std::fmt;

use base64ct::{Base64, Encoding};
use httparse::{EMPTY_HEADER, Header};
use ring::digest;

use crate::engine::checks::verdict::is_id;
use crate::engine::limits::{MAX_HEAD, MAX_HEADERS};

/// The head of an HTTP request.
#[derive(Debug)]
pub struct Head<'h, 'b> {
    /// `GET`, …
    pub method: &'b str,
    /// Path and query, not decoded.
    pub target: &'b str,
    /// Bytes up to and including the blank line.
    pub length: usize,
    http_1_1: bool,
    headers: &'h [Header<'b>],
}

/// A request that is upgraded to a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The user and token that the browser claims; `None` if they are missing or malformed. Such a
    /// connection is closed cleanly after the upgrade.
    pub credentials: Option<Credentials>,
}

/// The query parameters of EspoCRM's client.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `userId`
    pub user: Box<str>,
    /// `authToken`, a secret.
    pub token: Box<str>,
}

/// The HTTP error that answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: not HTTP, or a WebSocket handshake that violates RFC 6455.
    BadRequest,
    /// 405: the method is not GET.
    Method,
    /// 426: not a WebSocket upgrade, the version is not 13, or `wamp` is not offered.
    UpgradeRequired,
    /// 431: the head is over [`MAX_HEAD`] or has more lines than [`MAX_HEADERS`].
    TooLarge,
    /// 503: at a limit. A browser reconnects after three seconds.
    Unavailable,
    /// 505: the HTTP version is not 1.1.
    Version,
}

/// Parses a request's head with `headers` as scratch space; `None` if it is incomplete.
///
/// # Errors
/// [`Refusal::BadRequest`], [`Refusal::TooLarge`] and [`Refusal::Version`].
pub fn parse<'h, 'b>(
    bytes: &'b [u8],
    headers: &'h mut [Header<'b>; MAX_HEADERS],
) -> Result<Option<Head<'h, 'b>>, Refusal> {
    let mut request = httparse::Request::new(headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::BadRequest),
    };
    Ok(Some(Head {
        method: request.method.unwrap_or_default(),
        target: request.path.unwrap_or_default(),
        length,
        http_1_1: request.version == Some(1),
        headers: request.headers,
    }))
}

/// Scratch space for [`parse`].
#[must_use]
pub const fn no_headers<'b>() -> [Header<'b>; MAX_HEADERS] {
    [EMPTY_HEADER; MAX_HEADERS]
}

impl Head<'_, '_> {
    /// Decides whether the request opens a WebSocket.
    ///
    /// # Errors
    /// A [`Refusal`] if it does not.
    pub fn upgrade(&self) -> Result<Upgrade, Refusal> {
        if self.method != "GET" {
            return Err(Refusal::Method);
        }
        if !self.http_1_1 {
            return Err(Refusal::Version);
        }
        if !self.lists("Upgrade", "websocket") || !self.lists("Connection", "upgrade") {
            return Err(Refusal::UpgradeRequired);
        }
        if self.values("Host").count() != 1 {
            return Err(Refusal::BadRequest);
        }
        let mut keys = self.values("Sec-WebSocket-Key");
        let (Some(key), None) = (keys.next(), keys.next()) else { return Err(Refusal::BadRequest) };
        let mut versions = self.values("Sec-WebSocket-Version");
        if versions.next() != Some(b"13") || versions.next().is_some() {
            return Err(Refusal::UpgradeRequired);
        }
        if !is_nonce(key) {
            return Err(Refusal::BadRequest);
        }
        // Unlike the names above, those of subprotocols are case-sensitive.
        if !self.items("Sec-WebSocket-Protocol").any(|item| item == b"wamp") {
            return Err(Refusal::UpgradeRequired);
        }
        Ok(Upgrade { accept: accept(key), credentials: self.credentials() })
    }

    /// The decoded value of a query parameter; the last one if it is repeated.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<Vec<u8>> {
        let (_, query) = self.target.split_once('?')?;
        let mut parameters = query.split('#').next()?.split('&').filter_map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (*decode(key) == *name.as_bytes()).then_some(value)
        });
        parameters.next_back().map(|value| decode(value).into_owned())
    }

    /// The origin of the page, if the header occurs exactly once.
    #[must_use]
    pub fn origin(&self) -> Option<&[u8]> {
        let mut origins = self.values("Origin");
        origins.next().filter(|_| origins.next().is_none())
    }

    /// The values that proxies have added for the client's address, in the order of the header
    /// lines.
    #[must_use]
    pub fn forwarded_for(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.values("X-Forwarded-For")
    }

    fn credentials(&self) -> Option<Credentials> {
        let id = |name| {
            let value = self.query(name).filter(|value| is_id(value))?;
            String::from_utf8(value).ok().map(String::into_boxed_str)
        };
        Some(Credentials { user: id("userId")?, token: id("authToken")? })
    }

    /// The values of the lines with this name.
    pub(super) fn values<'a>(
        &'a self,
        name: &'static str,
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let headers = self.headers.iter();
        headers
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    }

    /// The items of a comma-separated list, which may span several lines.
    fn items<'a>(&'a self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    fn lists(&self, name: &'static str, item: &str) -> bool {
        self.items(name).any(|other| other.eq_ignore_ascii_case(item.as_bytes()))
    }
}

impl Upgrade {
    /// The response that completes the handshake.
    #[must_use]
    pub fn response(&self) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: wamp\r\n\r\n",
            self.accept
        )
    }
}

/// Completes "… was rejected: …".
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "invalid WebSocket handshake (400)",
            Self::Method => "the method is not GET (405)",
            Self::UpgradeRequired => {
                "no upgrade to WebSocket version 13 with subprotocol wamp (426)"
            }
            Self::TooLarge => "the request head is too large (431)",
            Self::Unavailable => "too many connections (503)",
            Self::Version => "not HTTP/1.1 (505)",
        })
    }
}

impl Refusal {
    /// The response, after which the connection is closed.
    #[must_use]
    pub fn response(self) -> String {
        let (status, extra, text) = match self {
            Self::BadRequest => ("400 Bad Request", "", "Invalid WebSocket handshake.\n"),
            Self::Method => ("405 Method Not Allowed", "Allow: GET\r\n", "Only GET is allowed.\n"),
            Self::UpgradeRequired => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
                "This is a WebSocket server, version 13, subprotocol wamp.\n",
            ),
            Self::TooLarge => {
                ("431 Request Header Fields Too Large", "", "The request head is too large.\n")
            }
            Self::Unavailable => {
                ("503 Service Unavailable", "Retry-After: 3\r\n", "Try again in a moment.\n")
            }
            Self::Version => {
                ("505 HTTP Version Not Supported", "", "WebSocket requires HTTP/1.1.\n")
            }
        };
        // RFC 9110 requires Connection to list the Upgrade header.
        let connection = if self == Self::UpgradeRequired { "Upgrade, close" } else { "close" };
        response(status, &format!("{extra}Connection: {connection}\r\n"), "text/plain", text)
    }
}

/// A complete HTTP response; `headers` are complete lines.
#[must_use]
pub fn response(status: &str, headers: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: {content_type}; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn accept(key: &[u8]) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    Base64::encode_string(sha1.finish().as_ref())
}

/// Whether a key is the encoding of 16 bytes.
fn is_nonce(key: &[u8]) -> bool {
    matches!(Base64::decode(key, &mut [0; 18]), Ok(nonce) if nonce.len() == 16)
}

/// Decodes `%41` and `+`; malformed escapes are left unchanged.
fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        decoded.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, tail @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = tail;
                    high << 4 | low
                }
                _ => b'%',
            },
            (byte, _) => *byte,
        });
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Omits the token.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /wss?authToken=abc&userId=1 HTTP/1.1\r\n\
        Host: crm.example.com\r\n\
        Connection: keep-alive, Upgrade\r\n\
        Upgrade: WebSocket\r\n\
        Sec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: soap, wamp\r\n\
        Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

    fn upgrade(request: &str) -> Result<Option<Upgrade>, Refusal> {
        let mut headers = no_headers();
        parse(request.as_bytes(), &mut headers)?.map(|head| head.upgrade()).transpose()
    }

    fn refusal(from: &str, to: &str) -> Result<Option<Upgrade>, Refusal> {
        assert!(GOOD.contains(from));
        upgrade(&GOOD.replace(from, to))
    }

    fn is_accepted(from: &str, to: &str) -> bool {
        matches!(refusal(from, to), Ok(Some(Upgrade { credentials: Some(_), .. })))
    }

    fn credentials(query: &str) -> Option<(String, String)> {
        let request = GOOD.replace("authToken=abc&userId=1", query);
        let credentials = upgrade(&request).unwrap().unwrap().credentials?;
        Some((credentials.token.into(), credentials.user.into()))
    }

    #[test]
    fn the_handshake_of_rfc_6455_is_answered() {
        let upgrade = upgrade(GOOD).unwrap().unwrap();
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let response = upgrade.response();
        assert!(response.starts_with("HTTP/1.1 101 "));
        assert!(response.contains("\r\nSec-WebSocket-Protocol: wamp\r\n"));
        assert!(!response.contains("Extensions"));
        assert!(response.ends_with("\r\n\r\n"));
    }

    #[test]
    fn variations_of_browsers_and_proxies_are_accepted() {
        for (from, to) in [
            ("/wss?", "/?"),
            ("/wss?", "/a/b//c%20?"),
            ("/wss?", "http://crm.example.com/wss?"),
            ("keep-alive, Upgrade", "upgrade"),
            ("keep-alive, Upgrade", "UPGRADE , x"),
            ("Connection: keep-alive, Upgrade", "Connection: x\r\nconnection: upgrade"),
            ("Upgrade: WebSocket", "UPGRADE: websocket, h2c"),
            ("Sec-WebSocket-Protocol: soap, wamp", "Sec-WebSocket-Protocol: wamp,wamp.2"),
            (
                "Sec-WebSocket-Protocol: soap, wamp",
                "Sec-WebSocket-Protocol: soap\r\nSec-WebSocket-Protocol:wamp",
            ),
            ("Host: crm.example.com", "Host:"),
        ] {
            assert!(is_accepted(from, to), "{to}");
        }
    }

    #[test]
    fn other_requests_get_the_right_error() {
        use Refusal::{BadRequest, Method, UpgradeRequired, Version};
        for (from, to, error) in [
            ("GET ", "POST ", Method),
            ("GET ", "HEAD ", Method),
            ("GET ", "get ", Method),
            ("HTTP/1.1", "HTTP/1.0", Version),
            ("HTTP/1.1", "HTTP/2.0", Version),
            ("HTTP/1.1", "HTTQ/1.1", Version),
            ("GET ", "\x16\x03\x01 ", BadRequest),
            ("Host: crm.example.com\r\n", "", BadRequest),
            ("Host: ", "Host: a\r\nHost: ", BadRequest),
            ("Upgrade: WebSocket\r\n", "", UpgradeRequired),
            ("Upgrade: WebSocket", "Upgrade: websockets", UpgradeRequired),
            ("Connection: keep-alive, Upgrade\r\n", "", UpgradeRequired),
            ("keep-alive, Upgrade", "keep-alive", UpgradeRequired),
            ("Version: 13", "Version: 8", UpgradeRequired),
            ("Sec-WebSocket-Version: 13\r\n", "", UpgradeRequired),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", BadRequest),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhl", BadRequest),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", BadRequest),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", BadRequest),
            (
                "Sec-WebSocket-Key:",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key:",
                BadRequest,
            ),
            ("soap, wamp", "soap", UpgradeRequired),
            ("soap, wamp", "WAMP", UpgradeRequired),
            ("Sec-WebSocket-Protocol: soap, wamp\r\n", "", UpgradeRequired),
            ("Host: crm", "Ho st: crm", BadRequest),
            ("Host: crm", "Host: \0crm", BadRequest),
        ] {
            assert_eq!(refusal(from, to), Err(error), "{to}");
        }
    }

    #[test]
    fn the_head_is_bounded() {
        let padded = |length: usize| {
            let filler = "x".repeat(length - GOOD.len() - 11);
            GOOD.replace("Host:", &format!("Cookie: {filler}\r\nHost:"))
        };
        assert_eq!(padded(MAX_HEAD).len(), MAX_HEAD - 1);
        assert!(matches!(upgrade(&padded(MAX_HEAD)), Ok(Some(_))));
        assert_eq!(upgrade(&padded(MAX_HEAD + 2)), Err(Refusal::TooLarge));
        let endless = format!("GET /{}", "a".repeat(MAX_HEAD));
        assert_eq!(upgrade(&endless), Err(Refusal::TooLarge));
        assert_eq!(upgrade(&endless[..MAX_HEAD - 1]), Ok(None));
        let many = GOOD.replace("Host:", &format!("{}Host:", "A: b\r\n".repeat(MAX_HEADERS)));
        assert_eq!(upgrade(&many), Err(Refusal::TooLarge));
    }

    #[test]
    fn every_prefix_is_incomplete() {
        for end in 0..GOOD.len() {
            assert_eq!(upgrade(&GOOD[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_strictly_validated() {
        let good = Some(("abc".to_owned(), "1".to_owned()));
        for query in [
            "authToken=abc&userId=1",
            "userId=1&x=y&authToken=abc",
            "userId=%31&auth%54oken=a%62c",
            "authToken=other&authToken=abc&userId=1",
            "authToken=abc&userId=1#x",
            "&&authToken=abc&=&userId=1&",
        ] {
            assert_eq!(credentials(query), good, "{query}");
        }
        let long = format!("authToken={}&userId=1", "a".repeat(129));
        for query in [
            "",
            "authToken=abc",
            "userId=1",
            "authToken=&userId=1",
            "authToken&userId=1",
            "authToken=abc&userId=",
            "authtoken=abc&userid=1",
            "authToken=a+b&userId=1",
            "authToken=a%20b&userId=1",
            "authToken=a%00&userId=1",
            "authToken=a%&userId=1",
            "authToken=a%4&userId=1",
            "authToken=a%zz&userId=1",
            "authToken=abc&userId=$(id)",
            "authToken=abc&userId=1;x",
            "authToken=a_b&userId=1",
            "authToken=%c3%a9&userId=1",
            "authToken=-abc&userId=1",
            &long,
        ] {
            assert_eq!(credentials(query), None, "{query}");
        }
    }

    #[test]
    fn errors_are_short_complete_responses() {
        for (refusal, start, header) in [
            (Refusal::BadRequest, "HTTP/1.1 400 ", "Connection: close\r\n"),
            (Refusal::Method, "HTTP/1.1 405 ", "Allow: GET\r\n"),
            (Refusal::UpgradeRequired, "HTTP/1.1 426 ", "Sec-WebSocket-Version: 13\r\n"),
            (Refusal::TooLarge, "HTTP/1.1 431 ", "Connection: close\r\n"),
            (Refusal::Unavailable, "HTTP/1.1 503 ", "Retry-After: 3\r\n"),
            (Refusal::Version, "HTTP/1.1 505 ", "Connection: close\r\n"),
        ] {
            let response = refusal.response();
            assert!(response.starts_with(start) && response.contains(header), "{response}");
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
            assert!(head.contains("close"));
            assert!(!head.to_ascii_lowercase().contains("server:"));
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let upgrade = upgrade(GOOD).unwrap().unwrap();
        assert!(!format!("{upgrade:?}").contains("abc"));
    }
}
