//! EspoCRM's settings: read at startup, and reloaded when they have changed.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use log::{debug, error, info, warn};

use super::{Backend, LISTENER, Server, accept};
use crate::daemon::listener::Listener;
use crate::daemon::tls::Acceptor;
use crate::engine::espocrm::version::Version;
use crate::engine::printable::plural;
use crate::engine::protocol::control;
use crate::engine::time::Time;
use crate::espocrm::process::{Finished, Task};
use crate::espocrm::{EspoSettings, Identity, Installation, PROBE_TIMEOUT, Router, Watch};
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::settings::{Layers, Settings, Source};

/// The EspoCRM that the daemon serves.
pub(crate) struct Espocrm {
    /// The installation with the PHP that printed the settings in force.
    pub(super) installation: Installation,
    /// The same installation with the PHP that runs the probe.
    probed: Installation,
    /// How often the current reload has switched to another PHP.
    php_switches: u32,
    pub(super) router: Option<Router>,
    layers: Layers,
    /// The version of its PHP.
    php_version: String,
    watch: Watch,
    reload: ReloadState,
    /// Set if reading the changed settings failed: when to retry.
    retry_at: Option<Time>,
    /// The error of the latest reload, as logged.
    last_error: String,
    /// The administrator requested the reload, so its result is logged in any case.
    requested: bool,
    /// The files have been checked in this turn.
    checked_files: bool,
    /// When to check its files next while clients are connected.
    next_file_check: Time,
    /// No file check before this time.
    paused_until: Time,
}

/// Result of a probe.
enum ProbeResult {
    Settings(Box<Settings>),
    /// The settings of this version cannot be used.
    Invalid(Version, Exit),
    /// The probe failed.
    Failed(Exit),
    /// The settings name another PHP, which has to be probed.
    OtherPhp(Installation),
}

/// State of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReloadState {
    Idle,
    Running,
    /// Another reload was requested while one is running.
    RunAgain,
}

/// Interval of file checks while no access check is started, and of retries after a failed reload.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// How often one reload may switch to another PHP: from the one in force to the one of our own
/// settings, and from there to the one that EspoCRM names.
const MAX_PHP_SWITCHES: u32 = 2;

/// Pause of file checks after a reload: a file that is written by each probe must not cause endless
/// reloads.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

