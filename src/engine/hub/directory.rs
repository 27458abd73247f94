//! State that the sessions share: users, topics, EspoCRM's rules, and the pending actions.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::Action;
use super::session::{Login, Session, State, Subscription};
use super::tokens::Tokens;
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::category::{Categories, InvalidTopic, Rule};
use crate::engine::id::ConnId;
use crate::engine::interner::{Interner, Key};
use crate::engine::limits::MAX_SUBSCRIPTIONS;
use crate::engine::printable::Printable;
use crate::engine::protocol::frame::{CloseReason, SharedFrame};
use crate::engine::protocol::http::Credentials;
use crate::engine::protocol::wamp;
use crate::engine::protocol::wamp::ClientMessage;

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub categories: Categories,
    /// The authenticated connections of each user.
    pub users: Interner<Conns>,
    pub tokens: Tokens,
    /// The connections that may see each topic.
    pub topics: Interner<Conns>,
    /// EspoCRM's settings are being reloaded: an unknown topic may soon be known.
    pub reloading: bool,
    pub log: bool,
    /// Bytes of the subscriptions and prefixes of all sessions.
    pub buffered: usize,
    actions: VecDeque<Action>,
}

/// Most users have one or two browser tabs, most records one or two viewers: no allocation for
/// these.
pub(super) type Conns = SmallVec<[ConnId; 2]>;

impl Directory {
    pub(super) fn new(categories: Categories) -> Self {
        Self { categories, ..Self::default() }
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn poll(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // Release the memory of a burst.
            self.actions.shrink_to(64);
        }
        action
    }

