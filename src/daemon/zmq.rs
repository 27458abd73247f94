//! EspoCRM's messages: the ZeroMQ socket, its limits, and its recovery.

mod guard;
pub(super) mod receiver;

pub(crate) use guard::Excess;
pub(crate) use receiver::Received;

use std::io;
use std::time::Duration;

use mio::Registry;

use super::seam::ZmqReceiver;
use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys::ZmqContext;
use crate::platform::{process_stats, sys};
use guard::Guard;

/// Receives EspoCRM's messages, keeps libzmq within its limits, and binds the endpoint again after
/// a failure.
///
/// - Inputs: [`set_pending`](Self::set_pending) and [`wake_guard`](Self::wake_guard) after events
///   of the socket and of its senders, [`expire`](Self::expire) at
///   [`next_deadline`](Self::next_deadline), [`rebind`](Self::rebind) and
///   [`limit_senders`](Self::limit_senders) after a reload.
/// - Outputs: [`receive`](Self::receive) while [`is_pending`](Self::is_pending), and the [`Event`]
///   of `expire`.
pub(crate) struct Zmq {
    receiver: ZmqReceiver,
    state: State,
}

/// `pending`: the socket may contain messages. An unbound one may, too, from senders that had
/// connected before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Bound { pending: bool },
    Unbound { pending: bool, retry_at: Time },
}

/// What [`Zmq::expire`] has done.
#[derive(Debug)]
pub(crate) enum Event {
    /// No descriptor was left for a sender: the endpoint is unbound until the next attempt.
    Paused(Excess),
    /// The context was recreated because of an excess, or by a later attempt. `registered` is the
    /// result of registering it.
    Restarted { excess: Option<Excess>, registered: io::Result<()> },
    /// The context could not be recreated.
    Failed(Excess, Exit),
    /// The endpoint is bound again.
    Resumed,
}

/// Interval of attempts to bind again.
const RETRY: Duration = Duration::from_secs(1);

/// Free memory that is worth returning to the kernel, in bytes.
const WORTHWHILE: usize = 8 * 1024 * 1024;

impl Zmq {
    /// Binds `endpoint`, such as `tcp://127.0.0.1:5555`, `tcp://*:7777` or `ipc:///run/x.sock`.
    ///
    /// # Errors
    /// Why it cannot be bound, and what to do.
    pub(crate) fn bind(endpoint: &str) -> Result<Self> {
        ZmqReceiver::bind(endpoint).map(Self::of)
    }

    pub(super) fn of(receiver: ZmqReceiver) -> Self {
        Self { receiver, state: State::Bound { pending: true } }
    }

    /// Registers the socket and the events of its senders.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.receiver.register(registry)
    }

    /// The bound endpoint, with the actual port if it was bound to any free port.
    pub(crate) fn endpoint(&self) -> &str {
        self.receiver.endpoint()
    }

    /// The context, for another socket of this process.
    pub(crate) fn context(&self) -> Option<&ZmqContext> {
        self.receiver.context()
    }

    /// False while messages cannot be received because of a failure.
    pub(crate) fn is_bound(&self) -> bool {
        matches!(self.state, State::Bound { .. })
    }

    /// Whether the socket may contain messages.
    pub(crate) fn is_pending(&self) -> bool {
        let (State::Bound { pending } | State::Unbound { pending, .. }) = self.state;
        pending
    }

    /// Handles an event of the socket.
    pub(crate) fn set_pending(&mut self) {
        *self.pending() = true;
    }

    fn pending(&mut self) -> &mut bool {
        let (State::Bound { pending } | State::Unbound { pending, .. }) = &mut self.state;
        pending
    }

    /// Receives the next message without waiting.
    pub(crate) fn receive(&mut self) -> Received {
        let received = self.receiver.receive();
        if matches!(received, Received::Nothing) {
            *self.pending() = false;
        }
        received
    }

    /// Handles an event of a sender: it has connected, disconnected or sent data. `accounted`:
    /// the expected memory use of this process without libzmq, in bytes.
    pub(crate) fn wake_guard(&mut self, now: Time, registry: &Registry, accounted: usize) {
        if let Some(guard) = self.receiver.guard_mut() {
            guard.wake(now, registry, || unaccounted(accounted));
        }
    }

    /// Sets the maximum number of connected senders.
    pub(crate) fn limit_senders(&mut self, limit: usize) {
        self.receiver.limit_senders(limit);
    }

    /// Binds another endpoint instead; on failure keeps the old one, or binds it again later.
    ///
    /// # Errors
    /// If the new one cannot be bound.
    pub(crate) fn rebind(&mut self, now: Time, endpoint: &str) -> Result<()> {
        let rebound = self.receiver.rebind(endpoint);
        // libzmq may have received messages meanwhile without reporting them.
        self.set_pending();
        if self.is_bound() && !self.receiver.is_bound() {
            self.retry_later(now);
        }
        rebound
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let retry_at = match self.state {
            State::Bound { .. } => None,
            State::Unbound { retry_at, .. } => Some(retry_at),
        };
        [self.receiver.guard().and_then(Guard::next), retry_at].into_iter().flatten().min()
    }

    /// Binds the endpoint again if that is due. Checks the senders and the memory of libzmq, and
    /// recreates its context if it exceeds a limit. `accounted` as in
    /// [`wake_guard`](Self::wake_guard).
    pub(crate) fn expire(
        &mut self,
        now: Time,
        registry: &Registry,
        accounted: usize,
    ) -> Option<Event> {
        if matches!(self.state, State::Unbound { retry_at, .. } if retry_at <= now) {
            return self.resume(now, registry);
        }
        let excess = self.check_senders(now, registry, accounted)?;
        if excess == Excess::Descriptors(0) {
            // There are no senders that a restart of libzmq would disconnect.
            self.receiver.pause();
            self.retry_later(now);
            return Some(Event::Paused(excess));
        }
        Some(match self.receiver.recreate() {
            Ok(()) => {
                Event::Restarted { excess: Some(excess), registered: self.restarted(registry) }
            }
            Err(error) => {
                self.retry_later(now);
                Event::Failed(excess, error)
            }
        })
    }

    fn check_senders(
        &mut self,
        now: Time,
        registry: &Registry,
        accounted: usize,
    ) -> Option<Excess> {
        let guard = self.receiver.guard_mut()?;
        let was_used = guard.next().is_some();
        let excess = guard.check(now, registry, || unaccounted(accounted));
        let is_idle = guard.next().is_none() && !guard.has_senders();
        if was_used && is_idle && unaccounted(accounted) > WORTHWHILE {
            // All senders have disconnected, and libzmq has freed their partial messages.
            sys::trim_heap();
        }
        excess
    }

    fn resume(&mut self, now: Time, registry: &Registry) -> Option<Event> {
        match self.receiver.resume() {
            Ok(true) => {
                let registered = self.restarted(registry);
                Some(Event::Restarted { excess: None, registered })
            }
            Ok(false) => {
                self.state = State::Bound { pending: true };
                Some(Event::Resumed)
            }
            Err(_) => {
                self.retry_later(now);
                None
            }
        }
    }

    fn restarted(&mut self, registry: &Registry) -> io::Result<()> {
        self.state = State::Bound { pending: true };
        // For kernels on which a child process cannot close inherited descriptors.
        sys::mark_close_on_exec();
        sys::trim_heap();
        self.receiver.register(registry)
    }

    /// The attempt to bind or unbind may have received messages that libzmq's descriptor reported
    /// before.
    fn retry_later(&mut self, now: Time) {
        self.state = State::Unbound { pending: true, retry_at: now.after(RETRY) };
    }
}

