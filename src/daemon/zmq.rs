//! The ZeroMQ socket into which EspoCRM's PHP pushes its messages.

mod guard;

pub(crate) use guard::Excess;

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};
use zmq::Message;

use crate::engine::espocrm::submission::Rejection;
use crate::engine::limits::{MAX_RECEIVE_QUEUE, MAX_RECEIVED, MAX_SENDERS};
use crate::engine::printable::Printable;
use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys::{ZmqContext, ZmqSocket, ZmqType};
use guard::Guard;

/// A PULL socket. PHP's command line makes a connection for each message; php-fpm's processes keep
/// theirs.
pub struct ZmqReceiver {
    /// None only after a [`renew`](ZmqReceiver::renew) that has failed.
    libzmq: Option<Libzmq>,
    endpoint: String,
    /// False after a [`rebind`](ZmqReceiver::rebind) after which not even the previous endpoint could be bound.
    is_bound: bool,
    /// Senders that may be connected at a time.
    most_senders: usize,
    /// A test's messages, which are then all there are.
    #[cfg(test)]
    script: Option<super::script::Messages>,
}

/// A context of libzmq and what belongs to it.
struct Libzmq {
    // The sockets must be closed before their context.
    guard: Guard,
    socket: ZmqSocket,
    context: ZmqContext,
    descriptor: RawFd,
}

/// What [`ZmqReceiver::receive`] has found.
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

/// Descriptors that a context and its sockets need.
const DESCRIPTORS: usize = 13;

/// For a connection to become a ZeroMQ one, in milliseconds.
const HANDSHAKE: i32 = 10_000;

impl ZmqReceiver {
    /// Binds `endpoint`, such as `tcp://127.0.0.1:5555`, `tcp://*:7777` or `ipc:///run/x.sock`.
    ///
    /// # Errors
    /// If it cannot be bound: why, and what to do.
    pub fn bind(endpoint: &str) -> Result<Self> {
        let libzmq = Some(Libzmq::new().map_err(|error| problem(&error))?);
        let mut bus = Self {
            libzmq,
            endpoint: String::new(),
            is_bound: true,
            most_senders: MAX_SENDERS,
            #[cfg(test)]
            script: None,
        };
        bus.endpoint = bus.bind_socket(endpoint)?;
        Ok(bus)
    }

    /// Begins anew, which ends all connections and frees all that libzmq holds. PHP whose message
    /// had not arrived connects again.
    ///
    /// # Errors
    /// If there are no descriptors, or somebody else has bound the endpoint meanwhile: then there is
    /// no socket, and [`resume`](Self::resume) is to be called later.
    pub fn renew(&mut self) -> Result<()> {
        // First: its port must become free, and its descriptors may be the last.
        self.libzmq = None;
        self.remove_file();
        let mut libzmq = Libzmq::new().map_err(|error| problem(&error))?;
        libzmq.guard.limit_senders(self.most_senders);
        self.libzmq = Some(libzmq);
        self.bind_again().map(drop)
    }

    /// Takes nobody in for a while: libzmq, which finds no descriptor for who waits to be accepted,
    /// tries again without a pause.
    pub fn rest(&mut self) {
        self.unbind();
    }

    /// Goes on after [`rest`](Self::rest), or after a [`renew`](Self::renew) that has failed: true if
    /// it has begun anew and is to be registered.
    ///
    /// # Errors
    /// If that is not possible; it is to be tried again.
    pub fn resume(&mut self) -> Result<bool> {
        if self.libzmq.is_none() {
            return self.renew().map(|()| true);
        }
        // If it is bound after all.
        self.unbind();
        let endpoint = self.endpoint.clone();
        self.bind_socket(&endpoint).map(|_| false)
    }

    /// Lets so many senders be connected at a time.
    pub fn limit_senders(&mut self, most: usize) {
        self.most_senders = most;
        if let Some(libzmq) = &mut self.libzmq {
            libzmq.guard.limit_senders(most);
        }
    }

    /// Has the senders' guard check soon: a sender has connected, disconnected or sent something.
    /// `unaccounted` returns what the process takes beyond what is accounted for, in bytes.
    pub fn wake_guard(&mut self, now: Time, registry: &Registry, unaccounted: impl Fn() -> usize) {
        if let Some(libzmq) = &mut self.libzmq {
            libzmq.guard.wake(now, registry, unaccounted);
        }
    }

    /// When [`look`](Self::look) has something to do.
    #[must_use]
    pub fn next_look(&self) -> Option<Time> {
        self.libzmq.as_ref().and_then(|libzmq| libzmq.guard.next())
    }

    /// Whether libzmq is to be begun anew.
    pub fn look(
        &mut self,
        now: Time,
        registry: &Registry,
        unaccounted: impl Fn() -> usize,
    ) -> Option<Excess> {
        self.libzmq.as_mut()?.guard.look(now, registry, unaccounted)
    }

    /// Whether any sender is connected, as far as the guard has seen.
    #[must_use]
    pub fn has_senders(&self) -> bool {
        self.libzmq.as_ref().is_some_and(|libzmq| libzmq.guard.has_senders())
    }

