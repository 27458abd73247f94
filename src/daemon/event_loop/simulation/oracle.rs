//! Follows what the server does, entry by entry, and says what must come of it.

mod reading;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::access::Checks;
use super::model::{self, Rule};
use super::tab::{Expected, Stage, Status, Tab};
use crate::daemon::script::{Entry, Journal, Message, Number, address_of};
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::time::Time;
use crate::settings::Settings;

#[allow(clippy::struct_excessive_bools, reason = "each comes with any other")]
pub(super) struct Oracle {
    pub now: Time,
    pub tabs: BTreeMap<Number, Tab>,
    pub checks: Checks,
    /// PHP processes.
    pub running: Vec<(JobId, Rc<Check>)>,
    /// What EspoCRM has sent, as far as the server has not received it.
    pub sent: VecDeque<Sent>,
    pub edition: u32,
    pub is_reloading: bool,
    /// A self-check has not ended.
    pub is_self_checking: bool,
    /// EspoCRM accepts any token.
    pub is_locked_down: bool,
    pub max_connections: usize,
    pub max_per_address: usize,
    pub max_per_user: usize,
    pub ping_interval: Duration,
    pub seen: BTreeMap<&'static str, u64>,
    /// Entries followed.
    pub progress: u64,
    pub is_told: bool,
    journal: Journal,
}

/// A message of EspoCRM.
pub(super) struct Sent {
    pub message: Message,
    /// Of which topic and for whom it is, if it is well-formed.
    pub meaning: Option<(&'static str, Option<&'static str>)>,
}

/// As the server has it.
const OVER_LIMIT: usize = 64;

impl Oracle {
    pub(super) fn new(journal: &Journal, settings: &Settings) -> Self {
        Self {
            now: Time::default(),
            tabs: BTreeMap::new(),
            checks: Checks::default(),
            running: Vec::new(),
            sent: VecDeque::new(),
            edition: 0,
            is_reloading: false,
            is_self_checking: false,
            is_locked_down: false,
            max_connections: settings.max_connections.value,
            max_per_address: settings.max_per_address.value,
            max_per_user: settings.max_per_user.value,
            ping_interval: settings.ping_interval.value,
            seen: BTreeMap::new(),
            progress: 0,
            is_told: false,
            journal: Rc::clone(journal),
        }
    }

    /// Follows what the server has done since the last time.
    pub(super) fn follow(&mut self) {
        while let Some(entry) = self.next() {
            self.progress += 1;
            if self.is_told {
                println!("{:>9} {entry:?}", self.now.as_millis());
            }
            match entry {
                Entry::Accepted(number) => self.accepted(number),
                Entry::Read(number, 0) => self.end(number, "ended by the browser"),
                Entry::Read(number, count) => self.read(number, count),
                Entry::Wrote(number, count) => self.wrote(number, count),
                Entry::ReadFailed(number) => self.end(number, "reading failed"),
                Entry::WriteFailed(number) => {
                    // What is decided is carried out before anything is written.
                    self.carry_out();
                    self.end(number, "writing failed");
                }
                Entry::Finished(number) => self.finished(number),
                Entry::Dropped(number) => self.dropped(number),
                Entry::Received(message) => self.received(&message),
                Entry::Started(id, check) => self.started(id, check),
                Entry::Answered(id, check, verdict) => self.answered(id, &check, &verdict),
            }
        }
    }

    fn next(&self) -> Option<Entry> {
        self.journal.borrow_mut().pop_front()
    }

