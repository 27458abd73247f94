//! `espocrm-websocket adopt`: replaces the unit that an administrator wrote for EspoCRM's
//! `websocket.php`, and restores it with `--undo`.

mod backup;
#[cfg(test)]
mod tests;

use std::path::Path;

use lexopt::prelude::{Long, Short, Value, ValueExt};

use super::setup::{Files, Machine, OldUnit, Plan, Setup, UNITS, absolute, drop_in_of, old_units};
use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::shell_word;
use backup::Backup;

/// The command line of `adopt`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Adopt {
    /// The name of the unit, if several run `websocket.php`.
    pub unit: Option<String>,
    /// The options for the new service. Without a directory, it serves the EspoCRM of the unit.
    pub setup: Setup,
    /// Whether to restore the unit.
    pub undo: bool,
}

/// The directories in which packages install units.
const PACKAGED: [&str; 3] =
    ["/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"];

impl Adopt {
    /// Parses the arguments after the command. Returns `None` if they ask for help.
    ///
    /// # Errors
    /// If an argument is unknown or invalid.
    pub fn parse(parser: &mut lexopt::Parser) -> std::result::Result<Option<Self>, lexopt::Error> {
        let mut adopt = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("espocrm") => adopt.setup.espocrm = Some(absolute(parser.value()?)),
                Long("name") => adopt.setup.name = Some(parser.value()?.string()?),
                Long("user") => adopt.setup.user = Some(parser.value()?.string()?),
                Long("root") => adopt.setup.root = Some(parser.value()?.into()),
                Long("undo") => adopt.undo = true,
                Value(unit) if adopt.unit.is_none() => {
                    let unit = unit.string()?;
                    let whole = unit.ends_with(".service");
                    adopt.unit = Some(if whole { unit } else { unit + ".service" });
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(adopt))
    }

    /// Replaces or restores the unit.
    ///
    /// # Errors
    /// If that fails. The message contains what was done and what to do.
    pub fn run(&self) -> Result<()> {
        self.run_on(&Machine::open(self.setup.root.as_deref())?)
    }

    fn run_on(&self, machine: &Machine) -> Result<()> {
        if self.undo { self.restore(machine) } else { self.replace(machine) }
    }

    fn replace(&self, machine: &Machine) -> Result<()> {
        let files = &machine.files;
        let old = self.choose(files)?;
        let plan = self.plan(files, &old)?;
        let unit = plan.service.unit();
        let active = machine.systemctl.as_ref().is_some_and(|it| it.is_wanted(&old.name));
        let backup = Backup::of(files, &old.name, &unit, active);
        let path = backup.save(files)?;
        machine.print(&format!("{UNITS}/{} was saved to {}.", old.name, path.display()));
        if let Err(error) = replace_unit(machine, &backup, &plan) {
            return Err(roll_back(machine, &backup, &plan, &error));
        }
        machine.print(&plan.summary());
        if let Some(user) = old.user.filter(|user| !files.is_same_user(user, &plan.user)) {
            let user = files.known_name(user);
            machine
                .print(&format!("The old unit ran as {user}, who does not own EspoCRM's data/."));
        }
        for log in old.logs {
            machine.print(&format!("The old log is no longer written: {log}"));
        }
        machine.print(&match machine.systemctl {
            Some(_) => plan.started(),
            None => format!("{unit} was not started. Start it: systemctl enable --now {unit}"),
        });
        let word = shell_word(&old.name);
        machine.print(&format!("To undo this: espocrm-websocket adopt --undo {word}"));
        Ok(())
    }

    /// The unit to replace.
    fn choose(&self, files: &Files) -> Result<OldUnit> {
        let mut units = old_units(files);
        if let Some(name) = &self.unit {
            units.retain(|unit| unit.name == *name);
        }
        if units.len() > 1 {
            let mut text =
                "Several units run EspoCRM's websocket.php. Nothing was changed. Adopt each \
                            one separately: the first becomes the default service, any other needs \
                            --name NAME:"
                    .to_owned();
            for unit in &units {
                text = text + "\n  espocrm-websocket adopt " + &shell_word(&unit.name);
            }
            return Err(Exit::error_lines(text));
        }
        units.pop().ok_or_else(|| {
            let unit = self.unit.as_ref().map(|name| format!(" named {name}")).unwrap_or_default();
            let mut text = format!(
                "No unit{unit} in {UNITS} runs EspoCRM's websocket.php. Nothing was changed."
            );
            for name in Backup::names(files) {
                text = text + "\n" + &name + " is already adopted.";
            }
            Exit::error_lines(
                text + "\nTo serve an EspoCRM without a unit: espocrm-websocket setup",
            )
        })
    }

