//! Rechecks: granted access is checked again in the background.
//!
//! All browser tabs of a user are rechecked together, since most of their checks are identical and
//! then run once: first their tokens, then, if the token is still valid, each topic that needs a
//! check. Nothing is revoked until EspoCRM denies access.

use std::num::NonZero;
use std::time::Duration;

use smallvec::SmallVec;

use super::directory::Directory;
use super::session::{Login, Session, State};
use super::{Action, Hub, session_mut};
use crate::engine::checks::check::{Check, Urgency};
use crate::engine::espocrm::category::Rule;
use crate::engine::id::ConnId;
use crate::engine::time::Time;

/// When a recheck is due, in seconds.
pub(super) type Due = NonZero<u32>;

impl Hub {
    /// Sets the time between two rechecks of a user; zero disables them. Returns whether the
    /// interval has changed: then the next rechecks are spread again, and each connection has
    /// another [`next_recheck`](Self::next_recheck).
    pub fn set_recheck_interval(&mut self, now: Time, interval: Duration) -> bool {
        if std::mem::replace(&mut self.recheck_interval, interval) == interval {
            return false;
        }
        let mut conns = Vec::new();
        for session in self.sessions.iter_mut().flatten() {
            session.next_recheck = None;
            conns.push(session.conn);
        }
        for conn in conns {
            self.recheck(now, conn);
        }
        true
    }

    /// When [`recheck`](Self::recheck) must be called for a connection.
    #[must_use]
    pub fn next_recheck(&self, conn: ConnId) -> Option<Time> {
        let session = self.sessions.get(conn.slot())?.as_ref()?;
        let due = session.next_recheck.filter(|_| session.conn == conn)?;
        Some(Time::from_millis(u64::from(due.get()) * 1_000))
    }

    /// Rechecks a connection's user, if that is due. Call it when a connection has logged in, which
    /// schedules its first recheck, and at [`next_recheck`](Self::next_recheck).
    pub fn recheck(&mut self, now: Time, conn: ConnId) {
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        if self.recheck_interval.is_zero() || !session.is_authenticated() {
            return;
        }
        match session.next_recheck {
            None => self.schedule_recheck(now, conn),
            Some(due) if due <= seconds(now) => self.begin_recheck(now, conn),
            Some(_) => {}
        }
    }

    /// Schedules a new connection's recheck together with those of its user's other connections.
    /// The first connection gets a time within the interval that is spread by its id, so that users
    /// who reconnect together after a restart are not rechecked together.
    fn schedule_recheck(&mut self, now: Time, conn: ConnId) {
        let tabs = self.tabs(conn);
        let scheduled = |tab: &ConnId| self.sessions.get(tab.slot())?.as_ref()?.next_recheck;
        let next = tabs.iter().filter_map(scheduled).min().unwrap_or_else(|| {
            let spread = conn.part_of(self.recheck_interval);
            seconds(now.after(spread))
        });
        if let Some(session) = session_mut(&mut self.sessions, conn) {
            session.next_recheck = Some(next);
        }
    }

    fn begin_recheck(&mut self, now: Time, conn: ConnId) {
        let next = seconds(now.after(self.recheck_interval));
        for tab in self.tabs(conn) {
            if let Some(session) = session_mut(&mut self.sessions, tab) {
                session.next_recheck = Some(next);
                self.directory.recheck_token(session);
            }
        }
    }

    /// All authenticated connections of this connection's user.
    fn tabs(&self, conn: ConnId) -> SmallVec<[ConnId; 2]> {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let tabs = session.and_then(|session| self.directory.users.value(session.user));
        tabs.cloned().unwrap_or_default()
    }
}

impl Directory {
    /// Requests a check of a session's token, unless one is in progress.
    fn recheck_token(&mut self, session: &mut Session) {
        if session.login != Login::Valid {
            return;
        }
        let ticket = session.next_ticket();
        session.login = Login::Rechecking(ticket.serial);
        let (token, user) = (self.tokens.name(session.token), self.users.name(session.user));
        let check = Check::authentication(token, user);
        self.act(Action::Check(ticket, Urgency::Recheck, check));
    }

    /// Requests checks of the topics that a session is subscribed to.
    pub(super) fn recheck_topics(&mut self, session: &mut Session) {
        let user = self.users.name(session.user);
        let mut checks = Vec::new();
        for index in 0..session.subscriptions.len() {
            let ticket = session.next_ticket();
            let Some(subscription) = session.subscriptions.get_mut(index) else { break };
            let topic = self.topics.name(subscription.topic);
            if subscription.state == State::Granted
                && let Ok(Rule::Check(template, parameters)) = self.categories.rule(topic)
            {
                subscription.state = State::Rechecking(ticket.serial);
                let check = Check::topic(user, template.arguments(user, &parameters));
                checks.push(Action::Check(ticket, Urgency::Recheck, check));
            }
        }
        for check in checks {
            self.act(check);
        }
    }
}

/// Seconds since the start, but never zero.
fn seconds(time: Time) -> Due {
    let seconds = u32::try_from(time.as_millis() / 1_000).unwrap_or(u32::MAX);
    NonZero::new(seconds).unwrap_or(Due::MIN)
}
