//! `espocrm-websocket setup`: makes an EspoCRM of this machine be served by systemd.

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

/// What is to be set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// EspoCRM's root directory; it is searched for if nobody names it.
    pub espocrm: Option<PathBuf>,
    /// The name of a service of its own, for a further EspoCRM.
    pub name: Option<String>,
    /// The user as whom the service runs; the owner of EspoCRM's `data/` if it is not named.
    pub user: Option<String>,
    /// Whether a package's script asks: what cannot be decided is said, and no failure.
    pub at_install: bool,
    /// Where the machine's `/` is, if it is an image.
    pub root: Option<PathBuf>,
}

impl Setup {
    /// Understands the arguments after the command; none of it, if help is asked for.
    ///
    /// # Errors
    /// What is not understood.
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

    /// Does it.
    ///
    /// # Errors
    /// Why it could not be done, what was done, and what to do.
    pub fn run(&self) -> Result<()> {
        self.carry_out(&Machine::open(self.root.as_deref())?)
    }

    fn carry_out(&self, machine: &Machine) -> Result<()> {
        let plan = match Plan::make(&machine.files, self, None) {
            Ok(Some(plan)) => plan,
            Ok(None) if self.at_install => return Ok(()),
            Ok(None) => {
                machine.say("Every EspoCRM that was found is served already.");
                return Ok(());
            }
            Err(undecided) if self.at_install => {
                machine.say(&undecided.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let changed = plan.write(&machine.files)?;
        if changed || !self.at_install {
            machine.say(&plan.summary());
        }
        let unit = plan.service.unit();
        let own = format!("{UNITS}/{unit}");
        if !self.at_install && machine.files.read(Path::new(&own)).is_ok() {
            machine.say(&format!("{own} is a file of your own, and hides the package's unit."));
        }
        let Some(systemctl) = &machine.systemctl else {
            if self.root.is_none() && !self.at_install {
                machine.say(&format!(
                    "systemd does not run here. Without it: espocrm-websocket run --config {}",
                    plan.service.config().display()
                ));
            }
            return Ok(());
        };
        if self.at_install {
            // The package's script starts it.
            if changed && let Err(error) = systemctl.run(&["daemon-reload"]) {
                machine.say(&error.to_string());
            }
            return Ok(());
        }
        systemctl.run(&["daemon-reload"])?;
        if !changed && systemctl.is_active(&unit) {
            systemctl.run(&["enable", &unit])?;
        } else {
            systemctl.bring_up(&unit).map_err(|error| plan.is_down(&error))?;
        }
        machine.say(&plan.is_up());
        Ok(())
    }
}

/// A directory as the command line names it, from the root on.
pub(super) fn absolute(dir: OsString) -> PathBuf {
    env::current_dir().unwrap_or_default().join(dir)
}
