//! The signals that the service manager and the administrator send.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// From its making on no signal ends the process by itself.
pub struct Signals(signal_hook_mio::v1_0::Signals);

/// What has come since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
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
    pub fn new() -> io::Result<Self> {
        signal_hook_mio::v1_0::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD]).map(Self)
    }

    /// None ever come.
    #[cfg(test)]
    pub(crate) fn none() -> io::Result<Self> {
        signal_hook_mio::v1_0::Signals::new([0_i32; 0]).map(Self)
    }

    /// Has `token` reported when there is one.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.0, token, Interest::READABLE)
    }

    /// What has come since the last call.
    pub fn take(&mut self) -> Pending {
        let mut pending = Pending::default();
        for signal in self.0.pending() {
            match signal {
                SIGCHLD => pending.child = true,
                SIGHUP => pending.reload = true,
                other => {
                    pending.stop = true;
                    pending.stop_signal = Some(if other == SIGINT { "SIGINT" } else { "SIGTERM" });
                }
            }
        }
        pending
    }
}