impl Espocrm {
    /// Probes the EspoCRM that `layers` name, and waits for the result unless `stop` returns true.
    ///
    /// # Errors
    /// If there is no EspoCRM, the probe fails, or the settings are invalid; [`Exit::Stopped`].
    pub(crate) fn open(layers: Layers, mut stop: impl FnMut() -> bool) -> Result<(Self, Settings)> {
        let root = layers.root()?;
        let php = layers.php().unwrap_or(Path::new("php"));
        let installation = Installation::new(root, php, layers.user())?;
        let mut watch = Watch::new(installation.root());
        let espo_settings = installation.read_settings(&mut stop)?;
        watch.ignore_compiled_metadata();
        let mut espocrm = Self {
            probed: installation.clone(),
            installation,
            php_switches: 0,
            router: None,
            layers,
            php_version: espo_settings.php.clone(),
            watch,
            reload: ReloadState::Idle,
            retry_at: None,
            last_error: String::new(),
            requested: false,
            checked_files: false,
            next_file_check: Time::default().after(FILE_CHECK_INTERVAL),
            paused_until: Time::default(),
        };
        let mut settings = espocrm.resolve(&espo_settings)?;
        if settings.php.value != espocrm.probed.php() {
            // The PHP named by EspoCRM will run the checks, so it has to print the settings, too.
            espocrm.probed = espocrm.probed.with_php(&settings.php.value);
            let espo_settings = espocrm.probed.read_settings(&mut stop)?;
            settings = espocrm.resolve(&espo_settings)?;
            if settings.php.value != espocrm.probed.php() {
                return Err(espocrm.unstable_php(&settings));
            }
            espocrm.php_version = espo_settings.php;
        }
        espocrm.installation = espocrm.probed.clone();
        Ok((espocrm, settings))
    }

    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        self.installation.root()
    }

    /// The installation with the PHP that runs access checks.
    #[must_use]
    pub(crate) fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The PHP that runs access checks, with its version if known.
    #[must_use]
    pub(crate) fn php(&self) -> String {
        let php = self.installation.php().display();
        match &*self.php_version {
            "" => format!("PHP {php}"),
            version => format!("PHP {version} ({php})"),
        }
    }

    /// The daemon's configuration file, if there is one.
    #[must_use]
    pub(crate) fn file_name(&self) -> Option<&Path> {
        self.layers.file_name()
    }

    /// The site user.
    #[must_use]
    pub(crate) fn identity(&self) -> &Identity {
        self.installation.identity()
    }

    /// Whether its version may differ from the one that the settings in force belong to.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.reload != ReloadState::Idle
            || self.retry_at.is_some()
            || self.watch.has_pending_change()
    }

    /// Starts the probe with `spawn`.
    fn start_probe(&mut self, mut spawn: impl FnMut(Command) -> io::Result<()>) -> Result<()> {
        self.php_switches = 0;
        self.probed = self.installation.clone();
        let started = self.probed.probe().and_then(&mut spawn);
        started.or_else(|_| {
            // That PHP may have been replaced by another one, which EspoCRM will name.
            self.probed = self.with_initial_php();
            let started = self.probed.probe().and_then(&mut spawn);
            started.map_err(|error| self.probed.php_not_started(&error))
        })
    }

    /// The installation with the PHP that runs the first probe at startup.
    fn with_initial_php(&self) -> Installation {
        self.installation.with_php(self.layers.php().unwrap_or(Path::new("php")))
    }

    /// Evaluates the output of the probe.
    fn evaluate(&mut self, finished: &Finished) -> ProbeResult {
        let may_switch = self.php_switches < MAX_PHP_SWITCHES;
        let espo_settings = match self.probed.read_probe(finished) {
            Ok(espo_settings) => espo_settings,
            Err(error) => {
                let initial = self.with_initial_php();
                let is_wrong = EspoSettings::wrong_sapi(&finished.stdout).is_some();
                // That PHP was replaced; EspoCRM may name another one by now.
                let switch = is_wrong && self.php_switches == 0 && initial != self.probed;
                return if switch {
                    ProbeResult::OtherPhp(initial)
                } else {
                    ProbeResult::Failed(error)
                };
            }
        };
        match self.resolve_with_file(&espo_settings) {
            Err(error) => ProbeResult::Invalid(espo_settings.version, error),
            Ok(settings) if settings.php.value == self.probed.php() => {
                self.installation = self.probed.clone();
                self.php_version = espo_settings.php;
                ProbeResult::Settings(Box::new(settings))
            }
            Ok(settings) if may_switch => {
                ProbeResult::OtherPhp(self.probed.with_php(&settings.php.value))
            }
            Ok(settings) => ProbeResult::Failed(self.unstable_php(&settings)),
        }
    }

    fn unstable_php(&self, settings: &Settings) -> Exit {
        Exit::error(format!(
            "EspoCRM's phpExecutablePath is not stable: run by PHP {}, EspoCRM names {}. Set it to \
             one path, or use --php PATH.",
            self.probed.php().display(),
            settings.php.value.display(),
        ))
    }

    /// Schedules a retry after a failed reload.
    fn reload_failed(&mut self, now: Time, error: &Exit) {
        self.retry_at = Some(now.after(FILE_CHECK_INTERVAL));
        let error = error.to_string();
        // Retries that fail with the same error are not logged.
        if std::mem::take(&mut self.requested) || self.last_error != error {
            error!("{error} {KEEPING}");
        }
        self.last_error = error;
    }

    /// Combines EspoCRM's settings with the current content of the daemon's configuration file.
    fn resolve_with_file(&mut self, espo_settings: &EspoSettings) -> Result<Settings> {
        self.layers.read_file()?;
        let root = self.layers.root().and_then(Installation::locate)?;
        if root != self.root() {
            warn!(
                "EspoCRM's directory changed to {}; restart required. Still serving {}.",
                root.display(),
                self.root().display()
            );
        }
        self.resolve(espo_settings)
    }

    fn resolve(&mut self, espo_settings: &EspoSettings) -> Result<Settings> {
        let mut settings = Settings::resolve(&self.layers, espo_settings)?;
        let php = &mut settings.php;
        if php.value.is_absolute() && !php.value.exists() && php.source != Source::Flag {
            warn!(
                "PHP {} does not exist (set by {}). Using {} instead.",
                php.value.display(),
                php.source,
                self.probed.php().display()
            );
            self.probed.php().clone_into(&mut php.value);
            php.source = Source::Default;
        }
        let tls = settings
            .tls
            .value
            .iter()
            .flat_map(|files| [&files.certificate].into_iter().chain(&files.key));
        let root = self.installation.root();
        self.watch.set_additional(tls.map(|path| root.join(path)));
        Ok(settings)
    }
}

