//! The event loop: one thread, one poll, every socket.

mod accept;
mod admission;
mod checks;
mod control;
mod handshake;
mod log_limiter;
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

pub(crate) use accept::limit_to_open_files;
pub(crate) use reload::Espocrm;

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use log::info;
use mio::event::Event;
use mio::{Events, Poll, Token};

use super::control::{Control, TOKENS as CONTROL_TOKENS};
use super::demo::Demo;
use super::listener::Listener;
use super::systemd::Systemd;
use crate::daemon::connection::Connection;
use crate::daemon::connections::Connections;
use crate::daemon::zmq::ZmqReceiver;
use crate::engine::admission::Admission;
use crate::engine::checks::queue::{Answer, CheckQueue};
use crate::engine::checks::self_check::SelfCheck;
use crate::engine::checks::worker_pool::Pool;
use crate::engine::hub::{Action, Hub};
use crate::engine::id::ConnId;
use crate::engine::memory::Memory;
use crate::engine::printable::plural;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::reader::Incoming;
use crate::engine::telemetry::rates::Rates;
use crate::engine::telemetry::stats::{End, Stats};
use crate::engine::time::Time;
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
use log_limiter::LogLimiter;

/// The daemon. It owns all I/O and executes what the engine decides.
///
/// One turn of the loop: carry out the engine's actions, flush output, free ended connections,
/// wait, read the clock, dispatch events, continue pending work, expire timers.
pub(crate) struct Server {
    poll: Poll,
    signals: Signals,
    systemd: Systemd,
    clock: Clock,
    /// Time of this turn.
    now: Time,
    settings: Settings,
    accepting: Accepting,
    control: Control,
    zmq: ZmqReceiver,
    /// The ZeroMQ socket may hold more messages.
    zmq_pending: bool,
    /// Set while the ZeroMQ socket is not bound: when to retry.
    zmq_broken: Option<Time>,
    conns: Connections,
    admission: Admission,
    memory: Memory,
    hub: Hub,
    check_queue: CheckQueue,
    backend: Backend,
    children: Children,
    pool: Pool,
    workers: Workers,
    self_check: SelfCheck,
    /// A self-check has passed since the daemon started.
    self_check_passed: bool,
    answers: Vec<Answer>,
    /// Settings that the latest reload could not apply.
    reload_errors: Vec<String>,
    /// Read buffer shared by all connections.
    scratch: Box<[u8]>,
    incoming: Vec<Incoming>,
    ping: SharedFrame,
    stats: Stats,
    rates: Rates,
    /// While all access checks fail: when the first and the latest one failed.
    failing_checks: Option<(Time, Time)>,
    /// CPU time of PHP as exported last.
    php_time: Duration,
    log_limiter: LogLimiter,
    /// Outages of login checks and of subscription checks.
    outages: [Outage; 2],
    /// The signal that stops the daemon.
    stop_signal: Option<&'static str>,
}

/// Source of access checks and settings.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Backend {
    /// An EspoCRM, through PHP.
    Espocrm(Espocrm),
    /// The demo, which grants access itself.
    Demo(Demo),
    /// A test.
    #[cfg(test)]
    Scripted(super::script::Checks),
}

/// Readiness of one token, as reported by the kernel.
#[derive(Clone, Copy, Debug)]
struct Ready {
    token: Token,
    readable: bool,
    writable: bool,
    /// The peer has shut down its side, or the connection failed.
    ended: bool,
}

const LISTENER: Token = Token(0);
const ZMQ: Token = Token(1);
const SIGNALS: Token = Token(2);
/// ZeroMQ senders connect, disconnect or send.
const SENDERS: Token = Token(3);
/// Two tokens for each child process; the range exceeds their maximum number.
const FIRST_CHILD: usize = 64;
/// Two tokens for each worker.
const FIRST_WORKER: usize = 1 << 20;
const FIRST_CONN: usize = 1 << 24;

/// Events per poll; 12 B each.
const EVENTS: usize = 1_024;

/// Bytes per read.
const SCRATCH: usize = 16 * 1024;

