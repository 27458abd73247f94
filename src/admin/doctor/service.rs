//! Whether systemd runs the daemon, now and after a reboot.

use super::Stop;
use super::report::{Finding, Report};
use crate::admin::setup::{Files, OldUnit, Service, Systemctl, old_units};
use crate::engine::printable::times;
use crate::platform::shell_word::shell_word;

const STEP: &str = "service";
const OLD: &str = "old-unit";

/// The properties of a unit that `systemctl show` prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    /// loaded, not-found, masked.
    load: String,
    /// enabled, disabled.
    file: String,
    /// active, inactive, failed, activating.
    active: String,
    sub: String,
    result: String,
    restarts: u32,
    condition: String,
    main_pid: u32,
}

/// The main process of a running service.
pub(super) fn main_pid(files: &Files, service: &Service) -> Option<u32> {
    let unit = show(&Systemctl::of(files)?, &service.unit()).ok()?;
    (unit.active == "active" && unit.main_pid > 0).then_some(unit.main_pid)
}

pub(super) fn examine(
    files: &Files,
    service: &Service,
    serves: bool,
    report: &mut Report,
    stop: Stop<'_>,
) {
    let Some(systemctl) = Systemctl::of(files) else {
        let why = "systemd is not running here";
        return report.skip(&[(STEP, "Service"), (OLD, "Unit for EspoCRM's websocket.php")], why);
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
        Err(error) => Finding::unknown(STEP, format!("Service: {error}")),
    });
    let mut old = old_units(files).into_iter();
    let judged = |unit: OldUnit| {
        let state = show(&systemctl, &unit.name).unwrap_or_default();
        judge_old(&unit.name, &state)
    };
    let running = old.find_map(judged);
    report.add(
        running.unwrap_or_else(|| {
            Finding::ok(OLD, "No systemd unit runs EspoCRM's own websocket.php")
        }),
    );
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

    /// `has_config`: whether the configuration file exists, which the unit requires.
    fn judge(&self, name: &str, flag: &str, serves: bool, has_config: bool) -> Finding {
        let log = format!("journalctl -n 50 -u {name}");
        let failure = |what: String, fix: String| Finding::failure(STEP, what, fix);
        let setup = format!("As root: espocrm-websocket setup{flag}");
        let started = format!("systemctl enable --now {name}");
        match (&*self.load, &*self.active) {
            ("masked", _) => failure(
                format!("{name} is masked: systemd will not start it"),
                format!("systemctl unmask {name} && {started}"),
            ),
            ("loaded", "active") if self.restarts > 0 => Finding::warning(
                STEP,
                format!(
                    "{name} is running, but systemd restarted it {}",
                    times(self.restarts.into())
                ),
                format!("See its log for the reason: {log}"),
            ),
            ("loaded", "active" | "reloading") if !self.is_enabled() => Finding::warning(
                STEP,
                format!("{name} is running, but does not start at boot ({})", self.file),
                format!("systemctl enable {name}"),
            ),
            ("loaded", "active" | "reloading") => {
                Finding::ok(STEP, format!("{name} is running and starts at boot"))
            }
            ("loaded", "activating") if self.is_restarted() => {
                let times = match self.restarts {
                    0 => String::new(),
                    restarts => format!(", restarted {}", times(restarts.into())),
                };
                failure(
                    format!("{name} fails, and systemd restarts it ({}{times})", self.result),
                    format!("See its log for the reason: {log}"),
                )
            }
            ("loaded", "activating") => Finding::warning(
                STEP,
                format!("{name} is starting"),
                format!(
                    "Run the doctor again in a moment. If the service still starts then: {log}"
                ),
            ),
            ("loaded", "failed") => failure(
                format!("{name} has failed ({})", self.result),
                format!("See its log for the reason: {log}\nThen: systemctl restart {name}"),
            ),
            ("loaded", _) if serves => Finding::warning(
                STEP,
                format!("A daemon is running, but {name} is not ({})", self.active),
                format!(
                    "It was started manually or by another unit. Stop that daemon, then: {started}"
                ),
            ),
            // Before the first start, the condition's result is "no" as well.
            ("loaded", _) if self.condition == "no" && !has_config => {
                failure(format!("{name} is not running, because it is not set up"), setup)
            }
            ("loaded", _) => failure(format!("{name} is not running ({})", self.active), started),
            _ if serves => Finding::unknown(
                STEP,
                format!("A daemon is running, but not under systemd: {name} does not exist"),
            ),
            _ => failure(
                format!("{name} does not exist"),
                format!("Install the espocrm-websocket package. {setup}"),
            ),
        }
    }
}

