//! Addresses of clients and proxies: the client of a connection, and the limits that apply to it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::str::FromStr;

/// An address, or a network such as `10.0.0.0/8` (RFC 4632, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Number of leading bits that all of its addresses share.
    prefix: u8,
}

/// The text is not a network.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidNetwork(String);

/// What limits count as one client: an IPv4 address, or the /64 that an IPv6 host may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(NonZeroU64);

/// Items of `X-Forwarded-For` that are evaluated; requests pass through one or two proxies.
const MAX_FORWARDED: usize = 32;

impl Network {
    /// Whether an address belongs to the network; an IPv4 address mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }

    /// The first address of a network.
    fn start(address: IpAddr, prefix: u8) -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        }
    }
}

/// The client of a request from `peer`: of the addresses that proxies have added to
/// `X-Forwarded-For`, the last one that is not `trusted`. The client may have forged everything
/// before it.
pub fn client<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let items = forwarded.rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for item in items.take(MAX_FORWARDED) {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = forwarded_address(item) else { break };
        client = address;
    }
    client
}

/// Whether an address is not a public internet address, so that a reverse proxy may have it.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            // The last range is used by carrier-grade NAT (RFC 6598).
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// Parses an address with an optional port, which some proxies add.
fn forwarded_address(item: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(item).ok()?.trim();
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let is_port = port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok();
            is_port.then_some(address)?.parse::<Ipv6Addr>().ok()?.into()
        }
        None => text.parse().ok().or_else(|| {
            let (address, port) = text.split_once(':')?;
            port.parse::<u16>().ok()?;
            address.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        })?,
    };
    Some(address.to_canonical())
}

impl ClientKey {
    /// The key of a connection from this address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let key = match address.to_canonical() {
            // No IPv6 host has an address with this prefix (RFC 4291, section 2.7: multicast).
            IpAddr::V4(address) => V4 | u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        Self(NonZeroU64::new(key).unwrap_or(NonZeroU64::MIN))
    }
}

const V4: u64 = 0xffff_ffff_0000_0000;

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let invalid = || {
            let examples = "10.0.0.5, 10.0.0.0/8, fd00::/8";
            InvalidNetwork(format!("not an address or network; examples: {examples}"))
        };
        let written = address.parse::<IpAddr>().map_err(|_| invalid())?;
        let address = written.to_canonical();
        let longest = if address.is_ipv4() { 32 } else { 128 };
        // The bits of an IPv6 prefix that only mark a mapped IPv4 address.
        let mapping = if written == address { 0 } else { 96 };
        let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => longest,
            Some(text) => {
                let prefix = Some(text).filter(is_number).and_then(|text| text.parse::<u8>().ok());
                let prefix = prefix.and_then(|prefix| prefix.checked_sub(mapping));
                prefix.filter(|prefix| *prefix <= longest).ok_or_else(invalid)?
            }
        };
        let start = Self::start(address, prefix);
        if start != address {
            return Err(InvalidNetwork(format!(
                "not a network: use {start}/{prefix}, or {address} for a single address"
            )));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix } = self;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if *prefix == longest { address.fmt(f) } else { write!(f, "{address}/{prefix}") }
    }
}

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.0.get() ^ V4) {
            Ok(bits) => Ipv4Addr::from_bits(bits).fmt(f),
            Err(_) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(self.0.get()) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_contains_its_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.0"),
            ("128.0.0.0/1", "255.0.0.1", "127.0.0.1"),
        ] {
            assert!(network(text).contains(ip(inside)), "{text} {inside}");
            assert!(!network(text).contains(ip(outside)), "{text} {outside}");
        }
        for text in ["10.0.0.0/8", "192.0.2.7", "fd00::/8", "::1", "0.0.0.0/0"] {
            assert_eq!(network(text).to_string(), text);
        }
    }

    #[test]
    fn an_invalid_network_is_explained() {
        for (text, why) in [
            ("", "not an address"),
            ("proxy", "not an address"),
            ("10.0.0.0/33", "not an address"),
            ("10.0.0.0/-1", "not an address"),
            ("10.0.0.0/+8", "not an address"),
            ("10.0.0.0/", "not an address"),
            ("::/129", "not an address"),
            ("::ffff:10.0.0.0/8", "not an address"),
            ("10.0.0.5/8", "use 10.0.0.0/8, or 10.0.0.5 for a single address"),
            ("fd00::1/8", "use fd00::/8"),
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_trusted_proxy() {
        let trusted = [network("10.0.0.0/8"), network("::1")];
        let named = |peer: &str, headers: &[&str]| {
            let headers = headers.iter().map(|header| header.as_bytes());
            client(ip(peer), headers, &trusted).to_string()
        };
        // Headers of an untrusted peer are ignored.
        assert_eq!(named("203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(named("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(named("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(named("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        // Items that the client itself sent come first.
        assert_eq!(named("10.0.0.1", &["1.2.3.4, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(named("10.0.0.1", &["1.2.3.4", "198.51.100.1,10.0.0.2"]), "198.51.100.1");
        assert_eq!(named("::1", &["10.1.1.1 ,\t10.2.2.2"]), "10.1.1.1");
        // An item that is not an address ends the search.
        assert_eq!(named("10.0.0.1", &["198.51.100.1, unknown"]), "10.0.0.1");
        assert_eq!(named("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.3"]), "10.0.0.3");
        assert_eq!(named("10.0.0.1", &[""]), "10.0.0.1");
        for (item, address) in [
            ("198.51.100.1:4711", "198.51.100.1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]x", "10.0.0.1"),
            ("[2001:db8::1]:x", "10.0.0.1"),
            ("[198.51.100.1]", "10.0.0.1"),
            ("198.51.100.1:x", "10.0.0.1"),
            ("198.51.100.1:", "10.0.0.1"),
        ] {
            assert_eq!(named("10.0.0.1", &[item]), address, "{item}");
        }
        let long = "10.0.0.2,".repeat(10_000) + "10.0.0.3";
        assert_eq!(named("10.0.0.1", &[&long]), "10.0.0.2");
    }

    #[test]
    fn private_addresses_are_recognized() {
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "::1",
            "fd00::1",
            "fc00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(ip(text)), "{text}");
        }
        for text in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "100.63.0.1", "2001:db8::1", "0.0.0.0"]
        {
            assert!(!is_private(ip(text)), "{text}");
        }
    }

    #[test]
    fn an_ipv6_host_counts_as_its_slash_64() {
        let key = |text| ClientKey::of(ip(text));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_eq!(key("192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(key("2001:db8:0:1::1").to_string(), "2001:db8:0:1::/64");
    }
}
