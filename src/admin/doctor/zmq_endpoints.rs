//! The ZeroMQ endpoint to which EspoCRM sends, and the one at which the daemon receives. They must
//! match.

use std::net::{IpAddr, TcpListener};

use serde_json::{Value, json};

use super::Stop;
use super::php;
use super::report::Finding;
use crate::admin::doctor::context::Context;

/// EspoCRM's default endpoint.
const DEFAULT: &str = "tcp://localhost:5555";

const STEP: &str = "zeromq";

/// A parsed endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Tcp { host: &'a str, port: &'a str },
    Other { transport: &'a str, path: &'a str },
}

/// The endpoint to which EspoCRM sends.
pub(super) fn submission(context: &Context) -> String {
    context.espo_settings.text("webSocketZeroMQSubmissionDsn").unwrap_or_else(|| DEFAULT.to_owned())
}

/// The TCP port of an endpoint.
pub(super) fn port(zeromq: &str) -> Option<u16> {
    match parse(zeromq) {
        Endpoint::Tcp { port, .. } => port.parse().ok(),
        Endpoint::Other { .. } => None,
    }
}

/// Whether only this machine can reach an endpoint.
pub(super) fn is_local(zeromq: &str) -> bool {
    match parse(zeromq) {
        Endpoint::Tcp { host, .. } => {
            matches!(host, "localhost" | "lo" | "ip6-localhost")
                || literal(host).is_some_and(|address| address.is_loopback())
        }
        Endpoint::Other { .. } => true,
    }
}

pub(super) fn examine(context: &Context, stop: Stop<'_>) -> Finding {
    let messager = context.espo_settings.text("webSocketMessager").filter(|text| text != "ZeroMQ");
    if let Some(messager) = messager {
        return Finding::failure(
            STEP,
            format!(
                "EspoCRM's webSocketMessager is {messager}, so it does not send through ZeroMQ"
            ),
            "Remove webSocketMessager from EspoCRM's data/config.php or config-internal.php.",
        );
    }
    let (to, at) = (submission(context), &context.settings.zeromq.value);
    let mut addresses = |host: &str| {
        if let Some(address) = literal(host) {
            return Some(vec![address]);
        }
        let task = json!({"task": "resolve", "host": host});
        let answer = php::run_task(&context.espocrm, &task, stop).ok()?;
        let list = answer.get("addresses").and_then(Value::as_array)?;
        Some(list.iter().filter_map(|it| it.as_str()?.parse().ok()).collect())
    };
    compare(&to, at, &mut addresses, &is_own)
}

