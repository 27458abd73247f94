//! What peers can cause at will, and what of it the administrator is told: he should hear of it and not
//! drown in it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use log::{Level, log};

use crate::engine::espocrm::submission::Rejection;
use crate::engine::time::Time;

/// How often each thing has happened since it was last told.
#[derive(Debug, Default)]
pub(super) struct Bursts(BTreeMap<Cause, Burst>);

/// What has happened. Each for itself: one must not hide another.
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
    Introduction,
    BusSenders,
    BusMemory,
    BusDescriptors,
    Flooded,
    TooManySubscriptions,
    QueueFull,
    SubscriptionsFull,
    UserFull,
    Tls,
}

#[derive(Debug)]
struct Burst {
    told: Time,
    untold: u64,
}

/// Between two lines about the same.
const INTERVAL: Duration = Duration::from_secs(60);

impl Bursts {
    /// Counts it. Whether it is to be told now: it has not happened for a minute. Otherwise
    /// [`tell`](Self::tell) tells how often it has.
    pub(super) fn begins(&mut self, cause: Cause, now: Time) -> bool {
        self.tell(now);
        if let Some(burst) = self.0.get_mut(&cause)
            && now.since(burst.told) < INTERVAL
        {
            burst.untold += 1;
            return false;
        }
        self.0.insert(cause, Burst { told: now, untold: 0 });
        true
    }

    /// When something is to be told that has not been; never, if all has.
    pub(super) fn next_due(&self) -> Option<Time> {
        let untold = self.0.values().filter(|burst| burst.untold > 0);
        untold.map(|burst| burst.told.after(INTERVAL)).min()
    }

    /// Tells of whatever was told a minute ago how often it has happened since.
    pub(super) fn tell(&mut self, now: Time) {
        for (cause, count) in self.take_due(now) {
            log!(cause.level(), "{count} more since that was said: {cause}.");
        }
    }

    /// Tells at the end what has not been told.
    pub(super) fn tell_all(&mut self) {
        self.tell(Time::from_millis(u64::MAX));
    }

    fn take_due(&mut self, now: Time) -> Vec<(Cause, u64)> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.0.retain(|cause, burst| {
            let is_over = now.since(burst.told) >= INTERVAL;
            if is_over && burst.untold > 0 {
                due.push((*cause, burst.untold));
            }
            !is_over
        });
        due
    }
}

impl Cause {
    fn level(self) -> Level {
        match self {
            // Any stranger's scanner does that.
            Self::Refused | Self::Tls => Level::Info,
            _ => Level::Warn,
        }
    }
}

/// What has happened, so many times.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected(rejection) => {
                return write!(f, "messages that came by ZeroMQ were dropped: {rejection}");
            }
            Self::Refused => "requests that open no WebSocket were refused",
            Self::OverLimit => "connections were turned away, at the limit of all",
            Self::NoDescriptor => "attempts to accept connections failed",
            Self::Slow => "browsers could not keep up and were disconnected",
            Self::Memory => "connections that held the most memory were ended",
            Self::Handshakes => "connections were ended that did not complete their upgrade",
            Self::PerAddress => "connections were turned away, at the limit of an address",
            Self::PerUser => "connections were turned away, at the limit of a user",
            Self::Logins => "logins were told to come back, since those of their address wait",
            Self::Origin => "pages were refused for their origin",
            Self::Introduction => "connections of trusted proxies began without a PROXY header",
            Self::BusSenders => "times the socket for EspoCRM's messages had too many senders",
            Self::BusMemory => "times the socket for EspoCRM's messages took too much memory",
            Self::BusDescriptors => "times EspoCRM could not be accepted",
            Self::Flooded => "tabs sent too many messages and were closed",
            Self::TooManySubscriptions => "subscriptions were not taken, at the limit of a tab",
            Self::QueueFull => "tabs were disconnected because too many logins wait",
            Self::SubscriptionsFull => "subscriptions were delayed because too many checks wait",
            Self::UserFull => "subscriptions were delayed because too many checks of a user wait",
            Self::Tls => "TLS handshakes failed",
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
    fn a_burst_is_told_when_it_begins_and_each_cause_for_itself() {
        let mut bursts = Bursts::default();
        let mut begins = |cause, millis| bursts.begins(cause, at(millis));
        assert!(begins(Cause::Slow, 5));
        assert!(!begins(Cause::Slow, 6));
        assert!(begins(Cause::Memory, 7));
        assert!(!begins(Cause::Slow, 60_004));
        assert!(begins(Cause::Slow, 60_005));
        assert!(!begins(Cause::Slow, 60_006));
        assert!(begins(Cause::Slow, 900_000));
        assert!(begins(Cause::Memory, 900_000));
    }

    #[test]
    fn what_was_only_counted_is_told_at_the_end() {
        let mut bursts = Bursts::default();
        for millis in [5, 6, 7] {
            bursts.begins(Cause::Slow, at(millis));
        }
        bursts.begins(Cause::Tls, at(8));
        assert_eq!(bursts.take_due(at(u64::MAX)), [(Cause::Slow, 2)]);
        assert_eq!(bursts.take_due(at(u64::MAX)), []);
    }

    #[test]
    fn how_a_burst_went_on_is_told_when_it_is_over() {
        let mut bursts = Bursts::default();
        assert_eq!(bursts.next_due(), None);
        bursts.begins(Cause::Slow, at(1_000));
        bursts.begins(Cause::Tls, at(2_000));
        assert_eq!(bursts.next_due(), None);
        bursts.begins(Cause::Tls, at(3_000));
        assert_eq!(bursts.next_due(), Some(at(62_000)));
        assert_eq!(bursts.take_due(at(61_999)), []);
        assert_eq!(bursts.take_due(at(62_000)), [(Cause::Tls, 1)]);
        assert_eq!(bursts.next_due(), None);
        // It is told at once when it begins anew, and nothing is kept of what is over.
        assert!(bursts.0.is_empty());
        assert!(bursts.begins(Cause::Tls, at(62_001)));
    }
}