    pub(super) fn seen(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Those that are the server's.
    pub(super) fn open(&self) -> usize {
        self.tabs.values().filter(|tab| tab.stage != Stage::Knocking).count()
    }

    fn tab(&mut self, number: Number) -> &mut Tab {
        self.tabs.get_mut(&number).expect("a connection that was not closed")
    }

    fn accepted(&mut self, number: Number) {
        let (now, open, limit) = (self.now, self.open(), self.max_connections);
        let address = address_of(number);
        let there = |tab: &&Tab| !matches!(tab.stage, Stage::Knocking | Stage::Over);
        let others = self.tabs.values().filter(there);
        let others = others.filter(|tab| address_of(tab.number) == address).count();
        let is_alone = others < self.max_per_address;
        let tab = self.tab(number);
        assert_eq!(tab.stage, Stage::Knocking);
        tab.enter(now, Stage::Upgrading);
        (tab.accepted, tab.heard) = (now, now);
        tab.over_limit = open >= limit || !is_alone;
        if open >= limit + OVER_LIMIT {
            self.end(number, "turned away");
        }
    }

    fn subscribe(&mut self, number: Number, topic: &'static str) {
        let tab = self.tab(number);
        if tab.topics.contains_key(topic) {
            return;
        }
        tab.topics.insert(topic, Status::Held);
        let waits = !tab.is_logged_in;
        match model::rule(self.edition, topic) {
            Rule::Bad | Rule::Unknown if !self.is_reloading => {
                self.tab(number).topics.remove(topic);
            }
            _ if !waits => self.resolve(number, topic),
            _ => {}
        }
    }

    /// Finds out what a subscription that is held has to wait for.
    fn resolve(&mut self, number: Number, topic: &'static str) {
        let is_reloading = self.is_reloading;
        let rule = model::rule(self.edition, topic);
        let tab = self.tab(number);
        match rule {
            Rule::Check(command) => {
                let command = command.replace("{user}", tab.user());
                let ticket = self.checks.request(number, Some(topic), command);
                self.tab(number).topics.insert(topic, Status::Waiting(ticket));
            }
            _ if is_reloading => {}
            Rule::Open => drop(tab.topics.insert(topic, Status::Granted)),
            Rule::Bad | Rule::Unknown => drop(tab.topics.remove(topic)),
        }
    }

    fn resolve_all(&mut self, number: Number) {
        let topics = self.tab(number).topics.clone();
        for (topic, status) in topics {
            if status == Status::Held {
                self.resolve(number, topic);
            }
        }
    }

    /// The settings are another edition's now, or the same as before.
    pub(super) fn reload(&mut self, edition: u32) {
        self.is_reloading = false;
        let old = std::mem::replace(&mut self.edition, edition);
        let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open);
        for number in open.map(|tab| tab.number).collect::<Vec<_>>() {
            for (topic, status) in &mut self.tab(number).topics {
                if model::rule(old, topic) != model::rule(edition, topic) {
                    *status = Status::Held;
                }
            }
            let tab = &self.tabs[&number];
            self.checks.cancel(|it| {
                let topic = it.topic.filter(|_| it.tab == number);
                topic.is_some_and(|topic| tab.topics.get(topic) == Some(&Status::Held))
            });
            if tab.is_logged_in {
                self.resolve_all(number);
            }
        }
        self.seen("reloaded");
    }

