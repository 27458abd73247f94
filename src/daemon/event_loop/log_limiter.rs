//! The log lines that peers can cause at will, and their rate limit.

use std::fmt;

use log::{Level, log};

use crate::engine::espocrm::submission::Rejection;
use crate::engine::rate_limited_log::RateLimitedLog;
use crate::engine::time::Time;

/// Kind of event. Each is limited separately, so that none hides another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Rejected(Rejection),
    Refused,
    OverLimit,
    NoDescriptor,
    Slow,
    Memory,
    Handshakes,
    PerAddress,
    PerUser,
    Logins,
    Origin,
    ProxyHeader,
    ZmqSenders,
    ZmqMemory,
    ZmqDescriptors,
    Flooded,
    TooManySubscriptions,
    QueueFull,
    SubscriptionsFull,
    UserFull,
    Tls,
}

impl RateLimitedLog<Cause> {
    /// Counts an event. Returns whether to log it now; if not, [`log_due`](Self::log_due) reports
    /// the count later.
    pub(super) fn should_log(&mut self, cause: Cause, now: Time) -> bool {
        self.log_due(now);
        self.occurred(&cause, now)
    }

    /// Logs the counts of suppressed lines that are due.
    pub(super) fn log_due(&mut self, now: Time) {
        for (cause, count) in self.take_due(now) {
            log!(cause.level(), "{count} more in the last 60 s: {cause}.");
        }
    }

    /// Logs all counts when the daemon stops.
    pub(super) fn log_all(&mut self) {
        self.log_due(Time::from_millis(u64::MAX));
    }
}

impl Cause {
    fn level(self) -> Level {
        match self {
            // Any port scanner causes these.
            Self::Refused | Self::Tls => Level::Info,
            _ => Level::Warn,
        }
    }
}

/// A noun phrase in the plural, for a count.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected(rejection) => {
                return write!(f, "dropped ZeroMQ messages ({rejection})");
            }
            Self::Refused => "rejected requests that are not WebSocket handshakes",
            Self::OverLimit => "connections rejected at max_connections",
            Self::NoDescriptor => "failed attempts to accept connections",
            Self::Slow => "ended connections of slow browsers",
            Self::Memory => "connections ended at max_buffered",
            Self::Handshakes => "ended connections with incomplete handshakes",
            Self::PerAddress => "connections rejected at max_per_address",
            Self::PerUser => "connections rejected at max_per_user",
            Self::Logins => "logins rejected because too many from their address wait",
            Self::Origin => "pages rejected because of their origin",
            Self::ProxyHeader => "connections of trusted proxies without a PROXY header",
            Self::ZmqSenders => "restarts of the ZeroMQ socket with too many senders",
            Self::ZmqMemory => "restarts of the ZeroMQ socket for using too much memory",
            Self::ZmqDescriptors => "failures to accept connections of EspoCRM",
            Self::Flooded => "connections closed for sending too many messages",
            Self::TooManySubscriptions => "subscriptions ignored at the limit per tab",
            Self::QueueFull => "connections rejected because too many logins wait",
            Self::SubscriptionsFull => "subscriptions delayed because too many checks wait",
            Self::UserFull => "subscriptions delayed because too many checks of a user wait",
            Self::Tls => "failed TLS handshakes",
        })
    }
}
