//! How a proxy introduces the client for which it connects: the PROXY protocol as haproxy's
//! specification has it, versions 1 (text) and 2 (binary).

// Addresses are values, which `core` has, too: no socket comes with them.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What stands before the first byte of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its bytes; what follows them is the client's.
    pub length: usize,
    /// The client. Nobody if the proxy speaks for itself (its health checks), does not know, or
    /// forwards something else than TCP over IP; then the peer itself counts.
    pub client: Option<IpAddr>,
}

/// These bytes are no introduction, whatever may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Bytes of an introduction, held until it is complete. Real ones have 28 to 107, and some hundred
/// more if the proxy says what it knows of the client's TLS.
pub const MAX_INTRODUCTION: usize = 2 * 1024;

/// Bytes of a line of version 1, its end included: none needs more (section 2.1).
const MAX_LINE: usize = 107;

/// How version 2 begins (section 2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Parses the first bytes of a connection. `None` means that more have to come.
///
/// # Errors
/// [`Malformed`], as soon as a byte arrives that makes it so.
pub fn parse(bytes: &[u8]) -> Result<Option<Introduction>, Malformed> {
    let bytes = bytes.get(..MAX_INTRODUCTION).unwrap_or(bytes);
    let is_text = bytes.first().is_none_or(|first| *first == b'P');
    match if is_text { version_1(bytes) } else { version_2(bytes) } {
        Ok(introduction) => Ok(Some(introduction)),
        Err(Unfinished::More) => Ok(None),
        Err(Unfinished::Malformed) => Err(Malformed),
    }
}

enum Unfinished {
    /// The bytes are right so far.
    More,
    Malformed,
}

/// Section 2.1: `PROXY TCP4 192.0.2.1 192.0.2.9 50000 8080`, or `PROXY UNKNOWN` and whatever.
fn version_1(bytes: &[u8]) -> Result<Introduction, Unfinished> {
    let line = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let mut rest = Rest(line);
    let client = rest.client_of_line().map_err(|error| match error {
        Unfinished::More if line.len() < MAX_LINE => Unfinished::More,
        _ => Unfinished::Malformed,
    })?;
    Ok(Introduction { length: line.len() - rest.0.len(), client })
}

/// Section 2.2: signature, command, family and protocol, length, addresses, additions (TLV).
fn version_2(bytes: &[u8]) -> Result<Introduction, Unfinished> {
    let mut rest = Rest(bytes);
    rest.expect(SIGNATURE)?;
    let is_local = match rest.byte()? {
        0x20 => true,
        0x21 => false,
        _ => return Err(Unfinished::Malformed),
    };
    // What a proxy says when it speaks for itself is to be ignored.
    let kind = if is_local { rest.byte().map(|_| 0)? } else { rest.byte()? };
    let addresses = match kind {
        0x00 => 0,
        0x11 | 0x12 => 2 * (4 + 2),
        0x21 | 0x22 => 2 * (16 + 2),
        0x31 | 0x32 => 2 * 108,
        _ => return Err(Unfinished::Malformed),
    };
    let following = usize::from(u16::from_be_bytes([rest.byte()?, rest.byte()?]));
    let length = bytes.len() - rest.0.len() + following;
    if following < addresses || length > MAX_INTRODUCTION {
        return Err(Unfinished::Malformed);
    }
    if length > bytes.len() {
        return Err(Unfinished::More);
    }
    let client = match kind {
        0x11 => rest.0.first_chunk().map(|bytes: &[u8; 4]| Ipv4Addr::from(*bytes).into()),
        0x21 => rest.0.first_chunk().map(|bytes: &[u8; 16]| Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    };
    Ok(Introduction { length, client })
}

/// The bytes that have not been read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn client_of_line(&mut self) -> Result<Option<IpAddr>, Unfinished> {
        self.expect(b"PROXY ")?;
        if self.0.first() == Some(&b'U') {
            self.expect(b"UNKNOWN")?;
            if self.0.first() != Some(&b'\r') {
                self.expect(b" ")?;
                self.while_it(|byte| byte != b'\r')?;
            }
            self.expect(b"\r\n")?;
            return Ok(None);
        }
        self.expect(b"TCP")?;
        let client = match self.byte()? {
            b'4' => self.client_of::<Ipv4Addr>()?.into(),
            b'6' => self.client_of::<Ipv6Addr>()?.to_canonical(),
            _ => return Err(Unfinished::Malformed),
        };
        Ok(Some(client))
    }

    /// The two addresses and the two ports; the first address.
    fn client_of<A: FromStr>(&mut self) -> Result<A, Unfinished> {
        let is_part = |byte: u8| byte.is_ascii_hexdigit() || byte == b'.' || byte == b':';
        self.expect(b" ")?;
        let client = parsed(self.while_it(is_part)?)?;
        self.expect(b" ")?;
        let _: A = parsed(self.while_it(is_part)?)?;
        self.expect(b" ")?;
        self.port()?;
        self.expect(b" ")?;
        self.port()?;
        self.expect(b"\r\n")?;
        Ok(client)
    }

    fn port(&mut self) -> Result<u16, Unfinished> {
        let digits = self.while_it(|byte| byte.is_ascii_digit())?;
        if digits.len() > 1 && digits.starts_with(b"0") {
            return Err(Unfinished::Malformed);
        }
        parsed(digits)
    }

    fn expect(&mut self, word: &[u8]) -> Result<(), Unfinished> {
        if let Some(rest) = self.0.strip_prefix(word) {
            self.0 = rest;
            return Ok(());
        }
        Err(if word.starts_with(self.0) { Unfinished::More } else { Unfinished::Malformed })
    }

    fn byte(&mut self) -> Result<u8, Unfinished> {
        let (first, rest) = self.0.split_first().ok_or(Unfinished::More)?;
        self.0 = rest;
        Ok(*first)
    }

    /// The bytes up to the first one that is not part of it, which must be there.
    fn while_it(&mut self, is_part: impl Fn(u8) -> bool) -> Result<&'a [u8], Unfinished> {
        let length = self.0.iter().position(|byte| !is_part(*byte)).ok_or(Unfinished::More)?;
        let (word, rest) = self.0.split_at_checked(length).ok_or(Unfinished::More)?;
        self.0 = rest;
        Ok(word)
    }
}

