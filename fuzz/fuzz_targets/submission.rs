//! What arrives by ZeroMQ: whatever is accepted is one JSON object that says what we read.
#![no_main]

use espocrm_websocket::core::{submission, wamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = submission::parse(bytes) else { return };
    let event = wamp::event(&message.topic, message.json);
    assert!(event.starts_with("[8,\"") && event.ends_with("}]"));
    assert!(message.user.is_none_or(|user| !user.is_empty()));
});
