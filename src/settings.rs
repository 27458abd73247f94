//! The settings of the daemon: EspoCRM's configuration, the configuration file, the command line,
//! and defaults.

pub mod definitions;
mod layers;
mod overrides;
mod size;
mod span;
pub(crate) mod suggest;
mod table;

pub use definitions::Overrides;
pub use layers::Layers;
pub use overrides::{Allowed, ControlAt, DEFAULT_FILE, Listen};
pub use size::Size;
pub use span::{Span, SpanOrZero};
pub use table::megabytes;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::{info, warn};

use super::espocrm::EspoSettings;
use crate::engine::espocrm::category::{Categories, SubscribePolicy};
use crate::engine::espocrm::entity_types::EntityTypes;
use crate::engine::espocrm::version::Version;
use crate::engine::limits;
use crate::engine::printable::Printable;
use crate::engine::protocol::client_address::Network;
use crate::engine::protocol::origin::Origin;
use crate::platform::exit::{Exit, Result};

/// The settings in force, each with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The PHP that runs access checks.
    pub php: Sourced<PathBuf>,
    /// The address at which browsers or the reverse proxy connect.
    pub address: Sourced<IpAddr>,
    /// The port of that address; 0 for any free one.
    pub port: Sourced<u16>,
    /// The ZeroMQ endpoint to which EspoCRM's PHP connects.
    pub zeromq: Sourced<String>,
    /// The daemon's own TLS, if EspoCRM's configuration enables it.
    pub tls: Sourced<Option<TlsFiles>>,
    /// Whether every connection, subscription and message is logged.
    pub debug: Sourced<bool>,
    /// The log file; `None` for standard error.
    pub log_file: Sourced<Option<PathBuf>>,
    /// Maximum number of connections.
    pub max_connections: Sourced<usize>,
    /// Maximum number of connections per client address; 0 for no limit.
    pub max_per_address: Sourced<usize>,
    /// Maximum number of connections per user; 0 for no limit.
    pub max_per_user: Sourced<usize>,
    /// Proxies whose information about the client is trusted.
    pub trusted_proxies: Sourced<Vec<Network>>,
    /// Whether these send a PROXY protocol header at the start of each connection.
    pub proxy_protocol: Sourced<bool>,
    /// Origins whose pages may connect; empty for all.
    pub origins: Sourced<Vec<Origin>>,
    /// Buffer memory of all connections, in bytes: partial input and queued output.
    pub max_buffered: Sourced<usize>,
    /// Maximum number of PHP processes that check access.
    pub max_checks: Sourced<usize>,
    /// Time after which a check is killed.
    pub check_timeout: Sourced<Duration>,
    /// Interval of rechecks of a user; zero for none.
    pub recheck_interval: Sourced<Duration>,
    /// Interval of pings of a connection.
    pub ping_interval: Sourced<Duration>,
    /// How long a positive check result is reused; zero for never.
    pub check_cache: Sourced<Duration>,
    /// How checks run.
    pub check_mode: Sourced<CheckMode>,
    /// The location of the control socket.
    pub control: Sourced<ControlAt>,
    /// The address of the Prometheus endpoints, if they are enabled.
    pub metrics: Sourced<Option<SocketAddr>>,
    /// Whether EspoCRM sends messages and its pages connect (`useWebSocket`).
    pub enabled: bool,
    /// EspoCRM's version.
    pub version: Version,
    /// EspoCRM's topic categories.
    pub categories: Categories,
    /// EspoCRM's entity types.
    pub entity_types: EntityTypes,
    /// Why EspoCRM's messages may not arrive here, if its configuration suggests that.
    pub misdirected: Option<String>,
}

/// How checks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// On up to this many PHP workers.
    Workers(usize),
    /// Each in its own PHP process, for this reason.
    Plain(&'static str),
}

/// A value and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value in force.
    pub value: T,
    /// The origin of the value.
    pub source: Source,
}

/// The origin of a value. Later variants take precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The default.
    Default,
    /// This parameter of EspoCRM's configuration.
    Espocrm(&'static str),
    /// The configuration file.
    File,
    /// The command line.
    Flag,
    /// A socket passed by systemd.
    Systemd,
}