/// Judges an administrator's unit for EspoCRM's `websocket.php`.
fn judge_old(name: &str, unit: &Unit) -> Option<Finding> {
    let fix = format!(
        "Replace it (reversible): espocrm-websocket adopt {}\nOr stop it: systemctl disable --now \
         {}",
        shell_word(name),
        shell_word(name)
    );
    match (&*unit.active, unit.is_enabled()) {
        ("active" | "activating" | "reloading", _) => Some(Finding::failure(
            OLD,
            format!("{name} still runs EspoCRM's own websocket.php"),
            fix,
        )),
        (_, true) => Some(Finding::warning(
            OLD,
            format!("{name} starts EspoCRM's own websocket.php at boot"),
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
    fn every_state_of_a_unit_has_a_finding() {
        for (unit, serves, state, found) in [
            (
                unit("loaded", "enabled", "active", "NRestarts=0"),
                true,
                State::Ok,
                "is running and starts",
            ),
            (unit("loaded", "enabled", "active", "NRestarts=7"), true, State::Warning, "7 times"),
            (
                unit("loaded", "enabled", "active", "NRestarts=1"),
                true,
                State::Warning,
                "restarted it once",
            ),
            (unit("loaded", "disabled", "active", ""), true, State::Warning, "not start at boot"),
            (unit("loaded", "enabled", "inactive", ""), false, State::Failure, "is not running"),
            (
                unit("loaded", "enabled", "inactive", ""),
                true,
                State::Warning,
                "A daemon is running",
            ),
            (
                unit("loaded", "enabled", "inactive", "ConditionResult=no"),
                false,
                State::Failure,
                "not set up",
            ),
            (
                unit("loaded", "enabled", "failed", "Result=exit-code"),
                false,
                State::Failure,
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
                State::Failure,
                "systemd restarts it (exit-code, restarted 3 times)",
            ),
            (
                unit("loaded", "enabled", "activating", "SubState=auto-restart\nResult=exit-code"),
                false,
                State::Failure,
                "systemd restarts it (exit-code)",
            ),
            (
                unit("loaded", "enabled", "activating", "SubState=start"),
                false,
                State::Warning,
                "is starting",
            ),
            (unit("masked", "masked", "inactive", ""), false, State::Failure, "masked"),
            (unit("not-found", "", "inactive", ""), false, State::Failure, "does not exist"),
            (unit("not-found", "", "inactive", ""), true, State::Unknown, "does not exist"),
            (Unit::default(), false, State::Failure, "does not exist"),
        ] {
            let finding = unit.judge("x.service", " --name x", serves, false);
            assert_eq!(finding.state, state, "{unit:?}");
            assert!(finding.found.contains(found), "{}", finding.found);
        }
        let never_started = unit("loaded", "disabled", "inactive", "ConditionResult=no");
        let finding = never_started.judge("x.service", " --name x", false, true);
        assert!(finding.found.contains("is not running"), "{}", finding.found);
        assert_eq!(finding.fix, "systemctl enable --now x.service");
    }

    #[test]
    fn a_unit_for_websocket_php_must_not_run() {
        let state = |unit: Unit| judge_old("crm.service", &unit).map(|it| it.state);
        assert_eq!(state(unit("loaded", "disabled", "active", "")), Some(State::Failure));
        assert_eq!(state(unit("loaded", "enabled", "inactive", "")), Some(State::Warning));
        assert_eq!(state(unit("loaded", "disabled", "inactive", "")), None);
    }
}