fn parsed<T: FromStr>(word: &[u8]) -> Result<T, Unfinished> {
    let text = std::str::from_utf8(word).map_err(|_| Unfinished::Malformed)?;
    text.parse().map_err(|_| Unfinished::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    /// A block of version 2.
    fn block(command: u8, kind: u8, following: &[u8]) -> Vec<u8> {
        let length = (following.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, kind], &length, following].concat()
    }

    fn ipv4() -> Vec<u8> {
        vec![192, 0, 2, 1, 192, 0, 2, 9, 0xc3, 0x50, 0x1f, 0x90]
    }

    fn ipv6(client: &str) -> Vec<u8> {
        let client: Ipv6Addr = client.parse().unwrap();
        [&client.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0xc3, 0x50, 0x1f, 0x90]].concat()
    }

    /// Parses it with something behind it; and every beginning of it must be good so far.
    fn parse_whole(bytes: &[u8]) -> Option<IpAddr> {
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {bytes:?}");
        }
        let introduction = parse(&[bytes, b"GET / HTTP/1.1\r\n"].concat()).unwrap().unwrap();
        assert_eq!(introduction.length, bytes.len());
        assert_eq!(parse(bytes), Ok(Some(introduction)));
        introduction.client
    }

    /// Where it goes wrong: the number of good bytes.
    fn good_bytes(bytes: &[u8]) -> usize {
        let first = (0..=bytes.len()).find(|length| parse(&bytes[..*length]) == Err(Malformed));
        let first = first.unwrap_or_else(|| panic!("nothing is wrong with {bytes:?}"));
        assert!((first..=bytes.len()).all(|length| parse(&bytes[..length]) == Err(Malformed)));
        first - 1
    }

    #[test]
    fn version_1_names_the_client() {
        for (line, address) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.9 50000 8080\r\n", "192.0.2.1"),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
            ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0"),
            ("PROXY TCP6 2001:db8::1 ::1 50000 8080\r\n", "2001:db8::1"),
            ("PROXY TCP6 2001:DB8::A ::1 50000 8080\r\n", "2001:db8::a"),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 50000 8080\r\n", "192.0.2.1"),
            ("PROXY TCP6 ::ffff:c000:201 ::1 50000 8080\r\n", "192.0.2.1"),
        ] {
            assert_eq!(parse_whole(line.as_bytes()), Some(ip(address)), "{line}");
        }
    }

    #[test]
    fn the_longest_line_is_accepted() {
        let address = ["ffff"; 8].join(":");
        let known = format!("PROXY TCP6 {address} {address} 65535 65535\r\n");
        assert_eq!(parse_whole(known.as_bytes()), Some(ip(&address)));
        let unknown = format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n");
        assert_eq!(unknown.len(), MAX_LINE);
        assert_eq!(parse_whole(unknown.as_bytes()), None);
        let longer = unknown.replace("\r\n", " \r\n");
        assert_eq!(good_bytes(longer.as_bytes()), MAX_LINE - 1);
    }

    #[test]
    fn version_1_may_name_nobody() {
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n", "PROXY UNKNOWN what\0ever\n\r\n"] {
            assert_eq!(parse_whole(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_bad_line_fails_at_its_first_bad_byte_or_word() {
        for (good, bad) in [
            ("", "GET / HTTP/1.1\r\n"),
            ("", "proxy TCP4"),
            ("P", "OST / HTTP/1.1\r\n"),
            ("PRO", "PFIND / HTTP/1.1\r\n"),
            ("PROXY ", " TCP4"),
            ("PROXY TCP", "5 "),
            ("PROXY TCP4", "\r\n"),
            ("PROXY UNKNOWN", "S\r\n"),
            ("PROXY UNKNOWN", "\n"),
            ("PROXY UNKNOWN \r", "\r\n"),
            ("PROXY TCP4 ", " 192.0.2.1"),
            ("PROXY TCP4 192.0.2.1", "\t192.0.2.9"),
            ("PROXY TCP4 192.0.2", " 192.0.2.9 1 2\r\n"),
            ("PROXY TCP4 192.0.2.256", " 192.0.2.9 1 2\r\n"),
            ("PROXY TCP4 192.0.2.01", " 192.0.2.9 1 2\r\n"),
            ("PROXY TCP4 ::1", " ::1 1 2\r\n"),
            ("PROXY TCP6 192.0.2.1", " 192.0.2.9 1 2\r\n"),
            ("PROXY TCP6 fe80::1", "%eth0 ::1 1 2\r\n"),
            ("PROXY TCP6 1:2:3:4:5:6:7:8:9", " ::1 1 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 ", "-1 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 ", "+1 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 ", " 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 01", " 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 65536", " 2\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 1", "\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 1 65536", "\r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 1 2", "\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 1 2", " \r\n"),
            ("PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r", "\r\n"),
        ] {
            assert_eq!(good_bytes(format!("{good}{bad}").as_bytes()), good.len(), "{good}|{bad}");
        }
        assert_eq!(good_bytes(&[b"PROXY TCP4 ", &[b'1'; 200][..]].concat()), MAX_LINE - 1);
    }

    #[test]
    fn version_2_names_the_client() {
        let additions = [0x20, 0, 5, 1, 0, 0, 0, 0];
        for (kind, addresses, expected) in [
            (0x11, ipv4(), Some(ip("192.0.2.1"))),
            (0x11, [&ipv4()[..], &additions].concat(), Some(ip("192.0.2.1"))),
            (0x21, ipv6("2001:db8::1"), Some(ip("2001:db8::1"))),
            (0x21, [&ipv6("2001:db8::1")[..], &additions].concat(), Some(ip("2001:db8::1"))),
            (0x21, ipv6("::ffff:192.0.2.1"), Some(ip("192.0.2.1"))),
        ] {
            assert_eq!(parse_whole(&block(0x21, kind, &addresses)), expected);
        }
    }

    #[test]
    fn version_2_may_name_nobody() {
        for (command, kind, following) in [
            (0x20, 0x00, vec![]),
            (0x20, 0x11, ipv4()),
            // Of a proxy that speaks for itself only the length counts.
            (0x20, 0xff, vec![1, 2, 3]),
            (0x21, 0x00, vec![]),
            (0x21, 0x00, vec![1, 2, 3]),
            (0x21, 0x12, ipv4()),
            (0x21, 0x22, ipv6("2001:db8::1")),
            (0x21, 0x31, vec![0; 216]),
            (0x21, 0x32, vec![0; 216]),
        ] {
            assert_eq!(parse_whole(&block(command, kind, &following)), None, "{kind:x}");
        }
    }

    #[test]
    fn a_bad_block_fails_at_its_first_bad_byte() {
        let signature = SIGNATURE.len();
        assert_eq!(good_bytes(b"\r\n\r\nGET / HTTP/1.1\r\n"), 4);
        assert_eq!(good_bytes(b"\r\n\r\n\0\r\nQUIT\r\n"), signature - 1);
        for command in [0x00, 0x01, 0x11, 0x22, 0x2f, 0x31] {
            assert_eq!(good_bytes(&block(command, 0x11, &ipv4())), signature);
        }
        for kind in [0x01, 0x02, 0x10, 0x13, 0x20, 0x23, 0x30, 0x33, 0x41, 0xff] {
            assert_eq!(good_bytes(&block(0x21, kind, &[0; 216])), signature + 1);
        }
        for (kind, addresses) in [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216)] {
            let short = block(0x21, kind, &vec![0; addresses - 1]);
            assert_eq!(good_bytes(&short), signature + 3);
        }
    }

    #[test]
    fn there_is_a_longest_block() {
        let most = MAX_INTRODUCTION - SIGNATURE.len() - 4;
        assert_eq!(parse_whole(&block(0x20, 0, &vec![0; most])), None);
        assert_eq!(good_bytes(&block(0x20, 0, &vec![0; most + 1])), SIGNATURE.len() + 3);
        assert_eq!(good_bytes(&block(0x20, 0, &vec![0; 0xffff])), SIGNATURE.len() + 3);
    }
}
