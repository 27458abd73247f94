//! `espocrm-websocket doctor`: checks every link from EspoCRM to the browser, and reports for each
//! step what it found and what to do.
//!
//! Each step collects data and passes it to a pure function for the verdict. A running daemon is
//! not disturbed: the only message it receives is addressed to a user who does not exist.

mod checks;
mod context;
mod daemon;
mod delivery;
mod extension;
mod host;
mod nginx;
mod pages;
mod php;
mod ports;
mod proxy;
mod proxy_log;
mod proxy_timeout;
mod public_address;
mod public_url;
mod report;
mod service;
mod tls;
mod zmq_endpoints;

use std::path::{Path, PathBuf};

use lexopt::prelude::{Long, Short, ValueExt};

use super::health;
use super::setup::{Files, Service, absolute};
use crate::espocrm::RunAs;
use crate::platform::exit::{Exit, Result};
use crate::platform::signals::Signals;
use crate::settings::Overrides;
use context::Context;
use ports::{Expected, Kind, Port};
use report::{Finding, Report};

/// The command line of `doctor`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Doctor {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The name of the service, if several run on this machine.
    pub name: Option<String>,
    /// Whether to print JSON.
    pub json: bool,
    /// The root directory with the files of the web server, PHP and systemd, if it is not `/`.
    pub root: Option<PathBuf>,
    /// Settings from the daemon's command line.
    pub flags: Overrides,
    /// The user who runs EspoCRM's PHP.
    pub run_as: RunAs,
}

/// Returns whether a signal has asked the doctor to stop.
type Stop<'a> = &'a mut dyn FnMut() -> bool;

/// The steps that need EspoCRM's settings.
const SITE_STEPS: [(&str, &str); 21] = [
    ("data", "EspoCRM's data/"),
    ("tls", "The daemon's TLS certificate"),
    ("check", "Access check by a plain command"),
    ("worker", "Access check by a PHP worker"),
    ("zmq-command-line", "ZeroMQ extension of the PHP CLI"),
    ("zmq-web", "ZeroMQ extension of the web server's PHP"),
    ("zeromq", "ZeroMQ endpoints"),
    ("port", "Port for browsers"),
    ("zeromq-port", "Port for messages"),
    ("daemon", "The daemon"),
    ("control", "Control socket"),
    ("loop", "Message from PHP to a temporary daemon"),
    ("message", "Message from PHP to the running daemon"),
    ("address", "Address for browsers"),
    ("public-url", "Response at the public address"),
    ("idle-timeout", "Idle timeout of the proxy"),
    ("proxy-log", "Access tokens in the proxy's log"),
    ("zeromq-exposure", "Access to the port for messages"),
    ("port-exposure", "Access to the port for browsers"),
    ("open-files", "Limit on open files"),
    ("memory", "Memory"),
];

impl Doctor {
    /// Parses the arguments after the command. Returns `None` if they ask for help.
    ///
    /// # Errors
    /// If an argument is unknown or invalid.
    pub fn parse(parser: &mut lexopt::Parser) -> std::result::Result<Option<Self>, lexopt::Error> {
        let mut doctor = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("espocrm") => doctor.flags.espocrm = Some(absolute(parser.value()?)),
                Long("config") => doctor.config = Some(parser.value()?.into()),
                Long("name") => doctor.name = Some(parser.value()?.string()?),
                Long("root") => doctor.root = Some(parser.value()?.into()),
                Long("json") => doctor.json = true,
                Long("user") => doctor.run_as.user = Some(parser.value()?.string()?),
                Long("allow-root") => doctor.run_as.allow_root = true,
                Long(name @ ("php" | "listen" | "zeromq" | "control")) => {
                    let name = name.to_owned();
                    doctor.flags.set(&name, &parser.value()?.string()?)?;
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(doctor))
    }

    /// Runs all steps and prints the report.
    ///
    /// # Errors
    /// If a step fails, or the doctor cannot run.
    pub fn run(&self) -> Result<()> {
        let service = match &self.config {
            Some(config) if self.name.is_none() => Service::of_config(config).unwrap_or_default(),
            _ => Service::new(self.name.clone())?,
        };
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        let root = root
            .canonicalize()
            .map_err(|error| Exit::error(format!("Cannot open {}: {error}.", root.display())))?;
        let files = Files::below(&root);
        // A signal ends the current step in an orderly way.
        let mut signals = Signals::new().map_err(|error| Exit::error(error.to_string()))?;
        let mut stopped = false;
        let mut stop = move || {
            stopped = stopped || signals.take().stop;
            stopped
        };
        let mut report = Report::new(self.json);
        let mut serves = false;
        if let Some(context) = Context::open(self, &files, &mut report, &mut stop) {
            serves = self.examine_site(&context, &service, &files, &mut report, &mut stop);
        } else {
            report.skip_further(&SITE_STEPS, "it needs EspoCRM's settings");
        }
        service::examine(&files, &service, serves, &mut report, &mut stop);
        report.add(host::selinux(&files));
        report.add(host::clock(&mut stop));
        if stop() {
            return Err(Exit::error("Stopped by a signal."));
        }
        report.end()
    }

