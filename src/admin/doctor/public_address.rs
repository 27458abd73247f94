//! The address at which a browser opens its WebSocket.

use std::fmt;

use crate::engine::printable::Printable;

/// The address at which a browser opens its WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicAddress {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl PublicAddress {
    /// The address that EspoCRM's pages derive from siteUrl and webSocketUrl.
    ///
    /// # Errors
    /// If a setting is invalid.
    pub(super) fn of(site: &str, url: Option<&str>) -> Result<Self, String> {
        let (value, text, secure, plain) = match url {
            Some(url) => (format!("webSocketUrl is {}", Printable(url)), url, "wss", "ws"),
            None => (format!("siteUrl is \"{}\"", Printable(site)), site, "https", "http"),
        };
        let invalid = || format!("EspoCRM's {value}, which is not a valid address");
        let (tls, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(secure) => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(plain) => (false, rest),
            _ if url.is_none() => return Err(invalid()),
            _ => return Err(format!("EspoCRM's {value}, but must begin with wss:// or ws://")),
        };
        let address = Self::parse(tls, rest, if tls { 443 } else { 80 }).ok_or_else(invalid)?;
        if url.is_some() {
            return Ok(address);
        }
        let (port, path) = if tls { (443, "/wss") } else { (8080, "/") };
        Ok(Self { port, path: path.to_owned(), ..address })
    }

    pub(super) fn parse(tls: bool, rest: &str, default: u16) -> Option<Self> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        // User name and password must not be printed.
        let authority = authority.rsplit('@').next()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (authority, default),
        };
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        if host.is_empty() || rest.contains(is_odd) {
            return None;
        }
        let path = path.split('#').next()?;
        let path = if path.starts_with('/') { path.to_owned() } else { ["/", path].concat() };
        Some(Self { tls, host: host.to_owned(), port, path })
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(&*self.host, "localhost" | "[::1]") || self.host.starts_with("127.")
    }

    /// The path for a proxy's configuration, without query and trailing slash.
    pub(super) fn location(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or("/");
        let trimmed = path.trim_end_matches('/');
        if trimmed.is_empty() { "/" } else { trimmed }
    }

    /// Whether a browser connects to the daemon without a proxy.
    pub(super) fn is_direct(&self, port: u16, tls: bool) -> bool {
        self.port == port && self.tls == tls
    }

    /// The Host header as a browser sends it: without a default port.
    pub(super) fn host_header(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for PublicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.host_header(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(site: &str, url: Option<&str>) -> String {
        PublicAddress::of(site, url).map_or_else(|error| error, |address| address.to_string())
    }

    #[test]
    fn the_address_is_derived_from_espocrms_settings() {
        for (site, expected) in [
            ("https://crm.example.com", "wss://crm.example.com/wss"),
            ("https://crm.example.com/espo/", "wss://crm.example.com/wss"),
            ("HTTPS://crm.example.com:8443", "wss://crm.example.com/wss"),
            ("http://crm.example.com/", "ws://crm.example.com:8080/"),
            ("http://[::1]", "ws://[::1]:8080/"),
            ("http://user:secret@crm", "ws://crm:8080/"),
        ] {
            assert_eq!(address(site, None), expected);
        }
        for (url, expected) in [
            ("wss://ws.example.com/socket?x=1", "wss://ws.example.com/socket?x=1"),
            ("wss://ws.example.com:8443", "wss://ws.example.com:8443/"),
            ("WS://ws.example.com", "ws://ws.example.com/"),
        ] {
            assert_eq!(address("https://crm.example.com", Some(url)), expected);
        }
        for (site, url) in [
            ("", None),
            ("crm.example.com", None),
            ("https://", None),
            ("https://a b", None),
            ("https://crm", Some("https://crm/wss")),
            ("https://crm", Some("wss://")),
            ("https://crm", Some("wss://a:b")),
        ] {
            assert!(PublicAddress::of(site, url).is_err(), "{site} {url:?}");
        }
        let address = PublicAddress::of("https://a", Some("wss://a/x/y/?q")).unwrap();
        assert_eq!(address.location(), "/x/y");
        assert_eq!(PublicAddress::of("http://a", None).unwrap().location(), "/");
    }
}
