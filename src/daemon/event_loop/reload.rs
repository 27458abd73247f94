//! EspoCRM's settings: read at the start, and again when they have changed.

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

/// An EspoCRM that is served.
pub(crate) struct Espocrm {
    /// The PHP of this one was asked for the settings in force.
    pub(super) installation: Installation,
    /// That whose PHP is being asked.
    asked: Installation,
    /// How often EspoCRM has named another PHP than the one that was asked, in this reload.
    detours: u32,
    pub(super) router: Option<Router>,
    layers: Layers,
    /// The version of its PHP.
    php_version: String,
    watch: Watch,
    reading: Reading,
    /// They could not be read since they have changed; when that is tried again.
    outdated: Option<Time>,
    /// Why they could not be read, as it was logged.
    problem: String,
    /// By a signal: the answer is to be logged, whatever it is.
    asked_for: bool,
    /// The files were looked at in this turn.
    looked: bool,
    /// When its files are looked at next, if anybody is connected.
    next_look: Time,
    /// Before that they are not looked at.
    rest_until: Time,
}

/// What the probe's answer leads to.
enum Told {
    Settings(Box<Settings>),
    /// The settings of this version cannot be used.
    Mistake(Version, Exit),
    /// There is no answer.
    Nothing(Exit),
    /// Another PHP is to run the checks, and has to be asked.
    Another(Installation),
}

/// Whether its settings are being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    No,
    Yes,
    /// They changed again meanwhile.
    Again,
}

/// Between two looks at the files while nothing is being checked.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How often one reload asks another PHP: the one in force, one that we know of if that is no longer
/// the command line's, and the one that EspoCRM names.
const MAX_DETOURS: u32 = 2;

/// After the settings were read, before a change is noticed: a file that is written whenever
/// EspoCRM is asked must not keep us asking.
const REST: Duration = Duration::from_secs(1);

impl Espocrm {
    /// Asks the EspoCRM that `layers` name, and waits for its answer, unless it is to `stop`.
    ///
    /// # Errors
    /// If there is none, it does not answer, or its settings make no sense; [`Exit::Stopped`].
    pub(crate) fn open(layers: Layers, mut stop: impl FnMut() -> bool) -> Result<(Self, Settings)> {
        let root = layers.root()?;
        let php = layers.php().unwrap_or(Path::new("php"));
        let installation = Installation::new(root, php, layers.user())?;
        let mut watch = Watch::new(installation.root());
        let espo_settings = installation.ask(&mut stop)?;
        watch.has_been_read();
        let mut espocrm = Self {
            asked: installation.clone(),
            installation,
            detours: 0,
            router: None,
            layers,
            php_version: espo_settings.php.clone(),
            watch,
            reading: Reading::No,
            outdated: None,
            problem: String::new(),
            asked_for: false,
            looked: false,
            next_look: Time::default().after(LOOK_INTERVAL),
            rest_until: Time::default(),
        };
        let mut settings = espocrm.resolve(&espo_settings)?;
        if settings.php.value != espocrm.asked.php() {
            // That one will run the checks.
            espocrm.asked = espocrm.asked.with_php(&settings.php.value);
            let espo_settings = espocrm.asked.ask(&mut stop)?;
            settings = espocrm.resolve(&espo_settings)?;
            if settings.php.value != espocrm.asked.php() {
                return Err(espocrm.undecided(&settings));
            }
            espocrm.php_version = espo_settings.php;
        }
        espocrm.installation = espocrm.asked.clone();
        Ok((espocrm, settings))
    }

