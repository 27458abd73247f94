//! `espocrm-websocket adopt`: takes the place of the unit that an administrator wrote for EspoCRM's
//! `websocket.php`, and gives it back.

mod backup;
#[cfg(test)]
mod tests;

use std::path::Path;

use lexopt::prelude::{Long, Short, Value, ValueExt};

use super::setup::{Files, Machine, OldUnit, Plan, Setup, UNITS, absolute, drop_in_of, old_units};
use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::shell_word;
use backup::Backup;

/// Which unit, and what to do with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Adopt {
    /// Its name, if there are several.
    pub unit: Option<String>,
    /// How its EspoCRM is to be served, which is that of its command if nobody names one.
    pub setup: Setup,
    /// Whether it is to be given back.
    pub undo: bool,
}

/// Where systemd finds the units of packages.
const PACKAGED: [&str; 3] =
    ["/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"];

impl Adopt {
    /// Understands the arguments after the command; none of it, if help is asked for.
    ///
    /// # Errors
    /// What is not understood.
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

    /// Does it.
    ///
    /// # Errors
    /// Why it could not be done, what was done, and what to do.
    pub fn run(&self) -> Result<()> {
        self.carry_out(&Machine::open(self.setup.root.as_deref())?)
    }

    fn carry_out(&self, machine: &Machine) -> Result<()> {
        if self.undo { self.give_back(machine) } else { self.take(machine) }
    }

    fn take(&self, machine: &Machine) -> Result<()> {
        let files = &machine.files;
        let old = self.choose(files)?;
        let plan = self.plan(files, &old)?;
        let unit = plan.service.unit();
        let active = machine.systemctl.as_ref().is_some_and(|it| it.is_wanted(&old.name));
        let kept = Backup::of(files, &old.name, &unit, active);
        machine.say(&format!("{UNITS}/{} is kept in {}.", old.name, kept.save(files)?.display()));
        if let Err(error) = exchange(machine, &kept, &plan) {
            return Err(undone(machine, &kept, &plan, &error));
        }
        machine.say(&plan.summary());
        if let Some(user) = old.user.filter(|user| !files.is_same_user(user, &plan.user)) {
            let user = files.known_name(user);
            machine.say(&format!("The old unit ran as {user}, who does not own EspoCRM's data."));
        }
        for log in old.logs {
            machine.say(&format!("Nothing is written to the old log any more: {log}"));
        }
        machine.say(&match machine.systemctl {
            Some(_) => plan.is_up(),
            None => format!("Nothing was started. Do so by: systemctl enable --now {unit}"),
        });
        let word = shell_word(&old.name);
        machine.say(&format!("The way back: espocrm-websocket adopt --undo {word}"));
        Ok(())
    }

