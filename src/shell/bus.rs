//! The ZeroMQ socket into which EspoCRM's PHP pushes its messages.

mod guard;

pub use guard::Excess;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use zmq::{Context, Message, Socket, SocketType};

use super::fatal::{Fatal, Result};
use crate::core::limits::{MAX_RECEIVE_QUEUE, MAX_RECEIVED};
use crate::core::submission::Rejection;
use crate::core::time::Time;
use guard::Guard;

/// A PULL socket. PHP makes a connection for each message.
pub struct Bus {
    // The sockets must be closed before their context.
    guard: Option<Guard>,
    socket: Socket,
    context: Context,
    descriptor: RawFd,
    endpoint: String,
    /// A test's messages, which are then all there are.
    #[cfg(test)]
    script: Option<super::script::Messages>,
}

/// What [`Bus::receive`] has found.
pub enum Received {
    /// A message of one part.
    Message(Message),
    /// A message that cannot be one of EspoCRM's.
    Rejected(Rejection),
    /// Nothing more for now: the descriptor tells when there is.
    Nothing,
}

/// Connections that may wait to be accepted: one per request that PHP is serving.
const BACKLOG: i32 = 1_024;

/// Descriptors that a context and its sockets need, and some more.
const DESCRIPTORS: usize = 24;

/// For a connection to become a ZeroMQ one, in milliseconds.
const HANDSHAKE: i32 = 10_000;

impl Bus {
    /// Binds `endpoint`, such as `tcp://127.0.0.1:5555`, `tcp://*:7777` or `ipc:///run/x.sock`.
    ///
    /// # Errors
    /// If it cannot be bound: why, and what to do.
    pub fn bind(endpoint: &str) -> Result<Self> {
        let mut bus = Self::unbound().map_err(trouble)?;
        bus.endpoint = bus.bind_socket(endpoint)?;
        Ok(bus)
    }

    fn unbound() -> std::result::Result<Self, zmq::Error> {
        let context = Context::new();
        let socket = context.socket(SocketType::PULL)?;
        socket.set_linger(0)?;
        socket.set_rcvhwm(MAX_RECEIVE_QUEUE)?;
        socket.set_backlog(BACKLOG)?;
        socket.set_handshake_ivl(HANDSHAKE)?;
        // A sender whose machine is gone must not keep its descriptor.
        socket.set_tcp_keepalive(1)?;
        socket.set_tcp_keepalive_idle(60)?;
        socket.set_maxmsgsize(i64::try_from(MAX_RECEIVED).unwrap_or(i64::MAX))?;
        Ok(Self {
            guard: Some(Guard::new(&context, &socket)?),
            descriptor: socket.get_fd()?,
            socket,
            context,
            endpoint: String::new(),
            #[cfg(test)]
            script: None,
        })
    }

    /// Begins anew, which ends all connections and frees all that libzmq holds. PHP whose message
    /// had not arrived connects again.
    ///
    /// # Errors
    /// If somebody else has bound the endpoint meanwhile; it is to be tried again.
    pub fn renew(&mut self) -> Result<()> {
        // Where libzmq gets none it ends the process.
        let spare = (0..DESCRIPTORS).map(|_| File::open("/dev/null"));
        let spare = spare.collect::<io::Result<Vec<_>>>();
        drop(spare.map_err(|error| Fatal::new(format!("ZeroMQ cannot be begun anew: {error}.")))?);
        let most = self.guard.as_ref().map(Guard::most_senders);
        let mut new = Self::unbound().map_err(trouble)?;
        if let Some(most) = most {
            new.limit_senders(most);
        }
        let old = std::mem::replace(self, new);
        let endpoint = old.endpoint.clone();
        // Its port must become free.
        drop(old);
        self.endpoint.clone_from(&endpoint);
        self.endpoint = patiently(|| self.bind_socket(&endpoint))?;
        Ok(())
    }

    /// Takes nobody in for a while: libzmq, which finds no descriptor for who waits to be accepted,
    /// tries again without a pause.
    pub fn rest(&mut self) {
        let _ = self.socket.unbind(&self.endpoint);
    }

    /// Goes on after [`rest`](Self::rest), or after a [`renew`](Self::renew) that has failed.
    ///
    /// # Errors
    /// If the endpoint cannot be bound; it is to be tried again.
    pub fn resume(&mut self) -> Result<()> {
        // If it is bound after all.
        let _ = self.socket.unbind(&self.endpoint);
        self.bind_socket(&self.endpoint).map(drop)
    }

