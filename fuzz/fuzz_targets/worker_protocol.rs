//! Responses of a PHP worker.
#![no_main]

use espocrm_websocket::engine::checks::worker_protocol;
use espocrm_websocket::engine::checks::worker_protocol::Reply;
use espocrm_websocket::engine::limits::MAX_CHILD_OUTPUT;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // In any chunking the result is the same.
    let whole = worker_protocol::read(bytes, "n", true);
    assert!(whole != Ok(None));
    let half = worker_protocol::read(bytes.get(..bytes.len() / 2).unwrap_or_default(), "n", false);
    if let Ok(Some(Reply::Unable)) = half {
        assert_eq!(whole, Ok(Some(Reply::Unable)));
    }
    if let Ok(Some(Reply::Done(done))) = whole {
        assert!((0..=255).contains(&done.status) && done.output.len() <= MAX_CHILD_OUTPUT);
        assert!(bytes.ends_with(&done.output));
        assert_eq!(
            worker_protocol::read(bytes, "other", true),
            Err(worker_protocol::InvalidResponse)
        );
    }
});
