//! Reads the settings of an EspoCRM with its PHP.

use std::io;
use std::path::Path;
use std::process::Command;

use log::warn;

use crate::engine::espocrm::version::Version;
use crate::engine::reload::{Outcome, Php};
use crate::espocrm::process::Finished;
use crate::espocrm::{EspoSettings, Identity, Installation, Watch};
use crate::platform::exit::{Exit, Result};
use crate::settings::{Layers, Settings, Source};

/// The sources of the settings: an EspoCRM, the configuration file and the command line.
pub(crate) struct SettingsReader {
    /// The installation with the PHP that printed the settings in force.
    installation: Installation,
    /// The same installation with the PHP that runs the probe.
    probed: Installation,
    layers: Layers,
    /// The version of its PHP.
    php_version: String,
    watch: Watch,
}

/// What is known after a probe.
pub(crate) enum Probed {
    Settings(Box<Settings>),
    /// The settings of this version cannot be used.
    Invalid(Version),
    Nothing,
}

impl SettingsReader {
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
        let mut reader = Self {
            probed: installation.clone(),
            installation,
            layers,
            php_version: espo_settings.php.clone(),
            watch,
        };
        let mut settings = reader.resolve(&espo_settings)?;
        if settings.php.value != reader.probed.php() {
            // The PHP named by EspoCRM will run the checks, so it has to print the settings, too.
            reader.probed = reader.probed.with_php(&settings.php.value);
            let espo_settings = reader.probed.read_settings(&mut stop)?;
            settings = reader.resolve(&espo_settings)?;
            if settings.php.value != reader.probed.php() {
                return Err(reader.unstable_php(&settings));
            }
            reader.php_version = espo_settings.php;
        }
        reader.installation = reader.probed.clone();
        Ok((reader, settings))
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

    /// Whether the files have changed since the last call. Records their current state.
    pub(super) fn take_change(&mut self) -> bool {
        self.watch.take_change()
    }

    /// Records the current state of the files.
    pub(super) fn record_files(&mut self) {
        self.watch.take_change();
    }

    /// Whether the files have changed since the last call of [`take_change`](Self::take_change).
    pub(super) fn has_pending_change(&self) -> bool {
        self.watch.has_pending_change()
    }

    /// Starts the probe with `spawn`.
    ///
    /// # Errors
    /// If PHP cannot be started.
    pub(super) fn start_probe(
        &mut self,
        php: Php,
        spawn: impl FnOnce(Command) -> io::Result<()>,
    ) -> Result<()> {
        match php {
            Php::Current => self.probed = self.installation.clone(),
            Php::Initial => self.probed = self.with_initial_php(),
            // Set by `read`.
            Php::Named => {}
        }
        let started = self.probed.probe().and_then(spawn);
        started.map_err(|error| self.probed.php_not_started(&error))
    }

    /// The installation with the PHP that runs the first probe at startup.
    fn with_initial_php(&self) -> Installation {
        self.installation.with_php(self.layers.php().unwrap_or(Path::new("php")))
    }

    /// Reads the output of the probe, and combines it with the configuration file.
    pub(super) fn read(&mut self, finished: &Finished) -> (Outcome, Probed) {
        let read = self.probed.read_probe(finished);
        self.watch.ignore_compiled_metadata();
        let espo_settings = match read {
            Ok(espo_settings) => espo_settings,
            Err(error) => {
                let is_wrong = EspoSettings::wrong_sapi(&finished.stdout).is_some();
                let is_replaced = is_wrong && self.with_initial_php() != self.probed;
                let outcome = if is_replaced { Outcome::Replaced } else { Outcome::Failed };
                return (outcome(error.to_string()), Probed::Nothing);
            }
        };
        match self.resolve_with_file(&espo_settings) {
            Err(error) => {
                (Outcome::Invalid(error.to_string()), Probed::Invalid(espo_settings.version))
            }
            Ok(settings) if settings.php.value == self.probed.php() => {
                self.installation = self.probed.clone();
                self.php_version = espo_settings.php;
                (Outcome::Settings, Probed::Settings(Box::new(settings)))
            }
            Ok(settings) => {
                let error = self.unstable_php(&settings).to_string();
                self.probed = self.probed.with_php(&settings.php.value);
                (Outcome::OtherPhp(error), Probed::Nothing)
            }
        }
    }

    fn unstable_php(&self, settings: &Settings) -> Exit {
        Exit::error(format!(
            "EspoCRM's phpExecutablePath depends on the PHP that reads it: with {}, it is {}. Set it \
             to a fixed path, or use --php PATH.",
            self.probed.php().display(),
            settings.php.value.display(),
        ))
    }

    /// Combines EspoCRM's settings with the current content of the daemon's configuration file.
    fn resolve_with_file(&mut self, espo_settings: &EspoSettings) -> Result<Settings> {
        self.layers.read_file()?;
        let root = self.layers.root().and_then(Installation::locate)?;
        if root != self.root() {
            warn!(
                "The setting espocrm has changed to {}. Restart the daemon to apply it. Still \
                 serving {}.",
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