    /// Lets so many senders be connected at a time.
    pub fn limit_senders(&mut self, most: usize) {
        if let Some(guard) = &mut self.guard {
            guard.limit_senders(most);
        }
    }

    /// The senders' guard is to be asked: somebody has come or gone. `unaccounted` tells what the
    /// process takes beyond what is accounted for, in bytes.
    pub fn wake_guard(&mut self, now: Time, unaccounted: impl FnOnce() -> usize) {
        if let Some(guard) = &mut self.guard {
            guard.wake(now, unaccounted);
        }
    }

    /// When [`look`](Self::look) has something to do.
    #[must_use]
    pub fn next_look(&self) -> Option<Time> {
        self.guard.as_ref().and_then(Guard::next)
    }

    /// Whether libzmq is to be begun anew.
    pub fn look(&mut self, now: Time, unaccounted: impl FnOnce() -> usize) -> Option<Excess> {
        self.guard.as_mut()?.look(now, unaccounted)
    }

    /// Takes messages from a test.
    #[cfg(test)]
    pub(crate) fn scripted(script: super::script::Messages) -> Self {
        thread_local!(static CONTEXT: Context = Context::new());
        let context = CONTEXT.with(Clone::clone);
        let socket = context.socket(SocketType::PULL).unwrap();
        let endpoint = "scripted".to_owned();
        Self { guard: None, socket, context, descriptor: -1, endpoint, script: Some(script) }
    }

    /// Moves to another endpoint; if that fails the old one stays.
    ///
    /// # Errors
    /// If the new one cannot be bound.
    pub fn rebind(&mut self, endpoint: &str) -> Result<()> {
        if address(endpoint) == self.endpoint {
            return Ok(());
        }
        let new = match self.bind_socket(endpoint) {
            // As `tcp://*:7777` after `tcp://127.0.0.1:7777`: the old one is in its way.
            Err(_) if port(endpoint) == port(&self.endpoint) => self.replace(endpoint)?,
            new => new?,
        };
        // It was bound, so it can be unbound.
        let _ = self.socket.unbind(&self.endpoint);
        self.endpoint = new;
        Ok(())
    }

    /// Gives the old endpoint up before the new one is bound. What PHP sends in between waits: it
    /// connects again for a second.
    fn replace(&self, endpoint: &str) -> Result<String> {
        let _ = self.socket.unbind(&self.endpoint);
        patiently(|| self.bind_socket(endpoint))
            .inspect_err(|_| drop(patiently(|| self.bind_socket(&self.endpoint))))
    }

    /// Where it is bound: with the number of the port if any free one was asked for.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The context, for another socket of this process.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Has `token` reported when there may be messages. libzmq's descriptor reports changes, not
    /// states, and some that are none: after each report, and after any other call,
    /// [`receive`](Self::receive) must be called until there is [`Received::Nothing`]. Has `senders`
    /// reported when some come or go, for [`wake_guard`](Self::wake_guard).
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(&self, registry: &Registry, token: Token, senders: Token) -> io::Result<()> {
        if let Some(guard) = &self.guard {
            registry.register(&mut SourceFd(&guard.descriptor()), senders, Interest::READABLE)?;
        }
        registry.register(&mut SourceFd(&self.descriptor), token, Interest::READABLE)
    }