impl Backend {
    /// The TLS acceptor, if TLS is configured.
    pub(super) fn acceptor(&self, settings: &Settings) -> Result<Option<Acceptor>> {
        match (self, &settings.tls.value) {
            (Self::Espocrm(espocrm), Some(files)) => {
                Acceptor::load(espocrm.root(), files, espocrm.identity()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// When [`Server::check_for_changes_if_due`] has something to do.
    pub(super) fn next_file_check(&self) -> Option<Time> {
        match self {
            Self::Espocrm(espocrm) if espocrm.reload == ReloadState::Idle => {
                Some(espocrm.next_file_check.max(espocrm.paused_until))
            }
            _ => None,
        }
    }

    /// Whether a reload is running.
    pub(super) fn is_reloading(&self) -> bool {
        matches!(self, Self::Espocrm(espocrm) if espocrm.reload != ReloadState::Idle)
    }

    /// Starts a new turn of the event loop, in which files are checked once.
    pub(super) fn begin_turn(&mut self) {
        if let Self::Espocrm(espocrm) = self {
            espocrm.checked_files = false;
        }
    }
}

impl Server {
    /// Reloads the settings if EspoCRM's files have changed. Checks the files once per turn.
    pub(super) fn check_for_changes(&mut self) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let busy = espocrm.reload != ReloadState::Idle || self.now < espocrm.paused_until;
        if busy || std::mem::replace(&mut espocrm.checked_files, true) {
            return;
        }
        espocrm.next_file_check = self.now.after(FILE_CHECK_INTERVAL);
        if espocrm.watch.take_change() {
            debug!("EspoCRM's configuration, metadata or certificate has changed. Reloading.");
            self.begin_reload();
        } else if espocrm.retry_at.is_some_and(|retry_at| retry_at <= self.now) {
            self.begin_reload();
        }
    }

    /// Checks the files periodically while clients are connected.
    pub(super) fn check_for_changes_if_due(&mut self) {
        let due = self.backend.next_file_check().is_some_and(|at| at <= self.now);
        if due && !self.conns.is_empty() {
            self.check_for_changes();
        }
    }

    /// Reloads the settings at the administrator's request.
    pub(super) fn reload(&mut self) {
        self.systemd.reloading();
        if let Some(file) = &self.settings.log_file.value
            && let Err(error) = logging::reopen(file)
        {
            error!("{error}");
        }
        info!("Reloading EspoCRM's settings.");
        if let Backend::Espocrm(espocrm) = &mut self.backend {
            espocrm.requested = true;
        }
        self.self_check.announce();
        self.begin_reload();
        self.report_reload();
    }

    /// Starts a probe of EspoCRM's settings. No check is started until it ends, because EspoCRM's
    /// version determines how PHP's answers are interpreted.
    pub(super) fn begin_reload(&mut self) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        if espocrm.reload != ReloadState::Idle {
            espocrm.reload = ReloadState::RunAgain;
            return;
        }
        // Changes from now on cause another reload.
        espocrm.watch.take_change();
        self.reload_errors.clear();
        let (now, registry) = (self.now, self.poll.registry());
        let spawn =
            |command| self.children.spawn(registry, now, Task::Probe, command, PROBE_TIMEOUT);
        match espocrm.start_probe(spawn) {
            Ok(()) => {
                espocrm.reload = ReloadState::Running;
                self.hub.begin_reload();
                self.update_check_pause();
            }
            Err(error) => {
                espocrm.reload_failed(now, &error);
                self.reload_errors.push(error.to_string());
                self.stats.reload(false);
                self.request_self_check();
            }
        }
    }

    /// Probes EspoCRM with another PHP.
    fn probe_other_php(&mut self, other: Installation) -> Result<()> {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return Ok(()) };
        espocrm.php_switches += 1;
        espocrm.probed = other;
        let started = espocrm.probed.probe().and_then(|command| {
            let registry = self.poll.registry();
            self.children.spawn(registry, self.now, Task::Probe, command, PROBE_TIMEOUT)
        });
        started.map_err(|error| espocrm.probed.php_not_started(&error))
    }

    /// Handles the result of the probe.
    pub(super) fn finish_reload(&mut self, finished: &Finished) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let result = match espocrm.evaluate(finished) {
            ProbeResult::OtherPhp(other) => match self.probe_other_php(other) {
                Ok(()) => return,
                Err(error) => ProbeResult::Failed(error),
            },
            result => result,
        };
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let state = std::mem::replace(&mut espocrm.reload, ReloadState::Idle);
        espocrm.paused_until = self.now.after(RELOAD_PAUSE);
        espocrm.watch.ignore_compiled_metadata();
        if let ProbeResult::Failed(error) = &result {
            espocrm.reload_failed(self.now, error);
            self.reload_errors.push(error.to_string());
        } else {
            espocrm.retry_at = None;
            espocrm.last_error.clear();
        }
        match result {
            ProbeResult::Settings(settings) => {
                self.stats.reload(true);
                self.apply(*settings);
            }
            ProbeResult::Invalid(version, error) => {
                self.stats.reload(false);
                self.keep_previous(&error);
                // The version still determines how PHP's answers are interpreted.
                self.settings.version = version;
                self.hub.reload(None);
            }
            ProbeResult::Failed(_) | ProbeResult::OtherPhp(_) => {
                self.stats.reload(false);
                self.hub.reload(None);
            }
        }
        self.request_self_check();
        if state == ReloadState::RunAgain {
            self.begin_reload();
        }
        self.report_reload();
    }

