//! Integration with systemd: state notifications, watchdog pings and socket activation.
//!
//! See `sd_notify(3)`, `sd_watchdog_enabled(3)` and `sd_listen_fds(3)`. Without systemd these
//! functions do nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{env, io, net, process};

use socket2::{Socket, Type};

use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys;

/// The connection to the service manager.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    notify: Option<(UnixDatagram, SocketAddr)>,
    /// The interval between watchdog pings: half of `WatchdogSec`.
    watchdog: Option<Duration>,
    next_ping: Time,
    /// `RELOADING=1` was sent, and `READY=1` was not sent since.
    reloading: bool,
}

/// Characters of an error that `systemctl status` shows.
const MAX_ERROR: usize = 500;

impl Systemd {
    /// Reads the environment variables that systemd sets.
    #[must_use]
    pub(crate) fn from_environment() -> Self {
        let micros = number("WATCHDOG_USEC").filter(|_| is_for_us("WATCHDOG_PID").unwrap_or(true));
        let watchdog = micros.filter(|micros| *micros > 1).map(|micros| {
            let half = Duration::from_micros(micros / 2);
            // The event loop's timeout has millisecond resolution.
            half.max(Duration::from_millis(1))
        });
        Self { notify: notify_socket(), watchdog, ..Self::default() }
    }

    /// Reports that startup or a reload is complete. `status` is one line.
    pub(crate) fn ready(&mut self, status: &str) {
        self.reloading = false;
        self.notify(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports the beginning of a reload; [`ready`](Self::ready) reports its end.
    pub(crate) fn reloading(&mut self) {
        self.reloading = true;
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::monotonic_micros()));
    }

    /// Whether systemd waits for the end of a reload.
    #[must_use]
    pub(crate) fn is_reloading(&self) -> bool {
        self.reloading
    }

    /// Reports that the daemon stops.
    pub(crate) fn stopping(&self) {
        self.notify("STOPPING=1");
    }

    /// Reports why the daemon fails; `systemctl status` shows it.
    pub(crate) fn failed(&self, error: &Exit) {
        let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        self.notify(&format!("STATUS={}", words.chars().take(MAX_ERROR).collect::<String>()));
    }

    /// When the next watchdog ping is due; `None` if the watchdog is off.
    #[must_use]
    pub(crate) fn next_ping(&self) -> Option<Time> {
        self.watchdog.map(|_| self.next_ping)
    }

    /// Sends a watchdog ping. Only the event loop may call this: the ping proves that it runs.
    pub(crate) fn ping_watchdog(&mut self, now: Time, status: &str) {
        self.next_ping = now.after(self.watchdog.unwrap_or_default());
        self.notify(&format!("WATCHDOG=1\nSTATUS={status}"));
    }

    /// Ignores errors: the daemon serves without systemd, and the watchdog restarts it if needed.
    fn notify(&self, text: &str) {
        if let Some((socket, address)) = &self.notify {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// Takes over the listening sockets passed by systemd. A second call returns none. Must be called
/// before anything else is opened: an announced descriptor number that is free would be reused for
/// another file.
///
/// # Errors
/// If one of them is not a listening TCP socket.
pub(crate) fn listening_sockets() -> Result<Vec<net::TcpListener>> {
    let are_passed = is_for_us("LISTEN_PID").unwrap_or(false);
    let count = number("LISTEN_FDS").filter(|_| are_passed).unwrap_or(0);
    let sockets = sys::take_inherited(u16::try_from(count).unwrap_or(u16::MAX));
    let sockets = sockets.into_iter().map(|socket| listening(socket.into()));
    sockets.collect::<io::Result<_>>().map_err(|error| {
        Exit::error(format!(
            "A socket passed by systemd cannot be used: {error}. The socket unit may only have \
             ListenStream= lines with a port, or with an address and a port."
        ))
    })
}

fn notify_socket() -> Option<(UnixDatagram, SocketAddr)> {
    let name = env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

fn listening(socket: Socket) -> io::Result<net::TcpListener> {
    let is_tcp = socket.local_addr()?.as_socket().is_some()
        && socket.r#type()? == Type::STREAM
        && socket.is_listener()?;
    if is_tcp { Ok(socket.into()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Whether a variable names this process, if it is set: child processes inherit the environment and
/// must ignore it.
fn is_for_us(variable: &str) -> Option<bool> {
    env::var_os(variable)?;
    Some(number(variable) == Some(u64::from(process::id())))
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}
