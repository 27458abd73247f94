//! Limits for libzmq, which has none itself.

use log::{error, info, warn};

use super::Server;
use super::log_limiter::Cause;
use crate::daemon::zmq::{Event, Excess};
use crate::engine::limits;
use crate::engine::limits::MAX_ZEROMQ;

impl Server {
    /// Called when a ZeroMQ sender has connected, disconnected or sent data.
    pub(super) fn wake_zmq_guard(&mut self) {
        let accounted = self.accounted();
        self.zmq.wake_guard(self.now, self.poll.registry(), accounted);
    }

    /// Keeps libzmq within its limits. Logs and counts what that required.
    pub(super) fn guard_zmq(&mut self) {
        let accounted = self.accounted();
        match self.zmq.expire(self.now, self.poll.registry(), accounted) {
            None => {}
            Some(Event::Paused(excess)) => self.log_excess(excess),
            Some(Event::Failed(excess, error)) => {
                self.log_excess(excess);
                error!("{error} EspoCRM's messages are not received. Retrying every second.");
            }
            Some(Event::Restarted { excess, registered }) => {
                self.telemetry.stats.zmq_restarts += 1;
                match excess {
                    Some(excess) => self.log_excess(excess),
                    None => self.log_resumption(),
                }
                if let Err(error) = registered {
                    error!("Cannot wait for EspoCRM's messages: {error}. Restart the daemon.");
                }
            }
            Some(Event::Resumed) => self.log_resumption(),
        }
    }

    fn log_resumption(&self) {
        info!("EspoCRM's messages are received at {} again.", self.zmq.endpoint());
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

    /// Expected memory use of this process without libzmq, in bytes.
    pub(super) fn accounted(&self) -> usize {
        let buffered = self.buffered();
        let tls = self.settings.tls.value.is_some();
        limits::accounted(self.conns.len(), tls, buffered, self.checks.queue().queued())
    }
}
