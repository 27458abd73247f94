//! Which senders are connected to libzmq, and whether libzmq holds more than it may.

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

/// Watches a socket of libzmq while its senders send. libzmq's own limits count messages; what it
/// holds of one that never ends, and how many peers it accepts, has none.
///
/// libzmq reads in a thread of its own, so that its descriptors do not show that it takes memory.
/// Therefore the senders' connections are also registered with an epoll of ours, which the event
/// loop waits for while no check is due. Senders that are connected and send nothing, as php-fpm's
/// processes do between two requests, cause no wake-ups.
pub(super) struct Guard {
    monitor: ZmqSocket,
    descriptor: RawFd,
    /// What the event loop reports this by.
    token: Token,
    traffic: Traffic,
    /// Peers, whether they have sent anything or not.
    senders: usize,
    /// Of these at a time.
    most: usize,
    /// Peers that could not be accepted since the last check.
    rejected: usize,
    /// The next check; none while nothing happens.
    next: Option<Time>,
    memory: Option<Memory>,
}

/// Data from senders, reported by an epoll that holds their connections. A connection that libzmq
/// closes leaves it by itself.
struct Traffic {
    poll: Poll,
    events: Events,
    /// The event loop waits for it.
    is_armed: bool,
    /// It lacks a connection: the kernel refused to add one.
    is_incomplete: bool,
}

/// What the process takes beyond what is accounted for, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    /// Before the first sender connected.
    before: usize,
    /// At the last check.
    last: usize,
}

/// Why libzmq is to be begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// So many are connected, of at most so many.
    Senders(usize, usize),
    /// Peers cannot be accepted: descriptors, or memory, have run out. So many are connected.
    Descriptors(usize),
    /// It holds more than [`MAX_ZEROMQ`]: so many bytes.
    Memory(usize),
}

const ACCEPTED: i32 = SocketEvent::ACCEPTED as i32;
const ACCEPT_FAILED: i32 = SocketEvent::ACCEPT_FAILED as i32;
const DISCONNECTED: i32 = SocketEvent::DISCONNECTED as i32;

const ENDPOINT: &CStr = c"inproc://senders";

/// Between two checks while anything happens.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes by which memory grows between two checks if libzmq is still reading what has arrived.
const GROWTH: usize = 256 * 1024;

/// Connections with new data that one check takes note of. More lead to another check.
const EVENTS: usize = 64;

/// Identifies none of the connections: which one sends does not matter.
const ANY: Token = Token(0);

impl Guard {
    /// # Errors
    /// Those of libzmq, and of creating an epoll.
    pub(super) fn new(context: &ZmqContext, socket: &mut ZmqSocket) -> io::Result<Self> {
        let events = [ACCEPTED, ACCEPT_FAILED, DISCONNECTED];
        socket.monitor(ENDPOINT, events.iter().sum())?;
        let mut monitor = context.socket(ZmqType::Pair)?;
        monitor.set_linger(0)?;
        // With a limit libzmq's thread would wait for us when many come at once.
        monitor.set_rcvhwm(0)?;
        monitor.connect(ENDPOINT)?;
        let descriptor = monitor.get_fd()?;
        let mut guard = Self {
            monitor,
            descriptor,
            token: ANY,
            traffic: Traffic::new()?,
            senders: 0,
            most: MAX_SENDERS,
            rejected: 0,
            next: None,
            memory: None,
        };
        // libzmq tells only those of something new who have asked and got nothing.
        guard.count();
        Ok(guard)
    }

    /// Lets so many senders be connected at a time.
    pub(super) fn limit_senders(&mut self, most: usize) {
        self.most = most.min(MAX_SENDERS);
    }

    /// Has `token` reported when [`wake`](Self::wake) is to be called.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.token = token;
        registry.register(&mut SourceFd(&self.descriptor), token, Interest::READABLE)
    }

    /// A sender has connected, disconnected or sent something. `unaccounted`: what the process takes
    /// beyond what is accounted for. It is checked a moment later, so that a whole burst of PHP
    /// processes costs one check.
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

    /// Whether any sender is connected, as far as the last check has seen.
    pub(super) fn has_senders(&self) -> bool {
        self.senders > 0
    }

    /// Checks, if it is time.
    pub(super) fn look(
        &mut self,
        now: Time,
        registry: &Registry,
        unaccounted: impl Fn() -> usize,
    ) -> Option<Excess> {
        self.next.take_if(|next| *next <= now)?;
        let have_connected = self.count();
        if std::mem::take(&mut self.rejected) > 0 {
            return Some(Excess::Descriptors(self.senders));
        }
        if self.senders == 0 {
            self.memory = None;
            self.traffic.is_incomplete = false;
            return None;
        }
        if self.senders > self.most {
            return Some(Excess::Senders(self.senders, self.most));
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

    /// Whether libzmq holds much more than at the last check.
    fn check_memory(&mut self, unaccounted: impl Fn() -> usize) -> Result<bool, Excess> {
        let mut taken = unaccounted();
        let memory = self.memory.get_or_insert(Memory::before(taken));
        if taken > memory.before + MAX_ZEROMQ {
            // It may be memory that was freed, and that the allocator keeps.
            sys::trim_heap();
            taken = unaccounted();
        }
        let held = taken.saturating_sub(memory.before);
        if held > MAX_ZEROMQ {
            return Err(Excess::Memory(held));
        }
        Ok(taken > std::mem::replace(&mut memory.last, taken) + GROWTH)
    }

    /// Takes note of who has connected and disconnected; whether any has connected.
    fn count(&mut self) -> bool {
        let mut have_connected = false;
        let mut new = BTreeSet::new();
        // The event's number and a value, then the address.
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
                ACCEPT_FAILED => self.rejected += 1,
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

    /// Reports the data of a connection that libzmq has accepted. Its thread may have closed it
    /// meanwhile: then the number is free, or belongs to another file, whose data leads to checks in
    /// vain until it is closed. The epoll of the event loop is not affected.
    fn add(&mut self, descriptor: RawFd) {
        let mut source = SourceFd(&descriptor);
        let added = self.poll.registry().register(&mut source, ANY, Interest::READABLE);
        // The kernel has no memory for it, or the user has too many.
        self.is_incomplete |= added.is_err_and(|error| {
            error.kind() == ErrorKind::OutOfMemory || error.raw_os_error() == Some(libc::ENOSPC)
        });
    }

    /// Whether any sender has sent something since the last call.
    fn take(&mut self) -> bool {
        let polled = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        polled.is_err() || !self.events.is_empty()
    }

    /// Has the event loop wait for it. What has arrived already is reported at once.
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
    fn before(taken: usize) -> Self {
        Self { before: taken, last: taken }
    }
}
