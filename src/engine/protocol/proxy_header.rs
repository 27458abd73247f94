//! The PROXY protocol, versions 1 (text) and 2 (binary), as specified by haproxy.org: a header in
//! which a proxy sends the client's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length in bytes; the client's bytes follow.
    pub length: usize,
    /// The client's address; `None` for the proxy's own connections (health checks), and for
    /// clients without an IP address.
    pub client: Option<IpAddr>,
}

/// The bytes are not a PROXY header.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Bytes of a header, including extensions (TLVs). The specification has 107 for version 1 and
/// advises to be prepared for 536; a few proxies add the names of certificates.
pub const MAX_PROXY_HEADER: usize = 2048;

/// The prefix of version 1.
const V1: &[u8] = b"PROXY ";

/// The prefix of version 2 (section 2.2).
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1 (section 2.1), including its end.
const MAX_V1: usize = 107;

/// Parses the header at the beginning of `bytes`; `None` if it is incomplete.
///
/// # Errors
/// [`Malformed`], as early as possible, so that no peer can make the daemon wait: at the first
/// bytes, at the length, at the end of the line.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    if let Some(rest) = bytes.strip_prefix(V1) {
        parse_v1(rest)
    } else if let Some(rest) = bytes.strip_prefix(V2) {
        parse_v2(rest)
    } else if V1.starts_with(bytes) || V2.starts_with(bytes) {
        Ok(None)
    } else {
        Err(Malformed)
    }
}

fn parse_v1(rest: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let longest = rest.get(..MAX_V1 - V1.len()).unwrap_or(rest);
    // Anything that follows an unknown protocol is to be ignored.
    let is_unknown = |line: &[u8]| line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ");
    let Some(end) = longest.iter().position(|byte| *byte == b'\n') else {
        let may_go_on = is_unknown(rest) || is_line(rest);
        let is_short = longest.len() < MAX_V1 - V1.len();
        return if is_short && may_go_on { Ok(None) } else { Err(Malformed) };
    };
    let line = rest.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed)?;
    let length = V1.len() + end + 1;
    if is_unknown(line) {
        return Ok(Some(ProxyHeader { length, client: None }));
    }
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    let mut next = || words.next().ok_or(Malformed);
    let family = next()?;
    let (source, destination) = (next()?, next()?);
    let ports = [next()?, next()?];
    let are_ports = ports.into_iter().all(is_port);
    if !are_ports || words.next().is_some() {
        return Err(Malformed);
    }
    let client = match family {
        "TCP4" => both::<Ipv4Addr>(source, destination)?.into(),
        "TCP6" => IpAddr::from(both::<Ipv6Addr>(source, destination)?).to_canonical(),
        _ => return Err(Malformed),
    };
    Ok(Some(ProxyHeader { length, client: Some(client) }))
}

/// Whether the bytes may be the beginning of a line of text.
fn is_line(bytes: &[u8]) -> bool {
    let text = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    text.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

fn is_port(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain && (text == "0" || !text.starts_with('0')) && text.parse::<u16>().is_ok()
}

fn both<T: std::str::FromStr>(source: &str, destination: &str) -> Result<T, Malformed> {
    destination.parse::<T>().map_err(|_| Malformed)?;
    source.parse().map_err(|_| Malformed)
}

fn parse_v2(rest: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let (&version, &family) = (rest.first().unwrap_or(&0x20), rest.get(1).unwrap_or(&0));
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    // Families: none, IPv4, IPv6, Unix; transports: none, stream, datagram. They are to be ignored
    // for the proxy's own connections.
    if !is_local && (family >> 4 > 3 || family & 0xf > 2) {
        return Err(Malformed);
    }
    let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let [.., high, low] = *head;
    let needed = usize::from(u16::from_be_bytes([high, low]));
    let length = V2.len() + head.len() + needed;
    if length > MAX_PROXY_HEADER {
        return Err(Malformed);
    }
    // The content for other transports and families is ignored.
    let addresses = if is_local { 0 } else { family };
    let least = match addresses {
        0x11 => 12,
        0x21 => 36,
        _ => 0,
    };
    if needed < least {
        return Err(Malformed);
    }
    let Some(body) = body.get(..needed) else { return Ok(None) };
    let client = match addresses {
        0x11 => body.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        0x21 => body.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    };
    Ok(Some(ProxyHeader { length, client: client.map(|client: IpAddr| client.to_canonical()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a header that is followed by other bytes; every prefix of it must be incomplete.
    fn client(header: &[u8]) -> Result<Option<String>, Malformed> {
        for length in 0..header.len() {
            assert_eq!(parse(&header[..length]), Ok(None), "{:?}", header[..length].escape_ascii());
        }
        let followed = [header, b"GET / HTTP/1.1\r\n"].concat();
        let found = parse(&followed)?.expect("it is complete");
        assert_eq!(found.length, header.len());
        Ok(found.client.map(|client| client.to_string()))
    }

    fn v2(version: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2, &[version, family], &length, body].concat()
    }

    #[test]
    fn version_1_contains_the_client_address() {
        for (line, named) in [
            ("PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", Some("192.0.2.1")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", Some("255.255.255.255")),
            ("PROXY TCP6 2001:db8::1 ::1 56324 443\r\n", Some("2001:db8::1")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some("192.0.2.1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff whatever 65535 65535\r\n", None),
            ("PROXY UNKNOWN \t\r \u{e9}\r\n", None),
        ] {
            assert_eq!(client(line.as_bytes()).unwrap().as_deref(), named, "{line}");
        }
    }

    #[test]
    fn version_2_contains_the_client_address() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        let v6 =
            [&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 20]].concat();
        let with_tlv = [&v4[..], &[4, 0, 3, b'a', b'b', b'c']].concat();
        let unix = [0; 216];
        for (header, named) in [
            (v2(0x21, 0x11, &v4), Some("192.0.2.1")),
            (v2(0x21, 0x11, &with_tlv), Some("192.0.2.1")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::1")),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x20, 0x11, b""), None),
            (v2(0x20, 0xff, b"abc"), None),
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x31, &unix), None),
            (v2(0x21, 0x12, &v4), None),
        ] {
            assert_eq!(client(&header).unwrap().as_deref(), named, "{header:?}");
        }
    }

    #[test]
    fn malformed_headers_are_rejected_early() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0xdc, 4, 1];
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"proxy TCP4",
            b"\x16\x03\x01",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443 1\r\n",
            b"PROXY TCP4 192.0.2.1  10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 01 443\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 56324 443\r\n",
            b"PROXY TCP6 192.0.2.1 10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 proxy 56324 443\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 56324 443\r\n",
            b"PROXY UNKNOWNX\r\n",
            b"PROXY \0",
            b"PROXY TCP4\rx",
            long.as_bytes(),
            &long.as_bytes()[..MAX_V1],
            &v2(0x11, 0x11, b"")[..=V2.len()],
            &v2(0x22, 0x11, b"")[..=V2.len()],
            &v2(0x21, 0x41, b"")[..V2.len() + 2],
            &v2(0x21, 0x13, b"")[..V2.len() + 2],
            &v2(0x21, 0x11, &v4),
            &v2(0x21, 0x21, &[0; 35])[..V2.len() + 4],
            &v2(0x21, 0x11, &[0; MAX_PROXY_HEADER])[..V2.len() + 4],
        ] {
            assert_eq!(parse(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
    }
}
