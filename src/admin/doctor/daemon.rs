//! The daemon that is to serve: whether it answers, and what it says of itself.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Doctor;
use super::report::Finding;
use crate::admin::client::{Client, NOT_RUNNING, Target};
use crate::admin::doctor::context::Context;
use crate::admin::doctor::ports::Port;
use crate::admin::health;
use crate::engine::printable::plural;
use crate::platform::exit::{Exit, Result};
use crate::settings::ControlAt;

/// What it says at its control socket.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub pid: Option<u32>,
    version: String,
    root: String,
    listen: String,
    uptime: u64,
    connections: u64,
    /// What it is not well of.
    problems: Vec<String>,
}

/// What it is asked by, and what it has said.
pub(super) struct Control {
    pub client: Client,
    pub said: Said,
}

/// Whether it answers as browsers find it.
pub(super) fn answers(context: &Context, port: &Port, service: &str, can_start: bool) -> Finding {
    judge(health::look(&context.espocrm, &context.settings), port, service, can_start)
}

fn another() -> Finding {
    Finding::bad(
        "daemon",
        "The daemon that answers serves another EspoCRM",
        "Each EspoCRM needs a port of its own: see above.",
    )
}

fn judge(answer: Result<()>, port: &Port, service: &str, can_start: bool) -> Finding {
    const STEP: &str = "daemon";
    let error = match answer {
        Ok(()) if port.is_siblings() => return another(),
        Ok(()) => return Finding::good(STEP, "The daemon answers, and closes what has no token"),
        Err(error) => error,
    };
    let log = format!("journalctl -n 50 -u {service}");
    if port.is_free() && !can_start {
        return Finding::bad(
            STEP,
            "The daemon does not run: nobody listens at its port",
            "It cannot start as long as TLS fails: see above.",
        );
    }
    if port.is_free() {
        return Finding::bad(
            STEP,
            "The daemon does not run: nobody listens at its port",
            format!(
                "Start it: systemctl start {service}\nIf it does not stay up: {log}\nOr espocrm-websocket setup, \
                 which makes it a service."
            ),
        );
    }
    if port.is_siblings() {
        return another();
    }
    if port.is_ours() {
        return Finding::bad(
            STEP,
            "The daemon does not answer as it should",
            format!("{error}\nLook into its log: {log}\nThen: systemctl restart {service}"),
        );
    }
    Finding::bad(
        STEP,
        "What answers at the daemon's port is not espocrm-websocket",
        format!("{error}\nSee above who holds that port."),
    )
}

/// Asks it at its control socket.
///
/// # Errors
/// Why that is not possible.
pub(super) fn ask(doctor: &Doctor, context: &Context) -> Result<Control> {
    let client = client(doctor, context)?;
    let said = Said::of(&client.get("/status")?);
    Ok(Control { client, said })
}

impl Control {
    /// Its process, if it serves this EspoCRM.
    pub(super) fn pid(&self, context: &Context) -> Option<u32> {
        self.said.pid.filter(|_| Path::new(&self.said.root) == context.espocrm.root())
    }
}

/// `holder`: the daemon that holds the port for browsers.
pub(super) fn judge_control(
    asked: &Result<Control>,
    context: &Context,
    serves: bool,
    holder: Option<u32>,
) -> Finding {
    const STEP: &str = "control";
    match (asked, holder) {
        (Ok(control), _) => {
            let root = context.espocrm.root().display().to_string();
            control.said.judge(&root, &context.settings.listen().to_string(), holder)
        }
        (Err(error), Some(pid)) if serves && error.to_string().contains(NOT_RUNNING) => {
            Finding::unknown(
                STEP,
                format!(
                    "The control socket: process {pid} runs, but has none at the configured place. \
                     It was started with other settings, or control is off; the option --control \
                     PATH names another place"
                ),
            )
        }
        (Err(error), _) if serves => Finding::unknown(STEP, format!("The control socket: {error}")),
        (Err(_), _) => Finding::unknown(STEP, "The control socket: the daemon does not answer"),
    }
}

fn client(doctor: &Doctor, context: &Context) -> Result<Client> {
    let control: Option<PathBuf> = match &context.settings.control.value {
        ControlAt::Off => return Err(Exit::error("control is off.")),
        ControlAt::Path(path) => Some(path.clone()),
        ControlAt::Usual => None,
    };
    Target { name: doctor.name.clone(), control, config: doctor.config.clone() }.client()
}