    /// The self-check has ended with this verdict.
    pub(super) fn self_checked(&mut self, verdict: &Verdict) {
        self.is_self_checking = false;
        match verdict {
            Verdict::Granted => {
                self.is_locked_down = true;
                let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open);
                for number in open.map(|tab| tab.number).collect::<Vec<_>>() {
                    self.end(number, "locked down");
                }
            }
            Verdict::Denied if self.is_locked_down => {
                self.is_locked_down = false;
                self.seen("let in again");
            }
            // What was accepted before stays in doubt.
            Verdict::Denied | Verdict::Unchecked(_) => {}
        }
    }

    /// What has been found out takes effect.
    pub(super) fn carry_out(&mut self) {
        loop {
            self.checks.carry_out();
            self.absorb();
            if !self.checks.has_answers() {
                return;
            }
            let mut welcome = Vec::new();
            for (ticket, verdict) in self.checks.take_answers() {
                let tab = self.tabs.get_mut(&ticket.tab).expect("whoever waits is there");
                assert_eq!(tab.stage, Stage::Open);
                let Some(topic) = ticket.topic else {
                    self.log_in(ticket.tab, &verdict);
                    welcome.push(ticket.tab);
                    continue;
                };
                assert_eq!(tab.topics.get(topic), Some(&Status::Waiting(ticket.number)));
                if verdict == Verdict::Granted {
                    tab.topics.insert(topic, Status::Granted);
                    self.seen("granted");
                } else {
                    tab.topics.remove(topic);
                    self.seen(if verdict == Verdict::Denied { "denied" } else { "given up" });
                }
            }
            // Of those of one user who come in together, too many are sent away.
            for number in welcome {
                self.welcome(number);
            }
        }
    }

    fn log_in(&mut self, number: Number, verdict: &Verdict) {
        let tab = self.tab(number);
        assert!(!tab.is_logged_in);
        match verdict {
            Verdict::Granted => {
                tab.is_logged_in = true;
                self.resolve_all(number);
            }
            Verdict::Denied => self.close(number, 1008, "refused"),
            Verdict::Unchecked(_) => self.end(number, "not checked"),
        }
    }

    fn welcome(&mut self, number: Number) {
        let tab = self.tab(number);
        if tab.stage != Stage::Open {
            return;
        }
        let user = tab.user();
        if self.logged_in(user) > self.max_per_user {
            return self.end(number, "one too many of its user");
        }
        self.tab(number).expected.push_back(Expected::Welcome);
        self.seen("welcomed");
    }

    fn logged_in(&self, user: &str) -> usize {
        let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open && tab.is_logged_in);
        open.filter(|tab| tab.user() == user).count()
    }

    /// Takes the checks that are started as soon as they are asked for; the response to an upgrade
    /// may have been written before.
    fn absorb(&mut self) {
        loop {
            let mut journal = self.journal.borrow_mut();
            let index = journal.iter().position(|entry| !matches!(entry, Entry::Wrote(..)));
            let entry = index.and_then(|index| Some((index, journal.get(index)?)));
            let Some((index, Entry::Started(id, check))) = entry else { return };
            if !self.checks.start(*id, &check.arguments.join(" ")) {
                return;
            }
            self.running.push((*id, Rc::clone(check)));
            journal.remove(index);
        }
    }

    fn started(&mut self, id: JobId, check: Rc<Check>) {
        assert!(!self.is_reloading, "nothing is started while the settings are being read");
        assert!(!self.is_locked_down, "nothing is started while EspoCRM accepts any token");
        assert!(!self.is_self_checking, "nothing is started before the self-check has ended");
        let command = check.arguments.join(" ");
        if !self.checks.start(id, &command) {
            self.carry_out();
            assert!(self.checks.start(id, &command), "nobody has asked for: {command}");
        }
        self.running.push((id, check));
    }

    fn answered(&mut self, id: JobId, check: &Rc<Check>, verdict: &Verdict) {
        assert!(self.running.contains(&(id, Rc::clone(check))));
        self.running.retain(|(running, _)| *running != id);
        self.checks.finish(self.now, id, verdict);
    }

    fn received(&mut self, message: &Message) {
        self.carry_out();
        let sent = self.sent.pop_front().expect("a message that was sent");
        assert_eq!(sent.message, *message);
        let (Some((topic, user)), Ok(text)) = (sent.meaning, message) else { return };
        let mut receivers = 0;
        for tab in self.tabs.values_mut().filter(|tab| tab.may_see(topic, user)) {
            let event = format!("[8,\"{topic}\",{text}]");
            tab.expected.push_back(Expected::Text(event));
            receivers += 1;
        }
        self.seen(if receivers > 0 { "delivered" } else { "unheard" });
    }

    fn wrote(&mut self, number: Number, count: usize) {
        let now = self.now;
        let tab = self.tab(number);
        tab.written += count;
        if tab.look(now).is_err() {
            self.carry_out();
            if let Err(error) = self.tab(number).look(now) {
                panic!("to {number} was written: {error}");
            }
        }
    }

    fn finished(&mut self, number: Number) {
        let tab = self.tab(number);
        assert!(tab.is_finishing, "{number} is shut down");
        assert!(tab.expected.is_empty(), "{number} is shut down before {:?}", tab.expected);
    }

    fn finish(&mut self, number: Number) {
        let now = self.now;
        self.tab(number).enter(now, Stage::Finishing);
        self.checks.cancel(|ticket| ticket.tab == number);
    }

    /// The server sends a Close frame.
    fn close(&mut self, number: Number, code: u16, why: &'static str) {
        let now = self.now;
        let tab = self.tab(number);
        tab.expected.push_back(Expected::Close(Some(code)));
        tab.enter(now, Stage::Closing);
        self.checks.cancel(|ticket| ticket.tab == number);
        self.seen(why);
    }

    fn end(&mut self, number: Number, why: &'static str) {
        let now = self.now;
        self.tab(number).enter(now, Stage::Over);
        self.checks.cancel(|ticket| ticket.tab == number);
        self.seen(why);
    }

    fn dropped(&mut self, number: Number) {
        let (now, ping_interval) = (self.now, self.ping_interval);
        let excuse = self.tab(number).excuse(now, ping_interval);
        let Some(excuse) = excuse else {
            panic!("{number} was closed at the stage {:?}", self.tab(number).stage);
        };
        self.seen(excuse);
        self.tabs.remove(&number);
        self.checks.cancel(|ticket| ticket.tab == number);
    }
}
