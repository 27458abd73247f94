//! One session: its user and its subscriptions.

use smallvec::SmallVec;

use super::prefixes::Prefixes;
use crate::engine::checks::check::Ticket;
use crate::engine::hub::recheck::Due;
use crate::engine::id::ConnId;
use crate::engine::interner::Key;

/// The hub's state of a connection.
#[derive(Debug)]
pub(super) struct Session {
    pub conn: ConnId,
    /// A name in the directory's users.
    pub user: Key,
    /// A name in the directory's tokens.
    pub token: Key,
    pub login: Login,
    /// `None` until it is scheduled.
    pub next_recheck: Option<Due>,
    /// The serial number of the latest check.
    serial: u32,
    /// In the order of subscription. A browser tab of EspoCRM has two to five.
    pub subscriptions: SmallVec<[Subscription; 5]>,
    pub prefixes: Prefixes,
}

/// Progress of a session's login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// Waits for the first verdict.
    Waiting,
    /// The token is valid, and the welcome was sent.
    Valid,
    /// As `Valid`, while the check with this serial number is in progress.
    Rechecking(u32),
}

/// A subscription to a topic.
#[derive(Debug)]
pub(super) struct Subscription {
    /// A name in the directory's topics.
    pub topic: Key,
    pub state: State,
}

/// Progress of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Waits for the login, or for the reload of EspoCRM's settings.
    Pending,
    /// Waits for room in the check queue.
    Delayed,
    /// Waits for the verdict of the check with this serial number.
    Checking(u32),
    /// Events are delivered.
    Granted,
    /// As `Granted`, while the check with this serial number is in progress.
    Rechecking(u32),
}

impl Session {
    pub(super) fn new(conn: ConnId, user: Key, token: Key) -> Self {
        Self {
            conn,
            user,
            token,
            login: Login::Waiting,
            next_recheck: None,
            serial: Ticket::AUTHENTICATION,
            subscriptions: SmallVec::new(),
            prefixes: Prefixes::default(),
        }
    }

    /// A ticket that no other check of this connection has.
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.serial = match self.serial.checked_add(1) {
            Some(serial) => serial,
            None => Ticket::AUTHENTICATION + 1,
        };
        self.ticket(self.serial)
    }

    pub(super) fn ticket(&self, serial: u32) -> Ticket {
        Ticket { conn: self.conn, serial }
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.login != Login::Waiting
    }

    pub(super) fn find(&self, topic: Key) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| subscription.topic == topic)
    }

    /// Delays the subscription that waits for the check with this serial number.
    pub(super) fn delay(&mut self, serial: u32) {
        let mut all = self.subscriptions.iter_mut();
        if let Some(it) = all.find(|it| it.state == State::Checking(serial)) {
            it.state = State::Delayed;
        }
    }

    pub(super) fn may_see(&self, topic: Key) -> bool {
        let mut all = self.subscriptions.iter();
        self.is_authenticated() && all.any(|it| it.topic == topic && it.state.is_granted())
    }
}

impl State {
    pub(super) fn is_granted(self) -> bool {
        matches!(self, Self::Granted | Self::Rechecking(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_small() {
        assert!(size_of::<Option<Session>>() <= 112, "{}", size_of::<Option<Session>>());
    }
}
