//! A health check for containers: connects to the daemon as a browser does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::ws_probe::{self, Outcome, Phase, PhpClient, Response, Tls};
use crate::daemon::run;
use crate::espocrm::Installation;
use crate::platform::exit::{Exit, Result};
use crate::settings::{Layers, Settings};

/// A daemon that takes longer counts as failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a WebSocket without a token at the daemon with these settings. The daemon must accept it
/// and close it cleanly, as after a logout; this needs no access check. A daemon that terminates
/// TLS must accept it through TLS.
///
/// # Errors
/// If the daemon does not behave like this.
pub(crate) fn check(layers: Layers) -> Result<()> {
    let (installation, settings) = run::load(layers)?;
    check_daemon(&installation, &settings)
}

/// Like [`check`], with loaded settings.
pub(super) fn check_daemon(espocrm: &Installation, settings: &Settings) -> Result<()> {
    let address = reachable(settings.listen());
    let response = connect(espocrm, settings, address).map_err(|error| {
        Exit::error(format!("The daemon does not answer at {address}: {error}."))
    })?;
    if matches!(response.outcome(), Outcome::Closed(_)) {
        return Ok(());
    }
    Err(Exit::error(format!(
        "The program at {address} is not espocrm-websocket, or it is overloaded. It answered: \
         \"{}\".",
        response.first_line()
    )))
}

fn connect(
    espocrm: &Installation,
    settings: &Settings,
    address: SocketAddr,
) -> std::result::Result<Response, String> {
    let origin = settings.origins.value.first().map(ToString::to_string).unwrap_or_default();
    let request = ws_probe::upgrade("/", &address.to_string(), &origin);
    let proxy_header = proxy_header(settings, address);
    if settings.tls.value.is_none() {
        let response = ws_probe::send(address, &[proxy_header, &request].concat(), TIMEOUT);
        return response.map_err(|error| error.to_string());
    }
    // The certificate is for a public name, and the request contains no secret.
    let client = PhpClient {
        host: &address.ip().to_string(),
        tls: Tls::Unverified,
        proxy_header,
        request: &request,
        timeout: TIMEOUT,
    };
    let attempt = client.send(&address.to_string(), espocrm, &mut || false)?;
    match attempt.phase {
        Phase::Connect => Err(attempt.error),
        Phase::Tls => Err(format!("the TLS handshake failed: {}", attempt.error)),
        Phase::Response => Ok(attempt.response),
    }
}

/// The address at which a client on this machine reaches a listener at `address`.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The PROXY header that a proxy on this machine must send first.
fn proxy_header(settings: &Settings, address: SocketAddr) -> &'static str {
    let is_proxy = settings.trusted_proxies.value.iter().any(|proxy| proxy.contains(address.ip()));
    if settings.proxy_protocol.value && is_proxy { "PROXY UNKNOWN\r\n" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_reached_through_loopback() {
        for (from, to) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")]
        {
            assert_eq!(reachable(from.parse().unwrap()), to.parse().unwrap());
        }
    }
}
