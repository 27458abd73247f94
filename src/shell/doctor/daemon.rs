//! The daemon that is to serve: whether it answers, and what it says of itself.

use std::path::PathBuf;

use serde_json::Value;

use super::Doctor;
use super::case::Case;
use super::listening::Port;
use super::report::Finding;
use crate::shell::control::client::{Client, Target};
use crate::shell::fatal::{Fatal, Result};
use crate::shell::health;
use crate::shell::settings::ControlAt;

/// What it says at its control socket.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub pid: Option<u32>,
    version: String,
    listen: String,
    uptime: Option<u64>,
    connections: Option<u64>,
}

/// What it is asked by, and what it has said.
pub struct Control {
    pub client: Client,
    pub said: Said,
}

/// Whether it answers as browsers find it.
pub fn answers(case: &Case, port: &Port, service: &str) -> Finding {
    judge(health::look(&case.settings), port, service)
}

fn judge(answer: Result<()>, port: &Port, service: &str) -> Finding {
    const STEP: &str = "daemon";
    let error = match answer {
        Ok(()) => return Finding::good(STEP, "The daemon answers, and closes what has no token"),
        Err(error) => error,
    };
    let log = format!("journalctl -n 50 -u {service}");
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

/// What it says at its control socket.
pub fn ask(doctor: &Doctor, case: &Case, serves: bool) -> (Option<Control>, Finding) {
    const STEP: &str = "control";
    let asked = client(doctor, case).and_then(|client| {
        let answer = client.get("/status")?;
        Ok((client, answer))
    });
    match asked {
        Ok((client, answer)) => {
            let said = Said::of(&answer);
            let finding = said.judge(&case.settings.listen().to_string());
            (Some(Control { client, said }), finding)
        }
        Err(error) if serves => {
            (None, Finding::unknown(STEP, format!("The control socket: {error}")))
        }
        Err(_) => (None, Finding::unknown(STEP, "The control socket: the daemon does not answer")),
    }
}

fn client(doctor: &Doctor, case: &Case) -> Result<Client> {
    let control: Option<PathBuf> = match &case.settings.control.value {
        ControlAt::Off => return Err(Fatal::new("control is off.")),
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
        let number = |name: &str| answer.get(name).and_then(Value::as_u64);
        Self {
            pid: number("pid").and_then(|pid| u32::try_from(pid).ok()),
            version: text("version"),
            listen: text("listen"),
            uptime: number("uptime"),
            connections: number("connections"),
        }
    }

    fn judge(&self, listen: &str) -> Finding {
        const STEP: &str = "control";
        let mut found = format!("The daemon says: version {}", self.version);
        if let Some(uptime) = self.uptime {
            found += &format!(", up for {uptime} s");
        }
        if let Some(connections) = self.connections {
            found += &format!(", {connections} connections");
        }
        if self.version != env!("CARGO_PKG_VERSION") {
            return Finding::doubt(
                STEP,
                found,
                concat!(
                    "This program is version ",
                    env!("CARGO_PKG_VERSION"),
                    ": restart the daemon to have it run that, too."
                ),
            );
        }
        if !self.listen.is_empty() && self.listen != listen {
            return Finding::doubt(
                STEP,
                format!("{found}; it listens at {}, not at {listen}", self.listen),
                "The settings have changed since it was started, or it was started with others: \
                 restart it. Or it is another daemon: name that by --name.",
            );
        }
        Finding::good(STEP, found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn what_the_daemon_says_is_judged() {
        let version = env!("CARGO_PKG_VERSION");
        let answer = format!(
            "{{\"version\":\"{version}\",\"pid\":7,\"listen\":\"127.0.0.1:1\",\"uptime\":5,\
             \"connections\":3}}"
        );
        let said = Said::of(answer.as_bytes());
        assert_eq!((said.pid, said.connections), (Some(7), Some(3)));
        let finding = said.judge("127.0.0.1:1");
        assert!(finding.is_good() && finding.found.contains("3 connections"), "{}", finding.found);
        assert_eq!(said.judge("127.0.0.1:2").state, State::Doubt);
        let old = Said { version: "0.0.9".to_owned(), ..said };
        assert_eq!(old.judge("127.0.0.1:1").state, State::Doubt);
        assert_eq!(Said::of(b"x"), Said::default());
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_explained_by_who_holds_its_port() {
        let answer = || Err(Fatal::new("Nothing."));
        let free = judge(answer(), &Port::default(), "x.service");
        assert!(free.found.contains("does not run"), "{}", free.found);
        assert!(judge(Ok(()), &Port::default(), "x.service").is_good());
    }
}
