//! The event loop: one thread, one poll, every socket.

mod accept;
mod admission;
mod bursts;
mod checks;
mod control;
#[cfg(feature = "echo")]
mod echo;
mod handshake;
mod publish;
mod reload;
mod self_check;
#[cfg(test)]
mod simulation;
mod socket_io;
mod status;
mod websocket;
mod workers;
mod zmq_guard;

pub(crate) use accept::afford;
pub(crate) use reload::Espocrm;

use std::collections::VecDeque;
use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use log::info;
use mio::event::Event;
use mio::{Events, Poll, Token};
use slab::Slab;

use super::control::{self as door, Control};
use super::demo::Demo;
use super::listener::Listener;
use super::systemd::Systemd;
use crate::daemon::connection::Connection;
use crate::daemon::zmq::ZmqReceiver;
use crate::engine::admission::addresses::Addresses;
use crate::engine::backpressure::Backpressure;
use crate::engine::checks::queue::{Answer, CheckQueue};
use crate::engine::checks::self_check::SelfCheck;
use crate::engine::checks::worker_pool::Pool;
use crate::engine::hub::{Action, Hub};
use crate::engine::id::ConnId;
use crate::engine::printable::plural;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::reader::Incoming;
use crate::engine::telemetry::rates::Rates;
use crate::engine::telemetry::stats::{End, Stats};
use crate::engine::time::Time;
use crate::engine::timers::Timers;
use crate::engine::trim::Trim;
use crate::espocrm::process::Children;
use crate::espocrm::workers::Workers;
use crate::platform::clock::Clock;
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::platform::logging::Outage;
use crate::platform::signals::{Pending, Signals};
use crate::platform::sys;
use crate::settings::Settings;
use accept::Accepting;
use bursts::Bursts;

/// The daemon. It owns all I/O; what is to be done it asks the core.
///
/// One turn of the loop: carry out what the core wants done, flush what is to be written, free what
/// has ended, wait, read the clock, dispatch what has happened, go on with what was left, expire
/// timers.
pub(crate) struct Server {
    poll: Poll,
    signals: Signals,
    systemd: Systemd,
    clock: Clock,
    /// The moment of this turn.
    now: Time,
    settings: Settings,
    accepting: Accepting,
    control: Control,
    bus: ZmqReceiver,
    /// The bus may hold more messages.
    zmq_pending: bool,
    /// It is not bound; when that is tried again.
    zmq_broken: Option<Time>,
    conns: Slab<Connection>,
    /// Bytes that connections hold beyond what an idle one costs, without the hub's.
    held: usize,
    hub: Hub,
    /// What counts for each client address.
    addresses: Addresses,
    check_queue: CheckQueue,
    backend: Backend,
    children: Children,
    pool: Pool,
    workers: Workers,
    self_check: SelfCheck,
    /// A self-check has passed since the start.
    has_passed: bool,
    answers: Vec<Answer>,
    timers: Timers,
    /// Connections with something to be written that the kernel does not take yet.
    backpressure: Backpressure,
    /// Before that no connections are ended for memory.
    next_shed: Time,
    /// Connections with something to be written.
    dirty: VecDeque<ConnId>,
    /// Connections with more to be read than one turn reads.
    unread: VecDeque<ConnId>,
    /// What the latest reload could not apply.
    reload_errors: Vec<String>,
    /// Slots to be freed.
    ended: Vec<usize>,
    /// What is read goes here first.
    scratch: Box<[u8]>,
    incoming: Vec<Incoming>,
    ping: SharedFrame,
    stats: Stats,
    rates: Rates,
    /// Since when all access checks fail, and when the last one did.
    checks_fail: Option<(Time, Time)>,
    /// Processor time of PHP, as it was told last.
    php_time: Duration,
    bursts: Bursts,
    /// When memory is given back.
    trim: Trim,
    /// Of the access checks of logins, and of those of subscriptions.
    outages: [Outage; 2],
    /// The signal that ends it.
    stopping: Option<&'static str>,
}

