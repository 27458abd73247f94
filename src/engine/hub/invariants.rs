//! Relations that hold between sessions, users, tokens and topics after every call.

use std::collections::BTreeMap;

use super::Hub;
use super::directory::Conns;
use super::session::{Login, Session, State};
use crate::engine::id::ConnId;
use crate::engine::interner::{Interner, Key};
use crate::engine::limits::MAX_SUBSCRIPTIONS;

impl Hub {
    /// Checks that sessions and directory agree. For tests: the cost is proportional to everything
    /// that the hub stores.
    ///
    /// # Panics
    /// If they do not.
    pub fn check_invariants(&self) {
        let directory = &self.directory;
        let mut buffered = 0;
        let (mut users, mut tokens, mut topics) = (Uses::new(), Uses::new(), Uses::new());
        for (slot, session) in self.sessions.iter().enumerate() {
            let Some(session) = session else { continue };
            assert_eq!(session.conn.slot(), slot);
            buffered += directory.held_by(session);
            let authenticated = session.is_authenticated();
            used(&mut users, session.user, session.conn, authenticated);
            used(&mut tokens, session.token, session.conn, false);
            session.check_invariants();
            for subscription in &session.subscriptions {
                let granted = subscription.state.is_granted();
                assert!(authenticated || subscription.state == State::Held, "{:?}", session.conn);
                used(&mut topics, subscription.topic, session.conn, granted);
            }
        }
        assert_eq!(directory.held, buffered);
        check(&directory.users, &users);
        check(&directory.topics, &topics);
        directory.tokens.check_uses(&tokens.iter().map(|(key, uses)| (*key, uses.0)).collect());
    }
}

impl Session {
    fn check_invariants(&self) {
        let conn = self.conn;
        assert!(self.subscriptions.len() <= MAX_SUBSCRIPTIONS, "{conn}");
        let mut serials = Vec::new();
        if let Login::Rechecking(serial) = self.login {
            serials.push(serial);
        }
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            assert_eq!(self.find(subscription.topic), Some(index), "{conn}: a topic twice");
            if let State::Checking(serial) | State::Rechecking(serial) = subscription.state {
                serials.push(serial);
            }
        }
        let count = serials.len();
        serials.sort_unstable();
        serials.dedup();
        assert_eq!(serials.len(), count, "{conn}: two checks have the same serial number");
    }
}

/// How many sessions use each name, and which connections must be in its list.
type Uses = BTreeMap<Key, (u32, Vec<ConnId>)>;

fn used(uses: &mut Uses, key: Key, conn: ConnId, is_listed: bool) {
    let (count, listed) = uses.entry(key).or_default();
    *count += 1;
    listed.extend(is_listed.then_some(conn));
}

fn check(names: &Interner<Conns>, uses: &Uses) {
    names.check_uses(&uses.iter().map(|(key, uses)| (*key, uses.0)).collect());
    for (key, (_, listed)) in uses {
        let mut conns = names.value(*key).map(|conns| conns.to_vec()).unwrap_or_default();
        conns.sort_unstable();
        let mut listed = listed.clone();
        listed.sort_unstable();
        assert_eq!(conns, listed, "{}", names.name(*key));
    }
}
