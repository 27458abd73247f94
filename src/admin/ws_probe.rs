//! The WebSocket client of `health` and the doctor.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::engine::printable::printable;
use crate::espocrm::{Installation, Script};

/// A connection without TLS.
pub(super) struct WebSocket {
    tcp: TcpStream,
    received: Response,
}

/// What a server sent: its response to the upgrade request, then frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response(pub Vec<u8>);

/// The meaning of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server accepted the WebSocket.
    Open,
    /// The server accepted the WebSocket and closed it with a Close frame, with this code.
    Closed(Option<u16>),
    /// The server responded with this status.
    Http(u16),
    NotHttp,
}

/// A client that PHP runs, because a TLS client would add 120 KB to this program.
#[derive(Clone, Copy)]
pub(super) struct PhpClient<'a> {
    /// The name for the certificate.
    pub host: &'a str,
    pub tls: Tls,
    pub proxy_header: &'a str,
    pub request: &'a str,
    /// For connecting, for the TLS handshake and for the response.
    pub timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    Off,
    Verified,
    Unverified,
}

/// The result of a connection by PHP.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub phase: Phase,
    pub error: String,
    pub response: Response,
    pub certificate: Option<Certificate>,
    /// When it was made, in seconds since 1970.
    pub now: i64,
}

/// The last phase of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Connect,
    Tls,
    Response,
}

#[derive(Debug, Default)]
pub(super) struct Certificate {
    pub names: String,
    pub issuer: String,
    pub from: i64,
    pub until: i64,
    pub self_signed: bool,
    /// Certificates in the chain that the server sent.
    pub length: i64,
}

/// The key of RFC 6455, section 1.3, and the expected response.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Bytes that are read from a connection.
const MAX_READ: usize = 16 * 1024;

/// The first byte of a Close frame (RFC 6455, section 5.5.1).
const CLOSE: u8 = 0x88;

const SCRIPT: Script = Script {
    text: include_str!("ws_probe.php"),
    variable: "ESPOCRM_WEBSOCKET_WS_PROBE",
    mark: "espocrm-websocket-ws-probe:",
    timeout: Duration::ZERO,
};

/// An upgrade request like that of a browser.
pub(super) fn upgrade(target: &str, host: &str, origin: &str) -> String {
    let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
         Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (espocrm-websocket)\r\n\
         Upgrade: websocket\r\n{origin}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Protocol: wamp\r\n\r\n"
    )
}

/// Sends a request without TLS. Returns the response when it is complete, the connection ends or
/// the timeout expires.
pub(super) fn send(address: SocketAddr, request: &str, timeout: Duration) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    let mut socket = WebSocket::open(address, request, deadline)?;
    match socket.read_until(deadline, Response::is_complete) {
        Err(error) if socket.received.0.is_empty() && error.kind() != ErrorKind::UnexpectedEof => {
            Err(error)
        }
        // After a reset, the bytes received before it count.
        _ => Ok(socket.received),
    }
}

impl WebSocket {
    /// Connects and sends the request.
    pub(super) fn open(address: SocketAddr, request: &str, deadline: Instant) -> io::Result<Self> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let mut tcp = TcpStream::connect_timeout(&address, timeout)?;
        tcp.set_write_timeout(Some(timeout))?;
        tcp.write_all(request.as_bytes())?;
        Ok(Self { tcp, received: Response::default() })
    }

    /// Sends a short frame, masked with zeros. `first`: its first byte.
    pub(super) fn send(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let length = u8::try_from(payload.len()).unwrap_or(0) | 0x80;
        self.tcp.write_all(&[&[first, length, 0, 0, 0, 0], payload].concat())
    }

    /// Reads until what was received satisfies a condition.
    pub(super) fn read_until(
        &mut self,
        deadline: Instant,
        is_enough: impl Fn(&Response) -> bool,
    ) -> io::Result<()> {
        let mut piece = [0; 2048];
        while !is_enough(&self.received) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.received.0.len() > MAX_READ {
                return Err(ErrorKind::TimedOut.into());
            }
            self.tcp.set_read_timeout(Some(left))?;
            match self.tcp.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.received.0.extend_from_slice(piece.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Response {
    pub(super) fn outcome(&self) -> Outcome {
        let digits = self.0.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let is_accepted = |head: &str| head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT);
        match (self.split().filter(|(head, _)| is_accepted(head)), status) {
            (Some((_, [CLOSE, _, high, low, ..])), _) => {
                Outcome::Closed(Some(u16::from_be_bytes([*high, *low])))
            }
            (Some((_, [CLOSE, ..])), _) => Outcome::Closed(None),
            (Some(_), _) => Outcome::Open,
            (None, Some(status)) => Outcome::Http(status),
            (None, None) => Outcome::NotHttp,
        }
    }

    /// Whether the server sends nothing more that changes the outcome.
    fn is_complete(&self) -> bool {
        match self.outcome() {
            Outcome::Closed(_) => true,
            Outcome::Http(_) => self.split().is_some(),
            Outcome::Open | Outcome::NotHttp => false,
        }
    }

    /// The head, and the frames.
    fn split(&self) -> Option<(String, &[u8])> {
        let end = self.0.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let (head, frames) = self.0.split_at_checked(end + 4)?;
        Some((String::from_utf8_lossy(head).into_owned(), frames))
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.split()?.0.lines().skip(1).find_map(|line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then(|| value.trim().chars().take(200).collect())
        })
    }

    /// The first line, safe for a terminal.
    pub(super) fn first_line(&self) -> String {
        printable(String::from_utf8_lossy(&self.0).lines().next().unwrap_or_default())
    }

    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|it| it == bytes)
    }
}