    pub(super) fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        let no_sessions = self.users.is_empty() && self.tokens.is_empty() && self.buffered == 0;
        no_sessions && self.topics.is_empty() && self.actions.is_empty()
    }

    pub(super) fn open(&mut self, conn: ConnId, credentials: &Credentials) -> Session {
        let user = self.users.intern(&credentials.user);
        let token = self.tokens.intern(&credentials.token);
        let session = Session::new(conn, user, token);
        let check = Check::authentication(&credentials.token, &credentials.user);
        self.log(|_| format!("{conn}: open"));
        let ticket = session.ticket(Ticket::AUTHENTICATION);
        self.act(Action::Check(ticket, Urgency::Login, check));
        session
    }

    pub(super) fn welcome(&mut self, session: &mut Session) {
        session.login = Login::Valid;
        if let Some(conns) = self.users.value_mut(session.user) {
            conns.push(session.conn);
        }
        self.log(|it| format!("{}: user {} subscribed", session.conn, it.users.name(session.user)));
        self.act(Action::Welcome(session.conn));
        self.resolve_all(session);
    }

    pub(super) fn close(&mut self, mut session: Session) {
        self.buffered -= self.buffered_by(&session);
        let waiting = match session.login {
            Login::Waiting => Some(Ticket::AUTHENTICATION),
            Login::Valid => None,
            Login::Rechecking(serial) => Some(serial),
        };
        if let Some(serial) = waiting {
            self.act(Action::Cancel(session.ticket(serial)));
        }
        if session.is_authenticated()
            && let Some(conns) = self.users.value_mut(session.user)
        {
            remove(conns, session.conn);
        }
        for subscription in std::mem::take(&mut session.subscriptions) {
            self.withdraw(&session, &subscription);
            self.topics.release(subscription.topic);
        }
        self.tokens.release(session.token);
        self.users.release(session.user);
        self.log(|_| format!("{}: close", session.conn));
    }

    /// # Errors
    /// The reason to close the connection with.
    pub(super) fn receive(&mut self, session: &mut Session, text: &str) -> Result<(), CloseReason> {
        match wamp::parse(text).map_err(|wamp::Malformed| CloseReason::Malformed)? {
            ClientMessage::Subscribe(topic) => {
                let topic = session.prefixes.expand(&topic).into_owned();
                self.subscribe(session, &topic);
            }
            ClientMessage::Unsubscribe(topic) => {
                let topic = self.topics.find(&session.prefixes.expand(&topic));
                if let Some(index) = topic.and_then(|topic| session.find(topic)) {
                    self.forget(session, index);
                    self.drop_subscription(session, index, "remove topic");
                }
            }
            ClientMessage::Prefix { prefix, uri } => {
                self.buffered -= session.prefixes.buffered();
                session.prefixes.define(&prefix, &uri);
                self.buffered += session.prefixes.buffered();
            }
            ClientMessage::Publish(topic) if topic.is_empty() => {}
            ClientMessage::Publish(_) => return Err(CloseReason::Forbidden),
            ClientMessage::Call { call_id, procedure } => {
                let error = wamp::call_error(&call_id, &session.prefixes.expand(&procedure));
                self.act(Action::Send(session.conn, SharedFrame::text(&error)));
                return Err(CloseReason::Forbidden);
            }
        }
        Ok(())
    }

    /// Applies the verdict of the check with this serial number.
    pub(super) fn decide(&mut self, session: &mut Session, serial: u32, verdict: &Verdict) {
        let waits = |it: &Subscription| {
            it.state == State::Checking(serial) || it.state == State::Rechecking(serial)
        };
        let Some(index) = session.subscriptions.iter().position(waits) else { return };
        let Some(subscription) = session.subscriptions.get_mut(index) else { return };
        // The check has ended: there is nothing to cancel.
        let was_granted = subscription.state.is_granted();
        subscription.state = if was_granted { State::Granted } else { State::Pending };
        match verdict {
            // A failed recheck changes nothing.
            Verdict::Granted | Verdict::Failed(_) if was_granted => {}
            Verdict::Granted => self.grant(session, index),
            Verdict::Denied | Verdict::Failed(_) => {
                self.drop_subscription(session, index, DENIED);
            }
        }
    }

    /// Bytes of a session's subscriptions and prefixes.
    pub(super) fn buffered_by(&self, session: &Session) -> usize {
        let topics = session.subscriptions.iter().map(|it| self.cost(it.topic));
        session.prefixes.buffered() + topics.sum::<usize>()
    }

    /// Replaces the categories, unless the reload failed, and returns the previous ones.
    pub(super) fn end_reload(&mut self, categories: Option<Categories>) -> Categories {
        self.reloading = false;
        match categories {
            Some(categories) => std::mem::replace(&mut self.categories, categories),
            None => self.categories.clone(),
        }
    }

    /// Resolves those of a session's subscriptions again for which the rule has changed.
    pub(super) fn apply_changes(&mut self, session: &mut Session, old: &Categories) {
        for index in 0..session.subscriptions.len() {
            let Some(subscription) = session.subscriptions.get(index) else { break };
            let name = self.topics.name(subscription.topic);
            if old.rule(name) != self.categories.rule(name) {
                self.withdraw(session, subscription);
                if let Some(subscription) = session.subscriptions.get_mut(index) {
                    subscription.state = State::Pending;
                }
            }
        }
        if session.is_authenticated() {
            self.resolve_all(session);
        }
    }

    fn subscribe(&mut self, session: &mut Session, topic: &str) {
        let known = self.topics.find(topic);
        if known.is_some_and(|topic| session.find(topic).is_some()) {
            return;
        }
        match self.categories.rule(topic) {
            Ok(_) => {}
            // Keep it: the settings that may define it are being loaded.
            Err(InvalidTopic::Unknown | InvalidTopic::BadParameter | InvalidTopic::Broken)
                if self.reloading => {}
            Err(_) => return self.log(|it| it.topic_line(session, DENIED, topic)),
        }
        if session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return self.act(Action::TooManySubscriptions(session.conn));
        }
        let topic = self.topics.intern(topic);
        self.buffered += self.cost(topic);
        session.subscriptions.push(Subscription { topic, state: State::Pending });
        if session.is_authenticated() {
            self.resolve(session, session.subscriptions.len() - 1);
        }
    }

    /// Resolves every pending subscription.
    fn resolve_all(&mut self, session: &mut Session) {
        let mut index = 0;
        while let Some(subscription) = session.subscriptions.get(index) {
            let stays = subscription.state != State::Pending || self.resolve(session, index);
            index += usize::from(stays);
        }
    }

    /// Resolves up to `room` delayed subscriptions.
    pub(super) fn resume(&mut self, session: &mut Session, mut room: usize) {
        let mut index = 0;
        while room > 0
            && let Some(subscription) = session.subscriptions.get_mut(index)
        {
            let mut stays = true;
            if subscription.state == State::Delayed {
                subscription.state = State::Pending;
                stays = self.resolve(session, index);
                room -= 1;
            }
            index += usize::from(stays);
        }
    }

    /// Grants a pending subscription, requests its check, or removes it. False if it was removed.
    fn resolve(&mut self, session: &mut Session, index: usize) -> bool {
        let Some(subscription) = session.subscriptions.get(index) else { return false };
        let user = self.users.name(session.user);
        let check = match self.categories.rule(self.topics.name(subscription.topic)) {
            // After the reload it may need a check, or be known.
            Ok(Rule::Open) | Err(_) if self.reloading => return true,
            Ok(Rule::Open) => {
                self.grant(session, index);
                return true;
            }
            Ok(Rule::Check(template, parameters)) => {
                Check::topic(user, template.arguments(user, &parameters))
            }
            Err(_) => {
                self.drop_subscription(session, index, DENIED);
                return false;
            }
        };
        let ticket = session.next_ticket();
        if let Some(subscription) = session.subscriptions.get_mut(index) {
            subscription.state = State::Checking(ticket.serial);
        }
        self.act(Action::Check(ticket, Urgency::Subscription, check));
        true
    }

    /// After unsubscribing, the next subscription to the topic is checked again.
    fn forget(&mut self, session: &Session, index: usize) {
        let Some(subscription) = session.subscriptions.get(index) else { return };
        let user = self.users.name(session.user);
        if subscription.state == State::Granted
            && let Ok(Rule::Check(template, parameters)) =
                self.categories.rule(self.topics.name(subscription.topic))
        {
            let check = Check::topic(user, template.arguments(user, &parameters));
            self.act(Action::Forget(check));
        }
    }

    fn grant(&mut self, session: &mut Session, index: usize) {
        let Some(subscription) = session.subscriptions.get_mut(index) else { return };
        subscription.state = State::Granted;
        let topic = subscription.topic;
        if let Some(conns) = self.topics.value_mut(topic) {
            conns.push(session.conn);
        }
        self.log_topic(session, "add topic", topic);
    }

    fn drop_subscription(&mut self, session: &mut Session, index: usize, why: &str) {
        if index >= session.subscriptions.len() {
            return;
        }
        let subscription = session.subscriptions.remove(index);
        self.withdraw(session, &subscription);
        self.log_topic(session, why, subscription.topic);
        self.buffered -= self.cost(subscription.topic);
        self.topics.release(subscription.topic);
    }

    /// Bytes of a subscription to this topic.
    fn cost(&self, topic: Key) -> usize {
        TOPIC + self.topics.name(topic).len()
    }

    /// Cancels a subscription's check and stops its delivery.
    fn withdraw(&mut self, session: &Session, subscription: &Subscription) {
        if let State::Checking(serial) | State::Rechecking(serial) = subscription.state {
            self.act(Action::Cancel(session.ticket(serial)));
        }
        if subscription.state.is_granted()
            && let Some(conns) = self.topics.value_mut(subscription.topic)
        {
            remove(conns, session.conn);
        }
    }

    fn log(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.log {
            let line = line(self);
            self.act(Action::Log(line));
        }
    }

    fn log_topic(&mut self, session: &Session, what: &str, topic: Key) {
        self.log(|it| it.topic_line(session, what, it.topics.name(topic)));
    }

    fn topic_line(&self, session: &Session, what: &str, topic: &str) -> String {
        let user = self.users.name(session.user);
        format!("{}: {what} {} for user {user}", session.conn, Printable(topic))
    }
}

/// Bytes of a topic besides its name: entries in the subscriptions, in the interner and its index,
/// and the list of its subscribers.
const TOPIC: usize = 128;

const DENIED: &str = "check access failed for topic";

fn remove(conns: &mut Conns, conn: ConnId) {
    if let Some(index) = conns.iter().position(|other| *other == conn) {
        conns.swap_remove(index);
    }
    // Release the memory of a burst.
    if conns.spilled() && conns.len() < conns.capacity() / 4 {
        conns.shrink_to_fit();
    }
}
