//! Addresses: networks of them, and whose a connection is.

// Addresses are values, which `core` has, too: no socket comes with them.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::fmt;
use std::str::FromStr;

/// An address and a number of bits (RFC 4632, section 3.1; RFC 4291, section 2.3): `10.0.0.0/8`,
/// `fd00::/8`, or an address alone.
///
/// An IPv4 address in IPv6's clothes (`::ffff:10.0.0.1`) counts as the IPv4 address that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Addresses in `X-Forwarded-For` that are looked at: as many proxies behind each other.
const MAX_PROXIES: usize = 32;

impl Network {
    /// Whether an address belongs to it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, in which
    /// everybody can have as many addresses as they like.
    #[must_use]
    pub fn of_client(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() { 32 } else { 64 };
        Self { address: masked(address, prefix), prefix }
    }
}

/// The client of a connection: its peer, or whom proxies name that are trusted.
///
/// `forwarded` are the values of `X-Forwarded-For` in the order of their lines. Each proxy appends
/// whom it has seen, so they are read from the end, and only for as long as those are trusted who
/// say so: what a client has written itself stands further left.
#[must_use]
pub fn client<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let items = forwarded.rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for item in items.take(MAX_PROXIES) {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = address(item) else { break };
        client = address;
    }
    client
}

/// Whether an address is of this machine or of a private network: nobody has it in the Internet.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            // The last are carriers' and clouds' own (RFC 6598).
            let is_shared = matches!(address.octets(), [100, 64..128, _, _]);
            address.is_loopback() || address.is_private() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// An address in a list, with or without a port, as Azure's proxies add it.
fn address(item: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(item.trim_ascii()).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse().ok().or_else(with_port);
    address.or_else(|| bracketed().map(IpAddr::V6)).map(|address| address.to_canonical())
}

/// The first bits of an address, the others zero.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = parsed(text).ok_or_else(|| {
            format!("{text:?} is no network; examples: 10.0.0.0/8, 192.168.1.7, fd00::/8")
        })?;
        let right = Self { address: masked(network.address, network.prefix), ..network };
        if network == right {
            Ok(right)
        } else {
            Err(format!("{text:?} names an address within a network; the network is {right}"))
        }
    }
}

/// As it is written, even if bits are set beyond the prefix.
fn parsed(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => most,
        Some("0") => 0,
        Some(digits) if digits.starts_with(|c: char| matches!(c, '1'..='9')) => {
            digits.parse().ok().filter(|prefix| *prefix <= most)?
        }
        Some(_) => return None,
    };
    let canonical = address.to_canonical();
    // Of a shorter prefix the clothes are a part.
    if canonical != address && prefix >= 96 {
        return Some(Network { address: canonical, prefix: prefix - 96 });
    }
    Some(Network { address, prefix })
}

