//! EspoCRM's settings: read at the start, and again when they have changed.

use std::path::Path;
use std::time::Duration;

use log::{debug, error, info, warn};

use super::{Backend, LISTENER, Server, accept};
use crate::core::time::Time;
use crate::shell::children::{Finished, Task};
use crate::shell::espocrm::{Facts, Installation, PROBE_TIMEOUT, Watch};
use crate::shell::fatal::{Fatal, Result};
use crate::shell::listener::Listener;
use crate::shell::settings::{Layers, Settings, Source};
use crate::shell::tls::Acceptor;

/// An EspoCRM that is served.
pub struct Espocrm {
    pub(super) installation: Installation,
    layers: Layers,
    watch: Watch,
    reading: Reading,
    /// By a signal: the answer is to be logged, whatever it is.
    asked_for: bool,
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
    /// Asks the EspoCRM that `layers` name, and waits for its answer.
    ///
    /// # Errors
    /// If there is none, it does not answer, or its settings make no sense.
    pub fn open(layers: Layers) -> Result<(Self, Settings)> {
        let root = layers.root()?;
        let php = layers.php().unwrap_or(Path::new("php"));
        let installation = Installation::new(root, php)?;
        let mut watch = Watch::new(installation.root());
        let facts = installation.ask()?;
        watch.has_been_read();
        let mut espocrm = Self {
            installation,
            layers,
            watch,
            reading: Reading::No,
            asked_for: false,
            next_look: Time::default().after(LOOK_INTERVAL),
            rest_until: Time::default(),
        };
        let settings = espocrm.resolve(&facts)?;
        Ok((espocrm, settings))
    }

    /// EspoCRM's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.installation.root()
    }

    /// What the probe has told, together with our own file as it is now.
    fn read(&mut self, finished: &Finished) -> Result<Settings> {
        let facts = self.installation.read_probe(finished)?;
        self.layers.read_file()?;
        self.resolve(&facts)
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
        }
        self.installation = self.installation.with_php(&php.value);
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
            Self::Espocrm(espocrm) if espocrm.reading == Reading::No => Some(espocrm.next_look),
            _ => None,
        }
    }
}

impl Server {
    /// Reads the settings again if EspoCRM's files have changed.
    pub(super) fn look(&mut self) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        if espocrm.reading != Reading::No || self.now < espocrm.rest_until {
            return;
        }
        espocrm.next_look = self.now.after(LOOK_INTERVAL);
        if espocrm.watch.has_changed() {
            debug!("EspoCRM's configuration or metadata has changed: it is read again.");
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
        let registry = self.poll.registry();
        let started = espocrm.installation.probe().and_then(|command| {
            self.children.spawn(registry, self.now, Task::Probe, command, PROBE_TIMEOUT)
        });
        match started {
            Ok(()) => {
                espocrm.reading = Reading::Yes;
                self.access.set_paused(true);
                self.hub.begin_reload();
            }
            Err(error) => keep_old(&espocrm.installation.no_php(&error)),
        }
    }

    /// Takes what EspoCRM has told.
    pub(super) fn finish_reload(&mut self, finished: &Finished) {
        let Backend::Espocrm(espocrm) = &mut self.backend else { return };
        let again = std::mem::replace(&mut espocrm.reading, Reading::No) == Reading::Again;
        espocrm.rest_until = self.now.after(REST);
        espocrm.watch.has_been_read();
        match espocrm.read(finished) {
            Ok(settings) => self.apply(settings),
            Err(error) => {
                keep_old(&error);
                self.hub.reload(None);
            }
        }
        self.access.set_paused(false);
        if again {
            self.begin_reload();
        }
    }

    /// Whether the administrator waits for an answer.
    fn was_asked_for(&mut self) -> bool {
        match &mut self.backend {
            Backend::Espocrm(espocrm) => std::mem::take(&mut espocrm.asked_for),
            Backend::Demo(_) => false,
        }
    }

    /// Puts new settings in force; nobody is disconnected. What cannot be had stays as it was.
    fn apply(&mut self, mut new: Settings) {
        new.categories = new.categories.or_old(&self.settings.categories);
        new.log_doubts();
        // Always: a certificate is renewed under the same name.
        match self.backend.acceptor(&new) {
            Ok(acceptor) => self.accepting.replace_acceptor(acceptor),
            Err(error) => {
                keep_old(&error);
                new.tls = self.settings.tls.clone();
            }
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
                    keep_old(&error);
                    new.zeromq = self.settings.zeromq.clone();
                }
            }
            // libzmq may have taken in messages meanwhile, of which it tells nobody.
            self.bus_pending = true;
        }
        accept::afford(&mut new);
        self.access.set_limit(new.max_checks.value);
        let asked_for = self.was_asked_for();
        if new != self.settings {
            let count = new.categories.iter().count();
            info!("EspoCRM's settings have changed: EspoCRM {}, {count} categories.", new.version);
        } else if asked_for {
            info!("EspoCRM's settings have not changed.");
        }
        self.hub.reload(Some(new.categories.clone()));
        self.settings = new;
        self.apply_debug();
    }

    fn listen(&mut self, settings: &Settings) -> Result<()> {
        let mut listener = Listener::bind(settings)?;
        let registered = listener.register(self.poll.registry(), LISTENER);
        registered.map_err(|error| Fatal::new(error.to_string()))?;
        info!("Browsers are served at {}.", listener.address());
        self.accepting.replace_listener(listener);
        Ok(())
    }
}

fn keep_old(error: &Fatal) {
    error!("{error} The settings that are in force stay.");
}
