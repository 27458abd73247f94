//! Requests to the control socket and the metrics port, in any chunking: the parsed request is the
//! same, the port serves only two paths, and a message to be sent has the requested topic and user.
#![no_main]

use espocrm_websocket::engine::espocrm::submission;
use espocrm_websocket::engine::limits::{MAX_CONTROL_BODY, MAX_LISTED, MAX_PARAMETER};
use espocrm_websocket::engine::protocol::control;
use espocrm_websocket::engine::protocol::control::{List, Listener, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    let listener = if choice % 2 == 0 { Listener::Control } else { Listener::Metrics };
    let request = match control::parse(bytes, listener) {
        Ok(Some(request)) => request,
        Ok(None) => {
            for end in 0..bytes.len() {
                assert_eq!(control::parse(&bytes[..end], listener), Ok(None));
            }
            return;
        }
        Err(refusal) => {
            let response = refusal.response();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
            return;
        }
    };
    for end in 0..bytes.len() {
        match control::parse(&bytes[..end], listener) {
            Ok(None) => {}
            early => assert_eq!(early.as_ref(), Ok(&Some(request.clone()))),
        }
    }
    match &request {
        Request::Metrics | Request::Health => {}
        _ if listener == Listener::Metrics => panic!("{request:?}"),
        Request::Kick(user) => assert!((1..=MAX_PARAMETER).contains(&user.len())),
        Request::List(List::Users | List::Topics | List::Connections, limit) => {
            assert!(*limit <= MAX_LISTED);
        }
        Request::Send(message) => {
            assert!(message.len() <= MAX_CONTROL_BODY + 64 * 1024);
            if let Ok(message) = submission::parse(message) {
                assert!(!message.topic.is_empty());
            }
        }
        Request::Status | Request::Tail | Request::Reload => {}
    }
});
