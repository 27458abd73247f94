//! What has happened since the start, in numbers; the names are those of the metrics.

use crate::engine::checks::check::Urgency;
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::submission::Rejection;

/// Counters. They only ever grow.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Connections accepted; each is refused or ended in the end, once.
    pub opened: u64,
    /// Connections refused or ended, by [`End`].
    pub ends: [u64; End::NAMES.len()],
    /// Times that a connection could not be accepted.
    pub accept_failures: u64,
    /// Messages of EspoCRM.
    pub messages: u64,
    /// Of these, the ones that were dropped, by [`Rejection`].
    pub dropped: [u64; Rejection::NAMES.len()],
    /// Times that a message was told to a connection.
    pub deliveries: u64,
    /// Access checks that have ended: by [`KINDS`], and for each by [`OUTCOMES`].
    pub checks: [[u64; OUTCOMES.len()]; KINDS.len()],
    /// Milliseconds that they took together.
    pub check_millis: u64,
    /// How many took at most so many milliseconds, and not less than the one before: [`BUCKETS`], and
    /// at last those that took longer.
    pub check_times: [u64; BUCKETS.len() + 1],
    /// Verdicts that were known from a moment ago.
    pub checks_cached: u64,
    /// Runs of PHP for a check, by [`MODES`].
    pub runs: [u64; MODES.len()],
    /// Workers that have failed.
    pub worker_failures: u64,
    /// What was left out because there is too much, by [`LimitHit`].
    pub limit_hits: [u64; LimitHit::NAMES.len()],
    /// Times that the ZeroMQ socket was made anew.
    pub zmq_restarts: u64,
    /// Times that EspoCRM's settings were read again, by [`RELOADS`].
    pub reloads: [u64; RELOADS.len()],
}

/// What a check is for.
pub const KINDS: [&str; 3] = ["login", "subscription", "recheck"];

/// What came of it.
pub const OUTCOMES: [&str; 3] = ["granted", "denied", "failed"];

/// By what PHP runs a check.
pub const MODES: [&str; 2] = ["plain", "worker"];

/// How reading the settings again has ended.
pub const RELOADS: [&str; 2] = ["done", "failed"];

/// Milliseconds that a check may take.
pub const BUCKETS: [u64; 6] = [10, 50, 100, 500, 1_000, 5_000];

macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$what])* $variant,)*
        }

        impl $name {
            /// The names, in the order of the variants.
            pub const NAMES: &[&str] = &[$($text,)*];
        }
    };
}

named! {
    /// Why a connection was not let in, or has ended.
    End {
        /// There are as many as there may be.
        ConnectionLimit = "connection_limit",
        /// Its address has as many as it may have.
        AddressLimit = "address_limit",
        /// Its user has as many as he may have.
        UserLimit = "user_limit",
        /// So many logins of its address wait that it is told to come back.
        LoginLimit = "login_limit",
        /// So many checks wait that it is told to come back.
        CheckQueue = "check_queue",
        /// EspoCRM accepts any token.
        Untrusted = "self_check",
        /// Its page may not connect.
        Origin = "origin",
        /// It names no user, or no token.
        NoToken = "no_token",
        /// It asks for no WebSocket.
        NotWebSocket = "not_websocket",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The proxy has not said whose it is.
        ProxyHeader = "proxy_header",
        /// Its upgrade was not completed in time.
        HandshakeTimeout = "handshake_timeout",
        /// It was the slowest of too many that are not completed.
        HandshakeLimit = "handshake_limit",
        /// The other side has ended it, or the network.
        PeerClosed = "peer_closed",
        /// Its token is not good.
        TokenDenied = "token_denied",
        /// Its token is good no longer.
        TokenRevoked = "token_revoked",
        /// Its token could not be checked.
        CheckFailed = "check_failed",
        /// EspoCRM was found to accept any token.
        SelfCheck = "self_check",
        /// It called or published.
        Forbidden = "forbidden",
        /// It violated RFC 6455.
        Protocol = "protocol",
        /// It sent what is no message.
        Malformed = "malformed",
        /// It sent too long a message.
        TooBig = "too_big",
        /// It sent too many messages.
        Flood = "flood",
        /// It did not read what it was sent.
        Slow = "slow",
        /// It did not answer pings.
        PingTimeout = "ping_timeout",
        /// It did not complete a message.
        Incomplete = "incomplete",
        /// It held the most when there was too much.
        Memory = "memory",
        /// The administrator wanted it.
        Kicked = "kicked",
    }
}

