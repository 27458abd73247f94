//! The precedence of the command line, the configuration file, EspoCRM's configuration and defaults.

use std::path::{Path, PathBuf};

use super::{DEFAULT_FILE, Overrides, Source, Sourced};
use crate::espocrm::RunAs;
use crate::platform::exit::{Exit, Result};

/// The settings of the command line and of the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    flags: Overrides,
    file: Overrides,
    /// The path of the file, if the command line names one.
    path: Option<PathBuf>,
    run_as: RunAs,
}

impl Layers {
    /// The command line only.
    #[must_use]
    pub fn of_flags(flags: Overrides) -> Self {
        Self { flags, ..Self::default() }
    }

    /// Reads the configuration file: the one at `path`, or else [`DEFAULT_FILE`] if it exists.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid: where, and why.
    pub fn new(flags: Overrides, path: Option<PathBuf>) -> Result<Self> {
        let mut layers = Self { flags, path, ..Self::default() };
        layers.read_file()?;
        Ok(layers)
    }

    /// Sets the user who runs PHP: the one that `run_as` names, or else that of the systemd service that
    /// uses this configuration file, unless the command line names another EspoCRM.
    #[must_use]
    pub fn run_as(
        mut self,
        mut run_as: RunAs,
        service_user: impl FnOnce(&Path) -> Option<String>,
    ) -> Self {
        if self.flags.espocrm.is_none() {
            run_as.service_user = self.file_name().and_then(service_user);
        }
        self.run_as = run_as;
        self
    }

    /// The user who runs PHP, as far as it is named.
    #[must_use]
    pub fn user(&self) -> &RunAs {
        &self.run_as
    }

    /// Reads the configuration file again.
    ///
    /// # Errors
    /// If it cannot be read or is invalid; its previous settings stay in force.
    pub fn read_file(&mut self) -> Result<()> {
        self.file = Overrides::from_file(self.path.as_deref())?;
        Ok(())
    }

    /// EspoCRM's root directory.
    ///
    /// # Errors
    /// If neither the command line nor the file names it.
    pub fn root(&self) -> Result<&Path> {
        let root = self.flags.espocrm.as_deref().or(self.file.espocrm.as_deref());
        root.ok_or_else(|| {
            Exit::error(format!(
                "EspoCRM's directory is not set. Set it with --espocrm DIR, or with a line such as \
                 espocrm = \"/var/www/html\" in {DEFAULT_FILE}."
            ))
        })
    }

    /// The configuration file, if there is one.
    #[must_use]
    pub fn file_name(&self) -> Option<&Path> {
        let usual = Path::new(DEFAULT_FILE);
        self.path.as_deref().or_else(|| usual.exists().then_some(usual))
    }

    /// The PHP program, if it is named.
    #[must_use]
    pub fn php(&self) -> Option<&Path> {
        self.flags.php.as_deref().or(self.file.php.as_deref())
    }

    /// The log file, if one is set.
    #[must_use]
    pub fn log_file(&self) -> Option<PathBuf> {
        let file = self.flags.log_file.as_ref().or(self.file.log_file.as_ref())?;
        Some(self.root().map_or(file.clone(), |root| root.join(file)))
    }

    /// A value by precedence: command line, file, EspoCRM, default.
    pub(super) fn pick<T>(
        &self,
        own: impl Fn(&Overrides) -> Option<T>,
        espocrm: impl FnOnce() -> Option<Sourced<T>>,
        default: T,
    ) -> Sourced<T> {
        let flag = own(&self.flags).map(|value| Sourced { value, source: Source::Flag });
        let file = || own(&self.file).map(|value| Sourced { value, source: Source::File });
        let found = flag.or_else(file).or_else(espocrm);
        found.unwrap_or(Sourced { value: default, source: Source::Default })
    }
}
