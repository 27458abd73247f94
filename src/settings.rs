//! What the daemon runs with: EspoCRM's configuration, our own file and flags, and defaults.

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

/// The settings in force, each with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The PHP that runs access checks.
    pub php: Sourced<PathBuf>,
    /// Where browsers, or the proxy in front, connect.
    pub address: Sourced<IpAddr>,
    /// 0 stands for any free port.
    pub port: Sourced<u16>,
    /// Where EspoCRM's PHP connects: a ZeroMQ endpoint.
    pub zeromq: Sourced<String>,
    /// Our own TLS, if EspoCRM wants it.
    pub tls: Sourced<Option<TlsFiles>>,
    /// Whether each event is logged, as EspoCRM's own daemon does.
    pub debug: Sourced<bool>,
    /// Where the log goes; none for standard error.
    pub log_file: Sourced<Option<PathBuf>>,
    /// Connections at a time.
    pub max_connections: Sourced<usize>,
    /// Connections at a time of one client address; 0 for no limit.
    pub max_per_address: Sourced<usize>,
    /// Connections at a time of one user; 0 for no limit.
    pub max_per_user: Sourced<usize>,
    /// Proxies that are believed whose connections they pass on.
    pub trusted_proxies: Sourced<Vec<Network>>,
    /// Whether these begin each connection by a header of the PROXY protocol.
    pub proxy_protocol: Sourced<bool>,
    /// Origins of pages that may connect; none if all may.
    pub origins: Sourced<Vec<Origin>>,
    /// Bytes that all connections may hold together beyond what each costs while it is idle.
    pub max_buffered: Sourced<usize>,
    /// PHP processes at a time that check access.
    pub max_checks: Sourced<usize>,
    /// After which a check is killed.
    pub check_timeout: Sourced<Duration>,
    /// Between two rechecks of what a user was granted; zero for none.
    pub recheck_interval: Sourced<Duration>,
    /// Between two pings of a connection.
    pub ping_interval: Sourced<Duration>,
    /// For how long a grant counts for whoever asks for the same.
    pub check_cache: Sourced<Duration>,
    /// How checks are run.
    pub check_mode: Sourced<CheckMode>,
    /// Where the control socket is.
    pub control: Sourced<ControlAt>,
    /// Where metrics are told, if they are.
    pub metrics: Sourced<Option<SocketAddr>>,
    /// Whether EspoCRM sends anything and its pages connect.
    pub enabled: bool,
    /// EspoCRM's version.
    pub version: Version,
    /// EspoCRM's topics.
    pub categories: Categories,
    /// EspoCRM's entity types.
    pub entity_types: EntityTypes,
    /// What EspoCRM is set to that keeps its messages from coming here.
    pub misdirected: Option<String>,
}

/// How checks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// By up to so many PHP workers, each of which answers many.
    Workers(usize),
    /// Each by a PHP process of its own, for this reason.
    Plain(&'static str),
}

/// A value and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value in force.
    pub value: T,
    /// Who set it.
    pub source: Source,
}

/// Who set a value; the later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody.
    Default,
    /// This parameter of EspoCRM's configuration.
    Espocrm(&'static str),
    /// Our own configuration file.
    File,
    /// The command line.
    Flag,
    /// A socket that systemd has opened for us.
    Systemd,
}

/// Certificate and key of our own TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM, the server's certificate first; may hold the key, too.
    pub certificate: PathBuf,
    /// PEM, if the key is in a file of its own.
    pub key: Option<PathBuf>,
    /// Decrypts the key. A secret.
    pub passphrase: Option<String>,
}

/// A tab holds one connection; 10,000 need about 10 MB here and 40 MB in the kernel.
const MAX_CONNECTIONS: usize = 10_000;

/// More tabs than anybody has; fewer than it takes to keep others from connecting.
const MAX_PER_USER: usize = 250;

/// Ten times what a check takes on a busy server. EspoCRM waits for its database meanwhile.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The tabs of a browser come back within three seconds. So much longer somebody may see what was
/// just forbidden.
const CHECK_CACHE: Duration = Duration::from_secs(3);

/// A few checks for each user who is there. Somebody who was locked out sees events for so long.
const RECHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Well below the 60 s after which nginx and most others end a silent connection.
const PING_INTERVAL: Duration = Duration::from_secs(25);

impl Settings {
    /// Combines what EspoCRM says with our own settings.
    ///
    /// # Errors
    /// If a value of EspoCRM's makes no sense: which parameter, and what it may be.
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
                layers.pick(|own| own.max_buffered.map(usize::from), || None, limits::MAX_HELD)
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
            control: layers.pick(|own| own.control.clone(), || None, ControlAt::Usual),
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

