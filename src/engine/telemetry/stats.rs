//! Counters since the start. [`STATISTICS`](super::statistics::STATISTICS) exports them.

use crate::engine::checks::check::Urgency;
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::submission::Rejection;

/// Counters. They only grow.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "`STATISTICS` describes them")]
pub struct Stats {
    /// Each connection is later rejected or ended, exactly once.
    pub opened: u64,
    pub ends: [u64; End::NAMES.len()],
    pub accept_failures: u64,
    pub messages: u64,
    pub dropped: [u64; Rejection::NAMES.len()],
    pub deliveries: u64,
    pub checks: [[u64; OUTCOMES.len()]; KINDS.len()],
    pub check_millis: u64,
    /// One count for each of [`BUCKETS`] (not cumulative), then the checks that took longer.
    pub check_times: [u64; BUCKETS.len() + 1],
    pub checks_cached: u64,
    pub runs: [u64; MODES.len()],
    pub worker_failures: u64,
    pub limit_hits: [u64; LimitHit::NAMES.len()],
    pub zmq_restarts: u64,
    pub reloads: [u64; RELOADS.len()],
}

/// Kinds of checks, in the order of [`Urgency`].
pub const KINDS: [&str; 3] = ["login", "subscription", "recheck"];

/// Outcomes of checks.
pub const OUTCOMES: [&str; 3] = ["granted", "denied", "failed"];

/// How PHP runs a check.
pub const MODES: [&str; 2] = ["plain", "worker"];

/// Outcomes of reloads.
pub const RELOADS: [&str; 2] = ["done", "failed"];

/// Upper bounds of the buckets for check durations, in milliseconds.
pub const BUCKETS: [u64; 6] = [10, 50, 100, 500, 1_000, 5_000];

/// The same in seconds, as Prometheus names them.
pub const BUCKET_NAMES: [&str; BUCKETS.len() + 1] =
    ["0.01", "0.05", "0.1", "0.5", "1", "5", "+Inf"];

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
    /// Why a connection was rejected, or why it ended.
    End {
        /// The limit of connections was reached.
        ConnectionLimit = "connection_limit",
        /// The limit of connections for its address was reached.
        AddressLimit = "address_limit",
        /// The limit of connections for its user was reached.
        UserLimit = "user_limit",
        /// Too many logins of its address were waiting; the browser retries.
        LoginLimit = "login_limit",
        /// Too many checks were waiting; the browser retries.
        CheckQueue = "check_queue",
        /// EspoCRM accepts any token.
        Untrusted = "self_check",
        /// The page's origin is not allowed.
        Origin = "origin",
        /// The user id or the token was missing.
        NoToken = "no_token",
        /// The request was not a WebSocket upgrade.
        NotWebSocket = "not_websocket",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The PROXY header of the proxy was missing or invalid.
        ProxyHeader = "proxy_header",
        /// The handshake was not completed in time.
        HandshakeTimeout = "handshake_timeout",
        /// The handshake was evicted because too many were incomplete.
        HandshakeLimit = "handshake_limit",
        /// The browser or the network closed it.
        PeerClosed = "peer_closed",
        /// EspoCRM denied the token.
        TokenDenied = "token_denied",
        /// EspoCRM denied the token in a recheck.
        TokenRevoked = "token_revoked",
        /// The token could not be checked.
        CheckFailed = "check_failed",
        /// The self-check found that EspoCRM accepts any token.
        SelfCheck = "self_check",
        /// The client sent a CALL or PUBLISH.
        Forbidden = "forbidden",
        /// The client violated RFC 6455.
        Protocol = "protocol",
        /// The client sent something that is not a message.
        Malformed = "malformed",
        /// The client sent a message that was too long.
        TooBig = "too_big",
        /// The client sent too many messages.
        Flood = "flood",
        /// The client did not read its events.
        Slow = "slow",
        /// The client did not answer pings.
        PingTimeout = "ping_timeout",
        /// The client did not complete a message.
        Incomplete = "incomplete",
        /// It was evicted because it used the most buffer memory.
        Memory = "memory",
        /// The administrator closed it.
        Kicked = "kicked",
    }
}

