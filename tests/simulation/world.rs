//! The core under test with a simulated shell around it: EspoCRM, PHP, browsers, the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use espocrm_websocket::core::access::{Access, JobId};
use espocrm_websocket::core::category::Categories;
use espocrm_websocket::core::check::{Check, Ticket, Urgency};
use espocrm_websocket::core::hub::{Action, Hub};
use espocrm_websocket::core::id::ConnId;
use espocrm_websocket::core::submission::Submission;
use espocrm_websocket::core::time::Time;
use espocrm_websocket::core::timers::Timers;
use espocrm_websocket::core::upgrade::Credentials;
use espocrm_websocket::core::verdict::{Failure, Verdict};
use serde_json::json;

use crate::model::{self, Conn, Model, Rule, Status};
use crate::random::Random;

pub struct World {
    random: Random,
    told: bool,
    now: Time,
    hub: Hub,
    access: Access,
    timers: Timers,
    /// When each connection is due; the server keeps this in the connection.
    due: BTreeMap<ConnId, Time>,
    model: Model,
    /// Slots that are free, to be used again as the server's slab does.
    free: Vec<u32>,
    slots: u32,
    serial: u32,
    /// PHP processes.
    running: Vec<(JobId, Rc<Check>)>,
    /// Every ticket ever issued, in order and to be found.
    issued: Vec<Ticket>,
    known: BTreeSet<Ticket>,
    /// Nothing can be checked: the database is down.
    outage: bool,
    edition: u32,
    reloading: bool,
    /// How often each user has logged out: the number of the token that is good.
    logouts: BTreeMap<&'static str, u32>,
    review_interval: Duration,
    /// When that was set.
    review_since: Time,
    seen: Seen,
}

/// What has happened, to be sure that it does.
#[derive(Debug, Default)]
pub struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

const LIMIT: usize = 3;
const USERS: [&str; 5] = ["ann", "bob", "cyd", "dan", "eve"];
/// No two that are checked by the same command: a ticket then tells its topic.
const TOPICS: [&str; 11] = [
    "open",
    "open.more",
    "maybe",
    "late",
    "record.1",
    "record.2",
    "record.3",
    "record",
    "record.",
    "record.a b",
    "nothing",
];
const INTERVAL: Duration = Duration::from_secs(25);
/// The longest step of time.
const LONGEST: Duration = Duration::from_secs(100);

