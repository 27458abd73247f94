//! Follows the server's journal entry by entry and derives the expected results.

mod reading;
mod reloading;
mod self_check;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::access::Checks;
use super::model::{self, Rule};
use super::tab::{Expected, Stage, Status, Tab};
use crate::daemon::script::{Entry, Journal, Message, Number, address_of};
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::time::Time;
use crate::settings::Settings;
use reloading::Reloads;
use self_check::SelfCheck;

pub(super) struct Oracle {
    pub now: Time,
    pub tabs: BTreeMap<Number, Tab>,
    pub checks: Checks,
    /// Checks that PHP is running.
    pub running: Vec<(JobId, Rc<str>)>,
    /// Messages of EspoCRM that the server has not received.
    pub sent: VecDeque<Sent>,
    pub edition: u32,
    pub reloads: Reloads,
    pub self_check: SelfCheck,
    pub max_checks: usize,
    pub max_connections: usize,
    pub max_per_address: usize,
    pub max_per_user: usize,
    pub ping_interval: Duration,
    pub seen: BTreeMap<&'static str, u64>,
    /// Number of entries followed.
    pub progress: u64,
    pub verbose: bool,
    journal: Journal,
}

/// A message of EspoCRM.
pub(super) struct Sent {
    pub message: Message,
    /// Topic and user, if it is well-formed.
    pub meaning: Option<(&'static str, Option<&'static str>)>,
}