/// As it may be written.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.prefix) {
            (IpAddr::V4(address), 32) => address.fmt(f),
            (IpAddr::V6(address), 128) => address.fmt(f),
            (address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.168.1.7", "192.168.1.7", "192.168.1.8"),
            ("192.168.1.7/32", "192.168.1.7", "192.168.1.6"),
            ("192.168.1.6/31", "192.168.1.7", "192.168.1.8"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("::1", "::1", "::"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("::ffff:0:0/96", "1.2.3.4", "::1"),
            ("::fffe:0:0/95", "::fffe:0:1", "::1"),
        ] {
            assert!(network(text).contains(ip(inside)), "{text} {inside}");
            assert!(!network(text).contains(ip(outside)), "{text} {outside}");
        }
    }

    #[test]
    fn they_are_shown_as_they_may_be_written() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.168.1.7", "::/0", "fd00::/8", "::1"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("10.0.0.1/32").to_string(), "10.0.0.1");
        assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn an_address_within_a_network_is_told_from_the_network() {
        for (text, right) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("192.168.1.7/31", "192.168.1.6/31"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1/95", "::fffe:0:0/95"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.ends_with(&format!("the network is {right}")), "{error}");
        }
    }

    #[test]
    fn other_text_is_no_network() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/256",
            " 10.0.0.0/8",
            "10.0.0/8",
            "010.0.0.0/8",
            "::/129",
            "[::1]",
            "fe80::1%eth0",
            "localhost",
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.starts_with(&format!("{text:?} is no network")), "{error}");
        }
    }

    fn client_of(peer: &str, forwarded: &[&str]) -> String {
        let trusted = [network("127.0.0.1"), network("10.0.0.0/8"), network("fd00::/8")];
        let forwarded = forwarded.iter().map(|value| value.as_bytes());
        client(ip(peer), forwarded, &trusted).to_string()
    }

    #[test]
    fn who_is_not_trusted_names_nobody() {
        assert_eq!(client_of("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client_of("::ffff:192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client(ip("::1"), [&b"192.0.2.1"[..]].into_iter(), &[]), ip("::1"));
    }

    #[test]
    fn the_last_whom_a_trusted_proxy_names_is_the_client() {
        for (forwarded, expected) in [
            (&[][..], "127.0.0.1"),
            (&["192.0.2.1"], "192.0.2.1"),
            (&["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
            (&["198.51.100.7,192.0.2.1 ,10.0.0.1"], "192.0.2.1"),
            (&["198.51.100.7", "192.0.2.1", "10.0.0.1,10.0.0.2"], "192.0.2.1"),
            (&["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
            (&["2001:db8::1, fd00::1"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["198.51.100.7, ::ffff:10.0.0.1"], "198.51.100.7"),
        ] {
            assert_eq!(client_of("127.0.0.1", forwarded), expected, "{forwarded:?}");
            assert_eq!(client_of("::ffff:127.0.0.1", forwarded), expected, "{forwarded:?}");
        }
    }

    #[test]
    fn addresses_may_have_ports() {
        for (item, expected) in [
            ("192.0.2.1:567", "192.0.2.1"),
            ("[2001:db8::1]:99", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("\t[::ffff:192.0.2.1]:99 ", "192.0.2.1"),
        ] {
            assert_eq!(client_of("127.0.0.1", &[item]), expected);
        }
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        for item in [
            "",
            " ",
            "unknown",
            "_hidden",
            "for=192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:65536",
            "192.0.2.1 192.0.2.2",
            "[192.0.2.1]",
            "[::1",
            "\"192.0.2.1\"",
            "é",
        ] {
            assert_eq!(client_of("127.0.0.1", &[item]), "127.0.0.1", "{item}");
            let forwarded = format!("198.51.100.7, {item}, 10.0.0.1");
            assert_eq!(client_of("127.0.0.1", &[&forwarded]), "10.0.0.1", "{item}");
        }
        let no_text: [&[u8]; 2] = [b"198.51.100.7", b"\xff"];
        let trusted = [network("::1")];
        assert_eq!(client(ip("::1"), no_text.into_iter(), &trusted), ip("::1"));
    }

    #[test]
    fn only_so_many_proxies_are_followed() {
        let chain = |proxies: usize| "192.0.2.1".to_owned() + &", 10.0.0.1".repeat(proxies);
        assert_eq!(client_of("127.0.0.1", &[&chain(MAX_PROXIES - 1)]), "192.0.2.1");
        assert_eq!(client_of("127.0.0.1", &[&chain(MAX_PROXIES)]), "10.0.0.1");
    }

    #[test]
    fn private_addresses_are_told_from_others() {
        for text in [
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.0",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.1.1",
            "100.64.0.0",
            "100.127.255.255",
            "::1",
            "fc00::",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(ip(text)), "{text}");
        }
        for text in [
            "0.0.0.0",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.169.0.0",
            "::",
            "fbff::1",
            "fe00::1",
            "fec0::1",
            "2001:db8::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!is_private(ip(text)), "{text}");
        }
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_64_bits_of_an_ipv6_address() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(Network::of_client(ip(address)), network(expected));
        }
    }
}