impl End {
    /// How many of the first variants are for connections that were rejected.
    pub const REFUSALS: usize = Self::PeerClosed as usize;
}

named! {
    /// A limit that was hit without closing a connection.
    LimitHit {
        /// Subscriptions of one connection.
        Subscriptions = "subscriptions",
        /// Checks for subscriptions that wait, of one user or of all; further ones are delayed.
        UserChecks = "user_checks",
        /// Rechecks that wait; further ones are skipped.
        Rechecks = "rechecks",
    }
}

impl Stats {
    /// Counts a connection that was rejected or has ended.
    pub fn end(&mut self, why: End) {
        count(&mut self.ends, why as usize);
    }

    /// Counts a dropped message.
    pub fn drop(&mut self, why: Rejection) {
        count(&mut self.dropped, why as usize);
    }

    /// Counts a request that was skipped or delayed.
    pub fn hit_limit(&mut self, why: LimitHit) {
        count(&mut self.limit_hits, why as usize);
    }

    /// Counts a run of PHP for a check.
    pub fn run(&mut self, by_worker: bool) {
        count(&mut self.runs, usize::from(by_worker));
    }

    /// Counts a reload.
    pub fn reload(&mut self, done: bool) {
        count(&mut self.reloads, usize::from(!done));
    }

    /// Counts a finished check with its duration.
    pub fn check(&mut self, urgency: Urgency, verdict: &Verdict, millis: u64) {
        let outcome = match verdict {
            Verdict::Granted => 0,
            Verdict::Denied => 1,
            Verdict::Failed(_) => 2,
        };
        if let Some(kind) = self.checks.get_mut(urgency as usize) {
            count(kind, outcome);
        }
        self.check_millis += millis;
        let bucket = BUCKETS.iter().position(|most| millis <= *most).unwrap_or(BUCKETS.len());
        count(&mut self.check_times, bucket);
    }

    /// Connections that were rejected, in total.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.ends.iter().take(End::REFUSALS).sum()
    }

    /// Connections that ended after they were admitted, in total.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ends.iter().skip(End::REFUSALS).sum()
    }

    /// Finished checks, in total.
    #[must_use]
    pub fn checked(&self) -> u64 {
        self.check_times.iter().sum()
    }
}

fn count(counts: &mut [u64], index: usize) {
    if let Some(count) = counts.get_mut(index) {
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_of_reasons_are_unique() {
        let (refusals, ends) = End::NAMES.split_at(End::REFUSALS);
        for names in [refusals, ends, LimitHit::NAMES, Rejection::NAMES] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        }
        assert_eq!(End::NAMES[End::Kicked as usize], "kicked");
        assert_eq!(Rejection::NAMES[Rejection::UnknownTopic as usize], "unknown_topic");
        let urgencies = [Urgency::Login, Urgency::Subscription, Urgency::Recheck];
        assert_eq!(urgencies.map(|urgency| urgency as usize), [0, 1, 2]);
    }

    #[test]
    fn rejected_and_ended_connections_are_counted_separately() {
        let mut stats = Stats::default();
        stats.end(End::HandshakeLimit);
        stats.end(End::PeerClosed);
        stats.end(End::Kicked);
        assert_eq!((stats.refused(), stats.ended()), (1, 2));
    }

    #[test]
    fn a_check_is_counted_in_the_first_bucket_that_is_long_enough() {
        let mut stats = Stats::default();
        for millis in [0, 10, 11, 5_000, 5_001] {
            stats.check(Urgency::Recheck, &Verdict::Denied, millis);
        }
        assert_eq!(stats.check_times, [2, 1, 0, 0, 0, 1, 1]);
        assert_eq!(stats.checks[2], [0, 5, 0]);
        assert_eq!((stats.checked(), stats.check_millis), (5, 10_022));
    }
}
