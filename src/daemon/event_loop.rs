//! The event loop: one thread, one poll, every socket.

mod accept;
mod admission;
mod apply;
mod checks;
mod control;
mod handshake;
mod log_limiter;
mod publish;
#[cfg(test)]
mod simulation;
mod socket_io;
mod status;
mod websocket;
mod zmq_guard;

pub(crate) use accept::limit_to_open_files;

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use log::info;
use mio::event::Event;
use mio::{Events, Poll, Token};

use super::checks::CheckRunner;
use super::control::Control;
use super::demo::Demo;
use super::listener::Listener;
use super::reload::Reloader;
use super::seam::{Clock, Signals};
use super::systemd::Systemd;
use super::token::EventSource;
use crate::daemon::connection::Connection;
use crate::daemon::connections::Connections;
use crate::daemon::zmq::Zmq;
use crate::engine::admission::Admission;
use crate::engine::hub::{Action, Hub};
use crate::engine::id::ConnId;
use crate::engine::memory::Memory;
use crate::engine::printable::plural;
use crate::engine::protocol::frame::SharedFrame;
use crate::engine::protocol::reader::Incoming;
use crate::engine::rate_limited_log::RateLimitedLog;
use crate::engine::telemetry::Telemetry;
use crate::engine::telemetry::stats::{End, Stats};
use crate::engine::time::Time;
use crate::espocrm::Installation;
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::platform::signals::Pending;
use crate::platform::sys;
use crate::settings::Settings;
use accept::Accepting;
use log_limiter::Cause;

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
    zmq: Zmq,
    conns: Connections,
    admission: Admission,
    memory: Memory,
    hub: Hub,
    checks: CheckRunner,
    backend: Backend,
    /// None in the demo.
    reloader: Option<Reloader>,
    /// Read buffer shared by all connections.
    scratch: Box<[u8]>,
    incoming: Vec<Incoming>,
    ping: SharedFrame,
    telemetry: Telemetry,
    log_limiter: RateLimitedLog<Cause>,
    /// The signal that stops the daemon.
    stop_signal: Option<&'static str>,
}

