//! Who is connected, who is subscribed to what, and who may see it.

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
use crate::engine::espocrm::category::{Categories, NoTopic};
use crate::engine::espocrm::submission::{Rejection, Submission};
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::http::Credentials;
use directory::Directory;
use session::{Login, Session, State};

/// Decides what a browser's message, a verdict, a message of EspoCRM mean for whom.
///
/// It does nothing itself: what is to be done comes out of [`poll`](Self::poll), to be called until
/// `None` after each of the other calls. A connection that it wants closed or dropped is forgotten
/// by then.
#[derive(Debug, Default)]
pub struct Hub {
    /// By the connection's slot.
    sessions: Vec<Option<Session>>,
    /// What the sessions share.
    directory: Directory,
    /// Between two rechecks of a user; zero for none.
    recheck_interval: Duration,
}

/// What the hub wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the welcome, with a session id that nobody can guess.
    Welcome(ConnId),
    /// Send this frame.
    Send(ConnId, SharedFrame),
    /// End the connection cleanly: the tab gives up real-time until it is reloaded.
    Close(ConnId, CloseReason),
    /// End the connection without a Close frame: the tab comes back after three seconds.
    Drop(ConnId),
    /// Have this checked; the verdict is for [`Hub::verdict`].
    Check(Ticket, Urgency, Check),
    /// The verdict is no longer wanted.
    Cancel(Ticket),
    /// What was found out about this counts no longer.
    Forget(Check),
    /// This connection has as many subscriptions as it may have; another one was not taken.
    TooManySubscriptions(ConnId),
    /// A line for the debug log, in the words of EspoCRM's own daemon.
    Log(String),
}

impl Hub {
    /// Starts with these categories.
    #[must_use]
    pub fn new(categories: Categories) -> Self {
        Self { directory: Directory::new(categories), ..Self::default() }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Action> {
        self.directory.poll()
    }

    /// Whether [`poll`](Self::poll) would return something.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        self.directory.has_actions()
    }

    /// Turns [`Action::Log`] on or off.
    pub fn set_log(&mut self, log: bool) {
        self.directory.log = log;
    }

    /// A browser has upgraded. Nothing is delivered to it before its token has been checked.
    pub fn open(&mut self, conn: ConnId, credentials: &Credentials) {
        if let Some(Some(other)) = self.sessions.get(conn.slot()) {
            let other = other.conn;
            self.close(other);
        }
        if self.sessions.len() <= conn.slot() {
            self.sessions.resize_with(conn.slot() + 1, || None);
        }
        if let Some(place) = self.sessions.get_mut(conn.slot()) {
            *place = Some(self.directory.open(conn, credentials));
        }
    }

    /// The connection is gone. Everything that it had is forgotten.
    pub fn close(&mut self, conn: ConnId) {
        let place = self.sessions.get_mut(conn.slot());
        if let Some(session) = place.and_then(|place| place.take_if(|it| it.conn == conn)) {
            self.directory.close(session);
        }
        // After a rush its memory is given back.
        while let Some(None) = self.sessions.last() {
            self.sessions.pop();
        }
        if self.sessions.len() < self.sessions.capacity() / 4 {
            self.sessions.shrink_to_fit();
        }
    }

    /// A message from a browser.
    pub fn receive(&mut self, conn: ConnId, text: &str) {
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        if let Err(reason) = self.directory.receive(session, text) {
            self.refuse(conn, reason);
        }
    }

    /// The answer to an [`Action::Check`]. It counts only for the very connection and subscription
    /// that asked, and only while they still wait for it. One that could not be found out lets
    /// stay what was granted before.
    pub fn verdict(&mut self, ticket: Ticket, verdict: &Verdict) {
        let conn = ticket.conn;
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        match session.login {
            Login::Waiting if ticket.serial == Ticket::AUTHENTICATION => match verdict {
                Verdict::Granted => self.directory.welcome(session),
                Verdict::Denied => self.refuse(conn, CloseReason::Refused),
                Verdict::Unchecked(_) => {
                    self.close(conn);
                    self.directory.act(Action::Drop(conn));
                }
            },
            Login::Rechecking(serial) if ticket.serial == serial => {
                session.login = Login::Good;
                match verdict {
                    Verdict::Granted => self.directory.recheck_topics(session),
                    Verdict::Denied => self.refuse(conn, CloseReason::Refused),
                    Verdict::Unchecked(_) => {}
                }
            }
            _ => self.directory.decide(session, ticket.serial, verdict),
        }
    }