    /// EspoCRM's root directory.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        self.installation.root()
    }

    /// The EspoCRM whose settings are in force, and the PHP that checks access.
    #[must_use]
    pub(crate) fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The PHP that checks access, with its version if that is known.
    #[must_use]
    pub(crate) fn php(&self) -> String {
        let php = self.installation.php().display();
        match &*self.php_version {
            "" => format!("PHP {php}"),
            version => format!("PHP {version} ({php})"),
        }
    }

    /// Our configuration file, if there is one.
    #[must_use]
    pub(crate) fn file_name(&self) -> Option<&Path> {
        self.layers.file_name()
    }

    /// The user as whom PHP runs.
    #[must_use]
    pub(crate) fn identity(&self) -> &Identity {
        self.installation.identity()
    }

    /// Whether by now it may be another version than the one whose settings are in force.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.reading != Reading::No || self.outdated.is_some() || self.watch.differs()
    }

    /// Starts the probe by `spawn`.
    fn ask(&mut self, mut spawn: impl FnMut(Command) -> io::Result<()>) -> Result<()> {
        self.detours = 0;
        self.asked = self.installation.clone();
        let started = self.asked.probe().and_then(&mut spawn);
        started.or_else(|_| {
            // That PHP may have been replaced by another one, which EspoCRM will name.
            self.asked = self.known();
            let started = self.asked.probe().and_then(&mut spawn);
            started.map_err(|error| self.asked.no_php(&error))
        })
    }

    /// The same EspoCRM, run by the PHP that is asked first at the start.
    fn known(&self) -> Installation {
        self.installation.with_php(self.layers.php().unwrap_or(Path::new("php")))
    }

    /// What the answer of the PHP that was asked leads to.
    fn told(&mut self, finished: &Finished) -> Told {
        let may_ask = self.detours < MAX_DETOURS;
        let espo_settings = match self.asked.read_probe(finished) {
            Ok(espo_settings) => espo_settings,
            Err(error) => {
                let known = self.known();
                let is_wrong = EspoSettings::wrong_sapi(&finished.stdout).is_some();
                // It was replaced; EspoCRM may name another one by now.
                let other = is_wrong && self.detours == 0 && known != self.asked;
                return if other { Told::Another(known) } else { Told::Nothing(error) };
            }
        };
        match self.read(&espo_settings) {
            Err(error) => Told::Mistake(espo_settings.version, error),
            Ok(settings) if settings.php.value == self.asked.php() => {
                self.installation = self.asked.clone();
                self.php_version = espo_settings.php;
                Told::Settings(Box::new(settings))
            }
            Ok(settings) if may_ask => Told::Another(self.asked.with_php(&settings.php.value)),
            Ok(settings) => Told::Nothing(self.undecided(&settings)),
        }
    }

    fn undecided(&self, settings: &Settings) -> Exit {
        Exit::error(format!(
            "Asked by PHP {}, EspoCRM names another PHP again, {}. Set phpExecutablePath to one \
             path, or give one by --php PATH.",
            self.asked.php().display(),
            settings.php.value.display(),
        ))
    }

    /// The settings in force stay, though EspoCRM's may be others.
    fn could_not_be_read(&mut self, now: Time, error: &Exit) {
        self.outdated = Some(now.after(LOOK_INTERVAL));
        let error = error.to_string();
        // A broken EspoCRM is tried again and again: that is said once.
        if std::mem::take(&mut self.asked_for) || self.problem != error {
            error!("{error} {STAY}");
        }
        self.problem = error;
    }

    /// What EspoCRM has told, together with our own file as it is now.
    fn read(&mut self, espo_settings: &EspoSettings) -> Result<Settings> {
        self.layers.read_file()?;
        let root = self.layers.root().and_then(Installation::locate)?;
        if root != self.root() {
            warn!(
                "Another EspoCRM is to be served, that in {}: restart the daemon for that. It goes \
                 on with {}.",
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
                "{} does not exist, though it is set as PHP by {}; {} is used instead.",
                php.value.display(),
                php.source,
                self.asked.php().display()
            );
            self.asked.php().clone_into(&mut php.value);
            php.source = Source::Default;
        }
        let tls = settings
            .tls
            .value
            .iter()
            .flat_map(|files| [&files.certificate].into_iter().chain(&files.key));
        let root = self.installation.root();
        self.watch.add(tls.map(|path| root.join(path)));
        Ok(settings)
    }
}