/// Certificate and key of the daemon's own TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file with the server's certificate first; it may contain the key.
    pub certificate: PathBuf,
    /// PEM file with the key, if the certificate's file does not contain it.
    pub key: Option<PathBuf>,
    /// Decrypts the key. A secret.
    pub passphrase: Option<String>,
}

/// A browser tab has one connection. 10,000 use about 10 MB here and 40 MB in the kernel.
const MAX_CONNECTIONS: usize = 10_000;

/// More tabs than a user has, and too few to keep other users from connecting.
const MAX_PER_USER: usize = 250;

/// Ten times the duration of a check on a busy server. EspoCRM may wait for its database.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The tabs of a browser reconnect within three seconds. Revoked access lasts this much longer.
const CHECK_CACHE: Duration = Duration::from_secs(3);

/// A few checks per connected user. A user whose access was revoked receives events for this long.
const RECHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Well below the 60 s after which nginx and most proxies close an idle connection.
const PING_INTERVAL: Duration = Duration::from_secs(25);

impl Settings {
    /// Combines EspoCRM's configuration with the configuration file and the command line.
    ///
    /// # Errors
    /// If a parameter of EspoCRM is invalid: which one, and what is valid.
    pub fn resolve(layers: &Layers, espo_settings: &EspoSettings) -> Result<Self> {
        let secure = espo_settings.is_true("webSocketUseSecureServer");
        let tls = if secure { Some(tls_files(espo_settings)?) } else { None };
        let max_connections = layers.pick(|own| own.max_connections, || None, MAX_CONNECTIONS);
        let mut settings = Self {
            php: layers.pick(
                |own| own.php.clone(),
                || {
                    from(
                        espo_settings.text("phpExecutablePath").map(PathBuf::from),
                        "phpExecutablePath",
                    )
                },
                PathBuf::from("php"),
            ),
            address: layers.pick(
                |own| own.listen.map(|listen| listen.address),
                || None,
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ),
            port: {
                let port =
                    espo_settings.text("webSocketPort").map(|text| port(&text)).transpose()?;
                let default = if secure { 8443 } else { 8080 };
                let espocrm = || from(port, "webSocketPort");
                layers.pick(|own| own.listen.and_then(|listen| listen.port), espocrm, default)
            },
            zeromq: {
                const NAME: &str = "webSocketZeroMQSubscriberDsn";
                let default = "tcp://127.0.0.1:5555".to_owned();
                layers.pick(
                    |own| own.zeromq.clone(),
                    || from(espo_settings.text(NAME), NAME),
                    default,
                )
            },
            tls: {
                const NAME: &str = "webSocketUseSecureServer";
                let espocrm = espo_settings.is_set(NAME).then_some(tls);
                from(espocrm, NAME).unwrap_or(Sourced { value: None, source: Source::Default })
            },
            debug: {
                const NAME: &str = "webSocketDebugMode";
                let debug = espo_settings.is_true(NAME).then_some(true);
                layers.pick(|own| own.debug, || from(debug, NAME), false)
            },
            log_file: {
                let file = layers.pick(|own| own.log_file.clone().map(Some), || None, None);
                Sourced { value: layers.log_file(), source: file.source }
            },
            max_per_address: {
                let half = max_connections.value / 2;
                layers.pick(|own| own.max_per_address, || None, half)
            },
            max_connections,
            max_per_user: layers.pick(|own| own.max_per_user, || None, MAX_PER_USER),
            trusted_proxies: layers.pick(|own| own.trusted_proxies.clone(), || None, Vec::new()),
            proxy_protocol: layers.pick(|own| own.proxy_protocol, || None, false),
            origins: origins(layers, espo_settings)?,
            max_buffered: {
                layers.pick(|own| own.max_buffered.map(usize::from), || None, limits::MAX_BUFFERED)
            },
            max_checks: {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                layers.pick(|own| own.max_checks, || None, 2 * cores)
            },
            check_timeout: {
                layers.pick(|own| own.check_timeout.map(Duration::from), || None, CHECK_TIMEOUT)
            },
            recheck_interval: {
                let own = |own: &Overrides| own.recheck_interval.map(Duration::from);
                layers.pick(own, || None, RECHECK_INTERVAL)
            },
            ping_interval: {
                layers.pick(|own| own.ping_interval.map(Duration::from), || None, PING_INTERVAL)
            },
            check_cache: {
                layers.pick(|own| own.check_cache.map(Duration::from), || None, CHECK_CACHE)
            },
            check_mode: check_mode(layers, espo_settings),
            control: layers.pick(|own| own.control.clone(), || None, ControlAt::Default),
            metrics: layers.pick(|own| own.metrics.map(Some), || None, None),
            enabled: espo_settings.is_true("useWebSocket"),
            version: espo_settings.version.clone(),
            categories: espo_settings.categories.clone(),
            entity_types: espo_settings.entity_types.clone(),
            misdirected: None,
        };
        settings.misdirected = misdirected(espo_settings, &settings.zeromq.value);
        if settings.proxy_protocol.value && settings.trusted_proxies.value.is_empty() {
            return Err(Exit::error(
                "proxy_protocol is on, but trusted_proxies names no proxy. Name those from which \
                 every connection begins with a PROXY header, such as [\"10.0.0.5\"].",
            ));
        }
        Ok(settings)
    }

