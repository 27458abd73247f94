//! The head of an HTTP request.
#![no_main]

use espocrm_websocket::core::limits::{MAX_HEAD, MAX_PARAMETER};
use espocrm_websocket::core::upgrade;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut headers = upgrade::no_headers();
    let Ok(Some(head)) = upgrade::parse(bytes, &mut headers) else { return };
    assert!(head.length <= bytes.len() && head.length <= MAX_HEAD);
    let Ok(upgrade) = head.upgrade() else { return };
    assert_eq!(upgrade.accept.len(), 28);
    if let Some(credentials) = upgrade.credentials {
        for id in [credentials.user, credentials.token] {
            assert!((1..=MAX_PARAMETER).contains(&id.len()));
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        }
    }
});