    fn plan(&self, files: &Files, old: &OldUnit) -> Result<Plan> {
        let name = shell_word(&old.name);
        if old.name.contains("@.") {
            return Err(Exit::error(format!(
                "{name} is a template, which may have several instances. Nothing was changed. Stop \
                 and disable its instances, move it out of {UNITS}, then run: espocrm-websocket \
                 setup"
            )));
        }
        let Some(dir) = self.setup.espocrm.clone().or_else(|| old.dir.clone()) else {
            return Err(Exit::error_lines(format!(
                "The command of {name} does not contain the directory of its EspoCRM. Nothing was \
                 changed. Specify it:\n  espocrm-websocket adopt --espocrm DIR {name}"
            )));
        };
        let setup = Setup { espocrm: Some(dir), root: None, ..self.setup.clone() };
        // With a directory, there is always a plan.
        let plan = Plan::make(files, &setup, Some(&old.name))?;
        let plan = plan.ok_or_else(|| Exit::error("There is nothing to do."))?;
        let template = plan.service.template();
        if !PACKAGED.iter().any(|dir| files.resolve(&Path::new(dir).join(template)).is_ok()) {
            return Err(Exit::error(format!(
                "{name} cannot be replaced, because {template} is not installed. Nothing was \
                 changed. Install the espocrm-websocket package."
            )));
        }
        Ok(plan)
    }

    fn restore(&self, machine: &Machine) -> Result<()> {
        let backup = self.backup(&machine.files)?;
        backup.check(&machine.files)?;
        restore(machine, &backup)?;
        backup.delete(&machine.files)?;
        let Backup { unit, service, .. } = &backup;
        machine.print(&format!("{UNITS}/{unit} was restored, and {service} was disabled."));
        machine.print(&match machine.systemctl {
            Some(_) if backup.active => format!("{unit} is running."),
            Some(_) => format!("{unit} did not run when it was adopted, so it was not started."),
            None => "Nothing was started.".to_owned(),
        });
        Ok(())
    }

    /// The backup of the unit to restore.
    fn backup(&self, files: &Files) -> Result<Backup> {
        let names = Backup::names(files);
        let name = match (&self.unit, names.as_slice()) {
            (Some(unit), names) if names.contains(unit) => unit,
            (None, [name]) => name,
            (None, [_, ..]) => {
                let mut text =
                    "Several units were adopted. Nothing was changed. Choose the unit to restore:"
                        .to_owned();
                for name in &names {
                    text = text + "\n  espocrm-websocket adopt --undo " + &shell_word(name);
                }
                return Err(Exit::error_lines(text));
            }
            (Some(unit), _) => {
                return Err(Exit::error(format!("{unit} was not adopted. Nothing was changed.")));
            }
            (None, []) => return Err(Exit::error("No unit was adopted. Nothing was changed.")),
        };
        Backup::load(files, name)
    }
}

/// Stops and removes the old unit, then starts the new service.
fn replace_unit(machine: &Machine, backup: &Backup, plan: &Plan) -> Result<()> {
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["stop", &backup.unit])?;
    }
    backup.remove_unit(&machine.files)?;
    plan.write(&machine.files)?;
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["daemon-reload"])?;
        systemctl.bring_up(&backup.service)?;
    }
    Ok(())
}

/// Restores the old unit after the new service has failed, and returns the error to report.
fn roll_back(machine: &Machine, backup: &Backup, plan: &Plan, error: &Exit) -> Exit {
    let (old, new) = (&backup.unit, &backup.service);
    let files = &machine.files;
    let restored = restore(machine, backup)
        .and_then(|()| plan.roll_back(files))
        .and_then(|()| backup.delete(files));
    let end = match restored {
        Ok(()) if backup.active => format!("Your unit {old} was restored and is running."),
        Ok(()) => format!("Your unit {old} was restored."),
        Err(error) => format!(
            "Your unit {old} could not be restored: {error}\nFix this, then run: espocrm-websocket \
             adopt --undo {}",
            shell_word(old)
        ),
    };
    Exit::error_lines(format!(
        "{new} could not replace {old}. {error}\n{end}\nSee the log: journalctl -n 50 -u {new}\n\
         Show its settings: espocrm-websocket config --espocrm {}",
        shell_word(&plan.dir)
    ))
}

/// Stops the new service and restores the old unit.
fn restore(machine: &Machine, backup: &Backup) -> Result<()> {
    let files = &machine.files;
    if let Some(systemctl) = &machine.systemctl {
        // These fail if the package was removed.
        let _ = systemctl.run(&["stop", &backup.service]);
        let _ = systemctl.run(&["disable", &backup.service]);
    } else {
        for link in backup::enabling(files, &backup.service) {
            files.remove(&link)?;
        }
    }
    files.remove(&drop_in_of(&backup.service))?;
    backup.restore(files)?;
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["daemon-reload"])?;
        if backup.active {
            let started = systemctl.start(&backup.unit);
            started
                .map_err(|error| Exit::error_lines(format!("Its file was restored. {error}")))?;
        }
    }
    Ok(())
}