impl World {
    pub fn new(seed: u64, told: bool) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            told,
            now: Time::default(),
            hub: Hub::new(Categories::from_json(&model::categories(0))),
            access: Access::new(LIMIT),
            timers: Timers::default(),
            due: BTreeMap::new(),
            model: Model::default(),
            free: Vec::new(),
            slots: 0,
            serial: 0,
            running: Vec::new(),
            issued: Vec::new(),
            known: BTreeSet::new(),
            outage: false,
            edition: 0,
            reloading: false,
            logouts: BTreeMap::new(),
            review_interval: Duration::ZERO,
            review_since: Time::default(),
            seen: Seen::default(),
        };
        world.set_review_interval(60);
        world
    }

    pub fn run(mut self, steps: usize) -> Seen {
        for _ in 0..steps {
            self.step();
            self.check_everything();
        }
        self.end();
        self.seen
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..10 => self.open(),
            10..13 => self.close_one(),
            13..40 => self.subscribe_or_not(),
            40..41 => self.say_something_else(),
            41..70 => self.finish_one(),
            70..83 => self.publish(),
            83..86 => self.repeat_an_old_verdict(),
            86..88 => self.reload(),
            88..89 => self.log_out(),
            89..91 => self.review_one(),
            _ => self.let_time_pass(),
        }
    }

    fn open(&mut self) {
        if self.model.conns.len() >= 40 {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.serial += 1;
        let id = ConnId::new(slot, self.serial);
        let user = (*self.random.pick(&USERS)).to_owned();
        let token = if self.random.chance(85) { self.token(&user) } else { "bad".to_owned() };
        self.tell(|| format!("{id} opens for {user}, with the token {token}"));
        let credentials = Credentials { user: user.as_str().into(), token: token.as_str().into() };
        let conn = Conn {
            user,
            token,
            authenticated: false,
            review: None,
            asked: None,
            reviewed: self.now,
            subscriptions: BTreeMap::new(),
        };
        self.model.conns.insert(id, conn);
        self.due.insert(id, self.now.after(INTERVAL));
        self.timers.add(id, self.now.after(INTERVAL));
        self.hub.open(id, &credentials);
        self.carry_out();
    }

    /// The user's token that is good.
    fn token(&self, user: &str) -> String {
        format!("{user}{}", self.logouts.get(user).copied().unwrap_or(0))
    }

    /// The user's token becomes bad.
    fn log_out(&mut self) {
        let user = *self.random.pick(&USERS);
        self.tell(|| format!("{user} logs out"));
        *self.logouts.entry(user).or_default() += 1;
    }

    /// At any time: not earlier than it is due anything is asked.
    fn review_one(&mut self) {
        if let Some(id) = self.some_conn() {
            self.review(id);
        }
    }

    fn review(&mut self, id: ConnId) {
        let before = self.issued.len();
        self.hub.review(self.now, id);
        self.carry_out();
        let tickets = &self.issued[before..];
        if tickets.is_empty() {
            return;
        }
        let user = self.model.conns[&id].user.clone();
        assert!(tickets.iter().all(|ticket| self.model.conns[&ticket.conn].user == user));
        let mut tabs = self.model.conns.values().filter(|conn| conn.user == user);
        assert!(tabs.all(|conn| conn.review.is_some() || !conn.authenticated));
        self.tell(|| format!("{user} is reviewed"));
        self.seen("reviewed");
    }

    fn set_review_interval(&mut self, seconds: u64) {
        let interval = Duration::from_secs(seconds);
        if interval != self.review_interval {
            self.review_interval = interval;
            self.review_since = self.now;
        }
        self.hub.set_review_interval(interval);
    }

    fn close_one(&mut self) {
        if let Some(id) = self.some_conn() {
            self.tell(|| format!("{id} closes"));
            self.close(id);
            self.carry_out();
        }
    }

    fn close(&mut self, id: ConnId) {
        if self.model.conns.remove(&id).is_some() {
            self.seen("closed");
            self.hub.close(id);
            self.due.remove(&id);
            self.free.push(id.slot() as u32);
        }
    }

    fn subscribe_or_not(&mut self) {
        let Some(id) = self.some_conn() else { return };
        let topic = *self.random.pick(&TOPICS);
        let unsubscribe = self.random.chance(30);
        self.tell(|| format!("{id} {} {topic}", if unsubscribe { "leaves" } else { "wants" }));
        let rule = model::rule(self.edition, topic);
        let conn = self.model.conns.get_mut(&id).unwrap();
        let held = !conn.authenticated;
        if unsubscribe {
            conn.subscriptions.remove(topic);
        } else if !conn.subscriptions.contains_key(topic) {
            let status = match rule {
                Rule::Open if !held && !self.reloading => Some(Status::Granted),
                // A check becomes `Waiting` when the hub asks for it.
                Rule::Open | Rule::Check(_) => Some(Status::Held),
                Rule::Bad | Rule::Unknown => self.reloading.then_some(Status::Held),
            };
            conn.subscriptions.extend(status.map(|status| (topic.to_owned(), status)));
        }
        let kind = if unsubscribe { 6 } else { 5 };
        self.hub.receive(id, &json!([kind, topic]).to_string());
        self.carry_out();
    }

    /// Keep-alives change nothing; anything forbidden or malformed ends the connection.
    fn say_something_else(&mut self) {
        let Some(id) = self.some_conn() else { return };
        let texts = [r#"[7,"",""]"#, r#"[1,"p","open"]"#, r#"[7,"open",1]"#, r#"[2,"1","f"]"#, "x"];
        let index = self.random.below(texts.len());
        self.tell(|| format!("{id} says {}", texts[index]));
        self.hub.receive(id, texts[index]);
        if index >= 2 {
            self.expect_ended(id, "misbehaved");
        }
        self.carry_out();
    }

    /// The hub has forgotten it; the server closes it.
    fn expect_ended(&mut self, id: ConnId, why: &'static str) {
        self.seen(why);
        assert_eq!(self.hub.user(id), None, "{id} {why}");
        self.model.conns.remove(&id);
        self.due.remove(&id);
        self.free.push(id.slot() as u32);
    }

    fn finish_one(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let index = self.random.below(self.running.len());
        let (job, check) = self.running.swap_remove(index);
        let verdict = self.espocrm_says(&check);
        self.tell(|| format!("{:?} → {verdict:?}", check.arguments));
        let mut answers = Vec::new();
        self.access.finish(self.now, job, &verdict, &mut answers);
        for answer in answers {
            self.apply(answer.ticket, &answer.verdict, &check);
        }
        self.carry_out();
    }

    /// What the simulated EspoCRM thinks at this moment.
    fn espocrm_says(&mut self, check: &Check) -> Verdict {
        let is_login = &*check.arguments[0] == "AuthTokenCheck";
        let fails = match (self.outage, is_login) {
            (false, _) => 3,
            // Somebody has to be logged in to see the rest fail.
            (true, true) => 30,
            (true, false) => 97,
        };
        if self.random.chance(fails) {
            return Verdict::Unchecked(Failure::TimedOut);
        }
        let is_bad = is_login && *check.arguments[1] != self.token(&check.arguments[2]);
        let denied = !is_login && self.random.chance(25);
        if is_bad || denied { Verdict::Denied } else { Verdict::Granted }
    }

    /// Hands a verdict to the hub, and does to the model what it must mean.
    fn apply(&mut self, ticket: Ticket, verdict: &Verdict, check: &Check) {
        self.hub.verdict(ticket, verdict);
        let conn = self.model.conns.get_mut(&ticket.conn).expect("who has gone gets no answer");
        if ticket.serial == Ticket::AUTHENTICATION {
            assert!(!conn.authenticated);
            assert_eq!(*check, Check::authentication(&conn.token, &conn.user));
            match verdict {
                Verdict::Granted => {
                    conn.authenticated = true;
                    conn.reviewed = self.now;
                    self.seen("welcomed");
                    self.resolve_held(ticket.conn);
                }
                Verdict::Denied => self.expect_ended(ticket.conn, "refused"),
                Verdict::Unchecked(_) => self.expect_ended(ticket.conn, "dropped"),
            }
            return;
        }
        if conn.review == Some(ticket) {
            assert_eq!(*check, Check::authentication(&conn.token, &conn.user));
            conn.review = None;
            conn.reviewed = self.now;
            match verdict {
                Verdict::Granted => self.seen("still logged in"),
                Verdict::Denied => self.expect_ended(ticket.conn, "revoked"),
                Verdict::Unchecked(_) => self.seen("token not reviewed"),
            }
            return;
        }
        let asked = conn.subscriptions.iter().find(|(_, status)| status.ticket() == Some(ticket));
        let (topic, status) = asked.expect("who no longer waits gets no answer");
        let (topic, is_review) = (topic.clone(), status.is_granted());
        let Rule::Check(command) = model::rule(self.edition, &topic) else {
            panic!("{topic} needs no check");
        };
        assert_eq!(check.arguments.join(" "), command.replace("{user}", &conn.user));
        if *verdict == Verdict::Granted {
            conn.subscriptions.insert(topic, Status::Granted);
            self.seen(if is_review { "still granted" } else { "granted" });
        } else if is_review && *verdict != Verdict::Denied {
            conn.subscriptions.insert(topic, Status::Granted);
            self.seen("topic not reviewed");
        } else if is_review {
            conn.subscriptions.remove(&topic);
            self.seen("no longer granted");
        } else {
            conn.subscriptions.remove(&topic);
            self.seen(if *verdict == Verdict::Denied { "denied" } else { "given up" });
        }
    }

    /// Does to the model's subscriptions that are held what the rules say.
    fn resolve_held(&mut self, id: ConnId) {
        let (edition, reloading) = (self.edition, self.reloading);
        let conn = self.model.conns.get_mut(&id).unwrap();
        conn.subscriptions.retain(|topic, status| {
            if *status != Status::Held {
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

    fn publish(&mut self) {
        let topic = *self.random.pick(&TOPICS);
        let user = self.random.chance(40).then(|| *self.random.pick(&USERS));
        let submission = about(topic, user);
        let expected = self.model.receivers(topic, user);
        let receivers = self.hub.receivers(&submission).map(Iterator::collect::<Vec<_>>);
        match receivers {
            Err(_) => {
                assert_eq!(model::rule(self.edition, topic), Rule::Unknown);
                assert!(expected.is_empty());
                self.seen("unknown topic");
            }
            Ok(mut receivers) => {
                receivers.sort_unstable();
                assert_eq!(receivers, expected, "{topic} for {user:?}");
                let seen = if expected.is_empty() { "unheard" } else { "delivered" };
                self.seen(seen);
            }
        }
    }

    /// A verdict that comes too late, or twice, for whatever is in that slot now.
    fn repeat_an_old_verdict(&mut self) {
        if self.issued.is_empty() {
            return;
        }
        let index = self.random.below(self.issued.len());
        let ticket = self.issued[index];
        let conn = self.model.conns.get(&ticket.conn);
        if !conn.is_some_and(|conn| conn.waits_for(ticket)) {
            self.seen("stale verdict");
            let verdicts =
                [Verdict::Granted, Verdict::Denied, Verdict::Unchecked(Failure::TimedOut)];
            let verdict = self.random.pick(&verdicts).clone();
            self.hub.verdict(ticket, &verdict);
            assert!(!self.hub.has_actions());
        }
    }

    fn reload(&mut self) {
        if !self.reloading {
            self.tell(|| "the settings are being read".to_owned());
            self.reloading = true;
            self.hub.begin_reload();
            self.access.set_paused(true);
            return;
        }
        self.reloading = false;
        let old = self.edition;
        if self.random.chance(75) {
            self.edition = self.random.below(24) as u32;
            self.seen("reloaded");
        }
        self.tell(|| format!("edition {old} → {}", self.edition));
        let changed = self.edition != old;
        let ids: Vec<ConnId> = self.model.conns.keys().copied().collect();
        for id in ids {
            let conn = self.model.conns.get_mut(&id).unwrap();
            for (topic, status) in &mut conn.subscriptions {
                if model::rule(old, topic) != model::rule(self.edition, topic) {
                    *status = Status::Held;
                }
            }
            if conn.authenticated {
                self.resolve_held(id);
            }
        }
        let categories = Categories::from_json(&model::categories(self.edition));
        self.hub.reload(changed.then_some(categories));
        self.access.set_paused(false);
        self.carry_out();
        let interval = *self.random.pick(&[0, 60, 60, 60, 300]);
        self.set_review_interval(interval);
    }

    fn let_time_pass(&mut self) {
        if self.random.chance(3) {
            self.outage = !self.outage;
        }
        let longest = *self.random.pick(&[10, 1_000, 30_000, LONGEST.as_millis() as usize]);
        self.now = self.now.after(Duration::from_millis(self.random.below(longest) as u64));
        self.access.expire(self.now);
        let mut fired = Vec::new();
        self.timers.take_due(self.now, &mut fired);
        for id in fired {
            // As the server does: look at what it is really waiting for.
            let Some(due) = self.due.get_mut(&id) else { continue };
            if *due <= self.now {
                *due = self.now.after(INTERVAL);
                self.seen("pinged");
            }
            let due = self.due[&id];
            self.timers.add(id, due);
            self.review(id);
        }
        let second = Duration::from_secs(1);
        assert!(self.due.values().all(|due| self.now < due.after(second)), "a timer was lost");
        if let Some(next) = self.timers.next_due() {
            assert!(next > self.now && self.due.values().all(|due| next <= due.after(second)));
        }
        self.expect_reviews();
        self.carry_out();
    }

    /// Everybody who is logged in has been asked about within the interval, and the time between
    /// two looks: one that plans the first review, and one that finds out that it is due.
    fn expect_reviews(&self) {
        let look = INTERVAL + Duration::from_secs(1) + LONGEST;
        for (id, conn) in &self.model.conns {
            let idle = self.now.since(conn.reviewed.max(self.review_since));
            let asked = !conn.authenticated || conn.review.is_some();
            let off = self.review_interval.is_zero();
            assert!(asked || off || idle <= self.review_interval + 2 * look, "{id} is forgotten");
        }
    }

    /// Does what the hub wants, as the server does.
    fn carry_out(&mut self) {
        while let Some(action) = self.hub.poll() {
            match action {
                Action::Check(ticket, urgency, check) => self.issue(ticket, urgency, check),
                Action::Cancel(ticket) => self.access.cancel(ticket),
                Action::Forget(check) => self.access.forget_verdict(&check),
                Action::Welcome(id) => assert!(self.model.conns[&id].authenticated),
                Action::Close(id, _) | Action::Drop(id) => {
                    assert!(!self.model.conns.contains_key(&id), "{id} was to stay");
                }
                Action::Send(..) => self.seen("answered"),
                Action::TooManySubscriptions(id) => panic!("{id} has few"),
                Action::Log(line) => panic!("{line}"),
            }
        }
        while let Some(job) = self.access.start(self.now) {
            assert!(!self.reloading, "nothing is started while the settings are being read");
            self.running.push(job);
        }
    }

    fn issue(&mut self, ticket: Ticket, urgency: Urgency, check: Check) {
        assert!(self.known.insert(ticket), "a ticket is never used twice");
        self.issued.push(ticket);
        // It may have gone in the same turn: then a cancellation follows.
        if let Some(conn) = self.model.conns.get_mut(&ticket.conn)
            && ticket.serial != Ticket::AUTHENTICATION
        {
            assert!(conn.authenticated, "nothing is checked before the login");
            let edition = self.edition;
            let is_review = urgency == Urgency::Review;
            if check.is_authentication() {
                assert!(is_review && !self.review_interval.is_zero());
                assert_eq!(check, Check::authentication(&conn.token, &conn.user));
                assert_eq!(conn.review.replace(ticket), None);
                let last = conn.asked.replace(self.now).filter(|last| *last > self.review_since);
                // Reckoned in whole seconds.
                let idle = last.map(|last| self.now.since(last) + Duration::from_secs(1));
                assert!(idle.is_none_or(|idle| idle >= self.review_interval), "too early");
            } else {
                let from = if is_review { Status::Granted } else { Status::Held };
                let to = if is_review { Status::Reviewing } else { Status::Waiting };
                let wanted = conn.subscriptions.iter_mut().find(|(topic, status)| {
                    let rule = model::rule(edition, topic);
                    let Rule::Check(command) = rule else { return false };
                    let command = command.replace("{user}", &conn.user);
                    **status == from && command == check.arguments.join(" ")
                });
                *wanted.expect("a check of this user's for this topic").1 = to(ticket);
            }
        }
        assert_eq!(self.access.request(self.now, ticket, check, urgency), Ok(false));
        self.seen("asked");
    }

    fn check_everything(&mut self) {
        assert!(self.running.len() <= LIMIT);
        assert_eq!(self.access.running(), self.running.len());
        assert_eq!(self.access.waiting(), self.model.waiting());
        let slots: BTreeSet<usize> = self.model.conns.keys().map(|id| id.slot()).collect();
        assert_eq!(slots.len(), self.model.conns.len());
        for (id, conn) in &self.model.conns {
            let user = conn.authenticated.then_some(conn.user.as_str());
            assert_eq!(self.hub.user(*id), user);
        }
        // Every authenticated connection's topics that could be published.
        for topic in TOPICS {
            let Ok(receivers) = self.hub.receivers(&about(topic, None)) else { continue };
            let mut receivers: Vec<ConnId> = receivers.collect();
            receivers.sort_unstable();
            assert_eq!(receivers, self.model.receivers(topic, None), "{topic}");
        }
    }

    /// Everybody leaves: nothing may be left.
    fn end(&mut self) {
        let ids: Vec<ConnId> = self.model.conns.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
        self.carry_out();
        if self.reloading {
            self.reloading = false;
            self.access.set_paused(false);
            self.hub.reload(None);
            self.carry_out();
        }
        for (job, _) in std::mem::take(&mut self.running) {
            let mut answers = Vec::new();
            self.access.finish(self.now, job, &Verdict::Granted, &mut answers);
            assert!(answers.is_empty());
        }
        assert!(self.access.start(self.now).is_none());
        assert!(self.hub.is_empty());
        assert!(self.access.is_idle());
        let mut fired = Vec::new();
        self.timers.take_due(self.now.after(Duration::from_secs(3_600)), &mut fired);
        assert!(self.timers.is_empty());
    }

    fn some_conn(&mut self) -> Option<ConnId> {
        let count = self.model.conns.len();
        (count > 0).then(|| *self.model.conns.keys().nth(self.random.below(count)).unwrap())
    }

    fn seen(&mut self, what: &'static str) {
        *self.seen.counts.entry(what).or_default() += 1;
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        if self.told {
            println!("{:>9} {}", self.now.as_millis(), line());
        }
    }
}

fn about(topic: &'static str, user: Option<&'static str>) -> Submission<'static> {
    Submission { topic: topic.into(), user: user.map(Into::into), json: "{}" }
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub fn expect_everything(&self) {
        for what in [
            "answered",
            "no longer granted",
            "reviewed",
            "revoked",
            "still granted",
            "still logged in",
            "token not reviewed",
            "topic not reviewed",
            "asked",
            "closed",
            "delivered",
            "denied",
            "dropped",
            "given up",
            "granted",
            "misbehaved",
            "pinged",
            "refused",
            "reloaded",
            "stale verdict",
            "unheard",
            "unknown topic",
            "welcomed",
        ] {
            let count = self.counts.get(what).copied().unwrap_or(0);
            assert!(count > 50, "{what}: only {count} times");
        }
    }
}