/// Who answers access checks and tells the settings.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Backend {
    /// An EspoCRM, through PHP.
    Espocrm(Espocrm),
    /// Nobody: the demo answers by itself.
    Demo(Demo),
    /// A test.
    #[cfg(test)]
    Scripted(super::script::Checks),
}

/// What the kernel says of one token.
#[derive(Clone, Copy, Debug)]
struct Ready {
    token: Token,
    readable: bool,
    writable: bool,
    /// The peer will send nothing more.
    ended: bool,
}

const LISTENER: Token = Token(0);
const ZMQ: Token = Token(1);
const SIGNALS: Token = Token(2);
/// Of the bus: that senders connect, disconnect or send.
const SENDERS: Token = Token(3);
/// Two tokens for each child: more than there can be processes.
const FIRST_CHILD: usize = 64;
/// Two tokens for each worker.
const FIRST_WORKER: usize = 1 << 20;
const FIRST_CONN: usize = 1 << 24;

/// Events taken from the kernel at a time; 12 B each.
const EVENTS: usize = 1_024;

/// Bytes read at a time.
const SCRATCH: usize = 16 * 1024;

impl Server {
    /// Binds both ports: browsers and EspoCRM can connect from now on. Where systemd has opened
    /// `sockets` for browsers, those count.
    ///
    /// # Errors
    /// If that is not possible: why, and what to do.
    pub(crate) fn new(
        mut settings: Settings,
        mut backend: Backend,
        sockets: Vec<net::TcpListener>,
        mut signals: Signals,
    ) -> Result<Self> {
        let problem =
            |error: io::Error| Exit::error(format!("The event loop cannot run: {error}."));
        let poll = Poll::new().map_err(problem)?;
        let registry = poll.registry();
        signals.register(registry, SIGNALS).map_err(problem)?;
        let acceptor = backend.acceptor(&settings)?;
        if let Some(acceptor) = &acceptor {
            acceptor.log_validity(None);
        }
        let mut listener = if sockets.is_empty() {
            Listener::bind(&settings)?
        } else {
            let listener = Listener::inherit(sockets).map_err(problem)?;
            settings.listens_at(listener.address());
            listener
        };
        listener.register(registry, LISTENER).map_err(problem)?;
        let mut bus = ZmqReceiver::bind(&settings.zeromq.value)?;
        bus.register(registry, ZMQ, SENDERS).map_err(problem)?;
        if let Backend::Demo(demo) = &mut backend {
            demo.connect(&bus)?;
        }
        sys::mark_close_on_exec();
        afford(&mut settings);
        bus.limit_senders(accept::affordable_senders(&settings));
        let accepting = Accepting::new(listener, acceptor);
        let mut server = Self::assemble(settings, backend, signals, poll, accepting, bus);
        server.open_control();
        server.request_self_check();
        Ok(server)
    }

    fn assemble(
        settings: Settings,
        backend: Backend,
        signals: Signals,
        poll: Poll,
        accepting: Accepting,
        bus: ZmqReceiver,
    ) -> Self {
        let clock = Clock::start();
        let mut server = Self {
            poll,
            signals,
            systemd: Systemd::default(),
            clock,
            now: clock.now(),
            accepting,
            control: Control::default(),
            bus,
            zmq_pending: true,
            reload_errors: Vec::new(),
            zmq_broken: None,
            conns: Slab::new(),
            held: 0,
            hub: Hub::new(settings.categories.clone()),
            addresses: Addresses::default(),
            check_queue: CheckQueue::new(settings.max_checks.value),
            backend,
            children: Children::new(FIRST_CHILD),
            pool: Pool::new(settings.workers()),
            workers: Workers::new(FIRST_WORKER),
            self_check: SelfCheck::default(),
            has_passed: false,
            answers: Vec::new(),
            timers: Timers::default(),
            backpressure: Backpressure::default(),
            next_shed: Time::default(),
            dirty: VecDeque::new(),
            unread: VecDeque::new(),
            ended: Vec::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            incoming: Vec::new(),
            ping: SharedFrame::ping(),
            stats: Stats::default(),
            rates: Rates::default(),
            checks_fail: None,
            php_time: Duration::ZERO,
            bursts: Bursts::default(),
            trim: Trim::default(),
            outages: <[Outage; 2]>::default(),
            stopping: None,
            settings,
        };
        server.check_queue.set_cache_lifetime(server.settings.check_cache.value);
        server.limit_handshakes();
        server.apply_to_hub();
        server
    }

