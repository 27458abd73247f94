//! Everything around the server: browsers, the network, EspoCRM, PHP, the clock, the kernel.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use mio::Poll;

use super::browser::{Browser, TOPICS, USERS};
use super::invariants::{check_empty, check_lists, check_settled};
use super::oracle::{Oracle, Sent};
use super::tab::{Stage, Tab};
use super::wire::Item;
use super::{Accepting, Backend, EventSource, Ready, Server, Settings, model};
use crate::daemon::listener::Listener;
use crate::daemon::reload::Reloader;
use crate::daemon::script::{
    Arrivals, Children, Journal, Kernel, Messages, Number, Probes, Random, Socket,
};
use crate::daemon::seam::{Clock, SettingsReader, Signals, TcpListener, ZmqReceiver};
use crate::daemon::settings_reader::Probed;
use crate::daemon::zmq::Zmq;
use crate::engine::checks::verdict::{Failure, Verdict};
use crate::engine::espocrm::category::Categories;
use crate::engine::espocrm::submission::Rejection;
use crate::engine::reload::Outcome;
use crate::engine::time::Time;
use crate::espocrm::Installation;
use crate::settings::CheckMode;

pub(super) struct World {
    random: Random,
    server: Server,
    settings: Settings,
    pub oracle: Oracle,
    journal: Journal,
    arrivals: Arrivals,
    messages: Messages,
    children: Children,
    probes: Probes,
    /// Connections so far.
    connections: Number,
    /// Messages so far.
    submissions: usize,
    /// Consecutive turns that did nothing and did not wait.
    idle_turns: u32,
    /// Share of system calls with a fault or a partial result, in percent.
    fault_percent: usize,
    /// Maximum length of a message.
    longest: usize,
    /// The database is down, so most checks fail.
    is_down: bool,
}

/// Length of a message such that a few exceed the queue of a browser that does not read.
const LONG: usize = 400_000;

impl World {
    pub(super) fn new(seed: u64, mut settings: Settings, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        settings.max_connections.value = *random.pick(&[4, 10, 100, 100]);
        settings.max_checks.value = 1 + random.below(4);
        settings.categories = Categories::from_json(&model::categories(0));
        settings.recheck_interval.value = Duration::ZERO;
        settings.check_cache.value = Duration::ZERO;
        settings.check_mode.value = CheckMode::Plain("");
        let journal = Journal::default();
        let arrivals = Arrivals::new(&journal, Random::new(random.below(usize::MAX) as u64));
        let messages = Messages::new(&journal, Random::new(random.below(usize::MAX) as u64));
        let probes = Probes::new(&journal);
        settings.max_per_address.value = *random.pick(&[3, 100, 100]);
        settings.max_per_user.value = *random.pick(&[2, 100, 100]);
        let mut oracle = Oracle::new(&journal, &settings);
        oracle.verbose = verbose;
        let listener = Listener::of(vec![TcpListener::Scripted(arrivals.clone())]).unwrap();
        let server = Server::assemble(
            settings.clone(),
            Backend::Espocrm(Installation::scripted()),
            Some(Reloader::new(SettingsReader::Scripted(probes.clone()))),
            Signals::Scripted,
            Poll::new().unwrap(),
            Accepting::new(listener, None),
            Zmq::of(ZmqReceiver::scripted(messages.clone())),
        );
        let children = server.checks.children().clone();
        children.record(&journal);
        let mut world = Self {
            server,
            settings,
            oracle,
            journal,
            arrivals,
            messages,
            children,
            probes,
            connections: 0,
            submissions: 0,
            idle_turns: 0,
            fault_percent: *random.pick(&[0, 10, 10, 40]),
            longest: if random.chance(8) { LONG } else { 1_000 },
            is_down: false,
            random,
        };
        world.set_clock(Time::default());
        world
    }

