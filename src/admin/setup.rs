//! `espocrm-websocket setup`: configures and starts a systemd service for an EspoCRM on this
//! machine.

mod config_file;
mod drop_in;
mod files;
#[cfg(test)]
pub(super) mod image;
mod machine;
mod plan;
mod search;
mod service;
mod sites;
mod systemctl;
#[cfg(test)]
mod tests;
mod unit;

pub(super) use files::{Files, failed};
pub(super) use machine::Machine;
pub(super) use plan::Plan;
pub(super) use search::{OldUnit, SITES, drop_ins, espocrms, old_units};
pub(crate) use service::service_user;
pub(super) use service::{Service, UNITS, drop_in_of};
pub(super) use sites::{Token, next as next_token};
pub(super) use systemctl::Systemctl;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::prelude::{Long, ValueExt};

use crate::platform::exit::Result;

/// The command line of `setup`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// EspoCRM's root directory. By default, `setup` searches for it.
    pub espocrm: Option<PathBuf>,
    /// The name of the service, for a second EspoCRM.
    pub name: Option<String>,
    /// The user of the service. Defaults to the owner of EspoCRM's `data/`.
    pub user: Option<String>,
    /// Whether a package's script runs it. It then prints what it cannot decide, and does not fail.
    pub at_install: bool,
    /// The root directory of the system image, if it is not `/`.
    pub root: Option<PathBuf>,
}

impl Setup {
    /// Parses the arguments after the command. Returns `None` if they ask for help.
    ///
    /// # Errors
    /// If an argument is unknown or invalid.
    pub fn parse(parser: &mut lexopt::Parser) -> std::result::Result<Option<Self>, lexopt::Error> {
        let mut setup = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | lexopt::Arg::Short('h') => return Ok(None),
                Long("espocrm") => setup.espocrm = Some(absolute(parser.value()?)),
                Long("name") => setup.name = Some(parser.value()?.string()?),
                Long("user") => setup.user = Some(parser.value()?.string()?),
                Long("at-install") => setup.at_install = true,
                Long("root") => setup.root = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(setup))
    }

    /// Writes the files of the service and starts it.
    ///
    /// # Errors
    /// If that fails. The message contains what was done and what to do.
    pub fn run(&self) -> Result<()> {
        self.run_on(&Machine::open(self.root.as_deref())?)
    }

    fn run_on(&self, machine: &Machine) -> Result<()> {
        let plan = match Plan::make(&machine.files, self, None) {
            Ok(Some(plan)) => plan,
            Ok(None) if self.at_install => return Ok(()),
            Ok(None) => {
                machine.print(
                    "Every EspoCRM on this machine already has a service. Nothing was changed.",
                );
                return Ok(());
            }
            Err(undecided) if self.at_install => {
                machine.print(&undecided.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let changed = plan.write(&machine.files)?;
        if changed || !self.at_install {
            machine.print(&plan.summary());
        }
        let unit = plan.service.unit();
        let other = format!("{UNITS}/{unit}");
        if !self.at_install && machine.files.read(Path::new(&other)).is_ok() {
            machine.print(&format!("Your file {other} overrides the package's unit."));
        }
        let Some(systemctl) = &machine.systemctl else {
            if self.root.is_none() && !self.at_install {
                machine.print(&format!(
                    "systemd is not running here. To start the daemon without it: espocrm-websocket \
                     run --config {}",
                    plan.service.config().display()
                ));
            }
            return Ok(());
        };
        if self.at_install {
            // The package's script starts it.
            if changed && let Err(error) = systemctl.run(&["daemon-reload"]) {
                machine.print(&error.to_string());
            }
            return Ok(());
        }
        systemctl.run(&["daemon-reload"])?;
        if !changed && systemctl.is_active(&unit) {
            systemctl.run(&["enable", &unit])?;
        } else {
            systemctl.bring_up(&unit).map_err(|error| plan.not_started(&error))?;
        }
        machine.print(&plan.started());
        Ok(())
    }
}

/// Makes a path from the command line absolute.
pub(super) fn absolute(dir: OsString) -> PathBuf {
    env::current_dir().unwrap_or_default().join(dir)
}