/// Memory of this process that is not accounted for, in bytes.
fn unaccounted(accounted: usize) -> usize {
    process_stats::resident_memory().saturating_sub(accounted)
}

#[cfg(test)]
impl Zmq {
    /// Checks that the state agrees with the socket.
    pub(crate) fn check_invariants(&self) {
        assert!(!self.is_bound() || self.receiver.is_bound(), "nothing binds the endpoint again");
    }
}

#[cfg(test)]
mod tests {
    use mio::Poll;

    use super::*;

    fn bind() -> (Zmq, Poll) {
        let mut zmq = Zmq::bind("tcp://127.0.0.1:*").unwrap();
        let poll = Poll::new().unwrap();
        zmq.register(poll.registry()).unwrap();
        (zmq, poll)
    }

    #[test]
    fn messages_may_be_pending_after_a_pause_of_the_socket() {
        let (mut zmq, poll) = bind();
        let mut now = Time::default();
        zmq.receiver.pause();
        zmq.retry_later(now);
        assert!(zmq.is_pending() && !zmq.is_bound());
        assert!(matches!(zmq.receive(), Received::Nothing));
        // The port becomes free a moment later.
        while !zmq.is_bound() {
            assert!(!zmq.is_pending());
            assert_eq!(zmq.next_deadline(), Some(now.after(RETRY)));
            now = now.after(RETRY);
            let event = zmq.expire(now, poll.registry(), 0);
            assert!(zmq.is_pending(), "whether it is bound or not");
            assert_eq!(matches!(event, Some(Event::Resumed)), zmq.is_bound(), "{event:?}");
            zmq.check_invariants();
            assert!(matches!(zmq.receive(), Received::Nothing));
        }
        assert_eq!(zmq.next_deadline(), None);
    }

    #[test]
    fn too_many_senders_restart_the_socket() {
        let (mut zmq, poll) = bind();
        zmq.limit_senders(0);
        let sender = zmq::Context::new().socket(zmq::PUSH).unwrap();
        sender.connect(zmq.endpoint()).unwrap();
        assert!(matches!(zmq.receive(), Received::Nothing));
        let (mut now, start) = (Time::default(), std::time::Instant::now());
        let event = loop {
            assert!(start.elapsed() < Duration::from_secs(60), "it was not restarted");
            zmq.wake_guard(now, poll.registry(), 0);
            now = zmq.next_deadline().unwrap();
            if let Some(event) = zmq.expire(now, poll.registry(), 0) {
                break event;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        zmq.check_invariants();
        match event {
            Event::Restarted { excess: Some(Excess::Senders(1, 0)), registered: Ok(()) } => {
                assert!(zmq.is_bound() && zmq.is_pending());
            }
            // On a busy machine the port may still be in use.
            Event::Failed(Excess::Senders(1, 0), _) => {
                assert!(!zmq.is_bound());
                assert_eq!(zmq.next_deadline(), Some(now.after(RETRY)));
            }
            _ => panic!("{event:?}"),
        }
    }
}
