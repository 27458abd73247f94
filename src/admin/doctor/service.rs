//! Whether systemd runs the daemon, now and after a restart of the machine.

use super::Stop;
use super::report::{Finding, Report};
use crate::admin::setup::{Files, OldUnit, Service, Systemctl, old_units};
use crate::engine::printable::times;
use crate::platform::shell_word::shell_word;

const STEP: &str = "service";
const OLD: &str = "old-unit";

/// What `systemctl show` tells of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    /// Whether there is one: loaded, not-found, masked.
    load: String,
    /// Whether it starts with the machine: enabled, disabled.
    file: String,
    /// active, inactive, failed, activating.
    active: String,
    sub: String,
    result: String,
    restarts: u32,
    condition: String,
    main_pid: u32,
}

/// The main process of a service that runs.
pub(super) fn main_pid(files: &Files, service: &Service) -> Option<u32> {
    let unit = show(&Systemctl::of(files)?, &service.unit()).ok()?;
    (unit.active == "active" && unit.main_pid > 0).then_some(unit.main_pid)
}

pub(super) fn look(
    files: &Files,
    service: &Service,
    serves: bool,
    report: &mut Report,
    stop: Stop<'_>,
) {
    let Some(systemctl) = Systemctl::of(files) else {
        let why = "systemd does not run here";
        return report.skip(&[(STEP, "The service"), (OLD, "A unit of websocket.php")], why);
    };
    if stop() {
        return;
    }
    let name = service.unit();
    report.add(match show(&systemctl, &name) {
        Ok(unit) => {
            let has_config = files.resolve(&service.config()).is_ok();
            unit.judge(&name, &service.flag(), serves, has_config)
        }
        Err(error) => Finding::unknown(STEP, format!("The service: {error}")),
    });
    let mut old = old_units(files).into_iter();
    let judged = |unit: OldUnit| {
        let state = show(&systemctl, &unit.name).unwrap_or_default();
        judge_old(&unit.name, &state)
    };
    let bad = old.find_map(judged);
    report.add(bad.unwrap_or_else(|| {
        Finding::good(OLD, "No unit of systemd runs EspoCRM's own websocket.php")
    }));
}

fn show(systemctl: &Systemctl, unit: &str) -> Result<Unit, String> {
    const PROPERTIES: &str = "LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts,\
                              ConditionResult,MainPID";
    let text = systemctl.run(&["show", unit, "-p", PROPERTIES]);
    text.map(|text| Unit::of(&text)).map_err(|error| error.to_string())
}

impl Unit {
    fn of(text: &str) -> Self {
        let value = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            let value = pairs.find(|(other, _)| *other == name).map(|(_, value)| value.trim());
            value.unwrap_or_default().to_owned()
        };
        Self {
            load: value("LoadState"),
            file: value("UnitFileState"),
            active: value("ActiveState"),
            sub: value("SubState"),
            result: value("Result"),
            restarts: value("NRestarts").parse().unwrap_or(0),
            condition: value("ConditionResult"),
            main_pid: value("MainPID").parse().unwrap_or(0),
        }
    }

    fn is_restarted(&self) -> bool {
        self.sub.starts_with("auto-restart") || self.restarts > 0
    }

    fn is_enabled(&self) -> bool {
        self.file.starts_with("enabled")
    }

    /// `has_config`: whether there is the configuration file without which it does not start.
    fn judge(&self, name: &str, flag: &str, serves: bool, has_config: bool) -> Finding {
        let log = format!("journalctl -n 50 -u {name}");
        let bad = |what: String, fix: String| Finding::bad(STEP, what, fix);
        let setup = format!("As root: espocrm-websocket setup{flag}");
        let started = format!("systemctl enable --now {name}");
        match (&*self.load, &*self.active) {
            ("masked", _) => bad(
                format!("{name} is masked: systemd will not start it"),
                format!("systemctl unmask {name} && {started}"),
            ),
            ("loaded", "active") if self.restarts > 0 => Finding::doubt(
                STEP,
                format!("{name} runs, but had to be restarted {}", times(self.restarts.into())),
                format!("Why, tells its log: {log}"),
            ),
            ("loaded", "active" | "reloading") if !self.is_enabled() => Finding::doubt(
                STEP,
                format!("{name} runs, but will not start with the machine ({})", self.file),
                format!("systemctl enable {name}"),
            ),
            ("loaded", "active" | "reloading") => {
                Finding::good(STEP, format!("{name} runs, and starts with the machine"))
            }
            ("loaded", "activating") if self.is_restarted() => {
                let times = match self.restarts {
                    0 => String::new(),
                    restarts => format!(", restarted {}", times(restarts.into())),
                };
                bad(
                    format!("{name} fails and is restarted by systemd ({}{times})", self.result),
                    format!("The reason is in its log: {log}"),
                )
            }
            ("loaded", "activating") => Finding::doubt(
                STEP,
                format!("{name} is starting"),
                format!("Try again in a moment; if it stays so: {log}"),
            ),
            ("loaded", "failed") => bad(
                format!("{name} has failed ({})", self.result),
                format!("Why, tells its log: {log}\nThen: systemctl restart {name}"),
            ),
            ("loaded", _) if serves => Finding::doubt(
                STEP,
                format!("A daemon serves, but {name} does not run ({})", self.active),
                format!(
                    "Somebody has started one by hand, or another unit does. Stop that, and: \
                     {started}"
                ),
            ),
            // That is the condition's result before the first start, too.
            ("loaded", _) if self.condition == "no" && !has_config => {
                bad(format!("{name} was not started, because it is not set up"), setup)
            }
            ("loaded", _) => bad(format!("{name} does not run ({})", self.active), started),
            _ if serves => Finding::unknown(
                STEP,
                format!("A daemon serves; systemd knows no {name} and does not run it"),
            ),
            _ => bad(
                format!("systemd knows no {name}"),
                format!("Install the package of espocrm-websocket. {setup}"),
            ),
        }
    }
}