    /// Runs the steps that need EspoCRM's settings. Returns whether the daemon serves.
    fn examine_site(
        &self,
        context: &Context,
        service: &Service,
        files: &Files,
        report: &mut Report,
        stop: Stop<'_>,
    ) -> bool {
        report.add(host::data(context));
        let can_start = report.add(tls::examine(context));
        checks::examine(context, report, stop);
        let has_zmq = report.add(extension::command_line(&context.php_info, files));
        report.add(extension::web(&context.php_info, files, stop));
        let endpoints_match = report.add(zmq_endpoints::examine(context, stop));

        let settings = &context.settings;
        let listen = settings.listen();
        let unit = service.unit();
        let main_pid = service::main_pid(files, service);
        // If only --espocrm names the EspoCRM, its service is unknown.
        let is_certain = self.flags.espocrm.is_none() || self.name.is_some();
        let root = context.espocrm.root();
        let expected = Expected { root, unit: is_certain.then_some(&*unit), main_pid };
        let mut port = Port::inspect(listen.port(), Some(listen.ip()), expected);
        let control = daemon::query(self, context);
        let control_pid = control.as_ref().ok().and_then(|control| control.pid(context));
        port.recognize(control_pid);
        let answers = daemon::answers(context, &port, &unit, can_start);
        let serves = answers.is_ok();
        report.add(port.judge("port", "Port for browsers", serves));
        let zeromq = zmq_endpoints::port(&settings.zeromq.value).map(|port| {
            let mut port = Port::inspect(port, None, expected);
            port.recognize(control_pid);
            port
        });
        report.add(match &zeromq {
            Some(port) => port.judge("zeromq-port", "Port for messages", serves),
            None => Finding::unknown(
                "zeromq-port",
                format!("Messages are received at {}, not at a TCP port", settings.zeromq.value),
            ),
        });
        report.add(answers);
        report.add(daemon::judge_control(&control, context, serves, daemon_pid(&port)));
        let control = control.ok();
        let pid = control.as_ref().and_then(|control| control.status.pid);
        let pid = pid.or_else(|| daemon_pid(&port));

        if has_zmq {
            report.add(delivery::temporary_daemon(context, stop));
        } else {
            report.skip(
                &[("loop", "Message from PHP to a temporary daemon")],
                "PHP cannot send messages",
            );
        }
        let is_foreign = zeromq.as_ref().is_some_and(|port| {
            port.holder.as_ref().is_some_and(|it| {
                matches!(it.kind, Kind::OtherService | Kind::Original | Kind::Other)
            })
        });
        let because = [
            (!has_zmq, "PHP cannot send messages"),
            (!endpoints_match, "EspoCRM may send to a different endpoint"),
            (!serves, "the daemon does not answer"),
            (is_foreign, "another program receives at that port"),
        ];
        if let Some((_, because)) = because.iter().find(|(applies, _)| *applies) {
            report.skip(&[("message", "Message from PHP to the running daemon")], because);
        } else {
            let to = zmq_endpoints::submission(context);
            report.add(delivery::message(context, &to, control.as_ref(), stop));
        }

        let address = health::reachable(listen).to_string();
        let daemon = public_url::Daemon {
            serves,
            address: &address,
            port: listen.port(),
            tls: settings.tls.value.is_some(),
            origins: &settings.origins.value,
        };
        let reached = public_url::examine(context, files, &daemon, report, stop);
        let ping = settings.ping_interval.value;
        report.add(proxy_timeout::examine(files, reached.as_ref(), &daemon, ping));
        report.add(proxy_log::examine(files, reached.as_ref(), &daemon));
        let direct = reached.map(|(address, _)| address.is_direct(daemon.port, daemon.tls));
        report.add(host::zeromq_exposure(context, files, zeromq.as_ref()));
        report.add(host::port_exposure(context, files, &port, direct));
        report.add(host::open_files(context, pid));
        report.add(host::memory(context, files, pid));
        serves
    }
}

/// The daemon process that holds a port.
fn daemon_pid(port: &Port) -> Option<u32> {
    port.holder.as_ref().filter(|it| it.kind == Kind::Daemon).map(|it| it.pid)
}
