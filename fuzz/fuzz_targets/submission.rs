//! ZeroMQ messages: an accepted message is a JSON object with the parsed fields, and is published
//! unchanged.
#![no_main]

use espocrm_websocket::engine::espocrm::submission;
use espocrm_websocket::engine::protocol::wamp;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = submission::parse(bytes) else { return };
    let event = wamp::event(&message.topic, message.json);
    assert!(event.starts_with("[8,\"") && event.ends_with("}]"));
    assert!(message.user.as_ref().is_none_or(|user| !user.is_empty()));
    // Another JSON parser, with stricter limits on nesting and numbers.
    let Ok(value) = serde_json::from_str::<Value>(message.json) else { return };
    assert_eq!(value["topicId"].as_str(), Some(&*message.topic));
    let user = value["userId"].as_str().filter(|user| !user.is_empty());
    assert_eq!(user, message.user.as_deref());
    if let Ok(event) = serde_json::from_str::<Value>(&event) {
        assert_eq!(event, json!([8, message.topic, value]));
    }
});
