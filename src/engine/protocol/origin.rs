//! The origin of a page that opens a WebSocket (RFC 6454): an optional allow-list.

use std::fmt;

/// The origin of a web page: scheme, host and port, as in a browser's `Origin` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Box<str>);

/// The text is not the origin of a web page.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidOrigin;

impl Origin {
    /// The origin of a URL such as `https://crm.example.com/espo/`; its path is ignored.
    ///
    /// # Errors
    /// [`InvalidOrigin`]
    pub fn of(url: &str) -> Result<Self, InvalidOrigin> {
        let (scheme, rest) = url.trim().split_once("://").ok_or(InvalidOrigin)?;
        let scheme = scheme.to_ascii_lowercase();
        let default = match &*scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err(InvalidOrigin),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            // A colon within brackets belongs to an IPv6 address.
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse::<u16>().map_err(|_| InvalidOrigin)?)
            }
            _ => (authority, default),
        };
        let is_invalid =
            |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | ',' | '*');
        if host.is_empty() || host.contains(is_invalid) {
            return Err(InvalidOrigin);
        }
        let host = host.to_ascii_lowercase();
        let port = if port == default { String::new() } else { format!(":{port}") };
        Ok(Self(format!("{scheme}://{host}{port}").into()))
    }

    /// Whether a header value is this origin.
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

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an origin such as \"https://crm.example.com\", or \"same-site\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_a_url_is_its_scheme_host_and_port() {
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
    fn invalid_origins_are_rejected() {
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
            assert_eq!(Origin::of(url), Err(InvalidOrigin), "{url}");
        }
    }

    #[test]
    fn a_header_must_match_exactly() {
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
