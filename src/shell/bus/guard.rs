//! Who is connected to libzmq, and whether it takes more than it may.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use zmq::SocketEvent;

use crate::core::limits::{MAX_SENDERS, MAX_ZEROMQ};
use crate::core::time::Time;
use crate::shell::sys::{ZmqContext, ZmqSocket, ZmqType};

/// Watches a socket of libzmq for as long as anybody is connected to it. libzmq's own limits count
/// messages; what it holds of one that never ends, and how many peers it accepts, has none.
pub(super) struct Guard {
    monitor: ZmqSocket,
    descriptor: RawFd,
    /// Peers, whether they have said anything or not.
    senders: usize,
    /// Of these at a time.
    most: usize,
    /// Peers that could not be accepted since it looked last.
    rejected: usize,
    /// When it looks next, if anybody may be connected.
    next: Option<Time>,
    /// What the process took beyond what is accounted for, before they came.
    before: usize,
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

/// Between two looks. EspoCRM's PHP is gone by the first of them.
const INTERVAL: Duration = Duration::from_millis(100);

impl Guard {
    /// # Errors
    /// Those of libzmq.
    pub fn new(context: &ZmqContext, socket: &mut ZmqSocket) -> io::Result<Self> {
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
            senders: 0,
            most: MAX_SENDERS,
            rejected: 0,
            next: None,
            before: 0,
        };
        // libzmq tells only those of something new who have asked and got nothing.
        guard.count();
        Ok(guard)
    }

    /// Lets so many senders be connected at a time.
    pub fn limit_senders(&mut self, most: usize) {
        self.most = most.min(MAX_SENDERS);
    }

    /// Becomes readable when somebody has come, and not again before it was looked.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor
    }

    /// Somebody has come or gone. `unaccounted`: what the process takes beyond what is accounted
    /// for. It is not looked at once: whole bursts of PHP processes cost one look.
    pub fn wake(&mut self, now: Time, unaccounted: impl FnOnce() -> usize) {
        if self.next.is_none() {
            self.next = Some(now.after(INTERVAL));
            self.before = unaccounted();
        }
    }

    pub fn next(&self) -> Option<Time> {
        self.next
    }

    /// Looks, if it is time.
    pub fn look(&mut self, now: Time, unaccounted: impl FnOnce() -> usize) -> Option<Excess> {
        self.next.take_if(|next| *next <= now)?;
        self.count();
        if std::mem::take(&mut self.rejected) > 0 {
            return Some(Excess::Descriptors(self.senders));
        }
        if self.senders == 0 {
            return None;
        }
        self.next = Some(now.after(INTERVAL));
        let grown = unaccounted().saturating_sub(self.before);
        if self.senders > self.most {
            Some(Excess::Senders(self.senders, self.most))
        } else if grown > MAX_ZEROMQ {
            Some(Excess::Memory(grown))
        } else {
            None
        }
    }

    fn count(&mut self) {
        // The event's number and a value, then the address.
        while let Ok(event) = self.monitor.recv_msg(zmq::DONTWAIT) {
            let Some(number) = event.first_chunk::<2>() else { continue };
            let number = i32::from(u16::from_ne_bytes(*number));
            match number {
                ACCEPTED => self.senders += 1,
                ACCEPT_FAILED => self.rejected += 1,
                DISCONNECTED => self.senders = self.senders.saturating_sub(1),
                _ => {}
            }
            if event.get_more() {
                let _ = self.monitor.recv_msg(zmq::DONTWAIT);
            }
        }
    }
}
