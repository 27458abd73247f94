//! Limits for libzmq, which has none itself.

use std::time::Duration;

use log::{error, info, warn};

use super::log_limiter::Cause;
use super::{SENDERS, Server, ZMQ};
use crate::daemon::zmq::Excess;
use crate::engine::limits;
use crate::engine::limits::MAX_ZEROMQ;
use crate::engine::time::Time;
use crate::platform::{process_stats, sys};

/// Interval of attempts to bind again.
const RETRY: Duration = Duration::from_secs(1);

/// Free memory that is worth returning to the kernel, in bytes.
const WORTHWHILE: usize = 8 * 1024 * 1024;

impl Server {
    /// Called when a ZeroMQ sender has connected, disconnected or sent data.
    pub(super) fn wake_zmq_guard(&mut self) {
        let (now, accounted) = (self.now, self.accounted());
        let unaccounted = || process_stats::resident_memory().saturating_sub(accounted);
        self.zmq.wake_guard(now, self.poll.registry(), unaccounted);
    }

    pub(super) fn next_zmq_check(&self) -> Option<Time> {
        [self.zmq.next_check(), self.zmq_broken].into_iter().flatten().min()
    }

    /// Recreates the ZeroMQ context if libzmq exceeds a limit.
    pub(super) fn guard_zmq(&mut self) {
        let (now, accounted) = (self.now, self.accounted());
        if self.zmq_broken.is_some_and(|again| again <= now) {
            return self.resume_zmq();
        }
        let was_used = self.zmq.next_check().is_some();
        let unaccounted = || process_stats::resident_memory().saturating_sub(accounted);
        let excess = self.zmq.check_senders(now, self.poll.registry(), unaccounted);
        let is_over = was_used && self.zmq.next_check().is_none() && !self.zmq.has_senders();
        if is_over && process_stats::resident_memory() > accounted + WORTHWHILE {
            // All senders have disconnected, and libzmq has freed their partial messages.
            sys::trim_heap();
        }
        let Some(excess) = excess else { return };
        self.log_excess(excess);
        if excess == Excess::Descriptors(0) {
            // There are no senders that a restart of libzmq would disconnect.
            self.zmq.pause();
            // The call may receive messages that libzmq's descriptor reported before.
            self.zmq_pending = true;
            self.zmq_broken = Some(now.after(RETRY));
        } else {
            self.restart_zmq();
        }
    }

    fn log_excess(&mut self, excess: Excess) {
        let cause = match excess {
            Excess::Descriptors(_) => Cause::ZmqDescriptors,
            Excess::Senders(..) => Cause::ZmqSenders,
            Excess::Memory(_) => Cause::ZmqMemory,
        };
        if !self.log_limiter.should_log(cause, self.now) {
            return;
        }
        let endpoint = self.zmq.endpoint();
        match excess {
            Excess::Descriptors(_) => warn!(
                "EspoCRM's connections cannot be accepted at {endpoint}: out of file descriptors \
                 or memory. Raise LimitNOFILE in the unit."
            ),
            Excess::Senders(senders, most) => warn!(
                "The ZeroMQ socket at {endpoint} is restarted: it has {senders} senders, the limit \
                 is {most}. Find out which programs can reach it."
            ),
            Excess::Memory(bytes) => warn!(
                "The ZeroMQ socket at {endpoint} is restarted: its input uses {bytes} bytes of \
                 memory, the limit is {MAX_ZEROMQ}. Find out which program sends so much."
            ),
        }
    }

    fn restart_zmq(&mut self) {
        match self.zmq.recreate() {
            Ok(()) => self.zmq_restarted(),
            Err(error) => {
                error!("{error} EspoCRM's messages are not received. Retrying every second.");
                self.zmq_broken = Some(self.now.after(RETRY));
            }
        }
    }

    /// Schedules binding the socket again if an attempt to replace its endpoint lost it.
    pub(super) fn repair_zmq(&mut self) {
        if !self.zmq.is_bound() {
            self.zmq_broken.get_or_insert(self.now.after(RETRY));
        }
    }

    fn resume_zmq(&mut self) {
        // As in guard_zmq, whether it succeeds or not.
        self.zmq_pending = true;
        match self.zmq.resume() {
            Ok(is_new) => {
                self.zmq_broken = None;
                if is_new {
                    self.zmq_restarted();
                }
                info!("EspoCRM's messages are received at {} again.", self.zmq.endpoint());
            }
            Err(_) => self.zmq_broken = Some(self.now.after(RETRY)),
        }
    }

    fn zmq_restarted(&mut self) {
        self.stats.zmq_restarts += 1;
        // For kernels on which a child process cannot close inherited descriptors.
        sys::mark_close_on_exec();
        sys::trim_heap();
        if let Err(error) = self.zmq.register(self.poll.registry(), ZMQ, SENDERS) {
            error!("Cannot wait for EspoCRM's messages: {error}. Restart the daemon.");
        }
        self.zmq_pending = true;
    }

    /// Expected memory use of this process without libzmq, in bytes.
    pub(super) fn accounted(&self) -> usize {
        let buffered = self.buffered();
        let tls = self.settings.tls.value.is_some();
        limits::accounted(self.conns.len(), tls, buffered, self.check_queue.queued())
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
    fn messages_may_be_pending_after_a_pause_of_the_socket() {
        let mut server = server();
        server.zmq.pause();
        server.zmq_broken = Some(server.now);
        // The port becomes free a moment later.
        while server.zmq_broken.is_some() {
            server.zmq_pending = false;
            server.guard_zmq();
            assert!(server.zmq_pending, "whether it is bound or not");
            server.now = server.now.after(RETRY);
        }
    }
}
