//! The protocol of the control socket and the metrics port: HTTP requests and response heads.

use crate::engine::espocrm::submission::Rejection;
use crate::engine::json::Quoted;
use crate::engine::limits::{MAX_CONTROL_BODY, MAX_CONTROL_HEAD, MAX_LISTED, MAX_PARAMETER};
use crate::engine::protocol::http;
use crate::engine::protocol::http::Head;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /metrics`
    Metrics,
    /// `GET /healthz`
    Health,
    /// `GET /status`
    Status,
    /// `GET /users`, `/topics`, `/connections`, with the maximum number of items.
    List(List, usize),
    /// `POST /kick`: close this user's connections.
    Kick(String),
    /// `POST /send`: publish this message as if EspoCRM had sent it.
    Send(Vec<u8>),
    /// `GET /tail`: messages as they are delivered.
    Tail,
    /// `POST /reload`: reload the settings; the response follows when they are applied.
    Reload,
}

/// A kind of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Users, those with the most connections first.
    Users,
    /// Topics, those with the most subscribers first.
    Topics,
    /// Connections, the most recent first.
    Connections,
}

/// The socket through which a client has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The control socket, for the administrator.
    Control,
    /// The metrics port: it names no users and changes nothing.
    Metrics,
}

/// Why a request is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: not HTTP, or a parameter is missing, unknown or invalid.
    BadRequest(&'static str),
    /// 403: the client is neither root nor the daemon's user.
    Forbidden,
    /// 404: unknown path.
    NotFound,
    /// 405: only this method is allowed.
    Method(&'static str),
    /// 411: a body without a length.
    LengthRequired,
    /// 413: the body is over [`MAX_CONTROL_BODY`].
    TooLong,
    /// 422: the message is not one that EspoCRM could send.
    Rejected(Rejection),
    /// 431: the head is over [`MAX_CONTROL_HEAD`].
    TooLarge,
    /// 503: too many concurrent requests.
    Busy,
}

/// Items of a list if the request has no `limit`.
const DEFAULT_LIMIT: usize = 1_000;

/// Parses a request from the bytes received so far; `None` if it is incomplete.
///
/// # Errors
/// [`Refusal`]
pub fn parse(bytes: &[u8], listener: Listener) -> Result<Option<Request>, Refusal> {
    let mut headers = http::no_headers();
    let head = match http::parse(bytes, &mut headers) {
        Ok(Some(head)) if head.length <= MAX_CONTROL_HEAD => head,
        Ok(None) if bytes.len() < MAX_CONTROL_HEAD => return Ok(None),
        Ok(_) | Err(http::Refusal::TooLarge) => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::BadRequest("Not a valid HTTP/1.1 request.")),
    };
    let path = head.target.split(['?', '#']).next().unwrap_or_default();
    let (method, parameters): (_, &[&str]) = match path {
        "/metrics" | "/healthz" => ("GET", &[]),
        _ if listener == Listener::Metrics => return Err(Refusal::NotFound),
        "/status" | "/tail" => ("GET", &[]),
        "/users" | "/topics" | "/connections" => ("GET", &["limit"]),
        "/kick" => ("POST", &["user"]),
        "/reload" => ("POST", &[]),
        "/send" => ("POST", &["topic", "user"]),
        _ => return Err(Refusal::NotFound),
    };
    if head.method != method {
        return Err(Refusal::Method(method));
    }
    let length = body_length(&head)?;
    let body = bytes.get(head.length..).unwrap_or_default();
    let Some(body) = body.get(..length) else { return Ok(None) };
    if names(head.target).any(|name| !parameters.contains(&name)) {
        return Err(Refusal::BadRequest("Unknown query parameter."));
    }
    Ok(Some(match path {
        "/metrics" => Request::Metrics,
        "/healthz" => Request::Health,
        "/status" => Request::Status,
        "/users" => Request::List(List::Users, limit(&head)?),
        "/topics" => Request::List(List::Topics, limit(&head)?),
        "/connections" => Request::List(List::Connections, limit(&head)?),
        "/reload" => Request::Reload,
        "/kick" => {
            let user =
                user(&head)?.ok_or(Refusal::BadRequest("Query parameter user is missing."))?;
            Request::Kick(user)
        }
        "/send" => {
            let topic = text(&head, "topic")?;
            let topic = topic.ok_or(Refusal::BadRequest("Query parameter topic is missing."))?;
            Request::Send(submission(&topic, user(&head)?.as_deref(), body))
        }
        _ => Request::Tail,
    }))
}

impl Refusal {
    /// The complete response.
    #[must_use]
    pub fn response(self) -> String {
        let text = match self {
            Self::BadRequest(text) => return error("400 Bad Request", "", text),
            Self::Forbidden => {
                let text = "Only root and the daemon's user may use the control socket.";
                return error("403 Forbidden", "", text);
            }
            Self::NotFound => "Not found.",
            Self::Method(method) => {
                let allow = format!("Allow: {method}\r\n");
                return error("405 Method Not Allowed", &allow, "Method not allowed.");
            }
            Self::LengthRequired => {
                return error("411 Length Required", "", "Content-Length is missing.");
            }
            Self::TooLong => return error("413 Content Too Large", "", "The message is too long."),
            Self::Rejected(rejection) => {
                let text = format!("The message was dropped: {rejection}.");
                return error("422 Unprocessable Content", "", &text);
            }
            Self::TooLarge => {
                return error(
                    "431 Request Header Fields Too Large",
                    "",
                    "The request head is too large.",
                );
            }
            Self::Busy => {
                return error(
                    "503 Service Unavailable",
                    "",
                    "Too many concurrent requests. Try again.",
                );
            }
        };
        error("404 Not Found", "", text)
    }
}

/// A complete response with this body.
#[must_use]
pub fn response(status: &str, content_type: &str, body: &str) -> String {
    http::response(status, "Connection: close\r\n", content_type, body)
}

/// The head of a response that is streamed until the connection is closed.
pub const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\
     Content-Type: application/x-ndjson; charset=utf-8\r\n\r\n";

fn error(status: &str, headers: &str, text: &str) -> String {
    let headers = format!("{headers}Connection: close\r\n");
    http::response(status, &headers, "text/plain", &format!("{text}\n"))
}

fn body_length(head: &Head<'_, '_>) -> Result<usize, Refusal> {
    if head.values("Transfer-Encoding").next().is_some() {
        return Err(Refusal::LengthRequired);
    }
    let mut lengths = head.values("Content-Length");
    let Some(length) = lengths.next() else { return Ok(0) };
    let is_number = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    if !is_number || lengths.next().is_some() {
        return Err(Refusal::BadRequest("Content-Length is not a number."));
    }
    let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
    length.filter(|length| *length <= MAX_CONTROL_BODY).ok_or(Refusal::TooLong)
}

/// The names of the query parameters, not decoded.
fn names(target: &str) -> impl Iterator<Item = &str> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split('=').next().unwrap_or_default())
}

fn text(head: &Head<'_, '_>, name: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = head.query(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    String::from_utf8(value).map(Some).map_err(|_| Refusal::BadRequest("The query is not UTF-8."))
}

fn user(head: &Head<'_, '_>) -> Result<Option<String>, Refusal> {
    let user = text(head, "user")?;
    if user.as_ref().is_some_and(|user| user.len() > MAX_PARAMETER) {
        return Err(Refusal::BadRequest("The user id is too long."));
    }
    Ok(user)
}

fn limit(head: &Head<'_, '_>) -> Result<usize, Refusal> {
    let Some(limit) = text(head, "limit")? else { return Ok(DEFAULT_LIMIT) };
    let limit = limit.parse().ok().filter(|limit| *limit <= MAX_LISTED);
    limit.ok_or(Refusal::BadRequest("limit must be a number up to 10000."))
}

/// The message as EspoCRM would send it. A body that is not an object is left unchanged and
/// rejected later.
fn submission(topic: &str, user: Option<&str>, body: &[u8]) -> Vec<u8> {
    let body = body.trim_ascii();
    let object = if body.is_empty() { b"{}" } else { body };
    let fields = object.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    let Some(fields) = fields.map(<[u8]>::trim_ascii) else { return body.to_vec() };
    let comma = if fields.is_empty() { "" } else { "," };
    // At the end: the last of repeated keys takes precedence.
    let mut added = format!("{comma}\"topicId\":{}", Quoted(topic));
    if let Some(user) = user {
        added = format!("{added},\"userId\":{}", Quoted(user));
    }
    [b"{", fields, added.as_bytes(), b"}"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::espocrm::submission as message;

    fn get(target: &str) -> Result<Option<Request>, Refusal> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        parse(request.as_bytes(), Listener::Control)
    }

    fn post(target: &str, body: &str) -> Result<Option<Request>, Refusal> {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        for end in 0..request.len() {
            assert_eq!(parse(&request.as_bytes()[..end], Listener::Control), Ok(None), "{end}");
        }
        parse(request.as_bytes(), Listener::Control)
    }

    fn sent(target: &str, body: &str) -> String {
        match post(target, body) {
            Ok(Some(Request::Send(message))) => String::from_utf8(message).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_path_is_parsed() {
        for (target, request) in [
            ("/metrics", Request::Metrics),
            ("/healthz", Request::Health),
            ("/status", Request::Status),
            ("/tail", Request::Tail),
            ("/users", Request::List(List::Users, 1_000)),
            ("/topics?limit=7", Request::List(List::Topics, 7)),
            ("/connections?limit=10000&", Request::List(List::Connections, 10_000)),
        ] {
            assert_eq!(get(target), Ok(Some(request)), "{target}");
        }
        let kick = Request::Kick("ä b".to_owned());
        assert_eq!(post("/kick?user=%c3%A4+b", ""), Ok(Some(kick)));
        assert_eq!(post("/reload", ""), Ok(Some(Request::Reload)));
        assert_eq!(get("/reload"), Err(Refusal::Method("POST")));
    }

    #[test]
    fn the_metrics_port_serves_only_two_paths() {
        for path in ["/metrics", "/healthz", "/status", "/users", "/kick?user=a", "/tail", "/", "*"]
        {
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            let found = parse(request.as_bytes(), Listener::Metrics) != Err(Refusal::NotFound);
            assert_eq!(found, path == "/metrics" || path == "/healthz", "{path}");
        }
    }

    #[test]
    fn topic_and_user_of_the_query_override_those_of_the_message() {
        assert_eq!(sent("/send?topic=a.b", ""), r#"{"topicId":"a.b"}"#);
        assert_eq!(
            sent("/send?topic=a%22&user=u", " { \"x\": [1] } "),
            r#"{"x": [1],"topicId":"a\"","userId":"u"}"#
        );
        let message = sent("/send?topic=a&user=u", r#"{"topicId":"b","userId":"v"}"#);
        let read = message::parse(message.as_bytes()).unwrap();
        assert_eq!((&*read.topic, read.user.as_deref()), ("a", Some("u")));
    }

    #[test]
    fn a_body_that_is_not_an_object_is_rejected_like_a_message_of_espocrm() {
        for body in
            ["[]", "7", "null", "{", "}", "\"\"", "{\"a\":1,}", "{}{}", "{\"a\":1},{\"b\":1}"]
        {
            let message = sent("/send?topic=a", body);
            let rejected = message::parse(message.as_bytes());
            assert_eq!(rejected, Err(Rejection::Malformed), "{body}: {message}");
        }
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let bad = |result| matches!(result, Err(Refusal::BadRequest(_)));
        for target in [
            "/users?limit=-1",
            "/users?limit=10001",
            "/users?limit=x",
            "/users?limits=1",
            "/status?limit=1",
            "/metrics?x",
        ] {
            assert!(bad(get(target)), "{target}");
        }
        let long = format!("/kick?user={}", "x".repeat(129));
        for target in ["/kick", "/kick?user=", "/kick?user=%ff", "/send", "/send?user=a", &long] {
            assert!(bad(post(target, "")), "{target}");
        }
        assert_eq!(get("/"), Err(Refusal::NotFound));
        assert_eq!(get("/Status"), Err(Refusal::NotFound));
        assert_eq!(get("/kick?user=a"), Err(Refusal::Method("POST")));
        let request = |text: &str| parse(text.as_bytes(), Listener::Control);
        assert_eq!(request("POST /status HTTP/1.1\r\n\r\n"), Err(Refusal::Method("GET")));
        let post = "POST /kick?user=a HTTP/1.1\r\n";
        for (header, refusal) in [
            ("Transfer-Encoding: chunked", Refusal::LengthRequired),
            ("Content-Length: 65537", Refusal::TooLong),
            ("Content-Length: 99999999999999999999999", Refusal::TooLong),
        ] {
            assert_eq!(request(&format!("{post}{header}\r\n\r\n")), Err(refusal), "{header}");
        }
        for header in
            ["Content-Length: +1", "Content-Length:", "Content-Length: 0\r\nContent-Length: 0"]
        {
            assert!(bad(request(&format!("{post}{header}\r\n\r\n"))), "{header}");
        }
        for text in ["\0", "GET\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "\u{16}\u{3}\u{1}"] {
            assert!(bad(request(text)), "{text:?}");
        }
    }

    #[test]
    fn the_head_is_bounded_whether_or_not_it_ends() {
        let head = |length: usize| {
            let begin = "GET /status HTTP/1.1\r\nCookie: ";
            format!("{begin}{}\r\n\r\n", "x".repeat(length - begin.len() - 4))
        };
        let parse = |text: &str| parse(text.as_bytes(), Listener::Control);
        assert_eq!(parse(&head(MAX_CONTROL_HEAD)), Ok(Some(Request::Status)));
        assert_eq!(parse(&head(MAX_CONTROL_HEAD + 1)), Err(Refusal::TooLarge));
        assert_eq!(parse(&head(MAX_CONTROL_HEAD + 1)[..MAX_CONTROL_HEAD]), Err(Refusal::TooLarge));
        assert_eq!(parse(&head(9_999)[..MAX_CONTROL_HEAD - 1]), Ok(None));
    }

    #[test]
    fn a_response_states_its_length() {
        let refusals = [
            Refusal::BadRequest("x"),
            Refusal::Forbidden,
            Refusal::NotFound,
            Refusal::Method("GET"),
            Refusal::LengthRequired,
            Refusal::TooLong,
            Refusal::Rejected(Rejection::TooBig),
            Refusal::TooLarge,
            Refusal::Busy,
        ];
        for refusal in refusals {
            let response = refusal.response();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{response}");
        }
    }
}