    pub(super) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            for _ in 0..=self.random.below(4) {
                self.step();
            }
            self.turn();
        }
        self.end();
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..6 => self.connect(),
            6..22 => self.with_some_tab(|tab, random| tab.browser.send_something(random)),
            22..50 => self.with_some_tab(deliver),
            50..60 => self.with_some_tab(drain),
            60 => self.with_some_tab(leave),
            61..75 => self.submit(),
            75..92 => self.answer(),
            92 => match self.random.below(10) {
                0..3 => self.request_reload(),
                3..7 => self.change_files(),
                _ => self.self_check(),
            },
            93 => self.is_down = self.random.chance(10),
            94 => {
                let error = self.accept_error();
                self.arrivals.push(Err(error));
            }
            _ => self.let_time_pass(),
        }
    }

    fn connect(&mut self) {
        if self.oracle.tabs.len() >= 12 {
            return;
        }
        let number = self.connections;
        self.connections += 1;
        let random = Random::new(self.random.below(usize::MAX) as u64);
        let kernel = Kernel::new(number, &self.journal, random);
        kernel.borrow_mut().fault_percent = self.fault_percent;
        if self.random.chance(if self.longest == LONG { 80 } else { 30 }) {
            kernel.borrow_mut().room = self.random.below(5_000);
        }
        let socket = Socket::new(&kernel);
        let browser = Browser::new(kernel, &mut self.random);
        self.oracle.tabs.insert(number, Tab::new(number, browser));
        self.arrivals.push(Ok(socket));
    }

    fn accept_error(&mut self) -> io::Error {
        let kinds = [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted];
        match self.random.below(3) {
            2 => io::Error::from_raw_os_error(24),
            index => kinds[index].into(),
        }
    }

    fn with_some_tab(&mut self, act: impl FnOnce(&mut Tab, &mut Random)) {
        let count = self.oracle.tabs.len();
        if count > 0 {
            let tab = self.oracle.tabs.values_mut().nth(self.random.below(count)).unwrap();
            act(tab, &mut self.random);
        }
    }

    fn submit(&mut self) {
        for _ in 0..=self.random.below(3) * self.random.below(4) {
            self.submissions += 1;
            let number = self.submissions;
            let topics = if self.longest == LONG { &TOPICS[..1] } else { &TOPICS };
            let topic = *self.random.pick(topics);
            let user = self.random.chance(30).then(|| *self.random.pick(&USERS));
            let longest = if self.random.chance(20) { self.longest } else { 100 };
            let filling = "x".repeat(self.random.below(longest));
            let text = match user {
                None => format!("{{\"topicId\":\"{topic}\",\"n\":{number},\"x\":\"{filling}\"}}"),
                Some(user) => {
                    format!("{{\"n\":{number},\"userId\":\"{user}\",\"topicId\":\"{topic}\"}}")
                }
            };
            let (message, meaning) = match self.random.below(40) {
                0 => (Ok(text.replace("topicId", "topic").into()), None),
                1 => (Err(Rejection::Multipart), None),
                _ => (Ok(text.into()), Some((topic, user))),
            };
            self.messages.push(message.clone());
            self.oracle.sent.push_back(Sent { message, meaning });
        }
    }

    /// PHP answers one of the running checks.
    fn answer(&mut self) {
        let count = self.oracle.running.len();
        if count == 0 {
            return;
        }
        let (id, command) = &self.oracle.running[self.random.below(count)];
        let token = command.strip_prefix("AuthTokenCheck ");
        let is_bad = token.is_some_and(|token| !token.starts_with("good"));
        let denied = token.is_none() && self.random.chance(20);
        let fails = if self.is_down { 90 } else { 3 };
        let verdict = if self.random.chance(fails) {
            Verdict::Failed(Failure::TimedOut)
        } else if is_bad || denied {
            Verdict::Denied
        } else {
            Verdict::Granted
        };
        self.children.answer(*id, verdict);
    }

    /// The files change. The server notices that when it checks them.
    fn change_files(&mut self) {
        self.settle();
        self.oracle.reloads.edition = self.random.below(24) as u32;
        self.oracle.reloads.is_stale = true;
        self.probes.change();
    }

    /// The administrator requests a reload.
    fn request_reload(&mut self) {
        // Among a turn's events, when nothing is pending.
        self.settle();
        self.server.reload();
        self.oracle.requested();
    }

    fn end_probe(&mut self) {
        self.settle();
        if !self.oracle.reloads.is_running {
            return;
        }
        let edition = self.oracle.reloads.edition;
        self.settings.categories = Categories::from_json(&model::categories(edition));
        let error = "error".to_owned();
        let (outcome, probed) = match self.random.below(10) {
            0..6 => (Outcome::Settings, Probed::Settings(Box::new(self.settings.clone()))),
            6 => (Outcome::Invalid(error), Probed::Invalid(self.settings.version.clone())),
            7 => (Outcome::OtherPhp(error), Probed::Nothing),
            8 => (Outcome::Replaced(error), Probed::Nothing),
            _ => (Outcome::Failed(error), Probed::Nothing),
        };
        self.probes.fail_to_start(self.random.below(20).saturating_sub(16) as u32);
        self.probes.set_outcome(outcome.clone(), probed);
        self.children.end_probe();
        self.server.reap_children();
        self.oracle.probed(&outcome, edition);
    }

    /// Ends the running self-check, or requests one.
    fn self_check(&mut self) {
        self.settle();
        if !self.oracle.self_check.is_running() || self.random.chance(10) {
            self.server.request_self_check();
            return self.oracle.self_check.request(self.oracle.now);
        }
        let verdict = match self.random.below(30) {
            0 => Verdict::Granted,
            1..4 => Verdict::Failed(Failure::TimedOut),
            _ => Verdict::Denied,
        };
        self.children.end_self_check(verdict.clone());
        self.server.reap_children();
        self.oracle.self_checked(&verdict);
    }

    fn let_time_pass(&mut self) {
        let longest =
            *self.random.pick(&[10, 10, 100, 100, 1_000, 1_000, 5_000, 10_000, 30_000, 7_200_000]);
        let step = Duration::from_millis(self.random.below(longest) as u64);
        self.set_clock(self.oracle.now.after(step));
    }

    fn set_clock(&mut self, now: Time) {
        self.server.clock = Clock(now);
    }

    /// The first half of a turn.
    fn settle(&mut self) -> Option<Duration> {
        let wait = self.server.settle();
        self.oracle.carry_out();
        self.oracle.follow();
        if !self.server.hub.has_actions() {
            self.oracle.checks.carry_out();
        }
        check_settled(&mut self.server, &self.oracle, wait);
        if wait != Some(Duration::ZERO) {
            let is_paused = self.server.accepting.paused_until().is_some();
            assert!(is_paused || !self.arrivals.is_stuck(), "a connection is not accepted");
            let backpressure = self.server.backpressure_until();
            assert!(
                backpressure.is_some_and(|until| until > self.server.now) && wait.is_some()
                    || !self.messages.is_stuck(),
                "a message is not received"
            );
        }
        wait
    }

    fn turn(&mut self) {
        if self.oracle.reloads.is_running && self.random.chance(15) {
            self.end_probe();
        }
        if self.oracle.self_check.is_running() && self.random.chance(30) {
            self.self_check();
        }
        let before = self.oracle.progress;
        let wait = self.settle();
        if self.random.chance(3) {
            // The poll was interrupted.
            return;
        }
        let events = self.events();
        let now = self.server.clock.now();
        let is_quiet = events.is_empty() && now == self.oracle.now;
        if self.oracle.verbose {
            println!("{:>9} the kernel reports {events:?}", now.as_millis());
        }
        self.oracle.reloads.begin_turn();
        self.server.process(events.into_iter());
        self.oracle.now = now;
        self.oracle.follow();
        self.oracle.checks.expire(now);
        check_lists(&mut self.server);
        let is_idle = is_quiet && wait == Some(Duration::ZERO) && self.oracle.progress == before;
        self.idle_turns = if is_idle { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < 3, "the event loop spins");
        self.react();
    }

    /// The kernel's events: all that are due, now or later, and spurious ones.
    fn events(&mut self) -> Vec<Ready> {
        let mut events = Vec::new();
        for tab in self.oracle.tabs.values() {
            let mut kernel = tab.browser.kernel.borrow_mut();
            let Some(token) = kernel.token.filter(|_| !kernel.dropped) else { continue };
            if kernel.edge && self.random.chance(70) {
                kernel.edge = false;
            } else if !self.random.chance(2) {
                continue;
            }
            let ready = Ready {
                token,
                readable: kernel.is_readable(),
                writable: kernel.is_writable(),
                ended: kernel.fin || kernel.reset,
            };
            let times = if self.random.chance(5) { 2 } else { 1 };
            events.extend(std::iter::repeat_n(ready, times));
        }
        if self.arrivals.take_edge() {
            events.push(ready(EventSource::Listener));
        }
        if self.messages.take_edge() {
            events.push(ready(EventSource::Zmq));
        }
        // If a timer may begin a reload, the model cannot derive whether verdicts precede it.
        let now = self.server.clock.now();
        let reloads = &self.oracle.reloads;
        let is_due = reloads.is_check_due(now) && self.oracle.open() > 0;
        if !(reloads.would_begin(now) && (is_due || self.oracle.self_check.is_locked_down())) {
            for _ in 0..self.children.exited() {
                events.push(ready(EventSource::Signals));
            }
        }
        if self.random.chance(5) {
            // A spurious event, possibly for an unknown token.
            let conn = EventSource::Connection(self.random.below(20));
            let sources = [EventSource::Listener, EventSource::Zmq, conn, conn];
            events.push(ready(*self.random.pick(&sources)));
        }
        for index in (1..events.len()).rev() {
            events.swap(index, self.random.below(index + 1));
        }
        events
    }

    /// Browsers answer pings and Close frames.
    fn react(&mut self) {
        let random = &mut self.random;
        for tab in self.oracle.tabs.values_mut() {
            for item in std::mem::take(&mut tab.unanswered) {
                let behavior = &tab.browser.behavior;
                match item {
                    Item::Ping if !behavior.ignores_pings => tab.browser.pong(random),
                    Item::Close(code) if !behavior.ignores_close => tab.browser.close(random, code),
                    _ => {}
                }
            }
            let is_over = tab.browser.kernel.borrow().finished;
            if is_over && random.chance(40) {
                tab.browser.end();
            }
        }
    }

    /// All browsers disconnect, or the daemon stops.
    fn end(&mut self) {
        self.is_down = false;
        while self.oracle.reloads.is_running || !self.oracle.self_check.allows_checks() {
            self.pass_a_second();
        }
        if self.random.chance(10) {
            return self.stop();
        }
        for tab in self.oracle.tabs.values_mut() {
            tab.browser.kernel.borrow_mut().fault_percent = 0;
            tab.browser.end();
        }
        let mut rounds = VecDeque::from([0; 200]);
        while rounds.pop_front().is_some() {
            self.answer();
            self.pass_a_second();
        }
        self.settle();
        check_empty(&mut self.server, &self.oracle);
    }

    fn pass_a_second(&mut self) {
        self.set_clock(self.oracle.now.after(Duration::from_secs(1)));
        self.turn();
    }

    /// The daemon stops without sending Close frames.
    fn stop(&mut self) {
        self.settle();
        self.server.stop();
        for tab in self.oracle.tabs.values_mut().filter(|tab| tab.stage != Stage::Unaccepted) {
            tab.stage = Stage::Ended;
        }
        self.oracle.follow();
        assert_eq!(self.oracle.open(), 0);
        self.oracle.seen("stopped");
    }
}

fn ready(source: EventSource) -> Ready {
    Ready { token: source.token(), readable: true, writable: true, ended: false }
}

/// Some bytes in transit arrive.
fn deliver(tab: &mut Tab, random: &mut Random) {
    let browser = &mut tab.browser;
    let mut kernel = browser.kernel.borrow_mut();
    if browser.in_transit.is_empty() || kernel.fin || kernel.reset {
        return;
    }
    let most = if browser.behavior.byte_by_byte { 2 } else { browser.in_transit.len() };
    let count = if random.chance(60) { most } else { random.below(most + 1) };
    let bytes: Vec<u8> = browser.in_transit.drain(..count.min(browser.in_transit.len())).collect();
    kernel.arrive(&bytes);
}

/// The browser reads, which frees space in the kernel's buffer.
fn drain(tab: &mut Tab, random: &mut Random) {
    if !tab.browser.behavior.never_reads {
        let bytes = *random.pick(&[10, 1_000, 100_000, usize::MAX]);
        tab.browser.kernel.borrow_mut().make_room(random.below(bytes));
    }
}

fn leave(tab: &mut Tab, random: &mut Random) {
    if random.chance(50) {
        tab.browser.end();
    } else {
        tab.browser.kernel.borrow_mut().abort();
    }
}