impl Backend {
    /// What our own TLS needs, if EspoCRM wants it.
    pub(super) fn acceptor(&self, settings: &Settings) -> Result<Option<Acceptor>> {
        match (self, &settings.tls.value) {
            (Self::Espocrm(espocrm), Some(files)) => {
                Acceptor::load(espocrm.root(), files, espocrm.identity()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// When [`Server::look_if_due`] has something to do.
    pub(super) fn next_look(&self) -> Option<Time> {
        match self {
            Self::Espocrm(espocrm) if espocrm.reading == Reading::No => {
                Some(espocrm.next_look.max(espocrm.rest_until))
            }
            _ => None,
        }
    }

    /// Whether EspoCRM's settings are being read.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self, Self::Espocrm(espocrm) if espocrm.reading != Reading::No)
    }

    /// A new turn of the event loop: what was seen of the files before may be out of date.
    pub(super) fn begin_turn(&mut self) {
        if let Self::Espocrm(espocrm) = self {
            espocrm.looked = false;
        }
    }
}

impl Server {
    /// Reads the settings again if EspoCRM's files have changed, of which each turn takes one look.
    pub(super) fn look(&mut self) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let busy = espocrm.reading != Reading::No || self.now < espocrm.rest_until;
        if busy || std::mem::replace(&mut espocrm.looked, true) {
            return;
        }
        espocrm.next_look = self.now.after(LOOK_INTERVAL);
        if espocrm.watch.has_changed() {
            debug!(
                "EspoCRM's configuration, metadata or certificate has changed: it is read again."
            );
            self.begin_reload();
        } else if espocrm.outdated.is_some_and(|again| again <= self.now) {
            self.begin_reload();
        }
    }

    /// Looks now and then while somebody is connected.
    pub(super) fn look_if_due(&mut self) {
        let due = self.backend.next_look().is_some_and(|at| at <= self.now);
        if due && !self.conns.is_empty() {
            self.look();
        }
    }

    /// Reads the settings again because the administrator says so.
    pub(super) fn reload(&mut self) {
        self.systemd.reloading();
        if let Some(file) = &self.settings.log_file.value
            && let Err(error) = logging::reopen(file)
        {
            error!("{error}");
        }
        info!("EspoCRM's settings are read again.");
        if let Backend::Espocrm(espocrm) = &mut self.backend {
            espocrm.asked_for = true;
        }
        self.self_check.announce();
        self.begin_reload();
        self.tell_reloaded();
    }

    /// Has EspoCRM tell its settings. Until then no check is started: the version tells how a
    /// verdict is to be understood.
    pub(super) fn begin_reload(&mut self) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        if espocrm.reading != Reading::No {
            espocrm.reading = Reading::Again;
            return;
        }
        // What changes from now on is read another time.
        espocrm.watch.has_changed();
        self.reload_errors.clear();
        let (now, registry) = (self.now, self.poll.registry());
        let spawn =
            |command| self.children.spawn(registry, now, Task::Probe, command, PROBE_TIMEOUT);
        match espocrm.ask(spawn) {
            Ok(()) => {
                espocrm.reading = Reading::Yes;
                self.hub.begin_reload();
                self.hold_checks();
            }
            Err(error) => {
                espocrm.could_not_be_read(now, &error);
                self.reload_errors.push(error.to_string());
                self.stats.reload(false);
                self.request_self_check();
            }
        }
    }

    /// Asks another PHP than the one that has answered.
    fn ask_another(&mut self, other: Installation) -> Result<()> {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return Ok(()) };
        espocrm.detours += 1;
        espocrm.asked = other;
        let started = espocrm.asked.probe().and_then(|command| {
            let registry = self.poll.registry();
            self.children.spawn(registry, self.now, Task::Probe, command, PROBE_TIMEOUT)
        });
        started.map_err(|error| espocrm.asked.no_php(&error))
    }