    /// The unit that is meant.
    fn choose(&self, files: &Files) -> Result<OldUnit> {
        let mut units = old_units(files);
        if let Some(name) = &self.unit {
            units.retain(|unit| unit.name == *name);
        }
        if units.len() > 1 {
            let mut text = "Several units run EspoCRM's websocket.php. Nothing was changed. Each \
                            gets a service of its own, the first that you adopt the usual one, any \
                            other one with --name NAME:"
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
                text = text + "\n" + &name + " was adopted already.";
            }
            Exit::error_lines(
                text + "\nTo serve an EspoCRM that has no unit: espocrm-websocket setup",
            )
        })
    }

    fn plan(&self, files: &Files, old: &OldUnit) -> Result<Plan> {
        let name = shell_word(&old.name);
        if old.name.contains("@.") {
            return Err(Exit::error(format!(
                "{name} is a template, of which there may be several services. Nothing was changed. \
                 Stop and disable them, move it out of {UNITS}, and use espocrm-websocket setup."
            )));
        }
        let Some(dir) = self.setup.espocrm.clone().or_else(|| old.dir.clone()) else {
            return Err(Exit::error_lines(format!(
                "Which EspoCRM {name} serves cannot be told from its command. Nothing was changed. \
                 Name its directory:\n  espocrm-websocket adopt --espocrm DIR {name}"
            )));
        };
        let setup = Setup { espocrm: Some(dir), root: None, ..self.setup.clone() };
        // With a directory there is always something to do.
        let plan = Plan::make(files, &setup, Some(&old.name))?;
        let plan = plan.ok_or_else(|| Exit::error("There is nothing to do."))?;
        let ours = plan.service.template();
        if !PACKAGED.iter().any(|dir| files.resolve(&Path::new(dir).join(ours)).is_ok()) {
            return Err(Exit::error(format!(
                "{ours} is not installed, so that there is nothing to put in the place of {name}. \
                 Nothing was changed. Install the package of espocrm-websocket."
            )));
        }
        Ok(plan)
    }

    fn give_back(&self, machine: &Machine) -> Result<()> {
        let kept = self.kept(&machine.files)?;
        kept.check(&machine.files)?;
        restore(machine, &kept)?;
        kept.forget(&machine.files)?;
        machine.say(&format!("{UNITS}/{} is back, and {} is disabled.", kept.unit, kept.service));
        machine.say(match machine.systemctl {
            Some(_) if kept.active => "It runs.",
            Some(_) => "It did not run when it was adopted, and does not now.",
            None => "Nothing was started.",
        });
        Ok(())
    }

    /// What is to be given back.
    fn kept(&self, files: &Files) -> Result<Backup> {
        let names = Backup::names(files);
        let name = match (&self.unit, names.as_slice()) {
            (Some(unit), names) if names.contains(unit) => unit,
            (None, [name]) => name,
            (None, [_, ..]) => {
                let mut text =
                    "Several units were adopted. Nothing was changed. Which is to be given \
                                back?"
                        .to_owned();
                for name in &names {
                    text = text + "\n  espocrm-websocket adopt --undo " + &shell_word(name);
                }
                return Err(Exit::error_lines(text));
            }
            _ => return Err(Exit::error("No such unit was adopted. Nothing was changed.")),
        };
        Backup::load(files, name)
    }
}

/// Stops the old unit, removes it, and has ours run.
fn exchange(machine: &Machine, kept: &Backup, plan: &Plan) -> Result<()> {
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["stop", &kept.unit])?;
    }
    kept.remove(&machine.files)?;
    plan.write(&machine.files)?;
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["daemon-reload"])?;
        systemctl.bring_up(&kept.service)?;
    }
    Ok(())
}

/// Puts the old unit back after ours has failed, and says so.
fn undone(machine: &Machine, kept: &Backup, plan: &Plan, error: &Exit) -> Exit {
    let (old, new) = (&kept.unit, &kept.service);
    let files = &machine.files;
    let restored = restore(machine, kept)
        .and_then(|()| plan.take_back(files))
        .and_then(|()| kept.forget(files));
    let end = match restored {
        Ok(()) if kept.active => format!("Your own {old} is back, and runs."),
        Ok(()) => format!("Your own {old} is back."),
        Err(error) => format!(
            "Your own {old} could not be given back: {error}\nMend that, and try: espocrm-websocket \
             adopt --undo {}",
            shell_word(old)
        ),
    };
    Exit::error_lines(format!(
        "{new} could not take the place of {old}. {error}\n{end}\nLook into the log: journalctl -n \
         50 -u {new}\nand at what it would do: espocrm-websocket config --espocrm {}",
        shell_word(&plan.dir)
    ))
}

/// Stops ours, and puts the old unit back as it was.
fn restore(machine: &Machine, kept: &Backup) -> Result<()> {
    let files = &machine.files;
    if let Some(systemctl) = &machine.systemctl {
        // It is not there any more if the package is gone.
        let _ = systemctl.run(&["stop", &kept.service]);
        let _ = systemctl.run(&["disable", &kept.service]);
    } else {
        for link in backup::enabling(files, &kept.service) {
            files.remove(&link)?;
        }
    }
    files.remove(&drop_in_of(&kept.service))?;
    kept.restore(files)?;
    if let Some(systemctl) = &machine.systemctl {
        systemctl.run(&["daemon-reload"])?;
        if kept.active {
            let started = systemctl.start(&kept.unit);
            started.map_err(|error| Exit::error_lines(format!("Its file is back. {error}")))?;
        }
    }
    Ok(())
}