/// A unit of the administrator's own for EspoCRM's `websocket.php`.
fn judge_old(name: &str, unit: &Unit) -> Option<Finding> {
    let fix = format!(
        "Put espocrm-websocket in its place, with a way back: espocrm-websocket adopt {}\nOr: \
         systemctl disable --now {}",
        shell_word(name),
        shell_word(name)
    );
    match (&*unit.active, unit.is_enabled()) {
        ("active" | "activating" | "reloading", _) => {
            Some(Finding::bad(OLD, format!("{name} still runs EspoCRM's own websocket.php"), fix))
        }
        (_, true) => Some(Finding::doubt(
            OLD,
            format!("{name} will start EspoCRM's own websocket.php with the machine"),
            fix,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn unit(load: &str, file: &str, active: &str, more: &str) -> Unit {
        Unit::of(&format!("LoadState={load}\nUnitFileState={file}\nActiveState={active}\n{more}"))
    }

    #[test]
    fn the_state_of_a_unit_is_judged() {
        for (unit, serves, state, found) in [
            (unit("loaded", "enabled", "active", "NRestarts=0"), true, State::Good, "runs"),
            (unit("loaded", "enabled", "active", "NRestarts=7"), true, State::Doubt, "7 times"),
            (
                unit("loaded", "enabled", "active", "NRestarts=1"),
                true,
                State::Doubt,
                "restarted once",
            ),
            (unit("loaded", "disabled", "active", ""), true, State::Doubt, "not start with"),
            (unit("loaded", "enabled", "inactive", ""), false, State::Bad, "does not run"),
            (unit("loaded", "enabled", "inactive", ""), true, State::Doubt, "A daemon serves"),
            (
                unit("loaded", "enabled", "inactive", "ConditionResult=no"),
                false,
                State::Bad,
                "not set up",
            ),
            (
                unit("loaded", "enabled", "failed", "Result=exit-code"),
                false,
                State::Bad,
                "failed (exit-code)",
            ),
            (
                unit(
                    "loaded",
                    "enabled",
                    "activating",
                    "SubState=auto-restart\nResult=exit-code\nNRestarts=3",
                ),
                false,
                State::Bad,
                "restarted by systemd (exit-code, restarted 3 times)",
            ),
            (
                unit("loaded", "enabled", "activating", "SubState=auto-restart\nResult=exit-code"),
                false,
                State::Bad,
                "restarted by systemd (exit-code)",
            ),
            (
                unit("loaded", "enabled", "activating", "SubState=start"),
                false,
                State::Doubt,
                "is starting",
            ),
            (unit("masked", "masked", "inactive", ""), false, State::Bad, "masked"),
            (unit("not-found", "", "inactive", ""), false, State::Bad, "knows no"),
            (unit("not-found", "", "inactive", ""), true, State::Unknown, "knows no"),
            (Unit::default(), false, State::Bad, "knows no"),
        ] {
            let finding = unit.judge("x.service", " --name x", serves, false);
            assert_eq!(finding.state, state, "{unit:?}");
            assert!(finding.found.contains(found), "{}", finding.found);
        }
        let never_started = unit("loaded", "disabled", "inactive", "ConditionResult=no");
        let finding = never_started.judge("x.service", " --name x", false, true);
        assert!(finding.found.contains("does not run"), "{}", finding.found);
        assert_eq!(finding.fix, "systemctl enable --now x.service");
    }

    #[test]
    fn a_unit_of_the_original_must_not_run() {
        let state = |unit: Unit| judge_old("crm.service", &unit).map(|it| it.state);
        assert_eq!(state(unit("loaded", "disabled", "active", "")), Some(State::Bad));
        assert_eq!(state(unit("loaded", "enabled", "inactive", "")), Some(State::Doubt));
        assert_eq!(state(unit("loaded", "disabled", "inactive", "")), None);
    }
}
