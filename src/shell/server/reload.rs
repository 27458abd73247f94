//! EspoCRM's settings: read at the start, and again when they have changed.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use log::{debug, error, info, warn};

use super::{Backend, LISTENER, Server, accept};
use crate::core::time::Time;
use crate::shell::children::{Finished, Task};
use crate::shell::espocrm::{Facts, Installation, PROBE_TIMEOUT, Router, Watch};
use crate::shell::fatal::{Fatal, Result};
use crate::shell::listener::Listener;
use crate::shell::logging;
use crate::shell::settings::{Layers, Settings, Source};
use crate::shell::tls::Acceptor;

/// An EspoCRM that is served.
pub struct Espocrm {
    pub(super) installation: Installation,
    pub(super) router: Option<Router>,
    layers: Layers,
    /// The version of the PHP that was asked first.
    php_version: String,
    watch: Watch,
    reading: Reading,
    /// They could not be read since they have changed; when that is tried again.
    outdated: Option<Time>,
    /// Why they could not be read, as it was logged.
    trouble: String,
    /// By a signal: the answer is to be logged, whatever it is.
    asked_for: bool,
    /// The files were looked at in this turn.
    looked: bool,
    /// When its files are looked at next, if anybody is connected.
    next_look: Time,
    /// Before that they are not looked at.
    rest_until: Time,
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

/// After the settings were read, before a change is noticed: a file that is written whenever
/// EspoCRM is asked must not keep us asking.
const REST: Duration = Duration::from_secs(1);

impl Espocrm {
    /// Asks the EspoCRM that `layers` name, and waits for its answer, unless it is to `stop`.
    ///
    /// # Errors
    /// If there is none, it does not answer, or its settings make no sense; [`Fatal::stopped`].
    pub fn open(layers: Layers, stop: impl FnMut() -> bool) -> Result<(Self, Settings)> {
        let root = layers.root()?;
        let php = layers.php().unwrap_or(Path::new("php"));
        let installation = Installation::new(root, php)?;
        let mut watch = Watch::new(installation.root());
        let facts = installation.ask(stop)?;
        watch.has_been_read();
        let mut espocrm = Self {
            installation,
            router: None,
            layers,
            php_version: facts.php.clone(),
            watch,
            reading: Reading::No,
            outdated: None,
            trouble: String::new(),
            asked_for: false,
            looked: false,
            next_look: Time::default().after(LOOK_INTERVAL),
            rest_until: Time::default(),
        };
        let asked = espocrm.installation.clone();
        let settings = espocrm.resolve(&facts)?;
        if espocrm.installation != asked {
            // That of another one.
            espocrm.php_version.clear();
        }
        Ok((espocrm, settings))
    }

    /// EspoCRM's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.installation.root()
    }

    /// The PHP that checks access, with its version if that is known.
    #[must_use]
    pub fn php(&self) -> String {
        let php = self.installation.php().display();
        match &*self.php_version {
            "" => format!("PHP {php}"),
            version => format!("PHP {version} ({php})"),
        }
    }

    /// Our configuration file, if there is one.
    #[must_use]
    pub fn file_name(&self) -> Option<&Path> {
        self.layers.file_name()
    }

