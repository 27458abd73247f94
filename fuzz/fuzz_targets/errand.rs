//! What a PHP worker answers.
#![no_main]

use espocrm_websocket::core::errand::{self, Reply};
use espocrm_websocket::core::limits::MAX_CHILD_OUTPUT;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // However it arrives, the same comes of it.
    let whole = errand::read(bytes, "n", true);
    assert!(whole != Ok(None));
    let half = errand::read(bytes.get(..bytes.len() / 2).unwrap_or_default(), "n", false);
    if let Ok(Some(Reply::Unable)) = half {
        assert_eq!(whole, Ok(Some(Reply::Unable)));
    }
    if let Ok(Some(Reply::Done(done))) = whole {
        assert!((0..=255).contains(&done.status) && done.output.len() <= MAX_CHILD_OUTPUT);
        assert!(bytes.ends_with(&done.output));
        assert_eq!(errand::read(bytes, "other", true), Err(errand::Nonsense));
    }
});