impl PhpClient<'_> {
    /// Sends the request to this host and port.
    pub(super) fn send(
        &self,
        address: &str,
        espocrm: &Installation,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Attempt, String> {
        let task = json!({
            "address": address, "host": self.host, "tls": self.tls != Tls::Off,
            "verify": self.tls == Tls::Verified, "proxy_header": self.proxy_header,
            "request": Base64::encode_string(self.request.as_bytes()),
            "seconds": self.timeout.as_secs(),
        });
        // Includes the start of PHP.
        let script = Script { timeout: 4 * self.timeout, ..SCRIPT };
        script.run(espocrm, &task, stop).map(|answer| Attempt::of(&answer))
    }
}

impl Attempt {
    fn of(answer: &Value) -> Self {
        let text = |pointer: &str| {
            answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let number = |pointer: &str| answer.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        Self {
            phase: match &*text("/phase") {
                "response" => Phase::Response,
                "tls" => Phase::Tls,
                _ => Phase::Connect,
            },
            error: text("/error"),
            response: Response(Base64::decode_vec(&text("/response")).unwrap_or_default()),
            certificate: answer.get("certificate").map(|certificate| Certificate {
                names: text("/certificate/names"),
                issuer: text("/certificate/issuer"),
                from: number("/certificate/from"),
                until: number("/certificate/until"),
                self_signed: certificate.get("self_signed") == Some(&Value::Bool(true)),
                length: number("/certificate/length"),
            }),
            now: number("/now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn outcome(response: &[&[u8]]) -> Outcome {
        Response(response.concat()).outcome()
    }

    #[test]
    fn only_an_accepted_and_cleanly_closed_websocket_is_closed() {
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        let other = head.replace("s3p", "x3p");
        let old = head.replace("/1.1", "/1.0");
        let head = head.as_bytes();
        assert_eq!(outcome(&[head, &[0x88, 2, 3, 240]]), Outcome::Closed(Some(1008)));
        assert_eq!(outcome(&[head, &[0x88]]), Outcome::Closed(None));
        assert_eq!(outcome(&[head]), Outcome::Open);
        assert_eq!(outcome(&[head, &[0x81, 0]]), Outcome::Open);
        assert_eq!(outcome(&[other.as_bytes(), &[0x88, 0]]), Outcome::Http(101));
        assert_eq!(outcome(&[old.as_bytes(), &[0x88, 0]]), Outcome::Http(101));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\n\x88";
        assert_eq!(outcome(&[refused]), Outcome::Http(503));
        for other in [&b""[..], b"HTTP/1.1 abc", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/2 200 \r\n"] {
            assert_eq!(outcome(&[other]), Outcome::NotHttp);
        }
    }

    /// The result of a request to a server that sends these bytes and then waits for the client.
    fn sent(response: &'static [u8], timeout: Duration) -> io::Result<Response> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            tcp.write_all(response).unwrap();
            let mut request = Vec::new();
            let _ = tcp.read_to_end(&mut request);
            String::from_utf8(request).unwrap()
        });
        let sent = send(address, &upgrade("/x", "h", "https://o"), timeout);
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /x HTTP/1.1\r\nHost: h\r\n"), "{request}");
        assert!(request.contains("\r\nOrigin: https://o\r\n"), "{request}");
        sent
    }

    #[test]
    fn a_complete_response_is_not_waited_for() {
        let start = Instant::now();
        let response = sent(b"HTTP/1.1 418 teapot\r\nServer:  x \r\n\r\n", TIMEOUT).unwrap();
        assert_eq!(response.first_line(), "HTTP/1.1 418 teapot");
        assert_eq!(response.header("server").as_deref(), Some("x"));
        assert!(start.elapsed() < TIMEOUT);
        let short = Duration::from_millis(50);
        assert_eq!(sent(b"HTTP", short).unwrap().first_line(), "HTTP");
        assert!(sent(b"", short).is_err());
    }

    #[test]
    fn the_answer_of_the_script_is_parsed() {
        let attempt = Attempt::of(&json!({
            "phase": "tls", "error": "x", "now": 7, "response": "SFRUUC8xLjEgNDAwIHgNCg==",
            "certificate": {"names": "a", "issuer": "b", "self_signed": true, "length": 2},
        }));
        assert_eq!((attempt.phase, &*attempt.error, attempt.now), (Phase::Tls, "x", 7));
        assert_eq!(attempt.response.outcome(), Outcome::Http(400));
        let certificate = attempt.certificate.unwrap();
        assert!(certificate.self_signed && certificate.length == 2);
        assert_eq!(Attempt::of(&json!({"phase": "response"})).phase, Phase::Response);
    }
}