/// Whether messages sent to one endpoint arrive at the other.
fn compare(
    to: &str,
    at: &str,
    addresses: &mut dyn FnMut(&str) -> Option<Vec<IpAddr>>,
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Finding {
    let mismatch = |what: String| {
        Finding::failure(
            STEP,
            format!("EspoCRM sends to {to}, but the daemon receives at {at}: {what}"),
            format!(
                "In EspoCRM's data/config-internal.php, set both to matching values, for \
                 example\n  'webSocketZeroMQSubmissionDsn' => '{DEFAULT}',\n  \
                 'webSocketZeroMQSubscriberDsn' => 'tcp://127.0.0.1:5555',\nand restart the \
                 daemon. zeromq in the configuration file, or --zeromq, takes precedence over the \
                 latter."
            ),
        )
    };
    let (host, bound) = match (parse(to), parse(at)) {
        (Endpoint::Tcp { host, port }, Endpoint::Tcp { host: bound, port: at_port }) => {
            if port != at_port {
                return mismatch("the ports differ".to_owned());
            }
            (host, bound)
        }
        (one, other) if one == other => {
            return Finding::ok(
                STEP,
                format!("EspoCRM sends to {to}, at which the daemon receives"),
            );
        }
        (Endpoint::Other { transport: one, .. }, Endpoint::Other { transport: other, .. })
            if one == other =>
        {
            return mismatch("the paths differ".to_owned());
        }
        _ => return mismatch("the transports differ".to_owned()),
    };
    if matches!(host, "*" | "") {
        return mismatch("the sender needs a host name, not *".to_owned());
    }
    let matching =
        Finding::ok(STEP, format!("EspoCRM sends to {to}, and the daemon receives at {at}"));
    let Some(found) = addresses(host) else {
        return Finding::unknown(STEP, format!("{}; {host} could not be resolved", matching.found));
    };
    if found.is_empty() {
        return mismatch(format!("this machine cannot resolve {host}"));
    }
    if found.iter().any(IpAddr::is_unspecified) {
        return Finding::warning(
            STEP,
            matching.found,
            format!(
                "{host} is an address for receiving only. Set webSocketZeroMQSubmissionDsn to \
                 127.0.0.1, which works on every system."
            ),
        );
    }
    if !found.iter().any(|address| is_own(*address)) {
        return Finding::failure(
            STEP,
            format!("EspoCRM sends to {to}, which is another machine"),
            format!(
                "If the daemon runs on that machine, run the doctor there. If it should run here, \
                 set\n  'webSocketZeroMQSubmissionDsn' => '{DEFAULT}',\nin EspoCRM's \
                 data/config-internal.php."
            ),
        );
    }
    // An interface's name, or every address.
    let Some(bound) = literal(bound).filter(|bound| !bound.is_unspecified()) else {
        return matching;
    };
    if found.contains(&bound) { matching } else { mismatch("the addresses differ".to_owned()) }
}

fn parse(endpoint: &str) -> Endpoint<'_> {
    let (transport, path) = endpoint.split_once("://").unwrap_or(("", endpoint));
    if transport == "tcp"
        && let Some((host, port)) = path.rsplit_once(':')
    {
        // The sender's source address may precede a semicolon.
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

/// Whether this is an address of this machine.
fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || TcpListener::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn compared(to: &str, at: &str) -> (State, String) {
        let mut addresses = |host: &str| match host {
            "daemon" => Some(vec![IpAddr::from([10, 0, 0, 5])]),
            "elsewhere" => Some(vec![IpAddr::from([10, 0, 0, 9])]),
            "unknown" => Some(Vec::new()),
            "slow" => None,
            host => literal(host).map(|it| vec![it]),
        };
        let is_own =
            |address: IpAddr| address.is_loopback() || address == IpAddr::from([10, 0, 0, 5]);
        let finding = compare(to, at, &mut addresses, &is_own);
        (finding.state, finding.found.into_owned())
    }

    #[test]
    fn endpoints_match() {
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
            assert_eq!(compared(to, at).0, State::Ok, "{to} {at}: {}", compared(to, at).1);
        }
    }

    #[test]
    fn endpoints_do_not_match() {
        for (to, at, why) in [
            ("tcp://localhost:5555", "tcp://127.0.0.1:5556", "ports differ"),
            ("tcp://localhost:5555", "tcp://127.0.0.1:*", "ports differ"),
            ("tcp://localhost:5555", "tcp://10.0.0.5:5555", "addresses differ"),
            ("tcp://daemon:5555", "tcp://127.0.0.1:5555", "addresses differ"),
            ("tcp://elsewhere:5555", "tcp://*:5555", "another machine"),
            ("tcp://unknown:5555", "tcp://*:5555", "cannot resolve unknown"),
            ("tcp://*:5555", "tcp://*:5555", "needs a host name"),
            ("ipc:///a", "tcp://127.0.0.1:5555", "transports differ"),
            ("tcp://localhost:5555", "ipc:///a", "transports differ"),
            ("ipc:///a", "ipc:///b", "paths differ"),
            ("nonsense", "tcp://127.0.0.1:5555", "transports differ"),
        ] {
            let (state, found) = compared(to, at);
            assert_eq!(state, State::Failure, "{to} {at}");
            assert!(found.contains(why), "{found}");
        }
        assert_eq!(compared("tcp://0.0.0.0:5555", "tcp://*:5555").0, State::Warning);
        assert_eq!(compared("tcp://slow:5555", "tcp://*:5555").0, State::Unknown);
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