    /// Reports the end of a reload to systemd and to the clients of the control socket that wait
    /// for it.
    fn report_reload(&mut self) {
        if self.backend.is_reloading() {
            return;
        }
        if self.systemd.is_reloading() {
            self.systemd.ready(&self.status());
        }
        let response = if self.reload_errors.is_empty() {
            control::response("200 OK", "application/json", "{\"reloaded\":true}")
        } else {
            let text = format!("{} {KEEPING}\n", self.reload_errors.join("\n"));
            control::response("500 Internal Server Error", "text/plain", &text)
        };
        self.control.answer_reload(self.now, &response);
    }

    fn keep_previous(&mut self, error: &Exit) {
        error!("{} {KEEPING}", one_line(error));
        self.reload_errors.push(error.to_string());
    }

    /// Whether the administrator requested this reload. Resets the flag.
    fn take_requested(&mut self) -> bool {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return false };
        std::mem::take(&mut espocrm.requested)
    }

    /// Applies new settings without closing connections. Settings that cannot be applied keep their
    /// previous values.
    pub(super) fn apply(&mut self, mut new: Settings) {
        new.log_doubts();
        if new.check_mode.value != self.settings.check_mode.value {
            new.log_mode();
        }
        new.categories = new.categories.or_previous(&self.settings.categories);
        // Even if the setting is unchanged, since a certificate is renewed under the same name.
        match self.backend.acceptor(&new) {
            Ok(acceptor) => self.accepting.replace_acceptor(acceptor),
            Err(error) => {
                self.keep_previous(&error);
                new.tls = self.settings.tls.clone();
            }
        }
        if new.log_file != self.settings.log_file {
            warn!("The setting log_file has changed. Restart the daemon to apply it.");
            new.log_file = self.settings.log_file.clone();
        }
        if self.settings.port.source == Source::Systemd {
            new.listens_at(self.settings.listen());
        }
        if new.listen() != self.settings.listen()
            && let Err(error) = self.listen(&new)
        {
            self.keep_previous(&error);
            new.address = self.settings.address.clone();
            new.port = self.settings.port.clone();
        }
        if new.zeromq.value != self.settings.zeromq.value {
            match self.zmq.rebind(&new.zeromq.value) {
                Ok(()) => info!("EspoCRM's messages are received at {}.", self.zmq.endpoint()),
                Err(error) => {
                    error!(
                        "{} Keeping the previous socket at {}.",
                        one_line(&error),
                        self.zmq.endpoint()
                    );
                    self.reload_errors.push(error.to_string());
                    new.zeromq = self.settings.zeromq.clone();
                    self.repair_zmq();
                }
            }
            // libzmq may have received messages meanwhile without reporting them.
            self.zmq_pending = true;
        }
        accept::limit_to_open_files(&mut new);
        self.zmq.limit_senders(accept::affordable_senders(&new));
        // Always, since EspoCRM's code may have changed, too, and workers may run an old version.
        for worker in self.pool.retire_all(new.workers()) {
            self.workers.stop(worker);
        }
        self.check_queue.set_limit(new.max_checks.value);
        // Also clears the check cache.
        self.check_queue.set_cache_lifetime(new.check_cache.value);
        let requested = self.take_requested();
        if new != self.settings {
            let count = new.categories.iter().count() as u64;
            let count = plural(count, "category", "categories");
            let changes = new.changes_from(&self.settings);
            let changes = if changes.is_empty() { changes } else { format!(" Now: {changes}.") };
            let version = &new.version;
            info!("EspoCRM's settings have changed: EspoCRM {version}, {count}.{changes}");
        } else if requested {
            info!("EspoCRM's settings have not changed.");
        }
        self.hub.reload(Some(new.categories.clone()));
        let endpoints = |settings: &Settings| (settings.control.clone(), settings.metrics.clone());
        let endpoints_changed = endpoints(&new) != endpoints(&self.settings);
        self.settings = new;
        if endpoints_changed {
            self.open_control();
        }
        self.apply_to_hub();
        self.apply_limits();
        // max_buffered may be lower now.
        self.evict_largest();
    }

    fn listen(&mut self, settings: &Settings) -> Result<()> {
        // An overlapping address, such as 0.0.0.0:8080 after 127.0.0.1:8080, requires closing the
        // old socket first.
        let overlaps = settings.port.value == self.accepting.address().port();
        if overlaps {
            self.accepting.close_listener();
        }
        let bound = self.bind(settings);
        if bound.is_err() && overlaps {
            let old = self.settings.clone();
            self.bind(&old)?;
        }
        bound?;
        info!("Browsers are served at {}.", self.accepting.address());
        Ok(())
    }

    fn bind(&mut self, settings: &Settings) -> Result<()> {
        let mut listener = Listener::bind(settings)?;
        let registered = listener.register(self.poll.registry(), LISTENER);
        registered.map_err(|error| Exit::error(error.to_string()))?;
        self.accepting.replace_listener(listener);
        Ok(())
    }
}

/// Joins the lines of an error that quotes a file.
fn one_line(error: &Exit) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

const KEEPING: &str = "Keeping the previous settings.";