    /// Where browsers connect.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.accepting.address()
    }

    /// Where EspoCRM connects.
    #[must_use]
    pub(crate) fn endpoint(&self) -> &str {
        self.bus.endpoint()
    }

    /// What it runs with.
    #[must_use]
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Serves until a signal ends it, and keeps `systemd` informed.
    ///
    /// # Errors
    /// Only if the kernel refuses to report events.
    pub(crate) fn run(&mut self, systemd: Systemd) -> Result<()> {
        self.systemd = systemd;
        self.systemd.ready(&self.status());
        let mut events = Events::with_capacity(EVENTS);
        while self.stopping.is_none() {
            let timeout = self.settle();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(|error| {
                    Exit::error(format!("The kernel reports no events: {error}."))
                })?,
            }
            self.take(events.iter().map(Ready::from));
        }
        self.stop();
        Ok(())
    }

    /// The first half of a turn: what is to be done before waiting, and how long to wait.
    fn settle(&mut self) -> Option<Duration> {
        self.carry_out();
        self.flush();
        self.free();
        self.trim.update(self.now, self.accounted());
        self.timeout()
    }

    /// The second half: what has happened meanwhile.
    fn take(&mut self, happened: impl Iterator<Item = Ready>) {
        self.now = self.clock.now();
        self.rates.advance(self.now, &self.stats);
        self.backend.begin_turn();
        for ready in happened {
            self.dispatch(ready);
        }
        self.go_on();
        self.expire();
    }

    /// Does what the hub wants done, until it wants nothing more. Nothing is published in between:
    /// a welcome is always written before the first event.
    fn carry_out(&mut self) {
        loop {
            while let Some(action) = self.hub.poll() {
                self.act(action);
            }
            self.start_checks();
            if self.answers.is_empty() && !self.hub.has_actions() {
                return;
            }
            for answer in std::mem::take(&mut self.answers) {
                self.hub.verdict(answer.ticket, &answer.verdict);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Welcome(conn) => self.welcome(conn),
            Action::Send(conn, frame) => self.send(conn, frame),
            Action::Close(conn, reason) => self.close(conn, reason),
            Action::Drop(conn) => self.end(conn, End::CheckFailed),
            Action::Check(ticket, urgency, check) => self.request_check(ticket, urgency, check),
            Action::Cancel(ticket) => self.check_queue.cancel(ticket),
            Action::Forget(check) => self.check_queue.forget_verdict(&check),
            Action::TooManySubscriptions(conn) => self.too_many_subscriptions(conn),
            Action::Log(line) => log::debug!("{line}"),
        }
    }

    /// Until when nothing happens by itself; for ever, if nobody is connected and nothing runs.
    fn timeout(&self) -> Option<Duration> {
        let held_back = self.held_back_until().filter(|_| self.zmq_pending);
        let busy = (self.zmq_pending && held_back.is_none())
            || self.accepting.is_pending()
            || self.control.is_pending(self.now)
            || !self.dirty.is_empty()
            || !self.unread.is_empty();
        if busy {
            return Some(Duration::ZERO);
        }
        let look = if self.conns.is_empty() { None } else { self.backend.next_look() };
        let deadlines = [
            self.timers.next_due(),
            self.check_queue.next_deadline(),
            self.children.next_deadline(),
            self.workers.next_deadline(),
            self.pool.next_deadline(),
            self.accepting.paused_until(),
            self.accepting.next_deadline(),
            self.trim.next_due(),
            self.control.next_deadline(),
            self.next_zmq_look(),
            self.next_self_check(),
            held_back,
            self.systemd.next_sign(),
            self.bursts.next_due(),
            look,
        ];
        let next = deadlines.into_iter().flatten().min();
        let next = next.map(|next| next.since(self.clock.now()));
        next.into_iter().chain(logging::unfolds_in()).min()
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.token {
            LISTENER => self.accepting.set_pending(),
            ZMQ => self.zmq_pending = true,
            SENDERS => self.wake_zmq_guard(),
            SIGNALS => self.take_signals(),
            Token(token) if door::TOKENS.contains(&token) => self.control_ready(Token(token)),
            Token(token) => match token.checked_sub(FIRST_CONN) {
                None if token >= FIRST_WORKER => self.worker_ready(Token(token)),
                None => self.children.readable(Token(token)),
                Some(slot) => {
                    let Some(conn) = self.conns.get_mut(slot) else { return };
                    let id = conn.id;
                    if ready.writable && conn.unblock() {
                        self.mark_dirty(id);
                    }
                    if ready.readable || ready.ended {
                        self.read(id, ready.ended);
                    }
                }
            },
        }
    }

    /// Goes on with what an earlier event announced, each with its budget.
    fn go_on(&mut self) {
        for _ in 0..self.unread.len() {
            if let Some(id) = self.unread.pop_front() {
                self.read_on(id);
            }
        }
        self.accept();
        self.control.accept(self.now, self.poll.registry());
        // While the last messages are still to be offered to the kernel, the next ones wait in
        // libzmq, not in the connections' outboxes; and so they do while readers catch up.
        if self.zmq_pending {
            self.carry_out();
            self.flush();
            if self.dirty.is_empty() && self.held_back_until().is_none() {
                self.receive_messages();
            }
        }
    }

    fn expire(&mut self) {
        self.children.expire(self.now);
        self.expire_workers();
        self.check_queue.expire(self.now);
        self.control.expire(self.now);
        self.expire_conns();
        self.expire_handshakes();
        self.trim_if_due();
        self.guard_zmq();
        self.look_if_due();
        self.self_check_if_due();
        self.bursts.tell(self.now);
        logging::unfold();
        if self.systemd.next_sign().is_some_and(|at| at <= self.now) {
            self.systemd.give_sign(self.now, &self.status());
        }
    }

    /// For `systemctl status`.
    fn status(&self) -> String {
        format!(
            "Serving {}, EspoCRM sends to {}. {}, {} received.",
            self.address(),
            self.endpoint(),
            plural(self.conns.len() as u64, "connection", "connections"),
            plural(self.stats.messages, "message", "messages"),
        )
    }

    fn take_signals(&mut self) {
        let Pending { child, reload, stop_signal, .. } = self.signals.take();
        if child {
            self.reap_children();
            self.reap_workers();
            self.reap_orphans();
        }
        if reload {
            self.reload();
        }
        self.stopping = self.stopping.or(stop_signal);
    }

    /// Ends every connection without a Close frame: browsers come back after three seconds.
    fn stop(&mut self) {
        self.systemd.stopping();
        self.children.kill_all();
        self.workers.kill_all();
        self.flush();
        self.bursts.tell_all();
        let Stats { opened, messages, deliveries, .. } = self.stats;
        info!(
            "Stopped by {}, with {} open. Since the start: {}, {} received, {}, {} dropped.",
            self.stopping.unwrap_or("an error"),
            plural(self.conns.len() as u64, "connection", "connections"),
            plural(opened, "connection", "connections"),
            plural(messages, "message", "messages"),
            plural(deliveries, "delivery", "deliveries"),
            plural(self.stats.dropped.iter().sum(), "message", "messages"),
        );
        self.conns.clear();
    }

    fn apply_to_hub(&mut self) {
        logging::set_debug(self.settings.debug.value);
        self.hub.set_log(self.settings.debug.value);
        let interval = self.settings.recheck_interval.value;
        if self.hub.set_recheck_interval(self.now, interval) {
            let ids: Vec<ConnId> = self.conns.iter().map(|(_, conn)| conn.id).collect();
            for id in ids {
                self.arm(id);
            }
        }
    }
}

impl From<&Event> for Ready {
    fn from(event: &Event) -> Self {
        Self {
            token: event.token(),
            readable: event.is_readable(),
            writable: event.is_writable(),
            ended: event.is_read_closed() || event.is_error(),
        }
    }
}