    /// Logs warnings about settings that are valid but probably unintended.
    pub fn log_doubts(&self) {
        if !self.version.is_known() {
            warn!(
                "EspoCRM's version is {}, which is not supported: the output of its access checks may \
                 have changed. Access is granted only if the output is unambiguous.",
                self.version
            );
        }
        if !self.enabled {
            warn!(
                "EspoCRM's useWebSocket is off: EspoCRM sends no messages and its pages do not \
                 connect. Enable it in Administration, Settings."
            );
        }
        if let Some(misdirected) = &self.misdirected {
            warn!("EspoCRM's messages may not arrive here: {misdirected}.");
        }
        for (name, category) in self.categories.iter() {
            if let SubscribePolicy::Invalid(error) = &category.access {
                warn!("EspoCRM's topic category \"{}\" is not served: {error}.", Printable(name));
            }
        }
        // Anything else is an address, an interface or all of them.
        let own = ["tcp://127.", "tcp://localhost:", "tcp://[::1]:", "tcp://lo:", "ipc://"];
        if !own.iter().any(|own| self.zeromq.value.starts_with(own)) {
            warn!(
                "Any program that can reach {} can send messages to EspoCRM's users. Block that port \
                 in the firewall, or set webSocketZeroMQSubscriberDsn to an address of 127.0.0.1.",
                Printable(&self.zeromq.value)
            );
        }
        if let Some(address) = self.metrics.value.filter(|address| !address.ip().is_loopback()) {
            warn!(
                "Any program that can reach {address} can read the metrics. Block that port in the \
                 firewall, or set metrics to an address of 127.0.0.1."
            );
        }
    }

    /// Logs how access checks run.
    pub fn log_mode(&self) {
        match self.check_mode.value {
            CheckMode::Workers(_) => info!("Access is checked by {}.", self.check_mode.value),
            CheckMode::Plain(reason) => {
                info!("Each access check runs in its own PHP process: {reason}.");
            }
        }
    }

    /// Maximum number of PHP workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        match self.check_mode.value {
            CheckMode::Workers(limit) => limit.min(self.max_checks.value),
            CheckMode::Plain(_) => 0,
        }
    }

    /// Maximum memory of the daemon in bytes, without PHP processes.
    #[must_use]
    pub fn worst_case(&self) -> usize {
        let children = self.max_checks.value.saturating_add(self.workers());
        let (connections, held) = (self.max_connections.value, self.max_buffered.value);
        limits::worst_case(connections, self.tls.value.is_some(), held, children)
    }

    /// Replaces the address by that of a socket passed by systemd.
    pub fn listens_at(&mut self, address: SocketAddr) {
        self.address = Sourced { value: address.ip(), source: Source::Systemd };
        self.port = Sourced { value: address.port(), source: Source::Systemd };
    }

    /// The address at which browsers connect.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address.value, self.port.value)
    }
}

fn from<T>(value: Option<T>, name: &'static str) -> Option<Sourced<T>> {
    value.map(|value| Sourced { value, source: Source::Espocrm(name) })
}

