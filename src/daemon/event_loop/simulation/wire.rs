//! A browser's parser of the server's output, written for this test so that it shares no mistakes
//! with the server.

/// An element of the server's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A complete HTTP response.
    Response(u16),
    Text(String),
    Ping,
    Pong(Vec<u8>),
    Close(Option<u16>),
}

/// The first item of `bytes` and its length; `None` if it is incomplete.
pub(super) fn next(bytes: &[u8], is_websocket: bool) -> Option<(Item, usize)> {
    if is_websocket { frame(bytes) } else { response(bytes) }
}

fn response(bytes: &[u8]) -> Option<(Item, usize)> {
    let start = b"HTTP/1.1 ";
    let common = bytes.len().min(start.len());
    assert_eq!(bytes[..common], start[..common], "not HTTP");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head is ASCII");
    let status = head[9..12].parse().expect("a status");
    let value = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name}: {head}"))
    };
    if status == 101 {
        assert_eq!(value("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(value("Sec-WebSocket-Protocol"), "wamp");
        return Some((Item::Response(101), end));
    }
    assert!(value("Connection").ends_with("close"));
    let body: usize = value("Content-Length").parse().expect("a length");
    let whole = end + body;
    (bytes.len() >= whole).then_some((Item::Response(status), whole))
}

fn frame(bytes: &[u8]) -> Option<(Item, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let number = |from: usize, to: usize| {
        let bytes = bytes.get(from..to)?;
        Some(bytes.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte)))
    };
    let (length, header) = match second {
        0..=125 => (usize::from(second), 2),
        126 => (number(2, 4)?, 4),
        127 => (number(2, 10)?, 10),
        _ => panic!("a masked frame of the server"),
    };
    let is_minimal = header == 2 || length > 125 && (header == 4) == (length < 65_536);
    assert!(is_minimal, "the length is not encoded minimally");
    assert!(first & 0x08 == 0 || length <= 125, "a control frame is too long");
    let payload = bytes.get(header..header + length)?;
    let item = match first {
        0x81 => Item::Text(String::from_utf8(payload.to_vec()).expect("UTF-8")),
        0x88 if payload.is_empty() => Item::Close(None),
        0x88 => {
            std::str::from_utf8(&payload[2..]).expect("a reason is UTF-8");
            Item::Close(Some(u16::from_be_bytes([payload[0], payload[1]])))
        }
        0x89 if payload.is_empty() => Item::Ping,
        0x8a => Item::Pong(payload.to_vec()),
        _ => panic!("unexpected frame: {first:#x}"),
    };
    Some((item, header + length))
}

/// Whether a text is a WELCOME with three elements and a random session id.
pub(super) fn is_welcome(text: &str) -> bool {
    let id = text.strip_prefix("[0,\"").and_then(|rest| rest.strip_suffix("\",1]"));
    id.is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
