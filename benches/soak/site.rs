//! A site: a daemon with its EspoCRM, the endpoints for browsers, and its current faults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::authority::{Authority, EC, Issued};
use crate::sent_log::{Channel, SentLog};
use crate::support::{Daemon, Process, Proxy, ProxyKind, Standin, program};
use crate::tab::{DENIED, VOLATILE};

pub struct Site {
    pub name: &'static str,
    pub daemon: Daemon,
    pub standin: Mutex<Standin>,
    pub endpoints: Vec<Endpoint>,
    pub sent_log: SentLog,
    pub active_faults: ActiveFaults,
    /// Number of open connections of the clients.
    pub connections: AtomicUsize,
    /// The certificate of the daemon's own TLS.
    pub issued: Option<(Authority, Issued)>,
    /// Users of permanent tabs, and of others.
    pub permanent_users: Vec<String>,
    pub temporary_users: Vec<String>,
    pub records: usize,
}

/// An address for browsers: the daemon itself or a proxy.
pub struct Endpoint {
    pub name: &'static str,
    pub address: SocketAddr,
    pub path: &'static str,
    pub tls: Option<Arc<ClientConfig>>,
    pub proxy: Option<Proxy>,
    /// When the proxy was last reloaded.
    reloaded: Mutex<Option<Instant>>,
}

/// Faults that may affect connections.
#[derive(Default)]
pub struct ActiveFaults {
    /// Until when checks may have failed; `None` before the first failure.
    failing_until: Mutex<Option<Instant>>,
    /// The user who is logged out, since when, and, after the next login, until when.
    logged_out: Mutex<Option<(String, Instant, Option<Instant>)>>,
    /// Since when access to the volatile record is denied.
    denied: Mutex<Option<Instant>>,
}

/// How long the effects of a fault may continue after its end.
const SETTLING_TIME: Duration = Duration::from_secs(5);

/// After this time, a logout or a denial has taken effect: the intervals of rechecks and pings, and
/// the time for a check.
pub const TIME_TO_EFFECT: Duration = Duration::from_secs(45);

impl Site {
    /// A site with workers, direct and behind proxies.
    pub fn with_workers() -> Self {
        let standin = Standin::new();
        let daemon = start(&standin, &[]);
        let address = daemon.address;
        let mut endpoints = vec![Endpoint::new("direct", address, None, None)];
        for (name, kind) in [
            ("nginx", ProxyKind::Nginx),
            ("apache", ProxyKind::Apache),
            ("caddy", ProxyKind::Caddy),
        ] {
            let proxy = Proxy::start(kind, address);
            endpoints.push(Endpoint::new(name, proxy.address(), Some(proxy.trust()), Some(proxy)));
        }
        Self::new("workers, plain", standin, daemon, endpoints, None, 40, 12)
    }

    /// A site with the daemon's own TLS, and a PHP process for each check.
    pub fn with_tls() -> Self {
        let mut standin = Standin::new();
        let authority = Authority::new();
        let issued = authority.issue("server", EC);
        standin.config("webSocketUseSecureServer", true);
        standin.config("webSocketSslCertificateFile", issued.certificate.to_str());
        standin.config("webSocketSslCertificateLocalPrivateKey", issued.key.to_str());
        let daemon = start(&standin, &["--no-worker"]);
        let trust = authority.client(&[&rustls::version::TLS12, &rustls::version::TLS13]);
        let endpoints = vec![Endpoint::new("direct, TLS", daemon.address, Some(trust), None)];
        Self::new("no worker, TLS", standin, daemon, endpoints, Some((authority, issued)), 8, 4)
    }

    fn new(
        name: &'static str,
        standin: Standin,
        daemon: Daemon,
        endpoints: Vec<Endpoint>,
        issued: Option<(Authority, Issued)>,
        permanent_users: usize,
        temporary_users: usize,
    ) -> Self {
        Self {
            name,
            daemon,
            standin: Mutex::new(standin),
            endpoints,
            sent_log: SentLog::default(),
            active_faults: ActiveFaults::default(),
            connections: AtomicUsize::new(0),
            issued,
            permanent_users: (0..permanent_users).map(|n| format!("6b030ec8stay{n:05}")).collect(),
            temporary_users: (0..temporary_users).map(|n| format!("6b030ec8guest{n:04}")).collect(),
            records: permanent_users / 4,
        }
    }

