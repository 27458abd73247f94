//! Handles the signals of the service manager and the administrator.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::sys;

/// Signal handlers; as long as they exist, these signals do not end the process.
pub(crate) struct Signals {
    signals: signal_hook_mio::v1_0::Signals,
    /// `SIGHUP` stops the program instead of reloading it.
    hangup_stops: bool,
}

/// The signals since the last call of [`Signals::take`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// A child has exited.
    pub child: bool,
    /// The settings must be reloaded.
    pub reload: bool,
    /// The daemon must stop.
    pub stop: bool,
    /// The name of the signal that stops it.
    pub stop_signal: Option<&'static str>,
}

impl Signals {
    /// Installs the handlers of the daemon.
    ///
    /// # Errors
    /// Those of installing signal handlers.
    pub(crate) fn new() -> io::Result<Self> {
        Self::of(&[SIGTERM, SIGINT, SIGHUP, SIGCHLD], false)
    }

    /// Installs the handlers of a program in a terminal. The kernel sends `SIGHUP` when the
    /// terminal is closed: it stops the program, but stays ignored if `nohup(1)` has started the
    /// program.
    ///
    /// # Errors
    /// Those of installing signal handlers.
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

    /// Registers the signals with `token`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.signals, token, Interest::READABLE)
    }

    /// Returns the signals since the last call.
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
