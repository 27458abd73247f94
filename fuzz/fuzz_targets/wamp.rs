//! WAMP messages and their topics.
#![no_main]

use espocrm_websocket::engine::espocrm::category::{Categories, Rule};
use espocrm_websocket::engine::protocol::wamp;
use espocrm_websocket::engine::protocol::wamp::ClientMessage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(message) = wamp::parse(text) else { return };
    // The categories are refreshed before any subscription.
    assert!(wamp::may_subscribe(text) || !matches!(message, ClientMessage::Subscribe(_)));
    let (ClientMessage::Subscribe(topic) | ClientMessage::Unsubscribe(topic)) = message else {
        return;
    };
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        assert_eq!(value[1].as_str(), Some(&*topic));
    }
    let json = r#"{"open": {}, "a.b": {"paramList": ["x", "y"],
        "accessCheckCommand": "Check --u=:userId --x=:x --y=:y"}}"#;
    let categories = Categories::from_json(&serde_json::from_str(json).unwrap());
    if let Ok(Rule::Check(template, parameters)) = categories.rule(&topic) {
        // No topic adds an argument or changes another one.
        let arguments = template.arguments("u", &parameters);
        assert_eq!(arguments.len(), 4);
        assert_eq!(&*arguments[1], "--u=u");
        assert!(arguments[2].starts_with("--x=") && arguments[3].starts_with("--y="));
    }
});