    /// The channels for messages, in classes that are chosen equally often.
    pub fn channels(&self) -> Vec<Vec<Channel>> {
        let to_all = |topic: String| Channel { topic, user: None };
        let records = |kind: &str| {
            (0..self.records).map(|n| to_all(format!("{kind}.Account.r{n}"))).collect::<Vec<_>>()
        };
        let users = |topic: &str| {
            let users = self.permanent_users.iter().chain(&self.temporary_users);
            let channel = |user: &String| Channel { topic: topic.into(), user: Some(user.clone()) };
            users.map(channel).collect::<Vec<_>>()
        };
        let mut rare: Vec<_> = ["soakUpdate.flux", "recordUpdate.Account.flux"]
            .map(|topic| to_all(topic.replace(".flux", VOLATILE)))
            .into();
        rare.push(to_all("appParamsUpdate".to_owned()));
        rare.extend((1..=3).map(|n| to_all(format!("recordUpdate.Account{DENIED}{n}"))));
        vec![
            records("recordUpdate"),
            records("recordUpdate"),
            records("streamUpdate"),
            records("streamUpdate"),
            users("newNotification"),
            users("newNotification"),
            users("calendarUpdate"),
            rare,
        ]
    }

    /// The channel with many subscribers that receives long messages.
    pub fn bulk() -> Channel {
        Channel { topic: "streamUpdate.Account.bulk".to_owned(), user: None }
    }

    /// Whether the daemon still runs.
    pub fn is_up(&self) -> bool {
        Process::is_running(self.daemon.pid())
    }

    pub fn open(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Endpoint {
    fn new(
        name: &'static str,
        address: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        proxy: Option<Proxy>,
    ) -> Self {
        let path = if proxy.is_some() { "/wss" } else { "/" };
        Self { name, address, path, tls, proxy, reloaded: Mutex::new(None) }
    }

    /// Makes the proxy reload its configuration.
    pub fn reload(&self) {
        if let Some(proxy) = &self.proxy {
            *self.reloaded.lock().unwrap() = Some(Instant::now() + Duration::from_secs(3600));
            proxy.reload();
            *self.reloaded.lock().unwrap() = Some(Instant::now() + SETTLING_TIME);
        }
    }

    /// Whether the proxy may have closed a connection that was opened at that time.
    pub fn may_have_ended(&self, opened: Instant) -> bool {
        self.reloaded.lock().unwrap().is_some_and(|reloaded| opened <= reloaded)
    }
}

impl ActiveFaults {
    /// Checks fail from now on.
    pub fn start_failing(&self) {
        *self.failing_until.lock().unwrap() = Some(Instant::now() + Duration::from_secs(3600));
    }

    /// Checks no longer fail, except those in progress.
    pub fn stop_failing(&self) {
        *self.failing_until.lock().unwrap() = Some(Instant::now() + SETTLING_TIME);
    }

    /// Whether a check that was requested at that time may have failed.
    pub fn may_have_failed(&self, opened: Instant) -> bool {
        self.failing_until.lock().unwrap().is_some_and(|until| opened <= until)
    }

    pub fn log_out(&self, user: &str) {
        *self.logged_out.lock().unwrap() = Some((user.to_owned(), Instant::now(), None));
    }

    pub fn log_in(&self) {
        if let Some((_, _, until)) = &mut *self.logged_out.lock().unwrap() {
            *until = Some(Instant::now() + SETTLING_TIME);
        }
    }

    /// Whether a user's connection that was opened at that time may have been rejected.
    pub fn may_reject(&self, user: &str, opened: Instant) -> bool {
        let logged_out = self.logged_out.lock().unwrap();
        logged_out.as_ref().is_some_and(|(name, _, until)| {
            name == user && until.is_none_or(|until| opened <= until)
        })
    }

    /// Whether a user's connections must have been rejected by now.
    pub fn must_reject(&self, user: &str) -> bool {
        let logged_out = self.logged_out.lock().unwrap();
        logged_out.as_ref().is_some_and(|(name, since, until)| {
            name == user && until.is_none() && since.elapsed() > TIME_TO_EFFECT
        })
    }

    pub fn set_denied(&self, denied: bool) {
        *self.denied.lock().unwrap() = denied.then(Instant::now);
    }

    /// Whether a message to the volatile record that was sent at that time must not arrive.
    pub fn must_not_deliver(&self, sent: Instant) -> bool {
        self.denied.lock().unwrap().is_some_and(|since| sent > since + TIME_TO_EFFECT)
    }
}

/// As shipped, except for shorter intervals.
fn start(standin: &Standin, flags: &[&str]) -> Daemon {
    let mut command = program(binary().to_str().unwrap());
    command.arg("run").arg("--espocrm").arg(standin.path());
    command.args(["--config", "/dev/null", "--listen", "127.0.0.1"]);
    command.args(["--ping-interval", "5s", "--recheck-interval", "20s"]).args(flags);
    command.env("TMPDIR", standin.path());
    Daemon::spawn(command)
}

pub fn binary() -> PathBuf {
    std::env::var_os("SOAK_BINARY")
        .map_or(env!("CARGO_BIN_EXE_espocrm-websocket").into(), PathBuf::from)
}