    /// Takes messages from a test.
    #[cfg(test)]
    pub(crate) fn scripted(script: super::script::Messages) -> Self {
        let endpoint = "scripted".to_owned();
        Self { libzmq: None, endpoint, is_bound: true, most_senders: 0, script: Some(script) }
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
        self.unbind();
        self.endpoint = new;
        Ok(())
    }

    /// Gives the old endpoint up before the new one is bound. What PHP sends in between waits: it
    /// connects again for a second.
    fn replace(&mut self, endpoint: &str) -> Result<String> {
        self.unbind();
        let new = patiently(|| self.bind_socket(endpoint));
        if new.is_err() {
            self.is_bound = self.bind_again().is_ok();
        }
        new
    }

    fn bind_again(&mut self) -> Result<String> {
        let endpoint = self.endpoint.clone();
        patiently(|| self.bind_socket(&endpoint))
    }

    fn unbind(&mut self) {
        if let (Some(libzmq), Ok(endpoint)) = (&mut self.libzmq, CString::new(&*self.endpoint)) {
            let _ = libzmq.socket.unbind(&endpoint);
        }
        self.remove_file();
    }

    /// libzmq leaves its socket file behind.
    fn remove_file(&self) {
        if let Some(path) = socket_file(&self.endpoint)
            && is_socket(path).unwrap_or(false)
        {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether it receives at its [`endpoint`](Self::endpoint); if not, [`resume`](Self::resume) is
    /// to be called later.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Where it is bound: with the number of the port if any free one was asked for.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The context, for another socket of this process.
    #[must_use]
    pub fn context(&self) -> Option<&ZmqContext> {
        self.libzmq.as_ref().map(|libzmq| &libzmq.context)
    }

    /// Has `token` reported when there may be messages. libzmq's descriptor reports changes, not
    /// states, and some that are none: after each report, and after any other call,
    /// [`receive`](Self::receive) must be called until there is [`Received::Nothing`]. Has `senders`
    /// reported when [`wake_guard`](Self::wake_guard) is to be called.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        senders: Token,
    ) -> io::Result<()> {
        let Some(libzmq) = &mut self.libzmq else { return Ok(()) };
        libzmq.guard.register(registry, senders)?;
        registry.register(&mut SourceFd(&libzmq.descriptor), token, Interest::READABLE)
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
            match self.socket()?.recv_msg(zmq::DONTWAIT) {
                Err(zmq::Error::EINTR) => {}
                other => return other,
            }
        }
    }

    fn socket(&self) -> std::result::Result<&ZmqSocket, zmq::Error> {
        self.libzmq.as_ref().map(|libzmq| &libzmq.socket).ok_or(zmq::Error::ENOTSOCK)
    }

    /// Binds and returns the endpoint as libzmq names it.
    fn bind_socket(&mut self, endpoint: &str) -> Result<String> {
        let failed = |why: &str| {
            Exit::error(format!(
                "EspoCRM's messages cannot be received at {}: {why}. It is set by EspoCRM's \
                 parameter webSocketZeroMQSubscriberDsn, or by --zeromq.",
                Printable(endpoint)
            ))
        };
        let address = address(endpoint);
        let known = endpoint.starts_with("tcp://") || endpoint.starts_with("ipc://");
        let (true, Ok(name)) = (known, CString::new(&*address)) else {
            return Err(failed("an endpoint is expected, such as tcp://127.0.0.1:5555"));
        };
        // libzmq takes the rest of a division by 65,536.
        if port(&address).is_some_and(|port| port != "*" && port.parse::<u16>().is_err()) {
            return Err(failed("its port is not a number from 0 to 65535, and not *"));
        }
        let reason = |error: io::Error| failed(&reason(&error));
        let file = socket_file(endpoint);
        if let Some(path) = file {
            make_way(path).map_err(reason)?;
        }
        let libzmq = self.libzmq.as_mut().ok_or(ErrorKind::NotConnected.into()).map_err(reason)?;
        libzmq.socket.bind(&name).map_err(reason)?;
        self.is_bound = true;
        if let Some(path) = file {
            // For this user and its group, whatever the umask.
            let _ = std::fs::set_permissions(path, Permissions::from_mode(0o660));
        }
        match libzmq.socket.get_last_endpoint() {
            Ok(Ok(bound)) => Ok(bound.trim_end_matches('\0').to_owned()),
            _ => Ok(address),
        }
    }
}

impl Libzmq {
    fn new() -> io::Result<Self> {
        // Without a descriptor for each of its parts libzmq may end the process.
        drop((0..DESCRIPTORS).map(|_| File::open("/dev/null")).collect::<io::Result<Vec<_>>>()?);
        let context = ZmqContext::new()?;
        let mut socket = context.socket(ZmqType::Pull)?;
        socket.set_linger(0)?;
        socket.set_rcvhwm(MAX_RECEIVE_QUEUE)?;
        socket.set_backlog(BACKLOG)?;
        socket.set_handshake_ivl(HANDSHAKE)?;
        // A sender whose machine is gone must not keep its descriptor.
        socket.set_tcp_keepalive(1)?;
        socket.set_tcp_keepalive_idle(60)?;
        socket.set_maxmsgsize(i64::try_from(MAX_RECEIVED).unwrap_or(i64::MAX))?;
        let guard = Guard::new(&context, &mut socket)?;
        let descriptor = socket.get_fd()?;
        Ok(Self { guard, socket, context, descriptor })
    }
}

