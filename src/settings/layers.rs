//! Our own settings, as they are layered over each other and over EspoCRM's.

use std::path::{Path, PathBuf};

use super::{DEFAULT_FILE, Overrides, Source, Sourced};
use crate::espocrm::RunAs;
use crate::platform::exit::{Exit, Result};

/// Our own settings: the command line's, then the file's.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    flags: Overrides,
    file: Overrides,
    /// The file's name, if the command line names one.
    path: Option<PathBuf>,
    run_as: RunAs,
}

impl Layers {
    /// The command line alone.
    #[must_use]
    pub fn of_flags(flags: Overrides) -> Self {
        Self { flags, ..Self::default() }
    }

    /// Reads the configuration file: the one at `path`, or else that of the package, if it exists.
    ///
    /// # Errors
    /// If it cannot be read or understood: where, and what is wrong.
    pub fn new(flags: Overrides, path: Option<PathBuf>) -> Result<Self> {
        let mut layers = Self { flags, path, ..Self::default() };
        layers.read_file()?;
        Ok(layers)
    }

    /// Has PHP run as the user whom the administrator names, or else as that of the systemd service
    /// that has this configuration file, if its EspoCRM is meant: `service_user` finds it.
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

    /// As whom PHP runs, as far as it is named.
    #[must_use]
    pub fn user(&self) -> &RunAs {
        &self.run_as
    }

    /// Reads the configuration file again.
    ///
    /// # Errors
    /// If it cannot be read or understood; what it said before stays.
    pub fn read_file(&mut self) -> Result<()> {
        self.file = Overrides::from_file(self.path.as_deref())?;
        Ok(())
    }

    /// EspoCRM's root directory.
    ///
    /// # Errors
    /// If nobody names it.
    pub fn root(&self) -> Result<&Path> {
        let root = self.flags.espocrm.as_deref().or(self.file.espocrm.as_deref());
        root.ok_or_else(|| {
            Exit::error(format!(
                "Which EspoCRM? Name its directory by --espocrm DIR, or by a line such as \
                 espocrm = \"/var/www/html\" in {DEFAULT_FILE}."
            ))
        })
    }

    /// Our configuration file, if there is one.
    #[must_use]
    pub fn file_name(&self) -> Option<&Path> {
        let usual = Path::new(DEFAULT_FILE);
        self.path.as_deref().or_else(|| usual.exists().then_some(usual))
    }

    /// The PHP that is to be run, if it is named.
    #[must_use]
    pub fn php(&self) -> Option<&Path> {
        self.flags.php.as_deref().or(self.file.php.as_deref())
    }

    /// The file that the log goes to, if it is to be one.
    #[must_use]
    pub fn log_file(&self) -> Option<PathBuf> {
        let file = self.flags.log_file.as_ref().or(self.file.log_file.as_ref())?;
        Some(self.root().map_or(file.clone(), |root| root.join(file)))
    }

    /// Who sets this: the command line, the file, EspoCRM or nobody.
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
