//! Whether what was granted still is: EspoCRM is asked again in the background.
//!
//! All tabs of a user are rechecked together, since most of what they ask is the same and is then
//! checked once: first their tokens, and where that is still good each topic that needs a check.
//! Until EspoCRM says no, everything stays as it is.

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
    /// Sets how long after a recheck of a user the next one is due; zero is never. Whether that is a
    /// change: then the next rechecks are spread again, and each connection has another
    /// [`next_recheck`](Self::next_recheck).
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

    /// When [`recheck`](Self::recheck) has something to do for a connection.
    #[must_use]
    pub fn next_recheck(&self, conn: ConnId) -> Option<Time> {
        let session = self.sessions.get(conn.slot())?.as_ref()?;
        let due = session.next_recheck.filter(|_| session.conn == conn)?;
        Some(Time::from_millis(u64::from(due.get()) * 1_000))
    }

    /// Has a connection's user rechecked, if that is due. To be called when a connection has logged in,
    /// which plans its first recheck, and at [`next_recheck`](Self::next_recheck).
    pub fn recheck(&mut self, now: Time, conn: ConnId) {
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        if self.recheck_interval.is_zero() || !session.is_authenticated() {
            return;
        }
        match session.next_recheck {
            None => self.plan_recheck(now, conn),
            Some(due) if due <= seconds(now) => self.begin_recheck(now, conn),
            Some(_) => {}
        }
    }

    /// A new tab has its user's next recheck. If there are no other tabs, that is any time within
    /// the interval: those that came back together after a restart are not rechecked together.
    fn plan_recheck(&mut self, now: Time, conn: ConnId) {
        let tabs = self.tabs(conn);
        let planned = |tab: &ConnId| self.sessions.get(tab.slot())?.as_ref()?.next_recheck;
        let next = tabs.iter().filter_map(planned).min().unwrap_or_else(|| {
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

    /// Where this connection's user is logged in.
    fn tabs(&self, conn: ConnId) -> SmallVec<[ConnId; 2]> {
        let session = self.sessions.get(conn.slot()).and_then(Option::as_ref);
        let tabs = session.and_then(|session| self.directory.users.value(session.user));
        tabs.cloned().unwrap_or_default()
    }
}

impl Directory {
    /// Asks whether a session's token is still good, unless that is being asked already.
    fn recheck_token(&mut self, session: &mut Session) {
        if session.login != Login::Good {
            return;
        }
        let ticket = session.next_ticket();
        session.login = Login::Rechecking(ticket.serial);
        let (token, user) = (self.tokens.name(session.token), self.users.name(session.user));
        let check = Check::authentication(token, user);
        self.act(Action::Check(ticket, Urgency::Recheck, check));
    }

    /// Asks whether the user of a session may still see what it is subscribed to.
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

/// Since the start, and never zero.
fn seconds(time: Time) -> Due {
    let seconds = u32::try_from(time.as_millis() / 1_000).unwrap_or(u32::MAX);
    NonZero::new(seconds).unwrap_or(Due::MIN)
}
