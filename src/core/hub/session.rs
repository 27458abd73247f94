//! One browser tab: its user and its subscriptions.

use smallvec::SmallVec;

use super::prefixes::Prefixes;
use crate::core::check::Ticket;
use crate::core::id::ConnId;
use crate::core::interner::Key;

/// What the hub keeps of a connection.
#[derive(Debug)]
pub(super) struct Session {
    pub conn: ConnId,
    /// A name held in the directory's users.
    pub user: Key,
    pub authenticated: bool,
    /// The serial number of the latest check.
    serial: u32,
    /// In the order in which they were made. A tab of EspoCRM has two to five.
    pub subscriptions: SmallVec<[Subscription; 5]>,
    pub prefixes: Prefixes,
}

/// What a session wants to see.
#[derive(Debug)]
pub(super) struct Subscription {
    /// A name held in the directory's topics.
    pub topic: Key,
    pub state: State,
}

/// How far a subscription has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It waits for the authentication, or for EspoCRM's settings.
    Held,
    /// It waits for the verdict of the check with this serial number.
    Checking(u32),
    /// Events are delivered.
    Granted,
}

impl Session {
    pub fn new(conn: ConnId, user: Key) -> Self {
        Self {
            conn,
            user,
            authenticated: false,
            serial: Ticket::AUTHENTICATION,
            subscriptions: SmallVec::new(),
            prefixes: Prefixes::default(),
        }
    }

    /// A ticket that no other check of this connection has.
    pub fn next_ticket(&mut self) -> Ticket {
        self.serial = match self.serial.checked_add(1) {
            Some(serial) => serial,
            None => Ticket::AUTHENTICATION + 1,
        };
        self.ticket(self.serial)
    }

    pub fn ticket(&self, serial: u32) -> Ticket {
        Ticket { conn: self.conn, serial }
    }

    pub fn find(&self, topic: Key) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| subscription.topic == topic)
    }

    pub fn may_see(&self, topic: Key) -> bool {
        let mut all = self.subscriptions.iter();
        self.authenticated && all.any(|it| it.topic == topic && it.state == State::Granted)
    }
}
