//! `espocrm-websocket doctor`: goes through the whole chain as a user of the site would meet it, from
//! EspoCRM to the browser, and tells at each step what is right, or what to do.
//!
//! Each step gathers, and leaves it to a pure function to judge. Nothing here disturbs a daemon that
//! runs: the one message that it gets is for a user whom there is not.

mod checks;
mod context;
mod daemon;
mod delivery;
mod extension;
mod host;
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

/// Which daemon is to be looked at, and how that is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Doctor {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The service of its own of a further EspoCRM.
    pub name: Option<String>,
    /// For machines.
    pub json: bool,
    /// Where the files of web server, PHP and systemd are, if not here.
    pub root: Option<PathBuf>,
    /// Settings that the daemon has on its command line.
    pub flags: Overrides,
    /// As whom EspoCRM's PHP runs.
    pub run_as: RunAs,
}

/// Whether somebody wants it to end.
type Stop<'a> = &'a mut dyn FnMut() -> bool;

/// What only an EspoCRM with sound settings has.
const OF_ESPOCRM: [(&str, &str); 21] = [
    ("data", "EspoCRM's data/"),
    ("tls", "TLS of the daemon's own"),
    ("check", "An access check"),
    ("worker", "A PHP worker"),
    ("zmq-command-line", "PHP's ZeroMQ extension"),
    ("zmq-web", "The ZeroMQ extension of the web server's PHP"),
    ("zeromq", "Where EspoCRM sends to"),
    ("port", "The port for browsers"),
    ("zeromq-port", "The port for messages"),
    ("daemon", "The daemon"),
    ("control", "The control socket"),
    ("loop", "A message of PHP's"),
    ("message", "A message to the daemon"),
    ("address", "The address for browsers"),
    ("public-url", "What answers there"),
    ("idle-timeout", "The proxy's time-out"),
    ("proxy-log", "Tokens in the proxy's log"),
    ("zeromq-exposure", "Who reaches the port for messages"),
    ("port-exposure", "Who reaches the port for browsers"),
    ("open-files", "The limit of open files"),
    ("memory", "The memory that the daemon may take"),
];

impl Doctor {
    /// Understands the arguments after the command; none of it, if help is asked for.
    ///
    /// # Errors
    /// What is not understood.
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

    /// Does it.
    ///
    /// # Errors
    /// If real-time does not work, or something keeps it from being looked at.
    pub fn run(&self) -> Result<()> {
        let service = match &self.config {
            Some(config) if self.name.is_none() => Service::of_config(config).unwrap_or_default(),
            _ => Service::new(self.name.clone())?,
        };
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        let root = root.canonicalize().map_err(|error| {
            Exit::error(format!("{} cannot be looked into: {error}.", root.display()))
        })?;
        let files = Files::below(&root);
        // Whatever is under way ends in order.
        let mut signals = Signals::new().map_err(|error| Exit::error(error.to_string()))?;
        let mut stopped = false;
        let mut stop = move || {
            stopped = stopped || signals.take().stop;
            stopped
        };
        let mut report = Report::new(self.json);
        let mut serves = false;
        if let Some(context) = Context::open(self, &files, &mut report, &mut stop) {
            serves = self.examine(&context, &service, &files, &mut report, &mut stop);
        } else {
            report.skip_further(&OF_ESPOCRM, "it needs EspoCRM's settings");
        }
        service::look(&files, &service, serves, &mut report, &mut stop);
        report.add(host::selinux(&files));
        report.add(host::clock(&mut stop));
        if stop() {
            return Err(Exit::error("A signal has ended it."));
        }
        report.end()
    }

    /// Looks at all that depends on EspoCRM's settings. Whether the daemon serves.
    fn examine(
        &self,
        context: &Context,
        service: &Service,
        files: &Files,
        report: &mut Report,
        stop: Stop<'_>,
    ) -> bool {
        report.add(host::data(context));
        let can_start = report.add(tls::look(context));
        checks::look(context, report, stop);
        let has_zmq = report.add(extension::command_line(&context.about, files));
        report.add(extension::web(&context.about, files, stop));
        let meets = report.add(zmq_endpoints::look(context, stop));

        let settings = &context.settings;
        let listen = settings.listen();
        let unit = service.unit();
        let main_pid = service::main_pid(files, service);
        // Of an EspoCRM that only --espocrm names, the service is not known.
        let is_certain = self.flags.espocrm.is_none() || self.name.is_some();
        let expected = Expected { unit: &unit, main_pid, is_certain };
        let mut port = Port::look(listen.port(), Some(listen.ip()), expected);
        let control = daemon::ask(self, context);
        let said = control.as_ref().ok().and_then(|control| control.pid(context));
        port.recognize(said);
        let answers = daemon::answers(context, &port, &unit, can_start);
        let serves = answers.is_good();
        report.add(port.judge("port", "The port for browsers,", serves));
        let zeromq = zmq_endpoints::port(&settings.zeromq.value).map(|port| {
            let mut port = Port::look(port, None, expected);
            port.recognize(said);
            port
        });
        report.add(match &zeromq {
            Some(port) => port.judge("zeromq-port", "The port for messages,", serves),
            None => Finding::unknown(
                "zeromq-port",
                format!("Messages are received at {}, not at a port", settings.zeromq.value),
            ),
        });
        report.add(answers);
        report.add(daemon::judge_control(&control, context, serves, ours(&port)));
        let control = control.ok();
        let pid = control.as_ref().and_then(|control| control.said.pid);
        let pid = pid.or_else(|| ours(&port));

        if has_zmq {
            report.add(delivery::own_loop(context, stop));
        } else {
            report.skip(&[("loop", "A message of PHP's")], "PHP cannot send any");
        }
        let is_foreign = zeromq.as_ref().is_some_and(|port| {
            port.holder
                .as_ref()
                .is_some_and(|it| matches!(it.kind, Kind::Sibling | Kind::Original | Kind::Other))
        });
        let because = [
            (!has_zmq, "PHP cannot send any"),
            (!meets, "it is not certain that it would come here"),
            (!serves, "the daemon does not answer"),
            (is_foreign, "somebody else receives there"),
        ];
        if let Some((_, because)) = because.iter().find(|(hinders, _)| *hinders) {
            report.skip(&[("message", "A message to the daemon")], because);
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
        let visited = public_url::look(context, files, &daemon, report, stop);
        let ping = settings.ping_interval.value;
        report.add(proxy_timeout::look(files, visited.as_ref(), &daemon, ping));
        report.add(proxy_log::look(files, visited.as_ref(), &daemon));
        let direct = visited.map(|(place, _)| place.is_direct(daemon.port, daemon.tls));
        report.add(host::zeromq_exposure(context, files, zeromq.as_ref()));
        report.add(host::port_exposure(context, files, &port, direct));
        report.add(host::open_files(context, pid));
        report.add(host::memory(context, files, pid));
        serves
    }
}

/// The process of ours that holds a port.
fn ours(port: &Port) -> Option<u32> {
    port.holder.as_ref().filter(|it| it.kind == Kind::Ours).map(|it| it.pid)
}