    /// There was no room for the [`Action::Check`] of a subscription: it waits for
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

    /// There is room for the checks of so many of them.
    pub fn resume(&mut self, conn: ConnId, room: usize) {
        if let Some(session) = session_mut(&mut self.sessions, conn) {
            self.directory.resume(session, room);
        }
    }

    /// Who is to receive a message of EspoCRM: only connections whose own check for that very
    /// topic has succeeded.
    ///
    /// # Errors
    /// [`Rejection::UnknownTopic`]
    pub fn receivers<'a>(
        &'a self,
        submission: &Submission<'_>,
    ) -> Result<impl Iterator<Item = ConnId> + use<'a>, Rejection> {
        let directory = &self.directory;
        let rule = directory.categories.rule(&submission.topic);
        if let Err(NoTopic::Unknown | NoTopic::TooLong) = rule {
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
        // A topic's list holds only connections that may see it; a user's holds all of them.
        Ok(conns.filter(move |conn| all || may_see(conn)))
    }

    /// EspoCRM's settings are about to be read again. Until [`reload`](Self::reload), topics that
    /// are not known wait instead of being refused.
    pub fn begin_reload(&mut self) {
        self.directory.reloading = true;
    }

    /// The settings have been read; `None` if that failed and the old ones stay. What was granted
    /// by a rule that has changed is checked anew, and not delivered until then.
    pub fn reload(&mut self, categories: Option<Categories>) {
        let old = self.directory.begin_with(categories);
        for session in self.sessions.iter_mut().flatten() {
            self.directory.renew(session, &old);
        }
    }

    /// The user of a connection, once it is authenticated.
    #[must_use]
    pub fn user(&self, conn: ConnId) -> Option<&str> {
        let session = self.sessions.get(conn.slot())?.as_ref()?;
        let known = session.conn == conn && session.is_authenticated();
        known.then(|| self.directory.users.name(session.user))
    }

    /// Bytes that all subscriptions and prefixes take, topics that are shared counted for each.
    #[must_use]
    pub fn held(&self) -> usize {
        self.directory.held
    }

    /// Of these, the bytes of one connection.
    #[must_use]
    pub fn held_by(&self, conn: ConnId) -> usize {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let session = session.filter(|session| session.conn == conn);
        session.map_or(0, |session| self.directory.held_by(session))
    }

    /// How many authenticated connections a user has.
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

    /// The users who are there, and how many connections each has.
    pub fn users(&self) -> impl Iterator<Item = (&str, usize)> {
        let users = self.directory.users.iter().map(|(user, conns)| (user, conns.len()));
        users.filter(|(_, conns)| *conns > 0)
    }

    /// The topics that anybody may see, and how many connections each is told to.
    pub fn topics(&self) -> impl Iterator<Item = (&str, usize)> {
        let topics = self.directory.topics.iter().map(|(topic, conns)| (topic, conns.len()));
        topics.filter(|(_, conns)| *conns > 0)
    }

    /// How many subscriptions a connection has, those that wait for a check included.
    #[must_use]
    pub fn subscriptions(&self, conn: ConnId) -> usize {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let session = session.filter(|session| session.conn == conn);
        session.map_or(0, |session| session.subscriptions.len())
    }

    /// The categories in force.
    #[must_use]
    pub fn categories(&self) -> &Categories {
        &self.directory.categories
    }

    /// Whether nobody is connected and nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.iter().all(Option::is_none) && self.directory.is_empty()
    }

    fn refuse(&mut self, conn: ConnId, reason: CloseReason) {
        self.close(conn);
        self.directory.act(Action::Close(conn, reason));
    }
}

fn session_mut(sessions: &mut [Option<Session>], conn: ConnId) -> Option<&mut Session> {
    sessions.get_mut(conn.slot())?.as_mut().filter(|session| session.conn == conn)
}
