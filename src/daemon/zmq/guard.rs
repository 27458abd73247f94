//! Limits the number of connected senders and the memory of libzmq.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use zmq::SocketEvent;

use crate::engine::limits::{MAX_SENDERS, MAX_ZEROMQ};
use crate::engine::time::Time;
use crate::platform::sys;
use crate::platform::sys::{ZmqContext, ZmqSocket, ZmqType};

/// Monitors a socket of libzmq while its senders send. libzmq only limits the number of queued
/// messages. It limits neither the memory of an incomplete message nor the number of connections.
///
/// libzmq reads in its own thread, so its descriptors do not show that its memory grows. The guard
/// therefore adds the senders' connections to a second epoll instance, which the event loop waits
/// for while no check is due. Senders that are connected and send nothing, such as php-fpm's
/// processes between two requests, cause no wake-ups.
pub(super) struct Guard {
    monitor: ZmqSocket,
    descriptor: RawFd,
    /// The token of these events in the event loop.
    token: Token,
    traffic: Traffic,
    /// Connected senders, including those that have sent nothing.
    senders: usize,
    max_senders: usize,
    /// Connections that libzmq failed to accept since the last check.
    accept_failures: usize,
    /// The next check; `None` while nothing happens.
    next: Option<Time>,
    memory: Option<Memory>,
}

/// Incoming data of the senders, reported by an epoll instance with their connections. The kernel
/// removes a connection that libzmq closes.
struct Traffic {
    poll: Poll,
    events: Events,
    /// The event loop waits for it.
    is_armed: bool,
    /// The kernel refused to add a connection.
    is_incomplete: bool,
}

/// Memory of the process that is not accounted for, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    /// Before the first sender connected.
    before: usize,
    /// At the last check.
    last: usize,
}

/// Why the ZeroMQ context must be recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Too many senders: the number of connected ones, and the limit.
    Senders(usize, usize),
    /// libzmq failed to accept a connection, since descriptors or memory have run out; with the
    /// number of connected senders.
    Descriptors(usize),
    /// libzmq uses more than [`MAX_ZEROMQ`]: the number of bytes.
    Memory(usize),
}

const ACCEPTED: i32 = SocketEvent::ACCEPTED as i32;
const ACCEPT_FAILED: i32 = SocketEvent::ACCEPT_FAILED as i32;
const DISCONNECTED: i32 = SocketEvent::DISCONNECTED as i32;

const ENDPOINT: &CStr = c"inproc://senders";

/// The time between two checks while there is activity.
const INTERVAL: Duration = Duration::from_millis(100);

/// Growth in bytes between two checks that shows that libzmq is still reading data.
const GROWTH: usize = 256 * 1024;

/// Events of senders that one check handles. More lead to another check.
const EVENTS: usize = 64;

/// The token of all connections: it does not matter which one sends.
const ANY: Token = Token(0);

impl Guard {
    /// # Errors
    /// Those of libzmq, and of creating an epoll.
    pub(super) fn new(context: &ZmqContext, socket: &mut ZmqSocket) -> io::Result<Self> {
        let events = [ACCEPTED, ACCEPT_FAILED, DISCONNECTED];
        socket.monitor(ENDPOINT, events.iter().sum())?;
        let mut monitor = context.socket(ZmqType::Pair)?;
        monitor.set_linger(0)?;
        // With a limit, libzmq's thread would block during a burst of connections.
        monitor.set_rcvhwm(0)?;
        monitor.connect(ENDPOINT)?;
        let descriptor = monitor.get_fd()?;
        let mut guard = Self {
            monitor,
            descriptor,
            token: ANY,
            traffic: Traffic::new()?,
            senders: 0,
            max_senders: MAX_SENDERS,
            accept_failures: 0,
            next: None,
            memory: None,
        };
        // libzmq signals new events only after a read that found none.
        guard.count();
        Ok(guard)
    }

    /// Sets the maximum number of connected senders.
    pub(super) fn limit_senders(&mut self, limit: usize) {
        self.max_senders = limit.min(MAX_SENDERS);
    }