    /// What an administrator should hear of, though it keeps nothing from running.
    pub fn log_doubts(&self) {
        if !self.version.is_known() {
            warn!(
                "EspoCRM's version is {}: it is not known how its access checks tell their verdict. \
                 Only what is beyond doubt will be granted.",
                self.version
            );
        }
        if !self.enabled {
            warn!(
                "EspoCRM's useWebSocket is off: it sends nothing, and its pages do not connect. \
                 Turn it on in Administration, Settings."
            );
        }
        if let Some(misdirected) = &self.misdirected {
            warn!("EspoCRM's messages may not come here: {misdirected}.");
        }
        for (name, category) in self.categories.iter() {
            if let SubscribePolicy::Nobody(error) = &category.access {
                warn!("EspoCRM's topic category \"{}\" is not served: {error}.", Printable(name));
            }
        }
        // Anything else is an address, an interface or all of them.
        let own = ["tcp://127.", "tcp://localhost:", "tcp://[::1]:", "tcp://lo:", "ipc://"];
        if !own.iter().any(|own| self.zeromq.value.starts_with(own)) {
            warn!(
                "Whoever can reach {} can send messages to EspoCRM's users. Keep that port behind a \
                 firewall, or bind 127.0.0.1 by webSocketZeroMQSubscriberDsn.",
                Printable(&self.zeromq.value)
            );
        }
        if let Some(address) = self.metrics.value.filter(|address| !address.ip().is_loopback()) {
            warn!(
                "Whoever can reach {address} can read the metrics. Keep that port behind a firewall, \
                 or set metrics to one of 127.0.0.1."
            );
        }
    }

    /// How access is checked.
    pub fn log_mode(&self) {
        match self.check_mode.value {
            CheckMode::Workers(_) => info!("Access is checked by {}.", self.check_mode.value),
            CheckMode::Plain(reason) => {
                info!("Each access check is run in a PHP process of its own: {reason}.");
            }
        }
    }

    /// PHP workers at a time.
    #[must_use]
    pub fn workers(&self) -> usize {
        match self.check_mode.value {
            CheckMode::Workers(limit) => limit.min(self.max_checks.value),
            CheckMode::Plain(_) => 0,
        }
    }

    /// Bytes of memory that the daemon takes at most, PHP's processes not included.
    #[must_use]
    pub fn worst_case(&self) -> usize {
        let children = self.max_checks.value.saturating_add(self.workers());
        let (connections, held) = (self.max_connections.value, self.max_buffered.value);
        limits::worst_case(connections, self.tls.value.is_some(), held, children)
    }

    /// Browsers connect to a socket that systemd has opened.
    pub fn listens_at(&mut self, address: SocketAddr) {
        self.address = Sourced { value: address.ip(), source: Source::Systemd };
        self.port = Sourced { value: address.port(), source: Source::Systemd };
    }

    /// Where browsers connect.
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
        CheckMode::Plain("so it is set")
    } else if !espo_settings.version.is_at_least((7, 0)) {
        CheckMode::Plain("PHP workers need EspoCRM 7.0 or later")
    } else if !espo_settings.opcache {
        CheckMode::Plain("PHP's command line has no opcache, without which a worker gains little")
    } else {
        CheckMode::Workers(std::thread::available_parallelism().map_or(1, usize::from))
    };
    Sourced { value, source: wanted.source }
}

/// Whether EspoCRM sends its messages by another way, or to another port than `at`, where we receive.
fn misdirected(espo_settings: &EspoSettings, at: &str) -> Option<String> {
    const NAME: &str = "webSocketZeroMQSubmissionDsn";
    if let Some(messager) = espo_settings.text("webSocketMessager").filter(|text| text != "ZeroMQ")
    {
        return Some(format!("its webSocketMessager is \"{}\", not ZeroMQ", Printable(messager)));
    }
    let to = espo_settings.text(NAME).unwrap_or("tcp://localhost:5555".to_owned());
    // Of TCP only the port can be compared: the host may have many names. "*" is any free one.
    let end = |dsn: &str| match dsn.rsplit_once(':') {
        Some((begin, port)) if begin.starts_with("tcp://") => port.to_owned(),
        _ => dsn.to_owned(),
    };
    let (to_end, at_end) = (end(&to), end(at));
    (to_end != at_end && at_end != "*").then(|| {
        let (to, at) = (Printable(&to), Printable(at));
        format!("its {NAME} is \"{to}\", and they are received at \"{at}\"")
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
                    "The origin \"same-site\" is that of EspoCRM's siteUrl, which is \"{}\". Set it \
                     in Administration, Settings, or write the origin out: \
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
            "EspoCRM's webSocketPort is \"{}\", which is no port number. Correct it in \
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
            let told = misdirected(&sends(to, "ZeroMQ"), at).unwrap();
            assert!(told.contains(to.unwrap_or("localhost:5555")) && told.contains(at), "{told}");
        }
        let told = misdirected(&sends(None, "Redis"), "tcp://127.0.0.1:5555").unwrap();
        assert!(told.contains("Redis"), "{told}");
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
