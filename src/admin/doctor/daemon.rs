//! The daemon: whether it answers, and its status.

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

/// The status that the daemon reports at its control socket.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub pid: Option<u32>,
    version: String,
    root: String,
    listen: String,
    uptime: u64,
    connections: u64,
    problems: Vec<String>,
}

/// A connection to the daemon's control socket, and the status that it reported.
pub(super) struct Control {
    pub client: Client,
    pub status: Status,
}

/// Whether the daemon answers at its port as a browser expects.
pub(super) fn answers(context: &Context, port: &Port, service: &str, can_start: bool) -> Finding {
    judge(health::check_daemon(&context.espocrm, &context.settings), port, service, can_start)
}

fn other_espocrm() -> Finding {
    Finding::failure(
        "daemon",
        "The daemon at this port serves another EspoCRM",
        "Each EspoCRM needs its own ports: see above.",
    )
}

fn judge(answer: Result<()>, port: &Port, service: &str, can_start: bool) -> Finding {
    const STEP: &str = "daemon";
    let error = match answer {
        Ok(()) if port.is_other_service() => return other_espocrm(),
        Ok(()) => {
            let found = "The daemon answers, and closes connections without a token";
            return Finding::ok(STEP, found);
        }
        Err(error) => error,
    };
    let log = format!("journalctl -n 50 -u {service}");
    if port.is_free() && !can_start {
        return Finding::failure(
            STEP,
            "The daemon is not running: no process listens on its port",
            "The daemon cannot start while TLS fails: see above.",
        );
    }
    if port.is_free() {
        return Finding::failure(
            STEP,
            "The daemon is not running: no process listens on its port",
            format!(
                "Start it: systemctl start {service}\nIf it stops again, see its log: {log}\nIf \
                 the service is not set up yet: espocrm-websocket setup"
            ),
        );
    }
    if port.is_other_service() {
        return other_espocrm();
    }
    if port.is_daemon() {
        return Finding::failure(
            STEP,
            "The daemon does not answer correctly",
            format!("{error}\nSee its log: {log}\nThen: systemctl restart {service}"),
        );
    }
    Finding::failure(
        STEP,
        "The program at the daemon's port is not espocrm-websocket",
        format!("{error}\nSee above for the process that holds the port."),
    )
}

/// Requests the status from the control socket.
///
/// # Errors
/// If there is no control socket, or it does not answer.
pub(super) fn query(doctor: &Doctor, context: &Context) -> Result<Control> {
    let client = client(doctor, context)?;
    let status = Status::of(&client.get("/status")?);
    Ok(Control { client, status })
}

impl Control {
    /// The daemon's process id, if it serves this EspoCRM.
    pub(super) fn pid(&self, context: &Context) -> Option<u32> {
        self.status.pid.filter(|_| Path::new(&self.status.root) == context.espocrm.root())
    }
}

/// `holder`: the daemon that holds the port for browsers.
pub(super) fn judge_control(
    control: &Result<Control>,
    context: &Context,
    serves: bool,
    holder: Option<u32>,
) -> Finding {
    const STEP: &str = "control";
    match (control, holder) {
        (Ok(control), _) => {
            let root = context.espocrm.root().display().to_string();
            control.status.judge(&root, &context.settings.listen().to_string(), holder)
        }
        (Err(error), Some(pid)) if serves && error.to_string().contains(NOT_RUNNING) => {
            Finding::unknown(
                STEP,
                format!(
                    "Control socket: process {pid} is running, but has none at the configured path. It \
                     was started with other settings, or control is off; use --control PATH for \
                     another path"
                ),
            )
        }
        (Err(error), _) if serves => Finding::unknown(STEP, format!("Control socket: {error}")),
        (Err(_), _) => Finding::unknown(STEP, "Control socket: the daemon does not answer"),
    }
}

fn client(doctor: &Doctor, context: &Context) -> Result<Client> {
    let control: Option<PathBuf> = match &context.settings.control.value {
        ControlAt::Off => return Err(Exit::error("control is off.")),
        ControlAt::Path(path) => Some(path.clone()),
        ControlAt::Default => None,
    };
    Target { name: doctor.name.clone(), control, config: doctor.config.clone() }.client()
}