    /// Registers with `token` the events that call for [`wake`](Self::wake).
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.token = token;
        registry.register(&mut SourceFd(&self.descriptor), token, Interest::READABLE)
    }

    /// A sender has connected, disconnected or sent something. Schedules a check a moment later, so
    /// that a whole burst of PHP processes costs one check. `unaccounted` returns the memory of the
    /// process that is not accounted for.
    pub(super) fn wake(&mut self, now: Time, registry: &Registry, unaccounted: impl Fn() -> usize) {
        if self.next.is_none() {
            self.next = Some(now.after(INTERVAL));
            self.traffic.disarm(registry);
            self.memory.get_or_insert_with(|| Memory::before(unaccounted()));
        }
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.next
    }

    /// Whether the last check found connected senders.
    pub(super) fn has_senders(&self) -> bool {
        self.senders > 0
    }

    /// Checks the limits, if a check is due.
    pub(super) fn check(
        &mut self,
        now: Time,
        registry: &Registry,
        unaccounted: impl Fn() -> usize,
    ) -> Option<Excess> {
        self.next.take_if(|next| *next <= now)?;
        let have_connected = self.count();
        if std::mem::take(&mut self.accept_failures) > 0 {
            return Some(Excess::Descriptors(self.senders));
        }
        if self.senders == 0 {
            self.memory = None;
            self.traffic.is_incomplete = false;
            return None;
        }
        if self.senders > self.max_senders {
            return Some(Excess::Senders(self.senders, self.max_senders));
        }
        let have_sent = self.traffic.take();
        let has_grown = match self.check_memory(unaccounted) {
            Ok(has_grown) => has_grown,
            Err(excess) => return Some(excess),
        };
        let is_busy = have_connected || have_sent || has_grown;
        if is_busy || self.traffic.arm(registry, self.token).is_err() {
            self.next = Some(now.after(INTERVAL));
        }
        None
    }

    /// Whether the memory of libzmq has grown considerably since the last check.
    fn check_memory(&mut self, unaccounted: impl Fn() -> usize) -> Result<bool, Excess> {
        let mut used = unaccounted();
        let memory = self.memory.get_or_insert(Memory::before(used));
        if used > memory.before + MAX_ZEROMQ {
            // This may be freed memory that the allocator keeps.
            sys::trim_heap();
            used = unaccounted();
        }
        let by_libzmq = used.saturating_sub(memory.before);
        if by_libzmq > MAX_ZEROMQ {
            return Err(Excess::Memory(by_libzmq));
        }
        Ok(used > std::mem::replace(&mut memory.last, used) + GROWTH)
    }

    /// Updates the number of senders. Returns whether any has connected.
    fn count(&mut self) -> bool {
        let mut have_connected = false;
        let mut new = BTreeSet::new();
        // Each event has two parts: its number with a value, and the address.
        while let Ok(event) = self.monitor.recv_msg(zmq::DONTWAIT) {
            let (Some(number), Some(value)) = (event.first_chunk::<2>(), event.last_chunk::<4>())
            else {
                continue;
            };
            let number = i32::from(u16::from_ne_bytes(*number));
            let value = i32::from_ne_bytes(*value);
            match number {
                ACCEPTED => {
                    self.senders += 1;
                    have_connected = true;
                    new.insert(value);
                }
                ACCEPT_FAILED => self.accept_failures += 1,
                DISCONNECTED => {
                    self.senders = self.senders.saturating_sub(1);
                    new.remove(&value);
                }
                _ => {}
            }
            if event.get_more() {
                let _ = self.monitor.recv_msg(zmq::DONTWAIT);
            }
        }
        for descriptor in new {
            self.traffic.add(descriptor);
        }
        have_connected
    }
}

impl Traffic {
    fn new() -> io::Result<Self> {
        let events = Events::with_capacity(EVENTS);
        Ok(Self { poll: Poll::new()?, events, is_armed: false, is_incomplete: false })
    }

    /// Adds a connection that libzmq has accepted. libzmq's thread may have closed it meanwhile:
    /// then the descriptor is free, or it is another file and its data causes needless checks until
    /// it is closed. The epoll instance of the event loop is not affected.
    fn add(&mut self, descriptor: RawFd) {
        let mut source = SourceFd(&descriptor);
        let added = self.poll.registry().register(&mut source, ANY, Interest::READABLE);
        // The kernel is out of memory, or the user has reached `max_user_watches`.
        self.is_incomplete |= added.is_err_and(|error| {
            error.kind() == ErrorKind::OutOfMemory || error.raw_os_error() == Some(libc::ENOSPC)
        });
    }

    /// Whether any sender has sent something since the last call.
    fn take(&mut self) -> bool {
        let polled = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        polled.is_err() || !self.events.is_empty()
    }

    /// Makes the event loop wait for data. Data that has already arrived is reported immediately.
    fn arm(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if self.is_incomplete {
            return Err(ErrorKind::OutOfMemory.into());
        }
        let descriptor = self.poll.as_raw_fd();
        registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        self.is_armed = true;
        Ok(())
    }

    fn disarm(&mut self, registry: &Registry) {
        if std::mem::take(&mut self.is_armed) {
            let _ = registry.deregister(&mut SourceFd(&self.poll.as_raw_fd()));
        }
    }
}

impl Memory {
    fn before(used: usize) -> Self {
        Self { before: used, last: used }
    }
}