impl Said {
    fn of(answer: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let text =
            |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let problems = answer.get("problems").and_then(Value::as_array);
        let problems = problems.into_iter().flatten().filter_map(Value::as_str);
        let connections = answer.get("connections").and_then(|it| it.get("open"));
        Self {
            pid: answer.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()),
            version: text("version"),
            root: text("root"),
            listen: text("listen"),
            uptime: answer.get("uptime_seconds").and_then(Value::as_u64).unwrap_or(0),
            connections: connections.and_then(Value::as_u64).unwrap_or(0),
            problems: problems.map(str::to_owned).collect(),
        }
    }

    /// `holder`: the daemon that holds the port for browsers.
    fn judge(&self, root: &str, listen: &str, holder: Option<u32>) -> Finding {
        const STEP: &str = "control";
        let found = format!(
            "The daemon says: up for {}, {}",
            lasting(self.uptime),
            plural(self.connections, "connection", "connections")
        );
        if self.root != root {
            return Finding::doubt(
                STEP,
                format!("{found}; but it serves the EspoCRM in {}", self.root),
                "Is another daemon meant? Name its service by --name, or its socket by --control.",
            );
        }
        if self.listen != listen {
            return Finding::doubt(
                STEP,
                format!("{found}; but it listens at {}, not at {listen}", self.listen),
                "The settings have changed since it was started, or it was started with others: \
                 restart it. Under espocrm-websocket.socket of systemd it is that unit that counts.",
            );
        }
        if let (Some(pid), Some(holder)) = (self.pid, holder)
            && pid != holder
        {
            return Finding::doubt(
                STEP,
                format!("{found}; but it is process {pid}, and the port is held by {holder}"),
                "Two daemons run. Stop the one that is not wanted; a second EspoCRM needs ports of \
                 its own.",
            );
        }
        if self.version != env!("CARGO_PKG_VERSION") {
            return Finding::doubt(
                STEP,
                format!("{found}; but it is version {}", self.version),
                concat!(
                    "This program is version ",
                    env!("CARGO_PKG_VERSION"),
                    ": restart the daemon to have it run that, too."
                ),
            );
        }
        if !self.problems.is_empty() {
            return Finding::doubt(
                STEP,
                [&found, "; and it has problems"].concat(),
                self.problems.join("\n"),
            );
        }
        Finding::good(STEP, found)
    }
}

fn lasting(seconds: u64) -> String {
    let (unit, length) = match seconds {
        0..120 => ("s", 1),
        120..7_200 => ("min", 60),
        7_200..172_800 => ("h", 3_600),
        _ => ("days", 86_400),
    };
    format!("{} {unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn what_the_daemon_says_is_judged() {
        let version = env!("CARGO_PKG_VERSION");
        let answer = format!(
            "{{\"version\":\"{version}\",\"pid\":7,\"listen\":\"127.0.0.1:1\",\"root\":\"/e\",\
             \"uptime_seconds\":500,\"connections\":{{\"open\":3}},\"problems\":[]}}"
        );
        let said = || Said::of(answer.as_bytes());
        assert_eq!((said().pid, said().connections), (Some(7), 3));
        let finding = said().judge("/e", "127.0.0.1:1", Some(7));
        assert!(finding.is_good(), "{}", finding.found);
        assert!(finding.found.ends_with("up for 8 min, 3 connections"), "{}", finding.found);
        let one = Said { connections: 1, ..said() }.judge("/e", "127.0.0.1:1", Some(7));
        assert!(one.found.ends_with("up for 8 min, 1 connection"), "{}", one.found);
        for (said, expected) in [
            (Said { listen: "127.0.0.1:2".to_owned(), ..said() }, "listens at"),
            (Said { root: "/other".to_owned(), ..said() }, "serves the EspoCRM in /other"),
            (Said { version: "0.0.9".to_owned(), ..said() }, "version 0.0.9"),
            (Said { problems: vec!["x".to_owned()], ..said() }, "problems"),
        ] {
            let finding = said.judge("/e", "127.0.0.1:1", None);
            assert_eq!(finding.state, State::Doubt);
            assert!(finding.found.contains(expected), "{}", finding.found);
        }
        assert_eq!(said().judge("/e", "127.0.0.1:1", Some(8)).state, State::Doubt);
        assert_eq!(Said::of(b"x"), Said::default());
        assert_eq!([0, 7_200, 1_000_000].map(lasting), ["0 s", "2 h", "11 days"]);
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_explained_by_who_holds_its_port() {
        let answer = || Err(Exit::error("Nothing."));
        let free = judge(answer(), &Port::default(), "x.service", true);
        assert!(free.found.contains("does not run"), "{}", free.found);
        assert!(free.fix.contains("systemctl start x.service"), "{}", free.fix);
        let hindered = judge(answer(), &Port::default(), "x.service", false);
        assert!(!hindered.fix.contains("systemctl start"), "{}", hindered.fix);
        assert!(judge(Ok(()), &Port::default(), "x.service", true).is_good());
    }
}