/// Same as in the server.
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
            reloads: Reloads::default(),
            self_check: SelfCheck::default(),
            max_checks: settings.max_checks.value,
            max_connections: settings.max_connections.value,
            max_per_address: settings.max_per_address.value,
            max_per_user: settings.max_per_user.value,
            ping_interval: settings.ping_interval.value,
            seen: BTreeMap::new(),
            progress: 0,
            verbose: false,
            journal: Rc::clone(journal),
        }
    }

    /// Processes the journal's new entries.
    pub(super) fn follow(&mut self) {
        while let Some(entry) = self.next() {
            self.progress += 1;
            if self.verbose {
                println!("{:>9} {entry:?}", self.now.as_millis());
            }
            match entry {
                Entry::Accepted(number) => self.accepted(number),
                Entry::Read(number, 0) => self.end(number, "ended by the browser"),
                Entry::Read(number, count) => self.read(number, count),
                Entry::Wrote(number, count) => self.wrote(number, count),
                Entry::ReadFailed(number) => self.end(number, "read failed"),
                Entry::WriteFailed(number) => {
                    // Decisions are carried out before output is written.
                    self.carry_out();
                    self.end(number, "write failed");
                }
                Entry::Finished(number) => self.finished(number),
                Entry::Dropped(number) => self.dropped(number),
                Entry::Received(message) => self.received(&message),
                Entry::Started(id, command) => self.started(id, command),
                Entry::SelfCheckStarted => {
                    assert!(!self.reloads.is_running, "a self-check was started during a reload");
                    self.self_check.start(self.now);
                }
                Entry::FilesChecked => {
                    // If it precedes the start of a check, verdicts may have been applied before.
                    self.journal.borrow_mut().push_front(entry);
                    self.carry_out();
                    self.take_file_check();
                }
                Entry::ProbeStarted(_) | Entry::ProbeNotStarted(_) => panic!("{entry:?}"),
                Entry::Answered(id, verdict) => self.answered(id, &verdict),
            }
        }
    }

    fn next(&self) -> Option<Entry> {
        self.journal.borrow_mut().pop_front()
    }

    pub(super) fn seen(&mut self, event: &'static str) {
        *self.seen.entry(event).or_default() += 1;
    }

    /// Number of connections accepted and not freed.
    pub(super) fn open(&self) -> usize {
        self.tabs.values().filter(|tab| tab.stage != Stage::Unaccepted).count()
    }

    fn tab(&mut self, number: Number) -> &mut Tab {
        self.tabs.get_mut(&number).expect("a connection that was not closed")
    }

    fn accepted(&mut self, number: Number) {
        let (now, open, limit) = (self.now, self.open(), self.max_connections);
        let address = address_of(number);
        let is_open = |tab: &&Tab| !matches!(tab.stage, Stage::Unaccepted | Stage::Ended);
        let others = self.tabs.values().filter(is_open);
        let others = others.filter(|tab| address_of(tab.number) == address).count();
        let has_room = others < self.max_per_address;
        let tab = self.tab(number);
        assert_eq!(tab.stage, Stage::Unaccepted);
        tab.enter(now, Stage::Upgrading);
        (tab.accepted, tab.last_read) = (now, now);
        tab.over_limit = open >= limit || !has_room;
        if open >= limit + OVER_LIMIT {
            self.end(number, "rejected");
        }
    }

    fn subscribe(&mut self, number: Number, topic: &'static str) {
        let tab = self.tab(number);
        if tab.topics.contains_key(topic) {
            return;
        }
        tab.topics.insert(topic, Status::Pending);
        let waits = !tab.is_logged_in;
        match model::rule(self.edition, topic) {
            Rule::Bad | Rule::Unknown if !self.reloads.is_running => {
                self.tab(number).topics.remove(topic);
            }
            _ if !waits => self.resolve(number, topic),
            _ => {}
        }
    }

    /// Determines what a pending subscription waits for.
    fn resolve(&mut self, number: Number, topic: &'static str) {
        let is_reloading = self.reloads.is_running;
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
            if status == Status::Pending {
                self.resolve(number, topic);
            }
        }
    }

    /// The self-check has ended with this verdict.
    pub(super) fn self_checked(&mut self, verdict: &Verdict) {
        let was_locked_down = self.self_check.is_locked_down();
        self.self_check.finish(self.now, verdict);
        match (was_locked_down, self.self_check.is_locked_down()) {
            (false, true) => {
                let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open);
                for number in open.map(|tab| tab.number).collect::<Vec<_>>() {
                    self.end(number, "locked down");
                }
            }
            (true, false) => self.seen("unlocked"),
            _ => {}
        }
    }

    /// Applies pending verdicts.
    pub(super) fn carry_out(&mut self) {
        loop {
            self.checks.carry_out();
            self.absorb();
            if !self.checks.has_answers() {
                return;
            }
            let mut welcome = Vec::new();
            for (ticket, verdict) in self.checks.take_answers() {
                let tab = self.tabs.get_mut(&ticket.tab).expect("a tab that waits is open");
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
            // Logins of one user that end together may exceed the limit.
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
            Verdict::Denied => self.close(number, 1008, "login denied"),
            Verdict::Failed(_) => self.end(number, "check failed"),
        }
    }

    fn welcome(&mut self, number: Number) {
        let tab = self.tab(number);
        if tab.stage != Stage::Open {
            return;
        }
        let user = tab.user();
        if self.logged_in(user) > self.max_per_user {
            return self.end(number, "over the user limit");
        }
        self.tab(number).expected.push_back(Expected::Welcome);
        self.seen("welcomed");
    }

    fn logged_in(&self, user: &str) -> usize {
        let open = self.tabs.values().filter(|tab| tab.stage == Stage::Open && tab.is_logged_in);
        open.filter(|tab| tab.user() == user).count()
    }

    /// Takes checks that start as soon as they are requested; the response to an upgrade may be
    /// written before.
    fn absorb(&mut self) {
        loop {
            self.take_file_check_before_start();
            let mut journal = self.journal.borrow_mut();
            let index = journal.iter().position(|entry| !matches!(entry, Entry::Wrote(..)));
            let entry = index.and_then(|index| Some((index, journal.get(index)?)));
            let Some((index, Entry::Started(id, command))) = entry else { return };
            if !self.checks.start(*id, command) {
                return;
            }
            self.running.push((*id, Rc::clone(command)));
            journal.remove(index);
        }
    }

    fn started(&mut self, id: JobId, command: Rc<str>) {
        assert!(!self.reloads.is_running, "a check was started during a reload");
        assert!(self.started_after_file_check(), "a check was started with unchecked files");
        assert!(self.self_check.allows_checks(), "a check was started before the self-check");
        if !self.checks.start(id, &command) {
            self.carry_out();
            assert!(self.checks.start(id, &command), "not requested: {command}");
        }
        self.running.push((id, command));
    }

    fn answered(&mut self, id: JobId, verdict: &Verdict) {
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
        self.seen(if receivers > 0 { "delivered" } else { "no receiver" });
    }

    fn wrote(&mut self, number: Number, count: usize) {
        let now = self.now;
        let tab = self.tab(number);
        tab.written += count;
        if tab.verify_output(now).is_err() {
            self.carry_out();
            if let Err(error) = self.tab(number).verify_output(now) {
                panic!("unexpected output to {number}: {error}");
            }
        }
    }

    fn finished(&mut self, number: Number) {
        let tab = self.tab(number);
        assert!(tab.is_finishing, "{number} was shut down too early");
        assert!(tab.expected.is_empty(), "{number} was shut down before {:?}", tab.expected);
    }

    fn finish(&mut self, number: Number) {
        let now = self.now;
        self.tab(number).enter(now, Stage::Finishing);
        self.checks.cancel(|ticket| ticket.tab == number);
    }

    /// The server sends a Close frame.
    fn close(&mut self, number: Number, code: u16, reason: &'static str) {
        let now = self.now;
        let tab = self.tab(number);
        tab.expected.push_back(Expected::Close(Some(code)));
        tab.enter(now, Stage::Closing);
        self.checks.cancel(|ticket| ticket.tab == number);
        self.seen(reason);
    }

    fn end(&mut self, number: Number, reason: &'static str) {
        let now = self.now;
        self.tab(number).enter(now, Stage::Ended);
        self.checks.cancel(|ticket| ticket.tab == number);
        self.seen(reason);
    }

    fn dropped(&mut self, number: Number) {
        let (now, ping_interval) = (self.now, self.ping_interval);
        let reason = self.tab(number).allowed_end(now, ping_interval);
        let Some(reason) = reason else {
            panic!("{number} was closed in stage {:?}", self.tab(number).stage);
        };
        self.seen(reason);
        self.tabs.remove(&number);
        self.checks.cancel(|ticket| ticket.tab == number);
    }
}
