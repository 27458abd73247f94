//! The sources of a client's address: PROXY headers, values of `X-Forwarded-For`, and the text of a
//! network. The first byte chooses.
#![no_main]

use std::net::{IpAddr, Ipv6Addr};

use espocrm_websocket::engine::protocol::client_address;
use espocrm_websocket::engine::protocol::client_address::{ClientKey, Network};
use espocrm_websocket::engine::protocol::proxy_header;
use espocrm_websocket::engine::protocol::proxy_header::{MAX_PROXY_HEADER, Malformed, ProxyHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 3 {
        0 => proxy_header(bytes),
        1 => forwarded(bytes),
        _ => network(bytes),
    }
});

/// The result is the same for every prefix of the bytes that contains the header.
fn proxy_header(bytes: &[u8]) {
    let whole = proxy_header::parse(bytes);
    let mut is_bad = false;
    for length in 0..bytes.len() {
        let beginning = proxy_header::parse(&bytes[..length]);
        match whole {
            Ok(Some(found)) if length >= found.length => assert_eq!(beginning, Ok(Some(found))),
            Ok(_) => assert_eq!(beginning, Ok(None)),
            Err(Malformed) => {
                assert!(beginning == Err(Malformed) || !is_bad && beginning == Ok(None));
                is_bad = beginning.is_err();
            }
        }
    }
    match whole {
        Ok(Some(found)) => {
            assert!(found.length <= bytes.len() && found.length <= MAX_PROXY_HEADER);
            if let Some(client) = found.client {
                encode_again(client);
            }
        }
        Ok(None) => assert!(bytes.len() < MAX_PROXY_HEADER),
        Err(Malformed) => {}
    }
}

/// Both versions of the header, encoded independently, yield the same client.
fn encode_again(client: IpAddr) {
    assert_eq!(client, client.to_canonical());
    let (version, line) = match client {
        IpAddr::V4(client) => {
            let addresses = [client.octets(), [127, 0, 0, 1]].concat();
            ([&[0x11, 0, 12][..], &addresses].concat(), format!("TCP4 {client} 127.0.0.1"))
        }
        IpAddr::V6(client) => {
            let addresses = [client.octets(), Ipv6Addr::LOCALHOST.octets()].concat();
            ([&[0x21, 0, 36][..], &addresses].concat(), format!("TCP6 {client} ::1"))
        }
    };
    let block = [b"\r\n\r\n\0\r\nQUIT\n\x21", &version[..], &[0xc3, 0x50, 0x1f, 0x90]].concat();
    let line = format!("PROXY {line} 50000 8080\r\n").into_bytes();
    for header in [block, line] {
        let expected = ProxyHeader { length: header.len(), client: Some(client) };
        assert_eq!(proxy_header::parse(&header), Ok(Some(expected)));
    }
}

/// Each line is a header value; the connecting proxy is trusted.
fn forwarded(bytes: &[u8]) {
    let trusted = ["10.0.0.0/8", "::1", "fd00::/8"].map(|text| text.parse::<Network>().unwrap());
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let values: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let of = |peer: &str, values: &[&[u8]]| {
        client_address::client(peer.parse().unwrap(), values.iter().copied(), &trusted)
    };
    let stranger = "192.0.2.1";
    assert_eq!(of(stranger, &values).to_string(), stranger);
    let client = of("10.0.0.1", &values);
    assert_eq!(client, client.to_canonical());
    assert_eq!(client, of("::ffff:10.0.0.1", &values));
    // The distribution of values over lines does not matter.
    assert_eq!(client, of("10.0.0.1", &[&values.join(&[b','][..])[..]]));
    if !is_trusted(client) {
        // Values that the client itself has sent precede those of proxies.
        let forged = [&[&b"198.51.100.7, 203.0.113.9"[..]], &values[..]].concat();
        assert_eq!(client, of("10.0.0.1", &forged));
        let followed = [&values[..], &[&b"10.0.0.2"[..]]].concat();
        let longer = of("10.0.0.1", &followed);
        assert!(longer == client || is_trusted(longer), "only because of the limit");
    }
    let _ = client_address::is_private(client);
    let key = ClientKey::of(client);
    if let IpAddr::V4(client) = client {
        assert_eq!(key, ClientKey::of(client.to_ipv6_mapped().into()));
        assert_eq!(key.to_string(), client.to_string());
    }
}

/// A network, followed by a space and an address that may belong to it.
fn network(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (text, address) = text.split_once(' ').unwrap_or((text, "10.0.0.1"));
    let network = match text.parse::<Network>() {
        Ok(network) => network,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(char::is_control));
            return;
        }
    };
    let shown = network.to_string();
    assert_eq!(shown.parse(), Ok(network));
    let (start, prefix) = text.split_once('/').unwrap_or((text, ""));
    let start: IpAddr = start.parse().unwrap();
    assert!(network.contains(start));
    let Ok(address) = address.parse::<IpAddr>() else { return };
    // An IPv4 address can be mapped into IPv6, but it belongs to no IPv6 network.
    let prefix =
        prefix.parse().unwrap_or(128) + if start.is_ipv4() && !prefix.is_empty() { 96 } else { 0 };
    let is_same_kind = start.to_canonical().is_ipv4() == address.to_canonical().is_ipv4();
    let expected = is_same_kind && bits(start)[..prefix] == bits(address)[..prefix];
    assert_eq!(network.contains(address), expected, "{shown}");
}

fn bits(address: IpAddr) -> String {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    format!("{:0128b}", address.to_bits())
}
