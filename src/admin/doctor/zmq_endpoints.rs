//! Where EspoCRM sends to, and where the daemon receives: two ZeroMQ endpoints that must meet.

use std::net::{IpAddr, TcpListener};

use serde_json::{Value, json};

use super::Stop;
use super::php;
use super::report::Finding;
use crate::admin::doctor::context::Context;

/// Where EspoCRM connects unless it is told otherwise.
const DEFAULT: &str = "tcp://localhost:5555";

const STEP: &str = "zeromq";

/// An endpoint's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Tcp { host: &'a str, port: &'a str },
    Other { transport: &'a str, path: &'a str },
}

/// Where EspoCRM sends to.
pub(super) fn submission(context: &Context) -> String {
    context.espo_settings.text("webSocketZeroMQSubmissionDsn").unwrap_or_else(|| DEFAULT.to_owned())
}

/// The port at which messages are received.
pub(super) fn port(zeromq: &str) -> Option<u16> {
    match parse(zeromq) {
        Endpoint::Tcp { port, .. } => port.parse().ok(),
        Endpoint::Other { .. } => None,
    }
}

/// Whether only this machine reaches an endpoint.
pub(super) fn is_local(zeromq: &str) -> bool {
    match parse(zeromq) {
        Endpoint::Tcp { host, .. } => {
            matches!(host, "localhost" | "lo" | "ip6-localhost")
                || literal(host).is_some_and(|address| address.is_loopback())
        }
        Endpoint::Other { .. } => true,
    }
}

pub(super) fn look(context: &Context, stop: Stop<'_>) -> Finding {
    let messager = context.espo_settings.text("webSocketMessager").filter(|text| text != "ZeroMQ");
    if let Some(messager) = messager {
        return Finding::bad(
            STEP,
            format!("EspoCRM's webSocketMessager is {messager}, not ZeroMQ: it sends elsewhere"),
            "Remove webSocketMessager from EspoCRM's data/config.php or config-internal.php.",
        );
    }
    let (to, at) = (submission(context), &context.settings.zeromq.value);
    let mut addresses = |host: &str| {
        if let Some(address) = literal(host) {
            return Some(vec![address]);
        }
        let task = json!({"task": "resolve", "host": host});
        let answer = php::ask(&context.espocrm, &task, stop).ok()?;
        let list = answer.get("addresses").and_then(Value::as_array)?;
        Some(list.iter().filter_map(|it| it.as_str()?.parse().ok()).collect())
    };
    meet(&to, at, &mut addresses, &is_own)
}

/// Whether what is sent to one endpoint arrives at another.
fn meet(
    to: &str,
    at: &str,
    addresses: &mut dyn FnMut(&str) -> Option<Vec<IpAddr>>,
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Finding {
    let apart = |what: String| {
        Finding::bad(
            STEP,
            format!("EspoCRM sends to {to}, but the daemon receives at {at}: {what}"),
            format!(
                "Set both in EspoCRM's data/config-internal.php to what fits, such as\n  \
                 'webSocketZeroMQSubmissionDsn' => '{DEFAULT}',\n  \
                 'webSocketZeroMQSubscriberDsn' => 'tcp://127.0.0.1:5555',\nand restart the daemon. \
                 A zeromq in our own configuration, or --zeromq, wins over the latter."
            ),
        )
    };
    let (host, bound) = match (parse(to), parse(at)) {
        (Endpoint::Tcp { host, port }, Endpoint::Tcp { host: bound, port: at_port }) => {
            if port != at_port {
                return apart("the ports differ".to_owned());
            }
            (host, bound)
        }
        (one, other) if one == other => {
            return Finding::good(
                STEP,
                format!("EspoCRM sends to {to}, where the daemon receives"),
            );
        }
        (Endpoint::Other { transport: one, .. }, Endpoint::Other { transport: other, .. })
            if one == other =>
        {
            return apart("the paths differ".to_owned());
        }
        _ => return apart("these are different kinds of connections".to_owned()),
    };
    if matches!(host, "*" | "") {
        return apart("a sender has to name one host, and * is none".to_owned());
    }
    let good =
        Finding::good(STEP, format!("EspoCRM sends to {to}, and the daemon receives at {at}"));
    let Some(found) = addresses(host) else {
        return Finding::unknown(STEP, format!("{}: {host} could not be looked up", good.found));
    };
    if found.is_empty() {
        return apart(format!("no such host as {host} is known here"));
    }
    if found.iter().any(IpAddr::is_unspecified) {
        return Finding::doubt(
            STEP,
            good.found,
            format!("{host} is where one receives. Send to 127.0.0.1, which works everywhere."),
        );
    }
    if !found.iter().any(|address| is_own(*address)) {
        return Finding::bad(
            STEP,
            format!("EspoCRM sends to {to}: that is another machine than this"),
            format!(
                "If the daemon runs there, ask the doctor there. If it is to be here, set\n  \
                 'webSocketZeroMQSubmissionDsn' => '{DEFAULT}',\nin EspoCRM's \
                 data/config-internal.php."
            ),
        );
    }
    // An interface's name, or every address.
    let Some(bound) = literal(bound).filter(|bound| !bound.is_unspecified()) else { return good };
    if found.contains(&bound) { good } else { apart("the addresses differ".to_owned()) }
}

fn parse(endpoint: &str) -> Endpoint<'_> {
    let (transport, path) = endpoint.split_once("://").unwrap_or(("", endpoint));
    if transport == "tcp"
        && let Some((host, port)) = path.rsplit_once(':')
    {
        // An address of the sender's own may stand before a semicolon.
        let host = host.rsplit(';').next().unwrap_or(host);
        return Endpoint::Tcp { host: host.trim_matches(['[', ']']), port };
    }
    Endpoint::Other { transport, path }
}