impl End {
    /// The first so many are of connections that were not let in.
    pub const REFUSALS: usize = Self::PeerClosed as usize;
}

named! {
    /// A limit that was hit, and nobody was disconnected for it.
    LimitHit {
        /// Of subscriptions of a tab.
        Subscriptions = "subscriptions",
        /// Of checks of subscriptions that wait, of a user or of all: further ones are delayed.
        UserChecks = "user_checks",
        /// Of checks that wait, before rechecks are left out.
        Rechecks = "rechecks",
    }
}

impl Stats {
    /// A connection was refused, or has ended.
    pub fn end(&mut self, why: End) {
        count(&mut self.ends, why as usize);
    }

    /// A message was dropped.
    pub fn drop(&mut self, why: Rejection) {
        count(&mut self.dropped, why as usize);
    }

    /// Something was left out.
    pub fn hit_limit(&mut self, why: LimitHit) {
        count(&mut self.limit_hits, why as usize);
    }

    /// PHP was asked.
    pub fn run(&mut self, by_worker: bool) {
        count(&mut self.runs, usize::from(by_worker));
    }

    /// EspoCRM's settings were read again, or could not be.
    pub fn reload(&mut self, done: bool) {
        count(&mut self.reloads, usize::from(!done));
    }

    /// A check has ended that took so many milliseconds.
    pub fn check(&mut self, urgency: Urgency, verdict: &Verdict, millis: u64) {
        let outcome = match verdict {
            Verdict::Granted => 0,
            Verdict::Denied => 1,
            Verdict::Unchecked(_) => 2,
        };
        if let Some(kind) = self.checks.get_mut(urgency as usize) {
            count(kind, outcome);
        }
        self.check_millis += millis;
        let bucket = BUCKETS.iter().position(|most| millis <= *most).unwrap_or(BUCKETS.len());
        count(&mut self.check_times, bucket);
    }

    /// Connections that were not let in, all together.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.ends.iter().take(End::REFUSALS).sum()
    }

    /// Connections that have ended after they had been let in, all together.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ends.iter().skip(End::REFUSALS).sum()
    }

    /// Checks that have ended, all together.
    #[must_use]
    pub fn checked(&self) -> u64 {
        self.check_times.iter().sum()
    }
}

fn count(counts: &mut [u64], number: usize) {
    if let Some(count) = counts.get_mut(number) {
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let (refusals, ends) = End::NAMES.split_at(End::REFUSALS);
        for names in [refusals, ends, LimitHit::NAMES, Rejection::NAMES] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        }
        assert_eq!(End::NAMES[End::Kicked as usize], "kicked");
        assert_eq!(Rejection::NAMES[Rejection::UnknownTopic as usize], "unknown_topic");
        let urgencies = [Urgency::Authentication, Urgency::Subscription, Urgency::Recheck];
        assert_eq!(urgencies.map(|urgency| urgency as usize), [0, 1, 2]);
    }

    #[test]
    fn refusals_and_ends_are_counted_apart() {
        let mut stats = Stats::default();
        stats.end(End::HandshakeLimit);
        stats.end(End::PeerClosed);
        stats.end(End::Kicked);
        assert_eq!((stats.refused(), stats.ended()), (1, 2));
    }

    #[test]
    fn a_check_falls_into_the_first_bucket_that_is_long_enough() {
        let mut stats = Stats::default();
        for millis in [0, 10, 11, 5_000, 5_001] {
            stats.check(Urgency::Recheck, &Verdict::Denied, millis);
        }
        assert_eq!(stats.check_times, [2, 1, 0, 0, 0, 1, 1]);
        assert_eq!(stats.checks[2], [0, 5, 0]);
        assert_eq!((stats.checked(), stats.check_millis), (5, 10_022));
    }
}