/// Source of access checks.
pub(crate) enum Backend {
    /// An EspoCRM, through PHP.
    Espocrm(Installation),
    /// The demo, which grants access itself.
    Demo(Demo),
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
        reloader: Option<Reloader>,
        sockets: Vec<net::TcpListener>,
        mut signals: Signals,
    ) -> Result<Self> {
        let problem =
            |error: io::Error| Exit::error(format!("The event loop cannot run: {error}."));
        let poll = Poll::new().map_err(problem)?;
        let registry = poll.registry();
        signals.register(registry, EventSource::Signals.token()).map_err(problem)?;
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
        listener.register(registry, EventSource::Listener.token()).map_err(problem)?;
        let mut zmq = Zmq::bind(&settings.zeromq.value)?;
        zmq.register(registry).map_err(problem)?;
        if let Backend::Demo(demo) = &mut backend {
            demo.connect(&zmq)?;
        }
        sys::mark_close_on_exec();
        limit_to_open_files(&mut settings);
        zmq.limit_senders(accept::affordable_senders(&settings));
        let accepting = Accepting::new(listener, acceptor);
        let mut server = Self::assemble(settings, backend, reloader, signals, poll, accepting, zmq);
        server.open_control();
        server.request_self_check();
        Ok(server)
    }

    fn assemble(
        settings: Settings,
        backend: Backend,
        reloader: Option<Reloader>,
        signals: Signals,
        poll: Poll,
        accepting: Accepting,
        zmq: Zmq,
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
            conns: Connections::default(),
            admission: Admission::new(admission::policy(&settings)),
            memory: Memory::new(settings.max_buffered.value),
            hub: Hub::new(settings.categories.clone()),
            checks: CheckRunner::new(&settings),
            backend,
            reloader,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            incoming: Vec::new(),
            ping: SharedFrame::ping(),
            telemetry: Telemetry::default(),
            log_limiter: RateLimitedLog::new(),
            stop_signal: None,
            settings,
        };
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
        self.telemetry.advance(self.now);
        if let Some(reloader) = &mut self.reloader {
            reloader.begin_turn();
        }
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
            if !self.checks.has_answers() && !self.hub.has_actions() {
                return;
            }
            for answer in self.checks.take_answers() {
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
            Action::Cancel(ticket) => self.checks.cancel(ticket),
            Action::Forget(check) => self.checks.forget_verdict(&check),
            Action::TooManySubscriptions(conn) => self.too_many_subscriptions(conn),
            Action::Log(line) => log::debug!("{line}"),
        }
    }

    /// How long to wait for events; `None` (no limit) if there are no connections and nothing runs.
    fn timeout(&self) -> Option<Duration> {
        let backpressure = self.backpressure_until().filter(|_| self.zmq.is_pending());
        let busy = (self.zmq.is_pending() && backpressure.is_none())
            || self.accepting.is_pending()
            || self.control.is_pending(self.now)
            || self.conns.has_dirty()
            || self.conns.unread() > 0;
        if busy {
            return Some(Duration::ZERO);
        }
        let reloader = self.reloader.as_ref().filter(|_| !self.conns.is_empty());
        let deadlines = [
            self.conns.next_due(),
            self.checks.poll_timeout(),
            self.accepting.paused_until(),
            self.admission.next_deadline(),
            self.memory.next_trim(),
            self.control.next_deadline(),
            self.zmq.next_deadline(),
            self.next_self_check(),
            backpressure,
            self.systemd.next_ping(),
            self.log_limiter.next_due(),
            reloader.and_then(Reloader::poll_timeout),
        ];
        let next = deadlines.into_iter().flatten().min();
        let next = next.map(|next| next.since(self.clock.now()));
        next.into_iter().chain(logging::repeats_due_in()).min()
    }

    fn dispatch(&mut self, ready: Ready) {
        let Some(source) = EventSource::of(ready.token) else { return };
        match source {
            EventSource::Connection(slot) => {
                let Some(id) = self.conns.id(slot) else { return };
                if ready.writable && self.conns.get(id).is_some_and(Connection::unblock) {
                    self.conns.mark_dirty(id);
                }
                if ready.readable || ready.ended {
                    self.read(id, ready.ended);
                }
            }
            EventSource::Listener => self.accepting.set_pending(),
            EventSource::Zmq => self.zmq.set_pending(),
            EventSource::ZmqSenders => self.wake_zmq_guard(),
            EventSource::Signals => self.take_signals(),
            EventSource::Control(number) => self.control_ready(number),
            EventSource::Worker(number) => {
                let (checks, mut context) = self.checks();
                checks.worker_ready(&mut context, number);
            }
            EventSource::Child(number) => self.checks.child_ready(number),
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
        if self.zmq.is_pending() {
            self.carry_out();
            self.flush();
            if !self.conns.has_dirty() && self.backpressure_until().is_none() {
                self.receive_messages();
            }
        }
    }

    fn expire(&mut self) {
        let (checks, mut context) = self.checks();
        checks.expire(&mut context);
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

    fn take_signals(&mut self) {
        let Pending { child, reload, stop_signal, .. } = self.signals.take();
        if child {
            self.reap_children();
        }
        if reload {
            self.reload();
        }
        self.stop_signal = self.stop_signal.or(stop_signal);
    }

    /// Ends every connection without a Close frame, so that browsers reconnect after three seconds.
    fn stop(&mut self) {
        self.systemd.stopping();
        self.checks.kill_all();
        self.flush();
        self.log_limiter.log_all();
        let Stats { opened, messages, deliveries, .. } = self.telemetry.stats;
        info!(
            "Stopped by {}, with {} open. Since the start: {}, {} received, {}, {} dropped.",
            self.stop_signal.unwrap_or("an error"),
            plural(self.conns.len() as u64, "connection", "connections"),
            plural(opened, "connection", "connections"),
            plural(messages, "message", "messages"),
            plural(deliveries, "delivery", "deliveries"),
            plural(self.telemetry.stats.dropped.iter().sum(), "message", "messages"),
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
