//! Requested checks, and the expected effects of their verdicts.

use std::time::Duration;

use espocrm_websocket::engine::checks::check::{Check, Ticket, Urgency};
use espocrm_websocket::engine::checks::verdict::{Failure, Verdict};
use espocrm_websocket::engine::id::ConnId;

use super::World;
use crate::model::{self, Rule, Status};

impl World {
    pub(super) fn issue(&mut self, ticket: Ticket, urgency: Urgency, check: &Check) {
        assert!(self.known.insert(ticket), "a ticket is never reused");
        self.issued.push(ticket);
        // The connection may have ended in the same step: then a cancellation follows.
        if let Some(conn) = self.model.conns.get_mut(&ticket.conn)
            && ticket.serial != Ticket::AUTHENTICATION
        {
            assert!(conn.authenticated, "nothing is checked before the login");
            let edition = self.edition;
            let is_recheck = urgency == Urgency::Recheck;
            if check.is_authentication() {
                assert!(is_recheck && !self.recheck_interval.is_zero());
                assert_eq!(*check, Check::authentication(&conn.token, &conn.user));
                assert_eq!(conn.recheck.replace(ticket), None);
                let last =
                    conn.requested.replace(self.now).filter(|last| *last > self.recheck_since);
                // Intervals are counted in whole seconds.
                let idle = last.map(|last| self.now.since(last) + Duration::from_secs(1));
                assert!(idle.is_none_or(|idle| idle >= self.recheck_interval), "too early");
            } else {
                let from: &[Status] = if is_recheck {
                    &[Status::Granted]
                } else {
                    &[Status::Pending, Status::Delayed]
                };
                let to = if is_recheck { Status::Rechecking } else { Status::Waiting };
                let waiting = conn.subscriptions.iter_mut().find(|(topic, status)| {
                    let rule = model::rule(edition, topic);
                    let Rule::Check(command) = rule else { return false };
                    let command = command.replace("{user}", &conn.user);
                    from.contains(status) && command == check.arguments.join(" ")
                });
                *waiting.expect("a subscription for this check").1 = to(ticket);
            }
        }
        match self.queue.request(self.now, ticket, check.clone(), urgency) {
            Ok(is_cached) => {
                assert!(!is_cached);
                self.seen("requested");
            }
            Err(_) => self.no_room(ticket, urgency, check),
        }
    }

    /// Like the daemon: a login is rejected, a subscription is delayed, a recheck is skipped.
    fn no_room(&mut self, ticket: Ticket, urgency: Urgency, check: &Check) {
        match urgency {
            Urgency::Login => {
                self.close(ticket.conn);
                self.seen("no room for a login");
            }
            Urgency::Subscription => {
                self.hub.delay(ticket);
                if let Some(conn) = self.model.conns.get_mut(&ticket.conn)
                    && let Some(it) =
                        conn.subscriptions.values_mut().find(|it| it.ticket() == Some(ticket))
                {
                    *it = Status::Delayed;
                    self.seen("delayed");
                }
                self.arm(ticket.conn);
            }
            Urgency::Recheck => {
                let verdict = Verdict::Failed(Failure::NotStarted(String::new()));
                let conn = self.model.conns.get(&ticket.conn);
                if conn.is_some_and(|conn| conn.waits_for(ticket)) {
                    self.apply(ticket, &verdict, check);
                    self.seen("no room for a recheck");
                }
            }
        }
    }

    /// Passes a verdict to the hub, and applies its expected effects to the model.
    pub(super) fn apply(&mut self, ticket: Ticket, verdict: &Verdict, check: &Check) {
        self.hub.verdict(ticket, verdict);
        let conn = self.model.conns.get_mut(&ticket.conn).expect("the connection is open");
        if ticket.serial == Ticket::AUTHENTICATION {
            assert!(!conn.authenticated);
            assert_eq!(*check, Check::authentication(&conn.token, &conn.user));
            match verdict {
                Verdict::Granted => {
                    conn.authenticated = true;
                    conn.rechecked = self.now;
                    self.seen("welcomed");
                    self.resolve_pending(ticket.conn);
                    self.hub.recheck(self.now, ticket.conn);
                    self.arm(ticket.conn);
                }
                Verdict::Denied => self.expect_ended(ticket.conn, "login denied"),
                Verdict::Failed(_) => self.expect_ended(ticket.conn, "login failed"),
            }
            return;
        }
        if conn.recheck == Some(ticket) {
            assert_eq!(*check, Check::authentication(&conn.token, &conn.user));
            conn.recheck = None;
            conn.rechecked = self.now;
            match verdict {
                Verdict::Granted => self.seen("still logged in"),
                Verdict::Denied => self.expect_ended(ticket.conn, "revoked"),
                Verdict::Failed(_) => self.seen("token not rechecked"),
            }
            return;
        }
        let mut all = conn.subscriptions.iter();
        let waiting = all.find(|(_, status)| status.ticket() == Some(ticket));
        let (topic, status) = waiting.expect("a subscription waits for this ticket");
        let (topic, is_recheck) = (topic.clone(), status.is_granted());
        let Rule::Check(command) = model::rule(self.edition, &topic) else {
            panic!("{topic} needs no check");
        };
        assert_eq!(check.arguments.join(" "), command.replace("{user}", &conn.user));
        if *verdict == Verdict::Granted {
            conn.subscriptions.insert(topic, Status::Granted);
            self.seen(if is_recheck { "still granted" } else { "granted" });
        } else if is_recheck && *verdict != Verdict::Denied {
            conn.subscriptions.insert(topic, Status::Granted);
            self.seen("topic not rechecked");
        } else if is_recheck {
            conn.subscriptions.remove(&topic);
            self.seen("no longer granted");
        } else {
            conn.subscriptions.remove(&topic);
            let is_denied = *verdict == Verdict::Denied;
            self.seen(if is_denied { "denied" } else { "subscription failed" });
        }
    }

    /// Applies the rules to the pending subscriptions of the model.
    pub(super) fn resolve_pending(&mut self, id: ConnId) {
        let (edition, reloading) = (self.edition, self.reloading);
        let conn = self.model.conns.get_mut(&id).unwrap();
        conn.subscriptions.retain(|topic, status| {
            if *status != Status::Pending {
                return true;
            }
            match model::rule(edition, topic) {
                Rule::Open if !reloading => {
                    *status = Status::Granted;
                    true
                }
                Rule::Open | Rule::Check(_) => true,
                Rule::Bad | Rule::Unknown => reloading,
            }
        });
    }

    /// Passes a verdict to the hub that is late or repeated, for a slot that may be in use again.
    pub(super) fn repeat_an_old_verdict(&mut self) {
        if self.issued.is_empty() {
            return;
        }
        let index = self.choices.below(self.issued.len());
        let ticket = self.issued[index];
        let conn = self.model.conns.get(&ticket.conn);
        if !conn.is_some_and(|conn| conn.waits_for(ticket)) {
            self.seen("stale verdict");
            let verdicts = [Verdict::Granted, Verdict::Denied, Verdict::Failed(Failure::TimedOut)];
            let verdict = self.choices.pick(&verdicts).clone();
            self.hub.verdict(ticket, &verdict);
            assert!(!self.hub.has_actions());
        }
    }
}