fn check_mode(layers: &Layers, espo_settings: &EspoSettings) -> Sourced<CheckMode> {
    let wanted = layers.pick(|own| own.worker, || None, true);
    let value = if !wanted.value {
        CheckMode::Plain("worker is set to false")
    } else if !espo_settings.version.is_at_least((7, 0)) {
        CheckMode::Plain("PHP workers need EspoCRM 7.0 or later")
    } else if !espo_settings.opcache {
        CheckMode::Plain("the PHP CLI has no opcache, without which a worker gains little")
    } else {
        CheckMode::Workers(std::thread::available_parallelism().map_or(1, usize::from))
    };
    Sourced { value, source: wanted.source }
}

/// Why messages may not arrive at `at`: EspoCRM sends them by other means or to another endpoint.
fn misdirected(espo_settings: &EspoSettings, at: &str) -> Option<String> {
    const NAME: &str = "webSocketZeroMQSubmissionDsn";
    if let Some(messager) = espo_settings.text("webSocketMessager").filter(|text| text != "ZeroMQ")
    {
        return Some(format!("its webSocketMessager is \"{}\", not ZeroMQ", Printable(messager)));
    }
    let to = espo_settings.text(NAME).unwrap_or("tcp://localhost:5555".to_owned());
    // Only the port of a TCP endpoint can be compared: a host has many names. "*" is any free port.
    let end = |dsn: &str| match dsn.rsplit_once(':') {
        Some((begin, port)) if begin.starts_with("tcp://") => port.to_owned(),
        _ => dsn.to_owned(),
    };
    let (to_end, at_end) = (end(&to), end(at));
    (to_end != at_end && at_end != "*").then(|| {
        let (to, at) = (Printable(&to), Printable(at));
        format!("its {NAME} is \"{to}\", but the daemon receives at \"{at}\"")
    })
}

fn origins(layers: &Layers, espo_settings: &EspoSettings) -> Result<Sourced<Vec<Origin>>> {
    let Sourced { value, source } = layers.pick(|own| own.origins.clone(), || None, Vec::new());
    let origin = |allowed| match allowed {
        Allowed::Origin(origin) => Ok(origin),
        Allowed::SameSite => {
            let url = espo_settings.text("siteUrl").unwrap_or_default();
            Origin::of(&url).map_err(|_| {
                Exit::error(format!(
                    "The origin \"same-site\" requires a valid siteUrl, but EspoCRM's is \"{}\". \
                     Correct it in Administration, Settings, or specify the origin itself, such as \
                     \"https://crm.example.com\".",
                    Printable(&url)
                ))
            })
        }
    };
    let value = value.into_iter().map(origin).collect::<Result<_>>()?;
    Ok(Sourced { value, source })
}

fn port(text: &str) -> Result<u16> {
    text.parse().map_err(|_| {
        Exit::error(format!(
            "EspoCRM's webSocketPort is \"{}\", which is not a port number. Correct it in \
             data/config-internal.php or data/config.php.",
            Printable(text)
        ))
    })
}

fn tls_files(espo_settings: &EspoSettings) -> Result<TlsFiles> {
    let Some(certificate) = espo_settings.text("webSocketSslCertificateFile") else {
        return Err(Exit::error(
            "EspoCRM's webSocketUseSecureServer is on, but webSocketSslCertificateFile names no \
             file. Set it to a certificate in PEM format in data/config-internal.php, or turn \
             webSocketUseSecureServer off and let the web server's proxy do TLS.",
        ));
    };
    Ok(TlsFiles {
        certificate: certificate.into(),
        key: espo_settings.text("webSocketSslCertificateLocalPrivateKey").map(PathBuf::from),
        passphrase: espo_settings.secret("webSocketSslCertificatePassphrase"),
    })
}