fn literal(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" | "lo" => Some(IpAddr::from([127, 0, 0, 1])),
        host => host.parse().ok(),
    }
}

/// Whether it is an address of this machine.
fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || TcpListener::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn met(to: &str, at: &str) -> (State, String) {
        let mut addresses = |host: &str| match host {
            "daemon" => Some(vec![IpAddr::from([10, 0, 0, 5])]),
            "elsewhere" => Some(vec![IpAddr::from([10, 0, 0, 9])]),
            "unknown" => Some(Vec::new()),
            "slow" => None,
            host => literal(host).map(|it| vec![it]),
        };
        let is_own =
            |address: IpAddr| address.is_loopback() || address == IpAddr::from([10, 0, 0, 5]);
        let finding = meet(to, at, &mut addresses, &is_own);
        (finding.state, finding.found.into_owned())
    }

    #[test]
    fn endpoints_meet() {
        for (to, at) in [
            ("tcp://localhost:5555", "tcp://127.0.0.1:5555"),
            ("tcp://localhost:5555", "tcp://*:5555"),
            ("tcp://127.0.0.1:5555", "tcp://0.0.0.0:5555"),
            ("tcp://daemon:7777", "tcp://*:7777"),
            ("tcp://daemon:7777", "tcp://eth0:7777"),
            ("tcp://10.0.0.5:7777", "tcp://10.0.0.5:7777"),
            ("tcp://[::1]:5555", "tcp://[::1]:5555"),
            ("tcp://127.0.0.1:0;localhost:5555", "tcp://lo:5555"),
            ("ipc:///run/x.sock", "ipc:///run/x.sock"),
        ] {
            assert_eq!(met(to, at).0, State::Good, "{to} {at}: {}", met(to, at).1);
        }
    }

    #[test]
    fn endpoints_do_not_meet() {
        for (to, at, why) in [
            ("tcp://localhost:5555", "tcp://127.0.0.1:5556", "ports differ"),
            ("tcp://localhost:5555", "tcp://127.0.0.1:*", "ports differ"),
            ("tcp://localhost:5555", "tcp://10.0.0.5:5555", "addresses differ"),
            ("tcp://daemon:5555", "tcp://127.0.0.1:5555", "addresses differ"),
            ("tcp://elsewhere:5555", "tcp://*:5555", "another machine"),
            ("tcp://unknown:5555", "tcp://*:5555", "no such host"),
            ("tcp://*:5555", "tcp://*:5555", "* is none"),
            ("ipc:///a", "tcp://127.0.0.1:5555", "different kinds"),
            ("tcp://localhost:5555", "ipc:///a", "different kinds"),
            ("ipc:///a", "ipc:///b", "paths differ"),
            ("nonsense", "tcp://127.0.0.1:5555", "different kinds"),
        ] {
            let (state, found) = met(to, at);
            assert_eq!(state, State::Bad, "{to} {at}");
            assert!(found.contains(why), "{found}");
        }
        assert_eq!(met("tcp://0.0.0.0:5555", "tcp://*:5555").0, State::Doubt);
        assert_eq!(met("tcp://slow:5555", "tcp://*:5555").0, State::Unknown);
    }

    #[test]
    fn only_loopback_is_local() {
        for (zeromq, expected) in [
            ("tcp://127.0.0.1:5555", true),
            ("tcp://127.1.2.3:5555", true),
            ("tcp://[::1]:5555", true),
            ("tcp://lo:5555", true),
            ("ipc:///a", true),
            ("tcp://*:5555", false),
            ("tcp://0.0.0.0:5555", false),
            ("tcp://eth0:5555", false),
            ("tcp://10.0.0.5:5555", false),
        ] {
            assert_eq!(is_local(zeromq), expected, "{zeromq}");
        }
        assert_eq!(port("tcp://*:7777"), Some(7777));
        assert_eq!((port("tcp://*:*"), port("ipc:///a")), (None, None));
    }
}
