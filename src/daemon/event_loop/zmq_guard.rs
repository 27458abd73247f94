//! Keeps libzmq, which has no limit of its own, within its limits.

use std::time::Duration;

use log::{error, info, warn};

use super::bursts::Cause;
use super::{SENDERS, Server, ZMQ};
use crate::daemon::zmq::Excess;
use crate::engine::limits;
use crate::engine::limits::MAX_ZEROMQ;
use crate::engine::time::Time;
use crate::platform::sys;

/// Between two attempts to bind again.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes that are worth being given back.
const WORTHWHILE: usize = 8 * 1024 * 1024;

impl Server {
    /// A sender has connected to the bus, disconnected or sent something.
    pub(super) fn wake_zmq_guard(&mut self) {
        let (now, accounted) = (self.now, self.accounted());
        let unaccounted = || sys::resident().saturating_sub(accounted);
        self.bus.wake_guard(now, self.poll.registry(), unaccounted);
    }

    pub(super) fn next_zmq_look(&self) -> Option<Time> {
        [self.bus.next_look(), self.zmq_broken].into_iter().flatten().min()
    }

    /// Begins libzmq anew if it has got out of hand.
    pub(super) fn guard_zmq(&mut self) {
        let (now, accounted) = (self.now, self.accounted());
        if self.zmq_broken.is_some_and(|again| again <= now) {
            return self.resume_zmq();
        }
        let was_used = self.bus.next_look().is_some();
        let unaccounted = || sys::resident().saturating_sub(accounted);
        let excess = self.bus.look(now, self.poll.registry(), unaccounted);
        let is_over = was_used && self.bus.next_look().is_none() && !self.bus.has_senders();
        if is_over && sys::resident() > accounted + WORTHWHILE {
            // All senders have gone. What they have left half-sent libzmq has freed.
            sys::trim_heap();
        }
        let Some(excess) = excess else { return };
        self.say(excess);
        if excess == Excess::Descriptors(0) {
            // Nobody has them whom libzmq could send away.
            self.bus.rest();
            // Each call may take in messages that libzmq's descriptor reported before.
            self.zmq_pending = true;
            self.zmq_broken = Some(now.after(RETRY));
        } else {
            self.renew_zmq();
        }
    }

    fn say(&mut self, excess: Excess) {
        let cause = match excess {
            Excess::Descriptors(_) => Cause::BusDescriptors,
            Excess::Senders(..) => Cause::BusSenders,
            Excess::Memory(_) => Cause::BusMemory,
        };
        if !self.bursts.begins(cause, self.now) {
            return;
        }
        let endpoint = self.bus.endpoint();
        match excess {
            Excess::Descriptors(_) => warn!(
                "EspoCRM cannot be accepted at {endpoint} for the moment: there are no more \
                 descriptors, or there is no memory. Raise LimitNOFILE in the unit."
            ),
            Excess::Senders(senders, most) => warn!(
                "The socket at {endpoint} for EspoCRM's messages is opened anew: {senders} senders \
                 are connected to it, of at most {most}. Find out who can reach it."
            ),
            Excess::Memory(bytes) => warn!(
                "The socket at {endpoint} for EspoCRM's messages is opened anew: what it was sent \
                 takes {bytes} bytes, of at most {MAX_ZEROMQ}. Find out who can reach it, and sends \
                 so much."
            ),
        }
    }

    fn renew_zmq(&mut self) {
        match self.bus.renew() {
            Ok(()) => self.zmq_is_new(),
            Err(error) => {
                error!(
                    "{error} EspoCRM's messages are not received. It is tried again every second."
                );
                self.zmq_broken = Some(self.now.after(RETRY));
            }
        }
    }

    /// Binds the socket again later, if the previous endpoint was lost in an attempt to replace it.
    pub(super) fn repair_zmq(&mut self) {
        if !self.bus.is_bound() {
            self.zmq_broken.get_or_insert(self.now.after(RETRY));
        }
    }

    fn resume_zmq(&mut self) {
        // As above: whether it succeeds or not.
        self.zmq_pending = true;
        match self.bus.resume() {
            Ok(is_new) => {
                self.zmq_broken = None;
                if is_new {
                    self.zmq_is_new();
                }
                info!("EspoCRM's messages are received at {} again.", self.bus.endpoint());
            }
            Err(_) => self.zmq_broken = Some(self.now.after(RETRY)),
        }
    }

    fn zmq_is_new(&mut self) {
        self.stats.zmq_restarts += 1;
        // For kernels on which a child cannot close what it inherits.
        sys::mark_close_on_exec();
        sys::trim_heap();
        if let Err(error) = self.bus.register(self.poll.registry(), ZMQ, SENDERS) {
            error!("The kernel does not report EspoCRM's messages: {error}. Restart the daemon.");
        }
        self.zmq_pending = true;
    }

    /// Bytes that this process has reason to take, without libzmq.
    pub(super) fn accounted(&self) -> usize {
        let held = self.held + self.hub.buffered();
        let tls = self.settings.tls.value.is_some();
        limits::accounted(self.conns.len(), tls, held, self.check_queue.queued())
    }
}

#[cfg(test)]
mod tests {
    use mio::Poll;
    use serde_json::{Map, Value};

    use super::*;
    use crate::daemon::event_loop::Backend;
    use crate::daemon::event_loop::accept::Accepting;
    use crate::daemon::listener::Listener;
    use crate::daemon::script::{Arrivals, Checks, Journal, Random};
    use crate::daemon::zmq::ZmqReceiver;
    use crate::espocrm::EspoSettings;
    use crate::platform::signals::Signals;
    use crate::settings::{Layers, Overrides, Settings};

    fn server() -> Server {
        let espo_settings = EspoSettings::new(Map::new(), &Value::Null);
        let journal = Journal::default();
        let arrivals = Arrivals::new(&journal, Random::new(0));
        Server::assemble(
            Settings::resolve(&Layers::of_flags(Overrides::default()), &espo_settings).unwrap(),
            Backend::Scripted(Checks::new(&journal)),
            Signals::none().unwrap(),
            Poll::new().unwrap(),
            Accepting::new(Listener::scripted(arrivals), None),
            ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap(),
        )
    }

    #[test]
    fn messages_may_be_pending_after_the_socket_was_paused() {
        let mut server = server();
        server.bus.rest();
        server.zmq_broken = Some(server.now);
        // The port becomes free a moment later.
        while server.zmq_broken.is_some() {
            server.zmq_pending = false;
            server.guard_zmq();
            assert!(server.zmq_pending, "whether it was bound or not");
            server.now = server.now.after(RETRY);
        }
    }
}
