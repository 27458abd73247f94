//! Browser tabs that connect, disconnect, subscribe and misbehave.

use std::collections::BTreeMap;

use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::protocol::http::Credentials;
use serde_json::json;

use super::{INTERVAL, TOPICS, USERS, World};
use crate::model::{self, Connection, Rule, Status};

impl World {
    pub(super) fn open(&mut self) {
        if self.model.conns.len() >= 40 {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.serial += 1;
        let id = ConnId::new(slot, self.serial);
        let user = (*self.choices.pick(&USERS)).to_owned();
        let token = if self.choices.chance(85) { self.token(&user) } else { "bad".to_owned() };
        self.trace(|| format!("{id} opens for {user}, with the token {token}"));
        let credentials = Credentials { user: user.as_str().into(), token: token.as_str().into() };
        let conn = Connection {
            user,
            token,
            authenticated: false,
            recheck: None,
            requested: None,
            rechecked: self.now,
            subscriptions: BTreeMap::new(),
        };
        self.model.conns.insert(id, conn);
        self.due.insert(id, self.now.after(INTERVAL));
        self.arm(id);
        self.hub.open(id, &credentials);
        self.perform_actions();
    }

    pub(super) fn close_one(&mut self) {
        if let Some(id) = self.some_conn() {
            self.trace(|| format!("{id} closes"));
            self.close(id);
            self.perform_actions();
        }
    }

    pub(super) fn close(&mut self, id: ConnId) {
        if self.model.conns.remove(&id).is_some() {
            self.seen("closed");
            self.hub.close(id);
            self.due.remove(&id);
            self.armed.remove(&id);
            self.free.push(id.slot() as u32);
        }
    }

    pub(super) fn subscribe_or_not(&mut self) {
        let Some(id) = self.some_conn() else { return };
        let topic = *self.choices.pick(&TOPICS);
        let unsubscribe = self.choices.chance(30);
        let verb = if unsubscribe { "unsubscribes from" } else { "subscribes to" };
        self.trace(|| format!("{id} {verb} {topic}"));
        let rule = model::rule(self.edition, topic);
        let conn = self.model.conns.get_mut(&id).unwrap();
        let is_pending = !conn.authenticated || self.reloading;
        if unsubscribe {
            conn.subscriptions.remove(topic);
        } else if !conn.subscriptions.contains_key(topic) {
            let status = match rule {
                Rule::Open if !is_pending => Some(Status::Granted),
                // With a check it becomes `Waiting` when the hub requests the check.
                Rule::Open | Rule::Check(_) => Some(Status::Pending),
                Rule::Bad | Rule::Unknown => self.reloading.then_some(Status::Pending),
            };
            conn.subscriptions.extend(status.map(|status| (topic.to_owned(), status)));
        }
        let kind = if unsubscribe { 6 } else { 5 };
        self.hub.receive(id, &json!([kind, topic]).to_string());
        self.perform_actions();
    }

    /// Keep-alives change nothing; forbidden or malformed messages end the connection.
    pub(super) fn send_other_message(&mut self) {
        let Some(id) = self.some_conn() else { return };
        let texts = [r#"[7,"",""]"#, r#"[1,"p","open"]"#, r#"[7,"open",1]"#, r#"[2,"1","f"]"#, "x"];
        let index = self.choices.below(texts.len());
        self.trace(|| format!("{id} sends {}", texts[index]));
        self.hub.receive(id, texts[index]);
        if index >= 2 {
            self.expect_ended(id, "misbehaved");
        }
        self.perform_actions();
    }

    /// The hub has removed the session; the daemon closes the connection.
    pub(super) fn expect_ended(&mut self, id: ConnId, why: &'static str) {
        self.seen(why);
        assert_eq!(self.hub.user(id), None, "{id} {why}");
        self.model.conns.remove(&id);
        self.due.remove(&id);
        self.armed.remove(&id);
        self.free.push(id.slot() as u32);
    }
}
