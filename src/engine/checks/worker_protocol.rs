//! The protocol of the workers: one HTTP request and one response per connection.

use std::fmt::Write;

use crate::engine::limits::MAX_CHILD_OUTPUT;

/// A worker's response.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The outcome of the command.
    Done(Done),
    /// The worker could not complete this command.
    Unable,
}

/// The outcome of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// The exit status that the command would have had.
    pub status: i32,
    /// What the command would have printed.
    pub output: Vec<u8>,
    /// When the worker has compared its compiled files with those on disk, in seconds of its clock.
    /// The next request sends this time back: the worker keeps no state, and need not compare them
    /// again within the same second.
    pub compared: Option<u64>,
}

/// The worker's response is invalid; the check must be run in another way.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidResponse;

/// Bytes of a response head: the few headers that PHP and EspoCRM add to the worker's.
const MAX_HEAD: usize = 16 * 1024;

const MAX_HEADERS: usize = 64;

/// The request to run a command, with the words after `php command.php`. The response repeats the
/// `nonce`; `compared` comes from the last response of this worker.
#[must_use]
pub fn request(secret: &str, nonce: &str, compared: Option<u64>, words: &[Box<str>]) -> Vec<u8> {
    let body = serde_json::to_string(words).unwrap_or_default();
    let compared = compared.map(|at| format!("X-Compared: {at}\r\n")).unwrap_or_default();
    let mut request = String::new();
    let _ = write!(
        request,
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Secret: {secret}\r\nX-Nonce: {nonce}\r\n\
         {compared}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    request.into_bytes()
}

/// Parses a response from the bytes received so far; `None` if it is incomplete. `ended`: the
/// worker has closed the connection.
///
/// # Errors
/// [`InvalidResponse`]
pub fn read(bytes: &[u8], nonce: &str, ended: bool) -> Result<Option<Reply>, InvalidResponse> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if !ended && bytes.len() < MAX_HEAD => return Ok(None),
        _ => return Err(InvalidResponse),
    };
    let only = |name: &str| {
        let mut found = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let value = found.next().and_then(|header| std::str::from_utf8(header.value).ok());
        value.filter(|_| found.next().is_none())
    };
    if head.code.is_some_and(|code| code >= 400) {
        return Ok(Some(Reply::Unable));
    }
    if head.code != Some(200) || only("X-Nonce") != Some(nonce) {
        return Err(InvalidResponse);
    }
    let status = number(only("X-Exit-Status"), 255)?;
    let expected = number(only("Content-Length"), MAX_CHILD_OUTPUT)?;
    let compared = only("X-Compared").and_then(|at| at.parse().ok());
    let body = bytes.get(length..).unwrap_or_default();
    if body.len() == expected {
        let status = i32::try_from(status).map_err(|_| InvalidResponse)?;
        return Ok(Some(Reply::Done(Done { status, output: body.to_vec(), compared })));
    }
    if ended || body.len() > expected { Err(InvalidResponse) } else { Ok(None) }
}

fn number(text: Option<&str>, most: usize) -> Result<usize, InvalidResponse> {
    let text = text.filter(|text| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit()));
    let number = text.and_then(|text| text.parse().ok());
    number.filter(|number| *number <= most).ok_or(InvalidResponse)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "HTTP/1.1 200 OK\r\nHost: 127.0.0.1\r\nX-Powered-By: PHP/8.2\r\nx-nonce: n\r\n\
        X-Exit-Status: 1\r\nContent-Length: 4\r\n\r\ntrue";

    fn reply(status: i32, output: &str) -> Reply {
        Reply::Done(Done { status, output: output.into(), compared: None })
    }

    #[test]
    fn a_request_contains_the_words_as_json() {
        let words = ["AclCheck".into(), "--id=\"é\"".into()];
        let later = String::from_utf8(request("s", "n", Some(17), &words)).unwrap();
        assert!(later.contains("\r\nX-Compared: 17\r\n"));
        let request = String::from_utf8(request("s", "n", None, &words)).unwrap();
        assert!(!request.contains("X-Compared"));
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, r#"["AclCheck","--id=\"é\""]"#);
        assert!(head.contains("\r\nX-Secret: s\r\nX-Nonce: n\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
    }

    #[test]
    fn a_response_is_parsed_when_it_is_complete() {
        let good = GOOD.as_bytes();
        for length in 0..good.len() {
            assert_eq!(read(&good[..length], "n", false), Ok(None), "{length}");
            assert_eq!(read(&good[..length], "n", true), Err(InvalidResponse), "{length}");
        }
        assert_eq!(read(good, "n", false), Ok(Some(reply(1, "true"))));
        assert_eq!(read(good, "n", true), Ok(Some(reply(1, "true"))));
    }

    #[test]
    fn the_time_of_the_last_comparison_is_optional() {
        for (header, compared) in [("17", Some(17)), ("x", None), ("-1", None)] {
            let header = format!("X-Compared: {header}\r\nX-Exit");
            let answer = GOOD.replace("X-Exit", &header);
            let Ok(Some(Reply::Done(done))) = read(answer.as_bytes(), "n", true) else { panic!() };
            assert_eq!(done.compared, compared);
        }
    }

    #[test]
    fn any_other_response_is_invalid() {
        for (from, to) in [
            ("200 OK", "302 Found"),
            ("x-nonce: n", "x-nonce: m"),
            ("x-nonce: n\r\n", ""),
            ("x-nonce: n", "x-nonce: n\r\nX-Nonce: n"),
            ("X-Exit-Status: 1\r\n", ""),
            ("X-Exit-Status: 1", "X-Exit-Status: 256"),
            ("X-Exit-Status: 1", "X-Exit-Status: -1"),
            ("X-Exit-Status: 1", "X-Exit-Status: +1"),
            ("X-Exit-Status: 1", "X-Exit-Status:"),
            ("X-Exit-Status: 1", "X-Exit-Status: 1\r\nX-Exit-Status: 0"),
            ("Content-Length: 4", "Content-Length: 3"),
            ("Content-Length: 4", "Content-Length: 99999999999999999999"),
            ("Content-Length: 4\r\n", ""),
            ("HTTP/1.1", "ICY"),
        ] {
            let bad = GOOD.replace(from, to);
            assert_eq!(read(bad.as_bytes(), "n", true), Err(InvalidResponse), "{to}");
            assert!(read(bad.as_bytes(), "n", false) != Ok(Some(reply(1, "true"))), "{to}");
        }
        assert_eq!(read(b"HTTP/1.1 500 Oops\r\n\r\nx", "n", false), Ok(Some(Reply::Unable)));
        assert_eq!(read(&[b'x'; MAX_HEAD], "n", false), Err(InvalidResponse));
    }
}
