//! Submissions: the messages that EspoCRM's PHP code sends through ZeroMQ.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::engine::json::Text;
use crate::engine::limits::{MAX_DEPTH, MAX_SUBMISSION};

/// A validated message from EspoCRM.
#[derive(Debug, PartialEq, Eq)]
pub struct Submission<'a> {
    /// `topicId`: the topic.
    pub topic: Cow<'a, str>,
    /// `userId`: the receiver; all subscribers if it is missing.
    pub user: Option<Cow<'a, str>>,
    /// The whole message as received, valid JSON.
    pub json: &'a str,
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// More than [`MAX_SUBMISSION`] bytes.
    TooBig,
    /// More than one message part.
    Multipart,
    /// Not UTF-8, not a JSON object, `topicId` is missing, or a value has the wrong type.
    Malformed,
    /// More than [`MAX_DEPTH`] levels.
    TooDeep,
    /// `topicId` belongs to no category of EspoCRM.
    UnknownTopic,
}

impl Rejection {
    /// The names, in the order of the variants.
    pub const NAMES: &[&str] = &["too_big", "multipart", "malformed", "too_deep", "unknown_topic"];
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooBig => "it is too big",
            Self::Multipart => "it has several parts",
            Self::Malformed => "it is not a JSON object with a topicId",
            Self::TooDeep => "it is nested too deeply",
            Self::UnknownTopic => "its topicId belongs to no category in EspoCRM's metadata",
        })
    }
}

/// Validates one message.
///
/// # Errors
/// A [`Rejection`], to be counted and logged.
pub fn parse(bytes: &[u8]) -> Result<Submission<'_>, Rejection> {
    if bytes.len() > MAX_SUBMISSION {
        return Err(Rejection::TooBig);
    }
    let json = std::str::from_utf8(bytes).map_err(|_| Rejection::Malformed)?.trim_ascii();
    if depth(json) > MAX_DEPTH {
        return Err(Rejection::TooDeep);
    }
    let Keys { topic, user } = serde_json::from_str(json).map_err(|_| Rejection::Malformed)?;
    Ok(Submission { topic, user, json })
}

struct Keys<'a> {
    topic: Cow<'a, str>,
    user: Option<Cow<'a, str>>,
}

impl<'de> Deserialize<'de> for Keys<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Keys<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a topicId")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut topic = None;
                let mut user = None;
                // The last of repeated keys takes precedence, as in PHP and in browsers.
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "topicId" => topic = Some(map.next_value::<Text>()?.0),
                        "userId" => user = map.next_value::<Option<Text>>()?.map(|text| text.0),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let topic = topic.ok_or_else(|| A::Error::missing_field("topicId"))?;
                Ok(Keys { topic, user: user.filter(|user| !user.is_empty()) })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// The maximum nesting of arrays and objects, if `json` is valid JSON.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in json.bytes() {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_espocrm_are_parsed() {
        let message = parse(br#"{"topicId":"recordUpdate.Account.6b030f5b6b56fd2fd"}"#).unwrap();
        assert_eq!(message.topic, "recordUpdate.Account.6b030f5b6b56fd2fd");
        assert_eq!(message.user, None);

        let message =
            parse(br#"{"userId":"6b030f5b450565077","topicId":"newNotification"}"#).unwrap();
        assert_eq!(message.topic, "newNotification");
        assert_eq!(message.user.as_deref(), Some("6b030f5b450565077"));

        let reminder = br#"{"list":[{"id":"1","data":{"name":"Meet \"\u041a\u0438\u0457\u0432\" \\ it's","attributes":{"a":[1.5e3,null,true]}}}],"userId":"u","topicId":"popupNotifications.event"}"#;
        let message = parse(reminder).unwrap();
        assert_eq!(message.topic, "popupNotifications.event");
        assert_eq!(message.json.as_bytes(), reminder);
    }

    #[test]
    fn without_a_user_a_message_is_for_all_subscribers() {
        for json in [
            r#"{"topicId":"t"}"#,
            r#"{"topicId":"t","userId":null}"#,
            r#"{"topicId":"t","userId":""}"#,
        ] {
            assert_eq!(parse(json.as_bytes()).unwrap().user, None, "{json}");
        }
    }

    #[test]
    fn the_last_of_repeated_keys_counts_and_keys_may_contain_escapes() {
        let message =
            parse(br#"{"topicId":"a","userId":"u","userId":null,"topic\u0049d":"b"}"#).unwrap();
        assert_eq!((&*message.topic, message.user), ("b", None));
    }

    #[test]
    fn surrounding_white_space_is_removed() {
        assert_eq!(parse(b" \n{\"topicId\":\"t\"}\r\n").unwrap().json, "{\"topicId\":\"t\"}");
    }

    #[test]
    fn anything_else_is_malformed() {
        for bytes in [
            &b""[..],
            b" ",
            b"hello",
            b"null",
            b"7",
            b"\"topicId\"",
            b"[]",
            b"[\"topicId\",\"t\"]",
            b"{}",
            b"{\"topicId\":null}",
            b"{\"topicId\":7}",
            b"{\"topicId\":[\"t\"]}",
            b"{\"topicId\":\"t\",\"userId\":7}",
            b"{\"topicId\":\"t\",\"userId\":false}",
            b"{\"topicId\":\"t\",\"userId\":[]}",
            b"{\"topicId\":\"t\"",
            b"{\"topicId\":\"t\"}}",
            b"{\"topicId\":\"t\"} {\"topicId\":\"t\"}",
            b"{\"topicId\":\"t\",}",
            b"{\"topicId\":\"t\",\"a\":01}",
            b"{\"topicId\":\"t\",\"a\":\"\x01\"}",
            b"{\"topicId\":\"t\xff\"}",
            b"\xef\xbb\xbf{\"topicId\":\"t\"}",
            b"a:1:{s:7:\"topicId\";s:1:\"t\";}",
        ] {
            assert_eq!(parse(bytes), Err(Rejection::Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn nesting_and_size_are_bounded() {
        let nested = |levels: usize| {
            format!("{{\"topicId\":\"t\",\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
        };
        assert!(parse(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(parse(nested(MAX_DEPTH).as_bytes()), Err(Rejection::TooDeep));
        assert_eq!(parse(&b"[".repeat(MAX_SUBMISSION)), Err(Rejection::TooDeep));
        assert!(parse(br#"{"topicId":"t","a":"[[[[\"[[[["}"#).is_ok());

        let padded =
            |length: usize| format!("{{\"topicId\":\"t\",\"a\":\"{}\"}}", "x".repeat(length - 22));
        assert_eq!(padded(MAX_SUBMISSION).len(), MAX_SUBMISSION);
        assert!(parse(padded(MAX_SUBMISSION).as_bytes()).is_ok());
        assert_eq!(parse(padded(MAX_SUBMISSION + 1).as_bytes()), Err(Rejection::TooBig));
    }
}
