//! The hub: sessions, their subscriptions, and the topics that each user may see.

mod directory;
mod invariants;
mod prefixes;
mod recheck;
mod session;
#[cfg(test)]
mod tests;
mod tokens;

use std::time::Duration;

use smallvec::SmallVec;

use super::id::ConnId;
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::category::{Categories, InvalidTopic};
use crate::engine::espocrm::submission::{Rejection, Submission};
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::http::Credentials;
use directory::Directory;
use session::{Login, Session, State};

/// Processes messages from browsers, verdicts, and messages from EspoCRM.
///
/// The hub performs no I/O: [`poll`](Self::poll) returns the actions to be performed, and must be
/// called until `None` after each of the other calls. When it returns [`Action::Close`] or
/// [`Action::Drop`], the hub has already removed that session.
#[derive(Debug, Default)]
pub struct Hub {
    /// Indexed by the connection's slot.
    sessions: Vec<Option<Session>>,
    /// State that the sessions share.
    directory: Directory,
    /// Time between two rechecks of a user; zero to disable rechecks.
    recheck_interval: Duration,
}

/// An action for the caller to perform.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the welcome, with an unpredictable session id.
    Welcome(ConnId),
    /// Send this frame.
    Send(ConnId, SharedFrame),
    /// Close the connection cleanly: the browser does not reconnect until the page is reloaded.
    Close(ConnId, CloseReason),
    /// Close the connection without a Close frame: the browser reconnects after three seconds.
    Drop(ConnId),
    /// Run this check and pass its verdict to [`Hub::verdict`].
    Check(Ticket, Urgency, Check),
    /// Cancel this check.
    Cancel(Ticket),
    /// Remove this check from the cache.
    Forget(Check),
    /// The connection has reached its limit of subscriptions; another one was ignored.
    TooManySubscriptions(ConnId),
    /// A line for the debug log, in the format of EspoCRM's own daemon.
    Log(String),
}

impl Hub {
    /// A hub with these categories.
    #[must_use]
    pub fn new(categories: Categories) -> Self {
        Self { directory: Directory::new(categories), ..Self::default() }
    }

    /// Returns the next action.
    pub fn poll(&mut self) -> Option<Action> {
        self.directory.poll()
    }

