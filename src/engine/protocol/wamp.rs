//! The part of WAMP version 1 that EspoCRM's browser client uses: JSON arrays in text messages; the
//! first element is the message type.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::engine::json::{Quoted, Text};

/// A message from a browser.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// `[1, prefix, uri]`: from now on `prefix:rest` stands for `uri#rest`.
    Prefix {
        /// The short name.
        prefix: Cow<'a, str>,
        /// The URI that it stands for.
        uri: Cow<'a, str>,
    },
    /// `[2, callId, procedure, …]`: a remote procedure call, which EspoCRM does not offer.
    Call {
        /// Chosen by the client and repeated in the response.
        call_id: Cow<'a, str>,
        /// The procedure's name, possibly abbreviated by a prefix.
        procedure: Cow<'a, str>,
    },
    /// `[5, topic]`
    Subscribe(Cow<'a, str>),
    /// `[6, topic]`
    Unsubscribe(Cow<'a, str>),
    /// `[7, topic, …]`; the client publishes to the empty topic as a keep-alive.
    Publish(Cow<'a, str>),
}

/// The text is not a message of a WAMP v1 client: it is not JSON, not an array, its type is
/// unknown, or its elements have the wrong type.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Parses one message. Further elements must be JSON and are ignored.
///
/// # Errors
/// [`Malformed`]; the connection is closed with code 1007.
pub fn parse(text: &str) -> Result<ClientMessage<'_>, Malformed> {
    serde_json::from_str(text).map_err(|_| Malformed)
}

/// Whether a text may be a subscription, decided without parsing all of it.
#[must_use]
pub fn may_subscribe(text: &str) -> bool {
    let before = |c: char| c == '[' || c.is_ascii_whitespace();
    text.trim_start_matches(before).starts_with('5')
}

/// `[0, "<session id>", 1]`: the client may use the connection. A second one makes EspoCRM's client
/// throw. It has three elements; the server identification is omitted.
#[must_use]
pub fn welcome(session_id: &str) -> String {
    format!("[0,{},1]", Quoted(session_id))
}

/// `[4, callId, procedure, description]`, the response to every call.
#[must_use]
pub fn call_error(call_id: &str, procedure: &str) -> String {
    format!("[4,{},{},\"You are not allowed to make calls\"]", Quoted(call_id), Quoted(procedure))
}

/// `[8, topic, event]`; `event` must be JSON.
#[must_use]
pub fn event(topic: &str, event: &str) -> String {
    format!("[8,{},{event}]", Quoted(topic))
}

impl<'de> Deserialize<'de> for ClientMessage<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = ClientMessage<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a WAMP v1 message")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let message = match element::<_, u8>(&mut seq)? {
                    1 => ClientMessage::Prefix { prefix: text(&mut seq)?, uri: text(&mut seq)? },
                    2 => {
                        ClientMessage::Call { call_id: text(&mut seq)?, procedure: text(&mut seq)? }
                    }
                    5 => ClientMessage::Subscribe(text(&mut seq)?),
                    6 => ClientMessage::Unsubscribe(text(&mut seq)?),
                    7 => ClientMessage::Publish(text(&mut seq)?),
                    _ => return Err(A::Error::custom("unknown type")),
                };
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(message)
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

fn element<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A) -> Result<T, A::Error> {
    seq.next_element()?.ok_or_else(|| A::Error::custom("too short"))
}

fn text<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Cow<'de, str>, A::Error> {
    element::<A, Text<'de>>(seq).map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_espocrms_client_are_parsed() {
        assert_eq!(
            parse(r#"[5,"newNotification"]"#),
            Ok(ClientMessage::Subscribe("newNotification".into()))
        );
        assert_eq!(
            parse(r#" [ 6 , "recordUpdate.Account.1" ] "#),
            Ok(ClientMessage::Unsubscribe("recordUpdate.Account.1".into()))
        );
        assert_eq!(parse(r#"[7,"",""]"#), Ok(ClientMessage::Publish("".into())));
        assert_eq!(
            parse(r#"[7,"a",{"b":[null,1e9]},[],["x"]]"#),
            Ok(ClientMessage::Publish("a".into()))
        );
        assert_eq!(
            parse(r#"[1,"e","http://example.com/topics"]"#),
            Ok(ClientMessage::Prefix {
                prefix: "e".into(),
                uri: "http://example.com/topics".into()
            })
        );
        assert_eq!(
            parse(r#"[2,"7x","add",1,2]"#),
            Ok(ClientMessage::Call { call_id: "7x".into(), procedure: "add".into() })
        );
    }

    #[test]
    fn escapes_in_a_topic_are_decoded() {
        assert_eq!(
            parse(r#"[5,"new\u004eotification\/\"\ud83d\ude00"]"#),
            Ok(ClientMessage::Subscribe("newNotification/\"😀".into()))
        );
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            " ",
            "hello",
            "null",
            "5",
            "{}",
            "[]",
            "[5]",
            "[6]",
            "[7]",
            "[1,\"a\"]",
            "[2,\"a\"]",
            "[5,7]",
            "[5,null]",
            "[5,[\"a\"]]",
            "[5.5,\"a\"]",
            "[-5,\"a\"]",
            "[\"5\",\"a\"]",
            "[500,\"a\"]",
            "[0,\"a\",1]",
            "[3,\"a\",1]",
            "[8,\"a\",1]",
            "[9]",
            "[5,\"a\"",
            "[5,\"a\"]]",
            "[5,\"a\"] x",
            "[5,\"a\",]",
            "[5,\"a\u{1}\"]",
            "[5,\"\\ud800\"]",
            "{\"0\":5,\"1\":\"a\"}",
        ] {
            assert_eq!(parse(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn deep_nesting_cannot_exhaust_the_stack() {
        let deep = format!("[7,\"\",{}{}]", "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(parse(&deep), Ok(ClientMessage::Publish("".into())));
        assert_eq!(parse(&"[".repeat(1_000_000)), Err(Malformed));
    }

    #[test]
    fn sent_messages_are_json_of_the_documented_shape() {
        assert_eq!(welcome("0a1b"), r#"[0,"0a1b",1]"#);
        assert_eq!(
            call_error("x\"1", "proc\n"),
            r#"[4,"x\"1","proc\n","You are not allowed to make calls"]"#
        );
        assert_eq!(
            event("streamUpdate.Account.1", r#"{"topicId":"streamUpdate.Account.1"}"#),
            r#"[8,"streamUpdate.Account.1",{"topicId":"streamUpdate.Account.1"}]"#
        );
        assert_eq!(event("a\"b", "{}"), r#"[8,"a\"b",{}]"#);
    }
}