impl Server {
    /// Binds both ports, so that browsers and EspoCRM can connect. `sockets` opened by systemd
    /// replace the browsers' port.
    ///
    /// # Errors
    /// If a port cannot be bound: why, and what to do.
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
        let mut zmq = ZmqReceiver::bind(&settings.zeromq.value)?;
        zmq.register(registry, ZMQ, SENDERS).map_err(problem)?;
        if let Backend::Demo(demo) = &mut backend {
            demo.connect(&zmq)?;
        }
        sys::mark_close_on_exec();
        limit_to_open_files(&mut settings);
        zmq.limit_senders(accept::affordable_senders(&settings));
        let accepting = Accepting::new(listener, acceptor);
        let mut server = Self::assemble(settings, backend, signals, poll, accepting, zmq);
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
        zmq: ZmqReceiver,
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
            zmq,
            zmq_pending: true,
            reload_errors: Vec::new(),
            zmq_broken: None,
            conns: Connections::default(),
            admission: Admission::new(admission::policy(&settings)),
            memory: Memory::new(settings.max_buffered.value),
            hub: Hub::new(settings.categories.clone()),
            check_queue: CheckQueue::new(settings.max_checks.value),
            backend,
            children: Children::new(FIRST_CHILD),
            pool: Pool::new(settings.workers()),
            workers: Workers::new(FIRST_WORKER),
            self_check: SelfCheck::default(),
            self_check_passed: false,
            answers: Vec::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            incoming: Vec::new(),
            ping: SharedFrame::ping(),
            stats: Stats::default(),
            rates: Rates::default(),
            failing_checks: None,
            php_time: Duration::ZERO,
            log_limiter: LogLimiter::default(),
            outages: <[Outage; 2]>::default(),
            stop_signal: None,
            settings,
        };
        server.check_queue.set_cache_lifetime(server.settings.check_cache.value);
        server.apply_to_hub();
        server
    }

    /// Address for browsers.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.accepting.address()
    }

    /// ZeroMQ endpoint for EspoCRM.
    #[must_use]
    pub(crate) fn endpoint(&self) -> &str {
        self.zmq.endpoint()
    }

    #[must_use]
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Serves until a signal arrives, and reports its state to `systemd`.
    ///
    /// # Errors
    /// Only if polling for events fails.
    pub(crate) fn run(&mut self, systemd: Systemd) -> Result<()> {
        self.systemd = systemd;
        self.systemd.ready(&self.status());
        let mut events = Events::with_capacity(EVENTS);
        while self.stop_signal.is_none() {
            let timeout = self.settle();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other
                    .map_err(|error| Exit::error(format!("Polling for events failed: {error}.")))?,
            }
            self.process(events.iter().map(Ready::from));
        }
        self.stop();
        Ok(())
    }

    /// The first half of a turn: finishes pending work and returns how long to wait.
    fn settle(&mut self) -> Option<Duration> {
        self.carry_out();
        self.flush();
        self.free();
        self.memory.update(self.now, self.accounted());
        self.timeout()
    }

    /// The second half of a turn: handles the events that arrived while waiting.
    fn process(&mut self, events: impl Iterator<Item = Ready>) {
        self.now = self.clock.now();
        self.rates.advance(self.now, &self.stats);
        self.backend.begin_turn();
        for ready in events {
            self.dispatch(ready);
        }
        self.continue_pending();
        self.expire();
    }

    /// Performs the hub's actions until none are left. Nothing is published in between, so a
    /// WELCOME always precedes the first event.
    fn carry_out(&mut self) {
        loop {
            while let Some(action) = self.hub.poll() {
                self.perform(action);
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

    fn perform(&mut self, action: Action) {
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

    /// How long to wait for events; `None` (no limit) if there are no connections and nothing runs.
    fn timeout(&self) -> Option<Duration> {
        let backpressure = self.backpressure_until().filter(|_| self.zmq_pending);
        let busy = (self.zmq_pending && backpressure.is_none())
            || self.accepting.is_pending()
            || self.control.is_pending(self.now)
            || self.conns.has_dirty()
            || self.conns.unread() > 0;
        if busy {
            return Some(Duration::ZERO);
        }
        let file_check = if self.conns.is_empty() { None } else { self.backend.next_file_check() };
        let deadlines = [
            self.conns.next_due(),
            self.check_queue.next_deadline(),
            self.children.next_deadline(),
            self.workers.next_deadline(),
            self.pool.next_deadline(),
            self.accepting.paused_until(),
            self.admission.next_deadline(),
            self.memory.next_trim(),
            self.control.next_deadline(),
            self.next_zmq_check(),
            self.next_self_check(),
            backpressure,
            self.systemd.next_ping(),
            self.log_limiter.next_due(),
            file_check,
        ];
        let next = deadlines.into_iter().flatten().min();
        let next = next.map(|next| next.since(self.clock.now()));
        next.into_iter().chain(logging::repeats_due_in()).min()
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.token {
            LISTENER => self.accepting.set_pending(),
            ZMQ => self.zmq_pending = true,
            SENDERS => self.wake_zmq_guard(),
            SIGNALS => self.take_signals(),
            Token(token) if CONTROL_TOKENS.contains(&token) => self.control_ready(Token(token)),
            Token(token) => match token.checked_sub(FIRST_CONN) {
                None if token >= FIRST_WORKER => self.worker_ready(Token(token)),
                None => self.children.readable(Token(token)),
                Some(slot) => {
                    let Some(id) = self.conns.id(slot) else { return };
                    if ready.writable && self.conns.get(id).is_some_and(Connection::unblock) {
                        self.conns.mark_dirty(id);
                    }
                    if ready.readable || ready.ended {
                        self.read(id, ready.ended);
                    }
                }
            },
        }
    }

    /// Continues work announced by earlier events, each kind within its budget.
    fn continue_pending(&mut self) {
        for _ in 0..self.conns.unread() {
            if let Some(id) = self.conns.next_unread() {
                // The end of input may have been reported already.
                self.read(id, true);
            }
        }
        self.accept();
        self.control.accept(self.now, self.poll.registry());
        // Until the previous messages have been offered to the kernel, and while readers catch up,
        // further messages wait in libzmq rather than in the connections' outbound queues.
        if self.zmq_pending {
            self.carry_out();
            self.flush();
            if !self.conns.has_dirty() && self.backpressure_until().is_none() {
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
        self.check_for_changes_if_due();
        self.self_check_if_due();
        self.log_limiter.log_due(self.now);
        logging::log_repeats();
        if self.systemd.next_ping().is_some_and(|at| at <= self.now) {
            self.systemd.ping_watchdog(self.now, &self.status());
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
        self.stop_signal = self.stop_signal.or(stop_signal);
    }

    /// Ends every connection without a Close frame, so that browsers reconnect after three seconds.
    fn stop(&mut self) {
        self.systemd.stopping();
        self.children.kill_all();
        self.workers.kill_all();
        self.flush();
        self.log_limiter.log_all();
        let Stats { opened, messages, deliveries, .. } = self.stats;
        info!(
            "Stopped by {}, with {} open. Since the start: {}, {} received, {}, {} dropped.",
            self.stop_signal.unwrap_or("an error"),
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
            let ids: Vec<ConnId> = self.conns.iter().map(Connection::id).collect();
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
