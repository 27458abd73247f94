//! The demo: the real daemon without EspoCRM, a web page to try it, and simulated access checks.

use std::ffi::CString;
use std::io::{Write, stdout};
use std::net::{IpAddr, Ipv4Addr};

use log::info;
use serde_json::{Map, Value, json};

use super::run;
use super::seam::Signals;
use super::systemd::Systemd;
use crate::daemon::event_loop::{Backend, Server};
use crate::daemon::zmq::Zmq;
use crate::engine::checks::check::Check;
use crate::engine::checks::verdict::Verdict;
use crate::engine::protocol::http;
use crate::engine::protocol::http::Head;
use crate::espocrm::EspoSettings;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys::{ZmqSocket, ZmqType};
use crate::settings::{ControlAt, Layers, Listen, Overrides, Settings};

/// Replaces EspoCRM: answers checks, serves the page, and sends the messages of its buttons.
///
/// The token `tok-alice` is valid for user `alice`, and likewise for any other name. Access to
/// records whose id begins with `deny` is denied to all users.
#[derive(Default)]
pub struct Demo {
    sender: Option<ZmqSocket>,
}

const PAGE: &str = include_str!("demo.html");

/// Serves the demo until a signal ends it.
///
/// # Errors
/// If an address is not a loopback address, or if listening fails.
pub fn serve(flags: &Overrides, print_addresses: bool) -> Result<()> {
    let mut settings = settings(flags)?;
    let is_free = std::net::TcpListener::bind(settings.listen()).is_ok();
    if flags.listen.is_none() && !is_free {
        settings.port.value = 0;
    }
    let signals = Signals::for_terminal().map_err(|error| Exit::error(error.to_string()))?;
    let mut server =
        Server::new(settings, Backend::Demo(Demo::default()), None, Vec::new(), signals)?;
    info!("Browsers are served at http://{}.", server.address());
    info!("EspoCRM's messages are received at {}.", server.endpoint());
    if print_addresses {
        run::write_addresses(&server);
    } else {
        // A closed standard output is no reason to fail.
        let address = server.address();
        let _ = writeln!(stdout(), "Open http://{address} in a browser. Ctrl-C ends the demo.");
    }
    server.run(Systemd::from_environment())
}

fn settings(flags: &Overrides) -> Result<Settings> {
    let mut flags = flags.clone();
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    flags.listen.get_or_insert(Listen { address, port: None });
    // Any free port, so that a running daemon or another demo does not conflict.
    let zeromq = flags.zeromq.get_or_insert("tcp://127.0.0.1:*".to_owned());
    let loopback = ["tcp://127.", "tcp://localhost:", "tcp://[::1]:"];
    if !loopback.iter().any(|prefix| zeromq.starts_with(prefix)) {
        return Err(not_loopback("--zeromq"));
    }
    // The control socket belongs to a real daemon that may run on this machine.
    flags.control.get_or_insert(ControlAt::Off);
    let settings = Settings::resolve(&Layers::of_flags(flags), &espo_settings())?;
    if settings.listen().ip().is_loopback() { Ok(settings) } else { Err(not_loopback("--listen")) }
}

fn not_loopback(flag: &str) -> Exit {
    Exit::error(format!(
        "The demo accepts all users and therefore serves this machine only. Set {flag} to a \
         loopback address such as 127.0.0.1."
    ))
}

/// The settings of EspoCRM 9.3 after installation.
fn espo_settings() -> EspoSettings {
    let record = |action: &str| {
        let check = format!("AclCheck --userId=:userId --scope=:scope --id=:id --action={action}");
        json!({"paramList": ["scope", "id"], "accessCheckCommand": check})
    };
    let categories = json!({
        "newNotification": {},
        "popupNotifications.event": {},
        "appParamsUpdate": {},
        "recordUpdate": record("read"),
        "streamUpdate": record("stream"),
        "calendarUpdate": {"accessCheckCommand": "AclCheck --userId=:userId --scope=Calendar"},
    });
    let mut parameters = Map::new();
    parameters.insert("version".to_owned(), json!("9.3.0"));
    parameters.insert("useWebSocket".to_owned(), json!(true));
    EspoSettings::new(parameters, &categories)
}

impl Demo {
    /// Connects to the daemon's own ZeroMQ socket, as PHP does.
    ///
    /// # Errors
    /// Those of ZeroMQ.
    pub(crate) fn connect(&mut self, daemon: &Zmq) -> Result<()> {
        let Some(context) = daemon.context() else { return Ok(()) };
        let socket = context.socket(ZmqType::Push).and_then(|mut socket| {
            socket.set_linger(0)?;
            socket.connect(&CString::new(daemon.endpoint())?)?;
            Ok(socket)
        });
        let socket = socket.map_err(|error| Exit::error(format!("ZeroMQ: {error}.")))?;
        self.sender = Some(socket);
        Ok(())
    }

    /// Answers a check.
    #[must_use]
    pub fn check(&self, check: &Check) -> Verdict {
        let arguments: Vec<&str> = check.arguments.iter().map(|word| &**word).collect();
        let granted = match arguments[..] {
            ["AuthTokenCheck", token, user] => token.strip_prefix("tok-") == Some(user),
            ["AclCheck", ..] => !arguments.iter().any(|word| word.starts_with("--id=deny")),
            _ => false,
        };
        if granted { Verdict::Granted } else { Verdict::Denied }
    }