impl Drop for ZmqReceiver {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// Tries for a while: libzmq closes what it has bound in its own thread.
fn patiently(mut bind: impl FnMut() -> Result<String>) -> Result<String> {
    for _ in 0..50 {
        if let Ok(bound) = bind() {
            return Ok(bound);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bind()
}

fn problem(error: &io::Error) -> Exit {
    Exit::error(format!("ZeroMQ cannot be used: {error}."))
}

/// Why an endpoint cannot be bound, and what to do.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "it is in use. Another daemon runs there: stop EspoCRM's own \
                                 (systemctl stop espocrm-websocket, or find it by ss -lntxp)"
            .to_owned(),
        ErrorKind::PermissionDenied => format!("this user may not ({error})"),
        ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ if error.raw_os_error() == Some(libc::ENODEV) => {
            "this machine has no such address".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The path of an endpoint that is a file. `ipc://*` lets libzmq choose one, and `ipc://@name` has
/// none.
fn socket_file(endpoint: &str) -> Option<&Path> {
    let path = endpoint.strip_prefix("ipc://")?;
    (!path.starts_with(['*', '@'])).then_some(Path::new(path))
}

/// Makes sure that a socket file can be created at `path`. libzmq deletes whatever is there, so only
/// a socket at which no process listens may be. Never blocks.
fn make_way(path: &Path) -> io::Result<()> {
    match is_socket(path) {
        Ok(true) => {}
        Ok(false) => {
            let text = "a file exists there that is not a socket. Remove it, or use another path";
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        // No process listens there.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A full backlog, or a socket of another type.
        Ok(()) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            Err(ErrorKind::AddrInUse.into())
        }
        Err(error) => Err(error),
    }
}

fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(std::fs::symlink_metadata(path)?.file_type().is_socket())
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

    /// Moves to an endpoint. On a busy machine libzmq may take longer to close the old one than
    /// `patiently` waits: a daemon tries again later.
    fn rebind(bus: &mut ZmqReceiver, endpoint: &str) {
        eventually(|| bus.rebind(endpoint).is_ok());
    }

    fn eventually(mut condition: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "it did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn receive(bus: &ZmqReceiver) -> std::result::Result<String, Rejection> {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            match bus.receive() {
                Received::Message(message) => return Ok(message.as_str().unwrap().to_owned()),
                Received::Rejected(rejection) => return Err(rejection),
                Received::Nothing => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("nothing was received");
    }

    fn sender(endpoint: &str) -> zmq::Socket {
        let socket = zmq::Context::new().socket(zmq::PUSH).unwrap();
        socket.connect(endpoint).unwrap();
        socket
    }

    #[test]
    fn messages_arrive_and_multipart_ones_are_rejected_whole() {
        let bus = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
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
        let mut bus = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
        let old = bus.endpoint().to_owned();
        rebind(&mut bus, "tcp://localhost:*");
        assert_ne!(bus.endpoint(), old);
        sender(bus.endpoint()).send("here", 0).unwrap();
        assert_eq!(receive(&bus), Ok("here".to_owned()));
        // One that overlaps with it.
        let (_, port) = bus.endpoint().rsplit_once(':').unwrap();
        let everywhere = format!("tcp://0.0.0.0:{port}");
        let same = format!("tcp://localhost:{port}");
        // A minimal machine has no /etc/hosts, and libzmq would look for the name forever.
        let reachable = format!("tcp://127.0.0.1:{port}");
        rebind(&mut bus, &same);
        assert_ne!(bus.endpoint(), everywhere);
        rebind(&mut bus, &everywhere);
        assert_eq!(bus.endpoint(), everywhere);
        sender(&reachable).send("everywhere", 0).unwrap();
        assert_eq!(receive(&bus), Ok("everywhere".to_owned()));
        // The first endpoint is free again, a little later: libzmq closes it in its own thread.
        eventually(|| ZmqReceiver::bind(&old).is_ok());
    }

    #[test]
    fn what_cannot_be_bound_is_explained() {
        let bus = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
        for (endpoint, why) in [
            (bus.endpoint(), "in use"),
            ("", "an endpoint is expected"),
            ("127.0.0.1:5555", "an endpoint is expected"),
            ("tcp://127.0.0.1:5555\0", "an endpoint is expected"),
            ("tcp://127.0.0.1", "Invalid argument"),
            ("tcp://127.0.0.1:", "not a number"),
            ("tcp://127.0.0.1:99999", "not a number from 0 to 65535"),
            ("tcp://192.0.2.1:5555", "no such address"),
        ] {
            let error = ZmqReceiver::bind(endpoint).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("webSocketZeroMQSubscriberDsn"), "{error}");
        }
    }
}