    /// Takes the next message, without waiting.
    #[must_use]
    pub fn receive(&self) -> Received {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.receive();
        }
        match self.receive_part() {
            Ok(message) if !message.get_more() => Received::Message(message),
            Ok(_) => {
                // The parts of a message arrive together or not at all.
                while self.receive_part().is_ok_and(|part| part.get_more()) {}
                Received::Rejected(Rejection::Multipart)
            }
            Err(_) => Received::Nothing,
        }
    }

    fn receive_part(&self) -> std::result::Result<Message, zmq::Error> {
        loop {
            match self.socket.recv_msg(zmq::DONTWAIT) {
                Err(zmq::Error::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Binds and returns the endpoint as libzmq names it.
    fn bind_socket(&self, endpoint: &str) -> Result<String> {
        let failed = |why: &str| {
            Fatal::new(format!(
                "EspoCRM's messages cannot be received at {}: {why}. It is set by EspoCRM's \
                 parameter webSocketZeroMQSubscriberDsn, or by --zeromq.",
                endpoint.escape_debug()
            ))
        };
        let known = endpoint.starts_with("tcp://") || endpoint.starts_with("ipc://");
        if !known || endpoint.contains('\0') {
            return Err(failed("an endpoint is expected, such as tcp://127.0.0.1:5555"));
        }
        let address = address(endpoint);
        self.socket.bind(&address).map_err(|error| match error {
            zmq::Error::EADDRINUSE => failed(
                "it is in use. Another daemon runs there: stop EspoCRM's own (systemctl stop \
                 espocrm-websocket, or find it by ss -ltnp)",
            ),
            zmq::Error::EACCES => failed("this user may not"),
            zmq::Error::ENODEV | zmq::Error::EADDRNOTAVAIL => {
                failed("this machine has no such address")
            }
            error => failed(error.message()),
        })?;
        match self.socket.get_last_endpoint() {
            Ok(Ok(bound)) => Ok(bound.trim_end_matches('\0').to_owned()),
            _ => Ok(address),
        }
    }
}

/// Tries for a while: libzmq closes what it has bound in its own thread.
fn patiently(bind: impl Fn() -> Result<String>) -> Result<String> {
    for _ in 0..50 {
        if let Ok(bound) = bind() {
            return Ok(bound);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bind()
}

fn trouble(error: zmq::Error) -> Fatal {
    Fatal::new(format!("ZeroMQ cannot be used: {error}."))
}

/// libzmq binds to addresses and interfaces only.
fn address(endpoint: &str) -> String {
    endpoint.replacen("tcp://localhost:", "tcp://127.0.0.1:", 1)
}

fn port(endpoint: &str) -> Option<&str> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':').map(|(_, port)| port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(bus: &Bus) -> std::result::Result<String, Rejection> {
        loop {
            match bus.receive() {
                Received::Message(message) => return Ok(message.as_str().unwrap().to_owned()),
                Received::Rejected(rejection) => return Err(rejection),
                Received::Nothing => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn sender(endpoint: &str) -> Socket {
        let socket = Context::new().socket(SocketType::PUSH).unwrap();
        socket.connect(endpoint).unwrap();
        socket
    }

    #[test]
    fn messages_arrive_and_multipart_ones_are_rejected_whole() {
        let bus = Bus::bind("tcp://127.0.0.1:*").unwrap();
        let sender = sender(bus.endpoint());
        sender.send("one", 0).unwrap();
        sender.send_multipart(["a", "b", "c"], 0).unwrap();
        sender.send("two", 0).unwrap();
        let received: Vec<_> = (0..3).map(|_| receive(&bus)).collect();
        let expected = [Ok("one".to_owned()), Err(Rejection::Multipart), Ok("two".to_owned())];
        assert_eq!(received, expected);
    }

    #[test]
    fn it_moves_to_another_endpoint() {
        let mut bus = Bus::bind("tcp://127.0.0.1:*").unwrap();
        let old = bus.endpoint().to_owned();
        bus.rebind("tcp://localhost:*").unwrap();
        assert_ne!(bus.endpoint(), old);
        sender(bus.endpoint()).send("here", 0).unwrap();
        assert_eq!(receive(&bus), Ok("here".to_owned()));
        // One that overlaps with it.
        let (_, port) = bus.endpoint().rsplit_once(':').unwrap();
        let everywhere = format!("tcp://0.0.0.0:{port}");
        let same = format!("tcp://localhost:{port}");
        bus.rebind(&same).unwrap();
        assert_ne!(bus.endpoint(), everywhere);
        bus.rebind(&everywhere).unwrap();
        assert_eq!(bus.endpoint(), everywhere);
        sender(&same).send("everywhere", 0).unwrap();
        assert_eq!(receive(&bus), Ok("everywhere".to_owned()));
        // The first endpoint is free again, a little later: libzmq closes it in its own thread.
        while Bus::bind(&old).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_cannot_be_bound_is_explained() {
        let bus = Bus::bind("tcp://127.0.0.1:*").unwrap();
        for (endpoint, why) in [
            (bus.endpoint(), "in use"),
            ("", "an endpoint is expected"),
            ("127.0.0.1:5555", "an endpoint is expected"),
            ("tcp://127.0.0.1:5555\0", "an endpoint is expected"),
            ("tcp://127.0.0.1", "Invalid argument"),
            ("tcp://192.0.2.1:5555", "no such address"),
        ] {
            let error = Bus::bind(endpoint).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("webSocketZeroMQSubscriberDsn"), "{error}");
        }
    }
}