/// Never shows the passphrase.
impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate, key, passphrase: _ } = self;
        f.debug_struct("TlsFiles")
            .field("certificate", certificate)
            .field("key", key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::definitions::{DOCUMENTATION, SETTINGS};
    use super::*;
    use serde_json::json;

    #[test]
    fn what_espocrm_says_is_shown_without_its_secret_and_without_commands_to_a_terminal() {
        let parameters = json!({
            "webSocketUseSecureServer": true,
            "webSocketSslCertificateFile": "/a\n\"port\' 1",
            "webSocketSslCertificateLocalPrivateKey": "/b\u{1b}[2J",
            "webSocketSslCertificatePassphrase": "tiger",
            "webSocketZeroMQSubscriberDsn": "ipc:///it's\nx",
        });
        let categories = json!({
            "a\nb": {"paramList": ["x\ny"], "accessCheckCommand": "A\n:userId \u{1b}"},
            "q\"'\\": {"accessCheckCommand": "A 'b c' d"},
            "c\u{7}": 7,
        });
        let espo_settings = EspoSettings::new(parameters.as_object().unwrap().clone(), &categories);
        let settings = Settings::resolve(&Layers::default(), &espo_settings).unwrap();
        let shown = settings.to_string();
        assert!(!shown.replace('\n', "").contains(char::is_control), "{shown}");
        assert!(
            shown.contains(r"  a\nb.<x\ny>") && shown.contains(r"A\n:userId \u{1b}"),
            "{shown}"
        );
        // Quotes and backslashes stay as they are.
        assert!(shown.contains("  q\"'\\ ") && shown.contains("A 'b c' d"), "{shown}");
        assert!(shown.contains(r#"/a\n"port' 1"#) && shown.contains("passphrase set"), "{shown}");
        assert!(shown.contains(r"ipc:///it's\nx"), "{shown}");
        assert!(!shown.contains("tiger") && !format!("{settings:?}").contains("tiger"));
    }

    #[test]
    fn where_espocrm_sends_is_compared_with_where_we_receive() {
        let sends = |dsn: Option<&str>, messager: &str| {
            let mut parameters = json!({"webSocketMessager": messager});
            if let Some(dsn) = dsn {
                parameters["webSocketZeroMQSubmissionDsn"] = json!(dsn);
            }
            EspoSettings::new(parameters.as_object().unwrap().clone(), &json!({}))
        };
        for (to, at) in [
            (Some("tcp://localhost:5555"), "tcp://127.0.0.1:5555"),
            (Some("tcp://daemon:7777"), "tcp://*:7777"),
            (None, "tcp://127.0.0.1:5555"),
            (Some("tcp://localhost:1"), "tcp://127.0.0.1:*"),
            (Some("ipc:///run/a"), "ipc:///run/a"),
        ] {
            assert_eq!(misdirected(&sends(to, "ZeroMQ"), at), None, "{to:?} {at}");
        }
        for (to, at) in [
            (Some("tcp://localhost:5556"), "tcp://127.0.0.1:5555"),
            (None, "tcp://127.0.0.1:5556"),
            (Some("tcp://localhost:5555"), "ipc:///run/a"),
            (Some("ipc:///run/b"), "ipc:///run/a"),
        ] {
            let reason = misdirected(&sends(to, "ZeroMQ"), at).unwrap();
            assert!(
                reason.contains(to.unwrap_or("localhost:5555")) && reason.contains(at),
                "{reason}"
            );
        }
        let reason = misdirected(&sends(None, "Redis"), "tcp://127.0.0.1:5555").unwrap();
        assert!(reason.contains("Redis"), "{reason}");
    }

    #[test]
    fn documented_defaults_are_the_real_ones() {
        let documented = SETTINGS.iter().zip(DOCUMENTATION);
        let defaults = documented
            .filter(|(setting, docs)| docs.value.trim_matches('"') == setting.default)
            .map(|(setting, docs)| format!("{} = {}\n", setting.name, docs.value));
        let defaults: Vec<_> = defaults.collect();
        assert!(defaults.len() > 8, "{defaults:?}");
        let overrides = Overrides::from_toml(&defaults.concat()).unwrap();
        let espo_settings = EspoSettings::new(serde_json::Map::new(), &json!({}));
        let default = Settings::resolve(&Layers::default(), &espo_settings).unwrap();
        let resolved = Settings::resolve(&Layers::of_flags(overrides), &espo_settings).unwrap();
        let values = |settings: &Settings| {
            let text = settings.to_string();
            let value = |line: &str| line.get(..50).unwrap_or(line).to_owned();
            text.lines().map(value).collect::<Vec<_>>()
        };
        assert_eq!(values(&resolved), values(&default));
    }
}