    /// Responds to a request without a WebSocket upgrade: serves the page, or sends a message.
    #[must_use]
    pub fn respond(&self, head: &Head<'_, '_>) -> Option<String> {
        let path = head.target.split('?').next().unwrap_or_default();
        match (head.method, path) {
            ("GET", "/") => Some(http::response("200 OK", HEADERS, "text/html", PAGE)),
            ("POST", "/send") => {
                let parameter = |name: &str| String::from_utf8(head.query(name)?).ok();
                let message = message(parameter)?.to_string();
                self.sender.as_ref()?.send(&message, zmq::DONTWAIT).ok()?;
                Some(http::response("202 Accepted", HEADERS, "application/json", &message))
            }
            _ => None,
        }
    }
}

const HEADERS: &str = "Connection: close\r\nCache-Control: no-store\r\n";

/// A message as EspoCRM would send it, with the time of the click.
fn message(parameter: impl Fn(&str) -> Option<String>) -> Option<Value> {
    let user = parameter("user").filter(|user| !user.is_empty());
    let record = || parameter("record").filter(|record| !record.is_empty());
    let mut message = match parameter("kind")?.as_str() {
        "newNotification" => json!({"userId": user?, "topicId": "newNotification"}),
        "calendarUpdate" => json!({"userId": user?, "topicId": "calendarUpdate"}),
        "popupNotifications.event" => {
            let data = json!({
                "id": "1", "entityType": "Meeting", "name": "Meet \"Київ\" \\ it's",
                "dateField": "dateStart", "attributes": {"dateStart": "2030-01-01 09:00:00"},
            });
            let list = json!([{"id": "1", "data": data}]);
            json!({"list": list, "userId": user?, "topicId": "popupNotifications.event"})
        }
        "appParamsUpdate" => json!({"topicId": "appParamsUpdate"}),
        "recordUpdate" => json!({"topicId": format!("recordUpdate.Account.{}", record()?)}),
        "streamUpdate" => {
            let topic = format!("streamUpdate.Account.{}", record()?);
            json!({"createdById": user, "topicId": topic})
        }
        _ => return None,
    };
    if let (Some(object), Some(at)) = (message.as_object_mut(), parameter("at")) {
        object.insert("demoSentAt".to_owned(), at.into());
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(arguments: &[&str]) -> Verdict {
        let arguments = arguments.iter().map(|&word| word.into()).collect();
        Demo::default().check(&Check::topic("alice", arguments))
    }

    #[test]
    fn only_loopback_addresses_are_accepted() {
        let listen =
            |text: &str| Overrides { listen: Some(text.parse().unwrap()), ..Overrides::default() };
        let zeromq =
            |text: &str| Overrides { zeromq: Some(text.to_owned()), ..Overrides::default() };
        for flags in
            [Overrides::default(), listen("127.0.0.1:0"), listen("::1"), zeromq("tcp://[::1]:*")]
        {
            assert!(settings(&flags).unwrap().listen().ip().is_loopback());
        }
        for flags in [
            listen("0.0.0.0:8080"),
            listen("::"),
            listen("192.0.2.1"),
            zeromq("tcp://*:5555"),
            zeromq("tcp://0.0.0.0:5555"),
            zeromq("ipc:///tmp/x"),
        ] {
            assert!(settings(&flags).unwrap_err().to_string().contains("this machine only"));
        }
    }

    #[test]
    fn checks_are_granted_or_denied() {
        assert_eq!(verdict(&["AuthTokenCheck", "tok-alice", "alice"]), Verdict::Granted);
        assert_eq!(verdict(&["AuthTokenCheck", "tok-alice", "bob"]), Verdict::Denied);
        assert_eq!(verdict(&["AclCheck", "--userId=a", "--scope=B", "--id=1"]), Verdict::Granted);
        assert_eq!(verdict(&["AclCheck", "--userId=a", "--id=deny1"]), Verdict::Denied);
        assert_eq!(verdict(&["Other"]), Verdict::Denied);
    }

    #[test]
    fn messages_are_those_of_espocrm() {
        let parameters = |name: &str| match name {
            "user" => Some("alice".to_owned()),
            "record" => Some("7".to_owned()),
            "at" => Some("1.5".to_owned()),
            _ => None,
        };
        let topic = |kind: &str| {
            let parameter =
                |name: &str| parameters(name).or_else(|| (name == "kind").then(|| kind.into()));
            let message = message(parameter)?.to_string();
            let submission = crate::engine::espocrm::submission::parse(message.as_bytes()).unwrap();
            Some((submission.topic.into_owned(), submission.user.is_some()))
        };
        for (kind, expected, personal) in [
            ("newNotification", "newNotification", true),
            ("calendarUpdate", "calendarUpdate", true),
            ("popupNotifications.event", "popupNotifications.event", true),
            ("recordUpdate", "recordUpdate.Account.7", false),
            ("streamUpdate", "streamUpdate.Account.7", false),
            ("appParamsUpdate", "appParamsUpdate", false),
        ] {
            assert_eq!(topic(kind), Some((expected.to_owned(), personal)));
        }
        assert_eq!(topic("other"), None);
    }
}
