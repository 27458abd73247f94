//! The signals that the service manager and the administrator send.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::sys;

/// From its making on no signal ends the process by itself.
pub(crate) struct Signals {
    signals: signal_hook_mio::v1_0::Signals,
    /// `SIGHUP` does not reload, but stops.
    hangup_stops: bool,
}

/// What has come since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// A child has ended.
    pub child: bool,
    /// All settings are to be read again.
    pub reload: bool,
    /// The daemon is to end.
    pub stop: bool,
    /// The signal that says so.
    pub stop_signal: Option<&'static str>,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn new() -> io::Result<Self> {
        Self::of(&[SIGTERM, SIGINT, SIGHUP, SIGCHLD], false)
    }

    /// Takes them over for a program without anything to reload: `SIGHUP`, which the kernel sends when
    /// the terminal is closed, stops it. It stays ignored if the program was started by `nohup(1)`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn for_terminal() -> io::Result<Self> {
        if sys::ignores(SIGHUP) {
            Self::of(&[SIGTERM, SIGINT, SIGCHLD], true)
        } else {
            Self::of(&[SIGTERM, SIGINT, SIGHUP, SIGCHLD], true)
        }
    }

    fn of(signals: &[i32], hangup_stops: bool) -> io::Result<Self> {
        let signals = signal_hook_mio::v1_0::Signals::new(signals)?;
        Ok(Self { signals, hangup_stops })
    }

    /// None ever come.
    #[cfg(test)]
    pub(crate) fn none() -> io::Result<Self> {
        Self::of(&[], false)
    }

    /// Has `token` reported when there is one.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.signals, token, Interest::READABLE)
    }

    /// What has come since the last call.
    pub(crate) fn take(&mut self) -> Pending {
        let mut pending = Pending::default();
        for signal in self.signals.pending() {
            match signal {
                SIGCHLD => pending.child = true,
                SIGHUP if !self.hangup_stops => pending.reload = true,
                other => {
                    pending.stop = true;
                    pending.stop_signal = Some(match other {
                        SIGINT => "SIGINT",
                        SIGHUP => "SIGHUP",
                        _ => "SIGTERM",
                    });
                }
            }
        }
        pending
    }
}
