//! The daemon's own settings: those that EspoCRM's configuration does not have.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::{Span, SpanOrZero};
use crate::core::network::Network;
use crate::core::origin::{NoOrigin, Origin};
use crate::shell::fatal::{Fatal, Result};

/// What may stand in the configuration file; the flags of the command line have the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Own {
    /// EspoCRM's root directory.
    pub espocrm: Option<PathBuf>,
    /// PHP's command line.
    pub php: Option<PathBuf>,
    /// An address, or address and port, to listen at.
    pub listen: Option<Listen>,
    /// The ZeroMQ endpoint to bind.
    pub zeromq: Option<String>,
    /// Log each event.
    pub debug: Option<bool>,
    /// Connections at a time.
    #[serde(deserialize_with = "positive")]
    pub max_connections: Option<usize>,
    /// Connections at a time of one client address; 0 for no limit.
    pub max_per_address: Option<usize>,
    /// Connections at a time of one user; 0 for no limit.
    pub max_per_user: Option<usize>,
    /// Proxies that are believed whose connections they pass on.
    pub trusted_proxies: Option<Vec<Network>>,
    /// Whether these begin each connection by a header of the PROXY protocol.
    pub proxy_protocol: Option<bool>,
    /// Origins of pages that may connect.
    pub origins: Option<Vec<Allowed>>,
    /// PHP processes at a time that check access.
    #[serde(deserialize_with = "positive")]
    pub max_checks: Option<usize>,
    /// After which a check is killed.
    pub check_timeout: Option<Span>,
    /// Between two reviews of what a user was granted.
    pub review_interval: Option<SpanOrZero>,
    /// Between two pings of a connection.
    pub ping_interval: Option<Span>,
    /// For how long a grant counts for whoever asks for the same.
    pub verdict_reuse: Option<SpanOrZero>,
    /// Whether PHP workers check access.
    pub worker: Option<bool>,
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: IpAddr,
    /// The port, if EspoCRM's is not to be used.
    pub port: Option<u16>,
}

/// A page that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// One of EspoCRM's own, by its `siteUrl`.
    SameSite,
    /// One of this origin.
    Origin(Origin),
}

/// Read if no other file is named and this one exists.
pub const DEFAULT_FILE: &str = "/etc/espocrm-websocket/config.toml";

impl Own {
    /// Reads the configuration file: `named`, or else the usual one if it exists.
    ///
    /// # Errors
    /// If the file cannot be read or understood: where, and what is wrong.
    pub fn from_file(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_toml(&text)
                .map_err(|error| Fatal::new(format!("{}: {error}", path.display()))),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => {
                Err(Fatal::new(format!("{}: {error}. Check the file's name.", path.display())))
            }
        }
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn from_toml(text: &str) -> std::result::Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { address: address.ip(), port: Some(address.port()) });
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err(format!(
                "{text:?} is no address to listen at; examples: 127.0.0.1, 0.0.0.0:8080, [::]:8080"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Allowed {
    type Err = NoOrigin;

    fn from_str(text: &str) -> std::result::Result<Self, NoOrigin> {
        if text == "same-site" { Ok(Self::SameSite) } else { Origin::of(text).map(Self::Origin) }
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn positive<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<usize>, D::Error> {
    match usize::deserialize(deserializer)? {
        0 => Err(de::Error::custom("it must be at least 1")),
        number => Ok(Some(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_setting_can_be_set() {
        let own = Own::from_toml(
            "espocrm = '/srv/crm'\nphp = '/usr/bin/php8.2'\nlisten = '[::1]:9000'\n\
             zeromq = 'tcp://127.0.0.1:5556'\ndebug = true\nmax_connections = 500\n\
             max_per_address = 100\nmax_per_user = 0\ntrusted_proxies = ['10.0.0.0/8', '::1']\n\
             proxy_protocol = true\norigins = ['same-site', 'https://portal.example.com/']\n\
             max_checks = 1\ncheck_timeout = '10s'\nreview_interval = 0\n\
             ping_interval = 20\nverdict_reuse = 0\nworker = false\n",
        );
        let expected = Own {
            espocrm: Some("/srv/crm".into()),
            php: Some("/usr/bin/php8.2".into()),
            listen: Some(Listen { address: "::1".parse().unwrap(), port: Some(9000) }),
            zeromq: Some("tcp://127.0.0.1:5556".into()),
            debug: Some(true),
            max_connections: Some(500),
            max_per_address: Some(100),
            max_per_user: Some(0),
            trusted_proxies: Some(vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]),
            proxy_protocol: Some(true),
            origins: Some(vec![
                Allowed::SameSite,
                Allowed::Origin(Origin::of("https://portal.example.com").unwrap()),
            ]),
            max_checks: Some(1),
            check_timeout: Some(Duration::from_secs(10).into()),
            review_interval: Some(Duration::ZERO.into()),
            ping_interval: Some(Duration::from_secs(20).into()),
            verdict_reuse: Some(Duration::ZERO.into()),
            worker: Some(false),
        };
        assert_eq!(own, Ok(expected));
        assert_eq!(Own::from_toml(""), Ok(Own::default()));
    }

    #[test]
    fn the_file_that_is_shipped_names_every_setting() {
        const SHIPPED: &str = include_str!("../../../packaging/config.toml");
        let shipped = Own::from_toml(SHIPPED).unwrap();
        assert_eq!(shipped, Own { espocrm: Some("/var/www/html".into()), ..Own::default() });
        let all = Own::from_toml(&SHIPPED.replace("\n#", "\n").replace("\n ", "\n# ")).unwrap();
        let Own {
            espocrm: Some(_),
            php: Some(_),
            listen: Some(_),
            zeromq: Some(_),
            debug: Some(_),
            max_connections: Some(_),
            max_per_address: Some(_),
            max_per_user: Some(_),
            trusted_proxies: Some(_),
            proxy_protocol: Some(_),
            origins: Some(_),
            max_checks: Some(_),
            check_timeout: Some(_),
            review_interval: Some(_),
            ping_interval: Some(_),
            verdict_reuse: Some(_),
            worker: Some(_),
        } = all
        else {
            panic!("{all:?}");
        };
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, mistake) in [
            ("\nlisten = 'localhost'", "\"localhost\" is no address"),
            ("\nmax_checks = 0", "at least 1"),
            ("\nmax_checks = -1", "max_checks"),
            ("\nping_interval = 0", "a length of time is expected"),
            ("\nreview_interval = 'off'", "a length of time is expected"),
            ("\nping_interval = 'soon'", "a length of time is expected"),
            ("\ntrusted_proxies = ['proxy']", "proxy"),
            ("\norigins = ['*']", "an origin is expected"),
            ("\nport = 8080", "unknown field `port`"),
            ("\nx", "line 2"),
        ] {
            let error = Own::from_toml(text).unwrap_err();
            assert!(error.contains(mistake) && error.contains("line 2"), "{error}");
        }
    }
}
