//! The engine under test in a simulated environment: EspoCRM, PHP, browsers, the clock.

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
    trace: bool,
    now: Time,
    hub: Hub,
    queue: CheckQueue,
    timers: Timers,
    /// When each connection is due; the daemon keeps this in its connections.
    due: BTreeMap<ConnId, Time>,
    /// When the timer of each connection fires.
    armed: BTreeMap<ConnId, Time>,
    /// The length of the last step of time.
    step: Duration,
    model: Model,
    /// Free slots, which are reused as in the daemon's slab.
    free: Vec<u32>,
    slots: u32,
    serial: u32,
    /// Running checks.
    running: Vec<(JobId, Rc<Check>)>,
    /// Every ticket ever issued, in order and as a set.
    issued: Vec<Ticket>,
    known: BTreeSet<Ticket>,
    /// Checks fail, since the database is down.
    outage: bool,
    edition: u32,
    reloading: bool,
    /// How often each user has logged out: the number of the valid token.
    logouts: BTreeMap<&'static str, u32>,
    recheck_interval: Duration,
    /// When the interval was set.
    recheck_since: Time,
    seen: Seen,
    /// Checks the engine's own invariants after each step, which takes most of the time.
    is_thorough: bool,
}

const LIMIT: usize = 3;
const USERS: [&str; 5] = ["ann", "bob", "cyd", "dan", "eve"];
/// Each topic has its own command, so that a ticket identifies its topic.
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
/// Delay until delayed subscriptions are resumed.
const RESUME: Duration = Duration::from_secs(1);
/// The longest step of time.
const LONGEST: Duration = Duration::from_secs(100);

impl World {
    pub fn new(choices: Choices, trace: bool) -> Self {
        let mut world = Self {
            choices,
            trace,
            now: Time::default(),
            hub: Hub::new(Categories::from_json(&model::categories(0))),
            queue: CheckQueue::new(LIMIT),
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
        // Some queues fill up soon.
        if world.choices.chance(30) {
            world.queue.set_capacity(Capacity { logins: 6, subscriptions: 8, rechecks: 5 });
        }
        world
    }

    pub fn run(mut self, steps: usize) -> Seen {
        for _ in 0..steps {
            if self.choices.is_over() {
                break;
            }
            self.step();
            self.check_invariants();
        }
        self.end();
        self.seen
    }

    fn step(&mut self) {
        match self.choices.below(100) {
            0..10 => self.open(),
            10..13 => self.close_one(),
            13..40 => self.subscribe_or_not(),
            40..41 => self.send_other_message(),
            41..70 => self.finish_one(),
            70..83 => self.publish(),
            83..86 => self.repeat_an_old_verdict(),
            86..88 => self.reload(),
            88..89 => self.log_out(),
            89..91 => self.recheck_one(),
            _ => self.advance_time(),
        }
    }

    /// Performs the hub's actions, like the daemon.
    fn perform_actions(&mut self) {
        while let Some(action) = self.hub.poll() {
            match action {
                Action::Check(ticket, urgency, check) => self.issue(ticket, urgency, &check),
                Action::Cancel(ticket) => self.queue.cancel(ticket),
                Action::Forget(check) => self.queue.forget_verdict(&check),
                Action::Welcome(id) => assert!(self.model.conns[&id].authenticated),
                Action::Close(id, _) | Action::Drop(id) => {
                    assert!(!self.model.conns.contains_key(&id), "{id} must stay open");
                }
                Action::Send(..) => self.seen("answered"),
                Action::TooManySubscriptions(id) => panic!("{id} is below the limit"),
                Action::Log(line) => panic!("{line}"),
            }
        }
        while let Some(job) = self.queue.start(self.now) {
            assert!(!self.reloading, "no check starts during a reload");
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

    fn trace(&self, line: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} {}", self.now.as_millis(), line());
        }
    }
}

fn message(topic: &'static str, user: Option<&'static str>) -> Submission<'static> {
    Submission { topic: topic.into(), user: user.map(Into::into), json: "{}" }
}