    /// Whether [`poll`](Self::poll) would return an action.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        self.directory.has_actions()
    }

    /// Enables or disables [`Action::Log`].
    pub fn set_log(&mut self, log: bool) {
        self.directory.log = log;
    }

    /// Opens a session after the upgrade. Nothing is delivered to it before its token has been
    /// checked.
    pub fn open(&mut self, conn: ConnId, credentials: &Credentials) {
        if let Some(Some(other)) = self.sessions.get(conn.slot()) {
            let other = other.conn;
            self.close(other);
        }
        if self.sessions.len() <= conn.slot() {
            self.sessions.resize_with(conn.slot() + 1, || None);
        }
        if let Some(entry) = self.sessions.get_mut(conn.slot()) {
            *entry = Some(self.directory.open(conn, credentials));
        }
    }

    /// Removes the session of a connection that has ended.
    pub fn close(&mut self, conn: ConnId) {
        let entry = self.sessions.get_mut(conn.slot());
        if let Some(session) = entry.and_then(|entry| entry.take_if(|it| it.conn == conn)) {
            self.directory.close(session);
        }
        // Release the memory of a burst.
        while let Some(None) = self.sessions.last() {
            self.sessions.pop();
        }
        if self.sessions.len() < self.sessions.capacity() / 4 {
            self.sessions.shrink_to_fit();
        }
    }

    /// Processes a message from a browser.
    pub fn receive(&mut self, conn: ConnId, text: &str) {
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        if let Err(reason) = self.directory.receive(session, text) {
            self.close_cleanly(conn, reason);
        }
    }

    /// Takes the verdict of an [`Action::Check`]. It is ignored unless the same connection and
    /// subscription still wait for it. A failed recheck does not revoke access.
    pub fn verdict(&mut self, ticket: Ticket, verdict: &Verdict) {
        let conn = ticket.conn;
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        match session.login {
            Login::Waiting if ticket.serial == Ticket::AUTHENTICATION => match verdict {
                Verdict::Granted => self.directory.welcome(session),
                Verdict::Denied => self.close_cleanly(conn, CloseReason::Refused),
                Verdict::Failed(_) => {
                    self.close(conn);
                    self.directory.act(Action::Drop(conn));
                }
            },
            Login::Rechecking(serial) if ticket.serial == serial => {
                session.login = Login::Valid;
                match verdict {
                    Verdict::Granted => self.directory.recheck_topics(session),
                    Verdict::Denied => self.close_cleanly(conn, CloseReason::Refused),
                    Verdict::Failed(_) => {}
                }
            }
            _ => self.directory.decide(session, ticket.serial, verdict),
        }
    }

    /// The check queue had no room for the [`Action::Check`] of a subscription: it waits for
    /// [`resume`](Self::resume).
    pub fn delay(&mut self, ticket: Ticket) {
        if let Some(session) = session_mut(&mut self.sessions, ticket.conn) {
            session.delay(ticket.serial);
        }
    }

    /// Whether subscriptions of a connection wait for [`resume`](Self::resume).
    #[must_use]
    pub fn has_delayed(&self, conn: ConnId) -> bool {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let session = session.filter(|session| session.conn == conn);
        session.is_some_and(|it| it.subscriptions.iter().any(|it| it.state == State::Delayed))
    }

    /// Requests the checks of up to `room` delayed subscriptions.
    pub fn resume(&mut self, conn: ConnId, room: usize) {
        if let Some(session) = session_mut(&mut self.sessions, conn) {
            self.directory.resume(session, room);
        }
    }

    /// The receivers of a message from EspoCRM: the connections whose own check for exactly this
    /// topic was granted.
    ///
    /// # Errors
    /// [`Rejection::UnknownTopic`]
    pub fn receivers<'a>(
        &'a self,
        submission: &Submission<'_>,
    ) -> Result<impl Iterator<Item = ConnId> + use<'a>, Rejection> {
        let directory = &self.directory;
        let rule = directory.categories.rule(&submission.topic);
        if let Err(InvalidTopic::Unknown | InvalidTopic::TooLong) = rule {
            return Err(Rejection::UnknownTopic);
        }
        let topic = directory.topics.find(&submission.topic);
        let candidates = topic.and_then(|topic| match &submission.user {
            None => directory.topics.value(topic),
            Some(user) => directory.users.value(directory.users.find(user)?),
        });
        let all = submission.user.is_none();
        let may_see = move |conn: &ConnId| {
            let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
            let session = session.filter(|session| session.conn == *conn);
            session.zip(topic).is_some_and(|(session, topic)| session.may_see(topic))
        };
        let conns = candidates.map(SmallVec::as_slice).unwrap_or_default().iter().copied();
        // A topic lists only connections that may see it; a user lists all of their connections.
        Ok(conns.filter(move |conn| all || may_see(conn)))
    }

    /// Begins a reload of EspoCRM's settings. Until [`reload`](Self::reload), unknown topics wait
    /// instead of being rejected.
    pub fn begin_reload(&mut self) {
        self.directory.reloading = true;
    }

    /// Ends a reload; `None` if it failed and the previous categories stay in force. Access that
    /// was granted by a rule that has changed is checked again, and nothing is delivered until
    /// then.
    pub fn reload(&mut self, categories: Option<Categories>) {
        let old = self.directory.end_reload(categories);
        for session in self.sessions.iter_mut().flatten() {
            self.directory.apply_changes(session, &old);
        }
    }

    /// The user of a connection, once it is authenticated.
    #[must_use]
    pub fn user(&self, conn: ConnId) -> Option<&str> {
        let session = self.sessions.get(conn.slot())?.as_ref()?;
        let known = session.conn == conn && session.is_authenticated();
        known.then(|| self.directory.users.name(session.user))
    }

    /// Bytes of all subscriptions and prefixes; shared topics count for each subscription.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.directory.buffered
    }

    /// Bytes of the subscriptions and prefixes of one connection.
    #[must_use]
    pub fn buffered_by(&self, conn: ConnId) -> usize {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let session = session.filter(|session| session.conn == conn);
        session.map_or(0, |session| self.directory.buffered_by(session))
    }

    /// Number of authenticated connections of a user.
    #[must_use]
    pub fn connections_of(&self, user: &str) -> usize {
        let users = &self.directory.users;
        users.find(user).and_then(|user| users.value(user)).map_or(0, SmallVec::len)
    }

    /// The authenticated connections of a user.
    #[must_use]
    pub fn connections(&self, user: &str) -> Vec<ConnId> {
        let users = &self.directory.users;
        let conns = users.find(user).and_then(|user| users.value(user));
        conns.map_or(Vec::new(), |conns| conns.to_vec())
    }

    /// The authenticated users, with the number of their connections.
    pub fn users(&self) -> impl Iterator<Item = (&str, usize)> {
        let users = self.directory.users.iter().map(|(user, conns)| (user, conns.len()));
        users.filter(|(_, conns)| *conns > 0)
    }

    /// The topics with granted subscriptions, with the number of their receivers.
    pub fn topics(&self) -> impl Iterator<Item = (&str, usize)> {
        let topics = self.directory.topics.iter().map(|(topic, conns)| (topic, conns.len()));
        topics.filter(|(_, conns)| *conns > 0)
    }

    /// Number of subscriptions of a connection, including those that wait for a check.
    #[must_use]
    pub fn subscriptions(&self, conn: ConnId) -> usize {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let session = session.filter(|session| session.conn == conn);
        session.map_or(0, |session| session.subscriptions.len())
    }

    /// The current categories.
    #[must_use]
    pub fn categories(&self) -> &Categories {
        &self.directory.categories
    }

    /// Whether there are no sessions and no state.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.iter().all(Option::is_none) && self.directory.is_empty()
    }

    fn close_cleanly(&mut self, conn: ConnId, reason: CloseReason) {
        self.close(conn);
        self.directory.act(Action::Close(conn, reason));
    }
}

fn session_mut(sessions: &mut [Option<Session>], conn: ConnId) -> Option<&mut Session> {
    sessions.get_mut(conn.slot())?.as_mut().filter(|session| session.conn == conn)
}