    /// Takes what EspoCRM has told.
    pub(super) fn finish_reload(&mut self, finished: &Finished) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let told = match espocrm.told(finished) {
            Told::Another(other) => match self.ask_another(other) {
                Ok(()) => return,
                Err(error) => Told::Nothing(error),
            },
            told => told,
        };
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let again = std::mem::replace(&mut espocrm.reading, Reading::No) == Reading::Again;
        espocrm.rest_until = self.now.after(REST);
        espocrm.watch.has_been_read();
        if let Told::Nothing(error) = &told {
            espocrm.could_not_be_read(self.now, error);
            self.reload_errors.push(error.to_string());
        } else {
            espocrm.outdated = None;
            espocrm.problem.clear();
        }
        match told {
            Told::Settings(settings) => {
                self.stats.reload(true);
                self.apply(*settings);
            }
            Told::Mistake(version, error) => {
                self.stats.reload(false);
                self.keep_old(&error);
                // At least how verdicts are told is known.
                self.settings.version = version;
                self.hub.reload(None);
            }
            Told::Nothing(_) | Told::Another(_) => {
                self.stats.reload(false);
                self.hub.reload(None);
            }
        }
        self.request_self_check();
        if again {
            self.begin_reload();
        }
        self.tell_reloaded();
    }

    /// Reports the end of a reload to systemd and to the clients of the control socket that wait for it.
    fn tell_reloaded(&mut self) {
        let is_busy =
            matches!(&self.backend, Backend::Espocrm(espocrm) if espocrm.reading != Reading::No);
        if is_busy {
            return;
        }
        if self.systemd.is_reloading() {
            self.systemd.ready(&self.status());
        }
        let response = if self.reload_errors.is_empty() {
            control::response("200 OK", "application/json", "{\"reloaded\":true}")
        } else {
            let text = format!("{} {STAY}\n", self.reload_errors.join("\n"));
            control::response("500 Internal Server Error", "text/plain", &text)
        };
        self.control.answer_reload(self.now, &response);
    }

    fn keep_old(&mut self, error: &Exit) {
        error!("{} {STAY}", one_line(error));
        self.reload_errors.push(error.to_string());
    }

    /// Whether the administrator waits for an answer.
    fn was_asked_for(&mut self) -> bool {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return false };
        std::mem::take(&mut espocrm.asked_for)
    }

    /// Puts new settings in force; nobody is disconnected. What cannot be had stays as it was.
    pub(super) fn apply(&mut self, mut new: Settings) {
        new.log_doubts();
        if new.check_mode.value != self.settings.check_mode.value {
            new.log_mode();
        }
        new.categories = new.categories.or_previous(&self.settings.categories);
        // Always: a certificate is renewed under the same name.
        match self.backend.acceptor(&new) {
            Ok(acceptor) => self.accepting.replace_acceptor(acceptor),
            Err(error) => {
                self.keep_old(&error);
                new.tls = self.settings.tls.clone();
            }
        }
        if new.log_file != self.settings.log_file {
            warn!("Another log_file is set: restart the daemon for that.");
            new.log_file = self.settings.log_file.clone();
        }
        if self.settings.port.source == Source::Systemd {
            new.listens_at(self.settings.listen());
        }
        if new.listen() != self.settings.listen()
            && let Err(error) = self.listen(&new)
        {
            self.keep_old(&error);
            new.address = self.settings.address.clone();
            new.port = self.settings.port.clone();
        }
        if new.zeromq.value != self.settings.zeromq.value {
            match self.bus.rebind(&new.zeromq.value) {
                Ok(()) => info!("EspoCRM's messages are received at {}.", self.bus.endpoint()),
                Err(error) => {
                    error!(
                        "{} Keeping the previous socket at {}.",
                        one_line(&error),
                        self.bus.endpoint()
                    );
                    self.reload_errors.push(error.to_string());
                    new.zeromq = self.settings.zeromq.clone();
                    self.repair_zmq();
                }
            }
            // libzmq may have taken in messages meanwhile, of which it tells nobody.
            self.zmq_pending = true;
        }
        accept::afford(&mut new);
        self.bus.limit_senders(accept::affordable_senders(&new));
        // Whatever has changed, it is not only the settings: they may have an old version's code.
        for worker in self.pool.retire_all(new.workers()) {
            self.workers.stop(worker);
        }
        self.check_queue.set_limit(new.max_checks.value);
        // What EspoCRM said before counts no longer.
        self.check_queue.set_cache_lifetime(new.check_cache.value);
        let asked_for = self.was_asked_for();
        if new != self.settings {
            let count = new.categories.iter().count() as u64;
            let count = plural(count, "category", "categories");
            let changes = new.changes_from(&self.settings);
            let changes = if changes.is_empty() { changes } else { format!(" Now: {changes}.") };
            let version = &new.version;
            info!("EspoCRM's settings have changed: EspoCRM {version}, {count}.{changes}");
        } else if asked_for {
            info!("EspoCRM's settings have not changed.");
        }
        self.hub.reload(Some(new.categories.clone()));
        let doors = |settings: &Settings| (settings.control.clone(), settings.metrics.clone());
        let are_others = doors(&new) != doors(&self.settings);
        self.settings = new;
        if are_others {
            self.open_control();
        }
        self.apply_to_hub();
        self.limit_handshakes();
        // They may hold less from now on.
        self.evict_largest();
    }

    fn listen(&mut self, settings: &Settings) -> Result<()> {
        // As 0.0.0.0:8080 after 127.0.0.1:8080: the old one is in its way.
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

/// A mistake in a file is shown where it stands, which takes several lines.
fn one_line(error: &Exit) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

const STAY: &str = "The settings that are in force stay.";
