//! The core under test with a simulated shell around it: EspoCRM, PHP, browsers, the clock.

mod browsers;
mod checks;
mod clock;
mod espocrm;
mod invariants;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use espocrm_websocket::engine::checks::check::{Check, Ticket};
use espocrm_websocket::engine::checks::queue::{Capacity, CheckQueue, JobId};
use espocrm_websocket::engine::espocrm::category::Categories;
use espocrm_websocket::engine::espocrm::submission::Submission;
use espocrm_websocket::engine::hub::{Action, Hub};
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::time::Time;
use espocrm_websocket::engine::timers::Timers;

use crate::choices::Choices;
use crate::model::{self, Model};
use crate::seen::Seen;

#[expect(clippy::struct_excessive_bools, reason = "each is independent")]
pub struct World {
    choices: Choices,
    told: bool,
    now: Time,
    hub: Hub,
    access: CheckQueue,
    timers: Timers,
    /// When each connection is due; the server keeps this in the connection.
    due: BTreeMap<ConnId, Time>,
    /// When the timer of each fires.
    armed: BTreeMap<ConnId, Time>,
    /// By how much the clock was put forward last.
    step: Duration,
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
    recheck_interval: Duration,
    /// When that was set.
    recheck_since: Time,
    seen: Seen,
    /// Whether the engine's own invariants are checked after each step, which takes most of the time.
    is_thorough: bool,
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
/// Until delayed subscriptions are tried again.
const RESUME: Duration = Duration::from_secs(1);
/// The longest step of time.
const LONGEST: Duration = Duration::from_secs(100);

impl World {
    pub fn new(choices: Choices, told: bool) -> Self {
        let mut world = Self {
            choices,
            told,
            now: Time::default(),
            hub: Hub::new(Categories::from_json(&model::categories(0))),
            access: CheckQueue::new(LIMIT),
            timers: Timers::default(),
            due: BTreeMap::new(),
            armed: BTreeMap::new(),
            step: Duration::ZERO,
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
            recheck_interval: Duration::ZERO,
            recheck_since: Time::default(),
            seen: Seen::default(),
            is_thorough: false,
        };
        world.is_thorough = world.choices.chance(20);
        world.set_recheck_interval(60);
        // Some queues are soon full.
        if world.choices.chance(30) {
            world.access.set_capacity(Capacity { logins: 6, subscriptions: 8, rechecks: 5 });
        }
        world
    }

    pub fn run(mut self, steps: usize) -> Seen {
        for _ in 0..steps {
            if self.choices.is_over() {
                break;
            }
            self.step();
            self.check_everything();
        }
        self.end();
        self.seen
    }

    fn step(&mut self) {
        match self.choices.below(100) {
            0..10 => self.open(),
            10..13 => self.close_one(),
            13..40 => self.subscribe_or_not(),
            40..41 => self.say_something_else(),
            41..70 => self.finish_one(),
            70..83 => self.publish(),
            83..86 => self.repeat_an_old_verdict(),
            86..88 => self.reload(),
            88..89 => self.log_out(),
            89..91 => self.recheck_one(),
            _ => self.let_time_pass(),
        }
    }

    /// Does what the hub wants, as the server does.
    fn carry_out(&mut self) {
        while let Some(action) = self.hub.poll() {
            match action {
                Action::Check(ticket, urgency, check) => self.issue(ticket, urgency, &check),
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

    fn some_conn(&mut self) -> Option<ConnId> {
        let count = self.model.conns.len();
        (count > 0).then(|| *self.model.conns.keys().nth(self.choices.below(count)).unwrap())
    }

    fn seen(&mut self, what: &'static str) {
        self.seen.note(what);
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
