//! Requests that do not open a WebSocket get short and valid HTTP responses, and TCP is closed.

use serde_json::json;

use crate::support::{Client, Daemon, Pusher, Standin, eventually, request};

/// A complete HTTP response.
#[derive(Debug)]
struct Response {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: String,
}

impl Response {
    /// Reads up to the end of TCP, which must yield exactly one valid response.
    fn read(client: &mut Client) -> Self {
        let text = String::from_utf8(client.read_to_end()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect(&text);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect(head);
        let (status, reason) = status.split_once(' ').expect(head);
        assert!(!reason.is_empty(), "{head}");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect(line);
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let response = Self {
            status: status.parse().unwrap(),
            headers: lines.map(header).collect(),
            body: body.to_owned(),
        };
        response.check();
        response
    }

    /// The properties that all responses share.
    fn check(&self) {
        assert_eq!(self.header("content-length"), self.body.len().to_string(), "{self:?}");
        let mut connection = self.header("connection").split(',').map(str::trim);
        assert!(connection.any(|option| option == "close"), "{self:?}");
        assert!(self.header("content-type").starts_with("text/plain"), "{self:?}");
        assert!((1..200).contains(&self.body.len()), "{self:?}");
        let text = format!("{self:?}").to_ascii_lowercase();
        for banner in ["server\"", "x-powered-by", "espocrm", "rust", "tungstenite", "php"] {
            assert!(!text.contains(banner), "{text}");
        }
    }

    /// The value of a header that occurs at most once; empty if it is missing.
    fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(other, _)| other == name);
        let value = values.next().map_or("", |(_, value)| value);
        assert_eq!(values.next(), None);
        value
    }
}

/// The response to these bytes.
fn response_to(daemon: &Daemon, bytes: &[u8]) -> Response {
    let mut client = Client::tcp(daemon.address);
    client.send(bytes);
    Response::read(&mut client)
}

/// The usual request with one of its lines changed.
fn changed(old: &str, new: &str) -> String {
    let request = request("/?authToken=tok-alice&userId=alice");
    assert!(request.contains(old), "{old}");
    request.replace(old, new)
}

#[test]
fn an_invalid_handshake_is_answered_400() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    for request in [
        changed(key, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="),
        changed(key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSBpcyBsb25n"),
        changed(key, "Sec-WebSocket-Key: no base64, but 24 ch"),
        changed(key, "Sec-WebSocket-Key:"),
        changed(key, "X-No-Key: 1"),
        changed(key, &format!("{key}\r\n{key}")),
        changed("Host: localhost\r\n", ""),
        changed("Host: localhost", "Host: localhost\r\nHost: elsewhere"),
        changed("Host: localhost", "Host localhost"),
        "hello\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
    ] {
        assert_eq!(response_to(&daemon, request.as_bytes()).status, 400, "{request}");
    }
}

#[test]
fn another_method_is_answered_405_with_an_allow_header() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    for method in ["POST", "HEAD", "OPTIONS", "get"] {
        let response = response_to(&daemon, changed("GET", method).as_bytes());
        assert_eq!((response.status, response.header("allow")), (405, "GET"), "{method}");
    }
    // The response is not lost if the request is longer than the part that is read.
    let mut post = changed("GET", "POST").into_bytes();
    post.resize(200_000, b'x');
    assert_eq!(response_to(&daemon, &post).status, 405);
}

#[test]
fn requests_without_a_wamp_websocket_are_answered_426() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        changed("Connection: Upgrade", "Connection: keep-alive"),
        changed("Upgrade: websocket", "Upgrade: h2c"),
        changed("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        changed("Sec-WebSocket-Version: 13", "X-No-Version: 1"),
        changed("Sec-WebSocket-Protocol: wamp\r\n", ""),
        changed("Sec-WebSocket-Protocol: wamp", "Sec-WebSocket-Protocol: wamp.2.json, mqtt"),
    ] {
        let response = response_to(&daemon, request.as_bytes());
        let version = response.header("sec-websocket-version");
        assert_eq!((response.status, version), (426, "13"), "{request}");
        assert_eq!(response.header("upgrade"), "websocket", "{request}");
    }
}

#[test]
fn an_oversized_head_is_answered_431_even_if_incomplete() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let cookie = format!("Cookie: {}", "c".repeat(20_000));
    assert_eq!(
        response_to(&daemon, changed("Origin", &format!("{cookie}\r\nOrigin")).as_bytes()).status,
        431
    );
    let endless = format!("GET / HTTP/1.1\r\n{cookie}");
    assert_eq!(response_to(&daemon, endless.as_bytes()).status, 431);
    assert_eq!(response_to(&daemon, &endless.as_bytes()[..16 * 1024]).status, 431);
}

#[test]
fn an_unsupported_http_version_is_answered_505() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned();
    for request in [changed("HTTP/1.1", "HTTP/1.0"), changed("HTTP/1.1", "HTTP/1.2"), http2] {
        assert_eq!(response_to(&daemon, request.as_bytes()).status, 505, "{request}");
    }
}

#[test]
fn beyond_the_connection_limit_requests_are_answered_503_until_a_client_leaves() {
    let standin = Standin::new();
    let daemon = Daemon::start_with(&standin, &["--max-connections", "2"]);
    let mut first = daemon.connect("alice");
    let mut second = daemon.connect("bob");
    let request = request("/?authToken=tok-carol&userId=carol");
    for _ in 0..3 {
        let response = response_to(&daemon, request.as_bytes());
        assert_eq!((response.status, response.header("retry-after")), (503, "3"));
    }
    // Invalid requests still get their own status, and rejected requests cause no check.
    assert_eq!(response_to(&daemon, b"hello\r\n\r\n").status, 400);
    assert_eq!(standin.count("AuthTokenCheck tok-carol carol"), 0);
    first.expect_silence();
    second.expect_silence();
    drop(first);
    eventually("there is room again", || {
        let mut carol = Client::tcp(daemon.address);
        carol.send(request.as_bytes());
        carol.read_head().starts_with("HTTP/1.1 101 ")
    });
    second.expect_silence();
}

#[test]
fn a_half_closed_client_still_gets_its_response() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    // As `nc -N` does.
    let mut client = Client::tcp(daemon.address);
    client.send(b"GET / HTTP/1.0\r\n\r\n");
    client.half_close();
    assert_eq!(Response::read(&mut client).status, 505);
}

#[test]
fn garbage_and_tls_on_the_plain_port_affect_only_that_connection() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "newNotification");
    // The beginning of a TLS 1.3 ClientHello, as a browser sends it to a port that it uses for wss.
    let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    hello.extend((0..506).map(|i: u16| u8::try_from(i * 7 % 251).unwrap()));
    let frame = <Client>::frame(0x81, b"[5,\"newNotification\"]");
    for garbage in [hello, vec![0; 1000], vec![0xff; 100_000], b"\n\n\x01".to_vec(), frame] {
        let mut client = Client::tcp(daemon.address);
        client.send(&garbage);
        assert_eq!(Response::read(&mut client).status, 400, "{:x?}", &garbage[..3]);
    }
    let message = json!({"userId": "alice", "topicId": "newNotification"});
    Pusher::connect(&daemon.zeromq).send(&message);
    alice.expect_event(&message);
    daemon.connect("bob");
}
