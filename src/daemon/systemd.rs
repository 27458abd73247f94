//! The service manager: what it is told, how it sees that we are alive, and the sockets it gives.
//!
//! See `sd_notify(3)`, `sd_watchdog_enabled(3)` and `sd_listen_fds(3)`. Without systemd all of this
//! does nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{env, io, net, process};

use socket2::{Socket, Type};

use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys;

/// Who is told how we are.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    notify: Option<(UnixDatagram, SocketAddr)>,
    /// How often it is to hear from us: twice in the time that it waits.
    watchdog: Option<Duration>,
    next_sign: Time,
    /// It was told that a reload has begun, and not yet that it is done.
    reloading: bool,
}

/// Characters of an error that `systemctl status` shows.
const MAX_ERROR: usize = 500;

impl Systemd {
    /// What our environment says.
    #[must_use]
    pub(crate) fn of_environment() -> Self {
        let micros = number("WATCHDOG_USEC").filter(|_| is_for_us("WATCHDOG_PID").unwrap_or(true));
        let watchdog = micros.filter(|micros| *micros > 1).map(|micros| {
            let half = Duration::from_micros(micros / 2);
            // A time-out of the loop counts in milliseconds.
            half.max(Duration::from_millis(1))
        });
        Self { notify: notify(), watchdog, ..Self::default() }
    }

    /// We serve, or a reload is done. `status` is one line.
    pub(crate) fn ready(&mut self, status: &str) {
        self.reloading = false;
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload has begun: [`ready`](Self::ready) ends it.
    pub(crate) fn reloading(&mut self) {
        self.reloading = true;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::monotonic_micros()));
    }

    /// Whether it waits for the end of a reload.
    #[must_use]
    pub(crate) fn is_reloading(&self) -> bool {
        self.reloading
    }

    /// We are about to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Why we end: `systemctl status` shows it.
    pub(crate) fn failed(&self, error: &Exit) {
        let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        self.tell(&format!("STATUS={}", words.chars().take(MAX_ERROR).collect::<String>()));
    }

    /// When it is to hear from us next; never, if it does not watch us.
    #[must_use]
    pub(crate) fn next_sign(&self) -> Option<Time> {
        self.watchdog.map(|_| self.next_sign)
    }

    /// Tells it that the event loop goes round; only to be called when it does.
    pub(crate) fn give_sign(&mut self, now: Time, status: &str) {
        self.next_sign = now.after(self.watchdog.unwrap_or_default());
        self.tell(&format!("WATCHDOG=1\nSTATUS={status}"));
    }

    /// Whatever goes wrong with it, we serve on. If it hears nothing at all, it restarts us.
    fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.notify {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// The listening sockets that systemd has opened for us; none if it has not, or they were taken
/// before. To be called before anything else is opened: a number that was announced and is free would
/// become another file's.
///
/// # Errors
/// If one of them is no listening TCP socket.
pub(crate) fn listening_sockets() -> Result<Vec<net::TcpListener>> {
    let is_ours = is_for_us("LISTEN_PID").unwrap_or(false);
    let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let sockets = sys::inherited(u16::try_from(count).unwrap_or(u16::MAX));
    let sockets = sockets.into_iter().map(|socket| listening(socket.into()));
    sockets.collect::<io::Result<_>>().map_err(|error| {
        Exit::error(format!(
            "A socket that systemd has opened for us cannot be used: {error}. The socket unit must \
             have ListenStream= lines with a port, or an address and a port, and nothing else."
        ))
    })
}

fn notify() -> Option<(UnixDatagram, SocketAddr)> {
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

/// Whether a variable names this process, if it is set: a process's environment is passed on to its
/// children.
fn is_for_us(variable: &str) -> Option<bool> {
    env::var_os(variable)?;
    Some(number(variable) == Some(u64::from(process::id())))
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}
