//! A health check for containers: connects to the daemon as a browser does.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::json;

use crate::daemon::run;
use crate::engine::printable::Printable;
use crate::espocrm::Installation;
use crate::espocrm::process::Children;
use crate::platform::exit::{Exit, Result};
use crate::settings::{Layers, Settings};

/// A daemon that takes longer counts as failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than the start of PHP and the script's own timeout.
const PHP_TIMEOUT: Duration = Duration::from_secs(20);

const SCRIPT: &str = include_str!("health.php");

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 4_096;

/// The key of RFC 6455, section 1.3, and the expected response.
pub(super) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

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
    let (proxy_header, request) = (proxy_header(settings, address), request(settings, address));
    let answer = if settings.tls.value.is_some() {
        send_through_tls(espocrm, address, proxy_header, &request)
    } else {
        send(address, &[proxy_header, &request].concat())
    };
    let answer = answer.map_err(|error| {
        Exit::error(format!("The daemon does not answer at {address}: {error}."))
    })?;
    if is_closed(&answer) {
        return Ok(());
    }
    let begin = String::from_utf8_lossy(&answer);
    let line = begin.lines().next().unwrap_or_default();
    let line = Printable(line);
    Err(Exit::error(format!(
        "The program at {address} is not espocrm-websocket, or it is overloaded. It answered: \
         \"{line}\"."
    )))
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

fn request(settings: &Settings, address: SocketAddr) -> String {
    let origin = settings.origins.value.first();
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: wamp\r\nSec-WebSocket-Key: {KEY}\r\n\
         {origin}\r\n"
    )
}

/// Sends a request and reads the response until it is complete, the connection ends or the timeout
/// expires.
fn send(address: SocketAddr, request: &str) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut tcp = TcpStream::connect_timeout(&address, TIMEOUT)?;
    tcp.set_write_timeout(Some(TIMEOUT))?;
    tcp.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while !is_closed(&answer) && answer.len() < MAX_ANSWER {
        let left = TIMEOUT.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        tcp.set_read_timeout(Some(left))?;
        match tcp.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // After a reset, the bytes received before it count.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Like [`send`], through TLS. PHP does this, because a TLS client would add 120 KB to this
/// program.
fn send_through_tls(
    espocrm: &Installation,
    address: SocketAddr,
    proxy_header: &str,
    request: &str,
) -> io::Result<Vec<u8>> {
    let mut command = espocrm.script(SCRIPT)?;
    let task = json!({
        "address": address.to_string(), "proxy_header": proxy_header, "request": request,
        "seconds": TIMEOUT.as_secs(),
    });
    command.env("ESPOCRM_WEBSOCKET_HEALTH", task.to_string());
    let finished = Children::run(command, PHP_TIMEOUT, || false)?;
    let text = |kind: &str| {
        let mark = format!("espocrm-websocket-health-{kind}:");
        let lines = String::from_utf8_lossy(&finished.stdout).into_owned();
        let line = lines.lines().rev().find_map(|line| line.strip_prefix(&mark))?.to_owned();
        Base64::decode_vec(&line).ok()
    };
    if let Some(answer) = text("answer") {
        return Ok(answer);
    }
    let error = text("error").map(|error| String::from_utf8_lossy(&error).into_owned());
    Err(io::Error::other(
        error.unwrap_or_else(|| format!("PHP could not connect: {}", finished.complaint())),
    ))
}

/// Whether a WebSocket was accepted and then closed with a Close frame (RFC 6455, section 5.5.1).
pub(super) fn is_closed(answer: &[u8]) -> bool {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let Some((head, frames)) = end.and_then(|end| answer.split_at_checked(end + 4)) else {
        return false;
    };
    let head = String::from_utf8_lossy(head);
    head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT) && frames.first() == Some(&0x88)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_accepted_and_cleanly_closed_websocket_passes() {
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert!(is_closed(&[head.as_bytes(), &[0x88, 2, 3, 240]].concat()));
        assert!(!is_closed(head.as_bytes()));
        assert!(!is_closed(&[head.as_bytes(), &[0x81, 0]].concat()));
        let other = head.replace("s3p", "x3p");
        assert!(!is_closed(&[other.as_bytes(), &[0x88, 0]].concat()));
        assert!(!is_closed(b"HTTP/1.1 503 Service Unavailable\r\n\r\n\x88"));
        assert!(!is_closed(b""));
    }

    #[test]
    fn a_wildcard_address_is_reached_through_loopback() {
        for (from, to) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")]
        {
            assert_eq!(reachable(from.parse().unwrap()), to.parse().unwrap());
        }
    }
}
