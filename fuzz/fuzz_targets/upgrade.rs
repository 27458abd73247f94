//! The head of an HTTP request, in any chunking. The first byte determines the chunking.
#![no_main]

#[path = "../support/pieces.rs"]
mod pieces;

use std::net::{IpAddr, Ipv4Addr};

use espocrm_websocket::engine::connection::Handshake;
use espocrm_websocket::engine::limits::{MAX_HEAD, MAX_PARAMETER};
use espocrm_websocket::engine::protocol::client_address;
use espocrm_websocket::engine::protocol::http;
use espocrm_websocket::engine::protocol::http::{Head, Refusal};
use espocrm_websocket::engine::protocol::origin::Origin;
use libfuzzer_sys::fuzz_target;
use pieces::pieces;

fuzz_target!(|input: (u8, &[u8])| {
    let (longest, bytes) = input;
    let mut headers = http::no_headers();
    let whole = http::parse(bytes, &mut headers);
    let in_pieces = in_pieces(bytes, usize::from(longest));
    match &whole {
        Ok(Some(head)) => assert_eq!(in_pieces, Ok(Some(head.length))),
        Ok(None) => assert_eq!(in_pieces, Ok(None)),
        // The connection parses less often, so it may report the error later.
        Err(_) => assert!(!matches!(in_pieces, Ok(Some(_)))),
    }
    if let Ok(Some(head)) = whole {
        check_head(bytes, &head);
    }
});

/// The length of the head, as parsed by a connection.
fn in_pieces(bytes: &[u8], longest: usize) -> Result<Option<usize>, Refusal> {
    let mut handshake = Handshake::new(Ipv4Addr::LOCALHOST.into(), false);
    for piece in pieces(bytes, longest) {
        if handshake.feed(piece) {
            let mut headers = http::no_headers();
            if let Some(head) = http::parse(handshake.bytes(), &mut headers)? {
                return Ok(Some(head.length));
            }
        }
    }
    Ok(None)
}

fn check_head(bytes: &[u8], head: &Head<'_, '_>) {
    assert!(head.length <= bytes.len() && head.length <= MAX_HEAD);
    let peer: IpAddr = Ipv4Addr::LOCALHOST.into();
    assert_eq!(client_address::client(peer, head.forwarded_for(), &[]), peer);
    let site = Origin::of("https://crm.example.com").unwrap();
    if head.origin().is_some_and(|origin| site.is(origin)) {
        assert!(bytes.to_ascii_lowercase().windows(15).any(|it| it == b"crm.example.com"));
    }
    let Ok(upgrade) = head.upgrade() else { return };
    assert_eq!(upgrade.accept.len(), 28);
    if let Some(credentials) = upgrade.credentials {
        for id in [credentials.user, credentials.token] {
            assert!((1..=MAX_PARAMETER).contains(&id.len()));
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        }
    }
}