    /// The user who owns its data.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        self.installation.owner().map(|(user, _)| user)
    }

    /// Whether by now it may be another version than the one whose settings are in force.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.reading != Reading::No || self.outdated.is_some() || self.watch.differs()
    }

    /// Starts the probe by `spawn`.
    fn ask(&self, mut spawn: impl FnMut(Command) -> io::Result<()>) -> Result<()> {
        let started = self.installation.probe().and_then(&mut spawn);
        started.or_else(|_| {
            // That PHP may have been replaced by another one, which EspoCRM will name.
            let php = self.layers.php().unwrap_or(Path::new("php"));
            let other = self.installation.with_php(php);
            let started = other.probe().and_then(&mut spawn);
            started.map_err(|error| other.no_php(&error))
        })
    }

    /// The settings in force stay, though EspoCRM's may be others.
    fn could_not_be_read(&mut self, now: Time, error: &Fatal) {
        self.outdated = Some(now.after(LOOK_INTERVAL));
        let error = error.to_string();
        // A broken EspoCRM is tried again and again: that is said once.
        if std::mem::take(&mut self.asked_for) || self.trouble != error {
            error!("{error} {STAY}");
        }
        self.trouble = error;
    }

    /// What EspoCRM has told, together with our own file as it is now.
    fn read(&mut self, facts: &Facts) -> Result<Settings> {
        self.layers.read_file()?;
        let root = self.layers.root().and_then(|root| Installation::new(root, Path::new("php")))?;
        if root.root() != self.root() {
            warn!(
                "Another EspoCRM is to be served, that in {}: restart the daemon for that. It goes \
                 on with {}.",
                root.root().display(),
                self.root().display()
            );
        }
        self.resolve(facts)
    }

    fn resolve(&mut self, facts: &Facts) -> Result<Settings> {
        let mut settings = Settings::resolve(&self.layers, facts)?;
        let php = &mut settings.php;
        if php.value.is_absolute() && !php.value.exists() && php.source != Source::Flag {
            warn!(
                "{} does not exist, though it is set as PHP by {}; {} is used instead.",
                php.value.display(),
                php.source,
                self.installation.php().display()
            );
            self.installation.php().clone_into(&mut php.value);
            php.source = Source::Default;
        }
        self.installation = self.installation.with_php(&php.value);
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
                Acceptor::load(espocrm.root(), files).map(Some)
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
        if let Some(file) = &self.settings.log_file.value
            && let Err(error) = logging::reopen(file)
        {
            error!("{error}");
        }
        info!("EspoCRM's settings are read again.");
        if let Backend::Espocrm(espocrm) = &mut self.backend {
            espocrm.asked_for = true;
        }
        self.begin_reload();
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
        let (now, registry) = (self.now, self.poll.registry());
        let spawn =
            |command| self.children.spawn(registry, now, Task::Probe, command, PROBE_TIMEOUT);
        match espocrm.ask(spawn) {
            Ok(()) => {
                espocrm.reading = Reading::Yes;
                self.access.set_paused(true);
                self.hub.begin_reload();
            }
            Err(error) => {
                espocrm.could_not_be_read(now, &error);
                self.stats.reload(false);
            }
        }
    }

    /// Takes what EspoCRM has told.
    pub(super) fn finish_reload(&mut self, finished: &Finished) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let again = std::mem::replace(&mut espocrm.reading, Reading::No) == Reading::Again;
        espocrm.rest_until = self.now.after(REST);
        espocrm.watch.has_been_read();
        match espocrm.installation.read_probe(finished) {
            Ok(facts) => {
                espocrm.outdated = None;
                espocrm.trouble.clear();
                match espocrm.read(&facts) {
                    Ok(settings) => {
                        self.stats.reload(true);
                        self.apply(settings);
                    }
                    Err(error) => {
                        self.stats.reload(false);
                        keep_old(&error);
                        // At least how verdicts are told is known.
                        self.settings.version = facts.version;
                        self.hub.reload(None);
                    }
                }
            }
            Err(error) => {
                espocrm.could_not_be_read(self.now, &error);
                self.stats.reload(false);
                self.hub.reload(None);
            }
        }
        self.access.set_paused(false);
        if again {
            self.begin_reload();
        }
        self.tell_reloaded();
    }

    /// Tells systemd that a reload is done, if it waits for that and it is.
    pub(super) fn tell_reloaded(&mut self) {
        let is_busy =
            matches!(&self.backend, Backend::Espocrm(espocrm) if espocrm.reading != Reading::No);
        if !is_busy && self.systemd.is_reloading() {
            self.systemd.ready(&self.status());
        }
    }

    /// Whether the administrator waits for an answer.
    fn was_asked_for(&mut self) -> bool {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return false };
        std::mem::take(&mut espocrm.asked_for)
    }

    /// Puts new settings in force; nobody is disconnected. What cannot be had stays as it was.
    pub(super) fn apply(&mut self, mut new: Settings) {
        new.log_doubts();
        if new.means.value != self.settings.means.value {
            new.log_means();
        }
        new.categories = new.categories.or_old(&self.settings.categories);
        // Always: a certificate is renewed under the same name.
        match self.backend.acceptor(&new) {
            Ok(acceptor) => self.accepting.replace_acceptor(acceptor),
            Err(error) => {
                keep_old(&error);
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
            keep_old(&error);
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
                    new.zeromq = self.settings.zeromq.clone();
                    self.repair_bus();
                }
            }
            // libzmq may have taken in messages meanwhile, of which it tells nobody.
            self.bus_pending = true;
        }
        accept::afford(&mut new);
        self.bus.limit_senders(accept::affordable_senders(&new));
        // Whatever has changed, it is not only the settings: they may have an old version's code.
        for worker in self.pool.renew(new.workers()) {
            self.workers.stop(worker);
        }
        self.access.set_limit(new.max_checks.value);
        // What EspoCRM said before counts no longer.
        self.access.set_reuse(new.verdict_reuse.value);
        let asked_for = self.was_asked_for();
        if new != self.settings {
            let count = new.categories.iter().count();
            let changes = new.changes_from(&self.settings);
            let changes = if changes.is_empty() { changes } else { format!(" Now: {changes}.") };
            let version = &new.version;
            info!(
                "EspoCRM's settings have changed: EspoCRM {version}, {count} categories.{changes}"
            );
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
        // They may hold less from now on.
        self.shed();
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
        registered.map_err(|error| Fatal::new(error.to_string()))?;
        self.accepting.replace_listener(listener);
        Ok(())
    }
}

fn keep_old(error: &Fatal) {
    error!("{} {STAY}", one_line(error));
}

/// A mistake in a file is shown where it stands, which takes several lines.
fn one_line(error: &Fatal) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

const STAY: &str = "The settings that are in force stay.";