impl Status {
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
            "The daemon has been up for {}, with {}",
            duration(self.uptime),
            plural(self.connections, "connection", "connections")
        );
        if self.root != root {
            return Finding::warning(
                STEP,
                format!("{found}; but it serves the EspoCRM in {}", self.root),
                "To examine another daemon, name its service with --name, or its control socket \
                 with --control.",
            );
        }
        if self.listen != listen {
            return Finding::warning(
                STEP,
                format!("{found}; but it listens at {}, not at {listen}", self.listen),
                "The settings have changed since it was started, or it was started with different \
                 ones: restart it. With systemd's espocrm-websocket.socket, that unit sets the \
                 address.",
            );
        }
        if let (Some(pid), Some(holder)) = (self.pid, holder)
            && pid != holder
        {
            return Finding::warning(
                STEP,
                format!("{found}; but it is process {pid}, and process {holder} holds the port"),
                "Two daemons are running. Stop the one you do not need. A second EspoCRM needs its own \
                 ports.",
            );
        }
        if self.version != env!("CARGO_PKG_VERSION") {
            return Finding::warning(
                STEP,
                format!("{found}; but it is version {}", self.version),
                concat!(
                    "This program is version ",
                    env!("CARGO_PKG_VERSION"),
                    ": restart the daemon to run the same version."
                ),
            );
        }
        if !self.problems.is_empty() {
            return Finding::warning(
                STEP,
                [&found, "; it reports problems"].concat(),
                self.problems.join("\n"),
            );
        }
        Finding::ok(STEP, found)
    }
}

fn duration(seconds: u64) -> String {
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
    fn the_reported_status_is_compared_with_the_settings() {
        let version = env!("CARGO_PKG_VERSION");
        let answer = format!(
            "{{\"version\":\"{version}\",\"pid\":7,\"listen\":\"127.0.0.1:1\",\"root\":\"/e\",\
             \"uptime_seconds\":500,\"connections\":{{\"open\":3}},\"problems\":[]}}"
        );
        let status = || Status::of(answer.as_bytes());
        assert_eq!((status().pid, status().connections), (Some(7), 3));
        let finding = status().judge("/e", "127.0.0.1:1", Some(7));
        assert!(finding.is_ok(), "{}", finding.found);
        assert!(finding.found.ends_with("up for 8 min, with 3 connections"), "{}", finding.found);
        let one = Status { connections: 1, ..status() }.judge("/e", "127.0.0.1:1", Some(7));
        assert!(one.found.ends_with("up for 8 min, with 1 connection"), "{}", one.found);
        for (status, expected) in [
            (Status { listen: "127.0.0.1:2".to_owned(), ..status() }, "listens at"),
            (Status { root: "/other".to_owned(), ..status() }, "serves the EspoCRM in /other"),
            (Status { version: "0.0.9".to_owned(), ..status() }, "version 0.0.9"),
            (Status { problems: vec!["x".to_owned()], ..status() }, "problems"),
        ] {
            let finding = status.judge("/e", "127.0.0.1:1", None);
            assert_eq!(finding.state, State::Warning);
            assert!(finding.found.contains(expected), "{}", finding.found);
        }
        assert_eq!(status().judge("/e", "127.0.0.1:1", Some(8)).state, State::Warning);
        assert_eq!(Status::of(b"x"), Status::default());
        assert_eq!([0, 7_200, 1_000_000].map(duration), ["0 s", "2 h", "11 days"]);
    }

    #[test]
    fn the_process_at_the_port_explains_why_the_daemon_does_not_answer() {
        let answer = || Err(Exit::error("Nothing."));
        let free = judge(answer(), &Port::default(), "x.service", true);
        assert!(free.found.contains("is not running"), "{}", free.found);
        assert!(free.fix.contains("systemctl start x.service"), "{}", free.fix);
        let blocked = judge(answer(), &Port::default(), "x.service", false);
        assert!(!blocked.fix.contains("systemctl start"), "{}", blocked.fix);
        assert!(judge(Ok(()), &Port::default(), "x.service", true).is_ok());
    }
}
