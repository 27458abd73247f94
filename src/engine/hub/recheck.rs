//! Whether what was granted still is: EspoCRM is asked again in the background.
//!
//! All tabs of a user are reviewed together, since most of what they ask is the same and is then
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

/// When a review is due, in seconds.
pub(super) type Due = NonZero<u32>;

impl Hub {
    /// Sets how long after a review of a user the next one is due; zero is never. Whether that is a
    /// change: then the next reviews are spread again, and each connection has another
    /// [`next_review`](Self::next_review).
    pub fn set_review_interval(&mut self, now: Time, interval: Duration) -> bool {
        if std::mem::replace(&mut self.review_interval, interval) == interval {
            return false;
        }
        let mut conns = Vec::new();
        for session in self.sessions.iter_mut().flatten() {
            session.next_review = None;
            conns.push(session.conn);
        }
        for conn in conns {
            self.review(now, conn);
        }
        true
    }

    /// When [`review`](Self::review) has something to do for a connection.
    #[must_use]
    pub fn next_review(&self, conn: ConnId) -> Option<Time> {
        let session = self.sessions.get(conn.slot())?.as_ref()?;
        let due = session.next_review.filter(|_| session.conn == conn)?;
        Some(Time::from_millis(u64::from(due.get()) * 1_000))
    }

    /// Has a connection's user reviewed, if that is due. To be called when a connection has logged in,
    /// which plans its first review, and at [`next_review`](Self::next_review).
    pub fn review(&mut self, now: Time, conn: ConnId) {
        let Some(session) = session_mut(&mut self.sessions, conn) else { return };
        if self.review_interval.is_zero() || !session.is_authenticated() {
            return;
        }
        match session.next_review {
            None => self.plan_review(now, conn),
            Some(due) if due <= seconds(now) => self.begin_review(now, conn),
            Some(_) => {}
        }
    }

    /// A new tab has its user's next review. If there are no other tabs, that is any time within
    /// the interval: those that came back together after a restart are not reviewed together.
    fn plan_review(&mut self, now: Time, conn: ConnId) {
        let tabs = self.tabs(conn);
        let planned = |tab: &ConnId| self.sessions.get(tab.slot())?.as_ref()?.next_review;
        let next = tabs.iter().filter_map(planned).min().unwrap_or_else(|| {
            let spread = conn.part_of(self.review_interval);
            seconds(now.after(spread))
        });
        if let Some(session) = session_mut(&mut self.sessions, conn) {
            session.next_review = Some(next);
        }
    }

    fn begin_review(&mut self, now: Time, conn: ConnId) {
        let next = seconds(now.after(self.review_interval));
        for tab in self.tabs(conn) {
            if let Some(session) = session_mut(&mut self.sessions, tab) {
                session.next_review = Some(next);
                self.directory.review_token(session);
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
    fn review_token(&mut self, session: &mut Session) {
        if session.login != Login::Good {
            return;
        }
        let ticket = session.next_ticket();
        session.login = Login::Reviewing(ticket.serial);
        let (token, user) = (self.tokens.name(session.token), self.users.name(session.user));
        let check = Check::authentication(token, user);
        self.act(Action::Check(ticket, Urgency::Review, check));
    }

    /// Asks whether the user of a session may still see what it is subscribed to.
    pub(super) fn review_topics(&mut self, session: &mut Session) {
        let user = self.users.name(session.user);
        let mut checks = Vec::new();
        for index in 0..session.subscriptions.len() {
            let ticket = session.next_ticket();
            let Some(subscription) = session.subscriptions.get_mut(index) else { break };
            let topic = self.topics.name(subscription.topic);
            if subscription.state == State::Granted
                && let Ok(Rule::Check(template, parameters)) = self.categories.rule(topic)
            {
                subscription.state = State::Reviewing(ticket.serial);
                let check = Check::topic(user, template.arguments(user, &parameters));
                checks.push(Action::Check(ticket, Urgency::Review, check));
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
