//! Rate limit for log lines that peers can cause at will: the administrator should see them without
//! being flooded.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use log::{Level, log};

use crate::engine::espocrm::submission::Rejection;
use crate::engine::time::Time;

/// Counts events per cause, and logs each cause at most once per [`INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct LogLimiter(BTreeMap<Cause, Burst>);

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

#[derive(Debug)]
struct Burst {
    logged_at: Time,
    suppressed: u64,
}

/// Minimum time between two lines of the same cause.
const INTERVAL: Duration = Duration::from_secs(60);

impl LogLimiter {
    /// Counts an event. Returns whether to log it now; if not, [`log_due`](Self::log_due) reports
    /// the count later.
    pub(super) fn should_log(&mut self, cause: Cause, now: Time) -> bool {
        self.log_due(now);
        if let Some(burst) = self.0.get_mut(&cause)
            && now.since(burst.logged_at) < INTERVAL
        {
            burst.suppressed += 1;
            return false;
        }
        self.0.insert(cause, Burst { logged_at: now, suppressed: 0 });
        true
    }

    /// When the next count of suppressed lines is due, if there is any.
    pub(super) fn next_due(&self) -> Option<Time> {
        let suppressed = self.0.values().filter(|burst| burst.suppressed > 0);
        suppressed.map(|burst| burst.logged_at.after(INTERVAL)).min()
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

    fn take_due(&mut self, now: Time) -> Vec<(Cause, u64)> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.0.retain(|cause, burst| {
            let is_over = now.since(burst.logged_at) >= INTERVAL;
            if is_over && burst.suppressed > 0 {
                due.push((*cause, burst.suppressed));
            }
            !is_over
        });
        due
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn each_cause_is_logged_once_per_minute() {
        let mut limiter = LogLimiter::default();
        let mut should_log = |cause, millis| limiter.should_log(cause, at(millis));
        assert!(should_log(Cause::Slow, 5));
        assert!(!should_log(Cause::Slow, 6));
        assert!(should_log(Cause::Memory, 7));
        assert!(!should_log(Cause::Slow, 60_004));
        assert!(should_log(Cause::Slow, 60_005));
        assert!(!should_log(Cause::Slow, 60_006));
        assert!(should_log(Cause::Slow, 900_000));
        assert!(should_log(Cause::Memory, 900_000));
    }

    #[test]
    fn suppressed_lines_are_counted_and_reported_at_the_end() {
        let mut limiter = LogLimiter::default();
        for millis in [5, 6, 7] {
            limiter.should_log(Cause::Slow, at(millis));
        }
        limiter.should_log(Cause::Tls, at(8));
        assert_eq!(limiter.take_due(at(u64::MAX)), [(Cause::Slow, 2)]);
        assert_eq!(limiter.take_due(at(u64::MAX)), []);
    }

    #[test]
    fn suppressed_lines_are_reported_after_a_minute() {
        let mut limiter = LogLimiter::default();
        assert_eq!(limiter.next_due(), None);
        limiter.should_log(Cause::Slow, at(1_000));
        limiter.should_log(Cause::Tls, at(2_000));
        assert_eq!(limiter.next_due(), None);
        limiter.should_log(Cause::Tls, at(3_000));
        assert_eq!(limiter.next_due(), Some(at(62_000)));
        assert_eq!(limiter.take_due(at(61_999)), []);
        assert_eq!(limiter.take_due(at(62_000)), [(Cause::Tls, 1)]);
        assert_eq!(limiter.next_due(), None);
        // Entries older than the interval are removed; the next event is logged immediately.
        assert!(limiter.0.is_empty());
        assert!(limiter.should_log(Cause::Tls, at(62_001)));
    }
}
