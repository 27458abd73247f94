//! Where a page comes from that opens a WebSocket (RFC 6454): an optional allow-list.

use std::fmt;

/// The origin of a web page: scheme, host and port, as a browser sends it in its `Origin` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Box<str>);

/// The text is not the origin of a web page.
#[derive(Debug, PartialEq, Eq)]
pub struct NoOrigin;

impl Origin {
    /// The origin of an address such as `https://crm.example.com/espo/`; its path does not matter.
    ///
    /// # Errors
    /// [`NoOrigin`]
    pub fn of(url: &str) -> Result<Self, NoOrigin> {
        let (scheme, rest) = url.trim().split_once("://").ok_or(NoOrigin)?;
        let scheme = scheme.to_ascii_lowercase();
        let default = match &*scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err(NoOrigin),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            // A colon within brackets belongs to an IPv6 address.
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse::<u16>().map_err(|_| NoOrigin)?)
            }
            _ => (authority, default),
        };
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | ',' | '*');
        if host.is_empty() || host.contains(is_odd) {
            return Err(NoOrigin);
        }
        let host = host.to_ascii_lowercase();
        let port = if port == default { String::new() } else { format!(":{port}") };
        Ok(Self(format!("{scheme}://{host}{port}").into()))
    }

    /// Whether a header's value names this origin.
    #[must_use]
    pub fn is(&self, header: &[u8]) -> bool {
        let other = std::str::from_utf8(header).ok().and_then(|text| Self::of(text).ok());
        other.is_some_and(|other| other == *self)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NoOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin is expected, such as \"https://crm.example.com\", or \"same-site\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_an_origin() {
        for (url, origin) in [
            ("https://crm.example.com", "https://crm.example.com"),
            (" HTTPS://Crm.Example.com:443/espo/?x=1#y ", "https://crm.example.com"),
            ("http://crm.example.com:80", "http://crm.example.com"),
            ("http://crm.example.com:443", "http://crm.example.com:443"),
            ("https://crm.example.com:8443/", "https://crm.example.com:8443"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
            ("http://[::1]", "http://[::1]"),
            ("http://10.0.0.1?x", "http://10.0.0.1"),
        ] {
            assert_eq!(Origin::of(url).unwrap().to_string(), origin);
        }
    }

    #[test]
    fn what_has_none_is_refused() {
        for url in [
            "",
            "null",
            "crm.example.com",
            "ftp://crm.example.com",
            "https://",
            "https:///path",
            "https://:443",
            "https://crm.example.com:x",
            "https://crm.example.com:70000",
            "https://user@crm.example.com",
            "https://*.example.com",
            "https://a.example.com, https://b.example.com",
            "https://a b",
        ] {
            assert_eq!(Origin::of(url), Err(NoOrigin), "{url}");
        }
    }

    #[test]
    fn a_header_is_compared_as_a_whole() {
        let origin = Origin::of("https://crm.example.com/").unwrap();
        assert!(origin.is(b"https://crm.example.com"));
        assert!(origin.is(b"https://CRM.example.com:443"));
        for other in [
            "http://crm.example.com",
            "https://crm.example.com.evil.example",
            "https://evil.example/https://crm.example.com",
            "https://crm.example.com:8443",
            "null",
            "",
            "\u{ff}",
        ] {
            assert!(!origin.is(other.as_bytes()), "{other}");
        }
        assert!(!origin.is(b"https://crm.example.com\xff"));
    }
}
