//! The ZeroMQ socket that receives the messages of EspoCRM's PHP.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use socket2::{Domain, SockAddr, Socket, Type};
use zmq::Message;

use super::guard::Guard;
use crate::daemon::token::EventSource;
use crate::engine::espocrm::submission::Rejection;
use crate::engine::limits::{MAX_RECEIVE_QUEUE, MAX_RECEIVED, MAX_SENDERS};
use crate::engine::printable::Printable;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys::{ZmqContext, ZmqSocket, ZmqType};

/// A PULL socket. The PHP CLI opens a connection for each message; php-fpm's processes keep
/// their connections open.
pub(crate) struct ZmqReceiver {
    /// `None` only after a failed [`recreate`](ZmqReceiver::recreate).
    libzmq: Option<Libzmq>,
    endpoint: String,
    /// False if a [`rebind`](ZmqReceiver::rebind) failed and lost the previous endpoint as well.
    is_bound: bool,
    /// The maximum number of connected senders.
    max_senders: usize,
}

/// A context of libzmq with its sockets.
struct Libzmq {
    // The sockets must be closed before their context.
    guard: Guard,
    socket: ZmqSocket,
    context: ZmqContext,
    descriptor: RawFd,
}

/// The result of [`ZmqReceiver::receive`].
pub(crate) enum Received {
    /// A message of one part.
    Message(Message),
    /// A message that EspoCRM cannot have sent.
    Rejected(Rejection),
    /// Nothing more for now; the descriptor reports new messages.
    Nothing,
}

/// Connections that may wait to be accepted: one per request that PHP is serving.
const BACKLOG: i32 = 1_024;

/// Descriptors that a context and its sockets need.
const DESCRIPTORS: usize = 13;

/// The time limit of the ZeroMQ handshake, in milliseconds.
const HANDSHAKE: i32 = 10_000;

impl ZmqReceiver {
    /// Binds `endpoint`, such as `tcp://127.0.0.1:5555`, `tcp://*:7777` or `ipc:///run/x.sock`.
    ///
    /// # Errors
    /// Why it cannot be bound, and what to do.
    pub(crate) fn bind(endpoint: &str) -> Result<Self> {
        let libzmq = Some(Libzmq::new().map_err(|error| problem(&error))?);
        let mut receiver =
            Self { libzmq, endpoint: String::new(), is_bound: true, max_senders: MAX_SENDERS };
        receiver.endpoint = receiver.bind_socket(endpoint)?;
        Ok(receiver)
    }

    /// Recreates the ZeroMQ context. That closes all connections and frees all memory of libzmq.
    /// PHP reconnects and sends messages again that had not arrived.
    ///
    /// # Errors
    /// If descriptors have run out, or another process has bound the endpoint meanwhile. There is
    /// then no socket, and the caller must call [`resume`](Self::resume) later.
    pub(super) fn recreate(&mut self) -> Result<()> {
        // First, to release the port and, if descriptors have run out, descriptors.
        self.libzmq = None;
        self.remove_file();
        let mut libzmq = Libzmq::new().map_err(|error| problem(&error))?;
        libzmq.guard.limit_senders(self.max_senders);
        self.libzmq = Some(libzmq);
        self.bind_again().map(drop)
    }

    /// Stops accepting connections. Without a free descriptor, libzmq would retry to accept them in
    /// a busy loop.
    pub(super) fn pause(&mut self) {
        self.unbind();
    }

    /// Continues after [`pause`](Self::pause) or a failed [`recreate`](Self::recreate). Returns
    /// true if the context is a new one, which the caller must register.
    ///
    /// # Errors
    /// Why that fails; the caller must retry later.
    pub(super) fn resume(&mut self) -> Result<bool> {
        if self.libzmq.is_none() {
            return self.recreate().map(|()| true);
        }
        // In case it is still bound.
        self.unbind();
        let endpoint = self.endpoint.clone();
        self.bind_socket(&endpoint).map(|_| false)
    }

    /// Sets the maximum number of connected senders.
    pub(super) fn limit_senders(&mut self, limit: usize) {
        self.max_senders = limit;
        if let Some(libzmq) = &mut self.libzmq {
            libzmq.guard.limit_senders(limit);
        }
    }

    /// What limits the senders and the memory of libzmq. `None` only after a failed
    /// [`recreate`](Self::recreate).
    pub(super) fn guard(&self) -> Option<&Guard> {
        self.libzmq.as_ref().map(|libzmq| &libzmq.guard)
    }

    pub(super) fn guard_mut(&mut self) -> Option<&mut Guard> {
        self.libzmq.as_mut().map(|libzmq| &mut libzmq.guard)
    }

    /// Binds another endpoint instead; on failure keeps the old one.
    ///
    /// # Errors
    /// If the new one cannot be bound.
    pub(super) fn rebind(&mut self, endpoint: &str) -> Result<()> {
        if address(endpoint) == self.endpoint {
            return Ok(());
        }
        let new = match self.bind_socket(endpoint) {
            // Such as `tcp://*:7777` after `tcp://127.0.0.1:7777`: the old one blocks the new one.
            Err(_) if port(endpoint) == port(&self.endpoint) => self.replace(endpoint)?,
            new => new?,
        };
        self.unbind();
        self.endpoint = new;
        Ok(())
    }

    /// Unbinds the old endpoint before it binds the new one. Messages that PHP sends in between are
    /// delayed, not lost: PHP retries to connect for a second.
    fn replace(&mut self, endpoint: &str) -> Result<String> {
        self.unbind();
        let new = retry_bind(|| self.bind_socket(endpoint));
        if new.is_err() {
            self.is_bound = self.bind_again().is_ok();
        }
        new
    }

    fn bind_again(&mut self) -> Result<String> {
        let endpoint = self.endpoint.clone();
        retry_bind(|| self.bind_socket(&endpoint))
    }

    fn unbind(&mut self) {
        if let (Some(libzmq), Ok(endpoint)) = (&mut self.libzmq, CString::new(&*self.endpoint)) {
            let _ = libzmq.socket.unbind(&endpoint);
        }
        self.remove_file();
    }

    /// Removes the socket file, which libzmq does not.
    fn remove_file(&self) {
        if let Some(path) = socket_file(&self.endpoint)
            && is_socket(path).unwrap_or(false)
        {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether the [`endpoint`](Self::endpoint) is bound; if not, the caller must call
    /// [`resume`](Self::resume) later.
    #[must_use]
    pub(super) fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// The bound endpoint, with the actual port if it was bound to any free port.
    #[must_use]
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The context, for another socket of this process.
    #[must_use]
    pub(super) fn context(&self) -> Option<&ZmqContext> {
        self.libzmq.as_ref().map(|libzmq| &libzmq.context)
    }

    /// Registers libzmq's descriptor, for messages, and the senders' events, which call for
    /// [`Guard::wake`]. libzmq's descriptor is edge-triggered and has spurious
    /// events: after each event, and after any other call, the caller must call
    /// [`receive`](Self::receive) until it returns [`Received::Nothing`].
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        let Some(libzmq) = &mut self.libzmq else { return Ok(()) };
        libzmq.guard.register(registry, EventSource::ZmqSenders.token())?;
        let mut source = SourceFd(&libzmq.descriptor);
        registry.register(&mut source, EventSource::Zmq.token(), Interest::READABLE)
    }

    /// Receives the next message without waiting.
    #[must_use]
    pub(crate) fn receive(&self) -> Received {
        match self.receive_part() {
            Ok(message) if !message.get_more() => Received::Message(message),
            Ok(_) => {
                // libzmq delivers the parts of a message together.
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

    /// Binds an endpoint and returns libzmq's form of it.
    fn bind_socket(&mut self, endpoint: &str) -> Result<String> {
        let failed = |why: &str| {
            Exit::error(format!(
                "Cannot receive EspoCRM's messages at {}: {why}. The endpoint is set by EspoCRM's \
                 parameter webSocketZeroMQSubscriberDsn, the daemon's setting zeromq, or --zeromq.",
                Printable(endpoint)
            ))
        };
        let address = address(endpoint);
        let known = endpoint.starts_with("tcp://") || endpoint.starts_with("ipc://");
        let (true, Ok(name)) = (known, CString::new(&*address)) else {
            return Err(failed("an endpoint is expected, such as tcp://127.0.0.1:5555"));
        };
        // libzmq would truncate the number to 16 bits.
        if port(&address).is_some_and(|port| port != "*" && port.parse::<u16>().is_err()) {
            return Err(failed("its port must be * or a number from 0 to 65535"));
        }
        let reason = |error: io::Error| failed(&reason(&error));
        let file = socket_file(endpoint);
        if let Some(path) = file {
            ensure_free(path).map_err(reason)?;
        }
        let libzmq = self.libzmq.as_mut().ok_or(ErrorKind::NotConnected.into()).map_err(reason)?;
        libzmq.socket.bind(&name).map_err(reason)?;
        self.is_bound = true;
        if let Some(path) = file {
            // Read and write access for this user and its group, regardless of the umask.
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
        // libzmq may abort the process if descriptors run out while it creates these sockets.
        drop((0..DESCRIPTORS).map(|_| File::open("/dev/null")).collect::<io::Result<Vec<_>>>()?);
        let context = ZmqContext::new()?;
        let mut socket = context.socket(ZmqType::Pull)?;
        socket.set_linger(0)?;
        socket.set_rcvhwm(MAX_RECEIVE_QUEUE)?;
        socket.set_backlog(BACKLOG)?;
        socket.set_handshake_ivl(HANDSHAKE)?;
        // Keepalive frees the descriptors of senders whose machine has vanished.
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

/// Retries for about 100 ms: libzmq closes an unbound socket asynchronously, in its own thread.
fn retry_bind(mut bind: impl FnMut() -> Result<String>) -> Result<String> {
    for _ in 0..50 {
        if let Ok(bound) = bind() {
            return Ok(bound);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bind()
}

fn problem(error: &io::Error) -> Exit {
    Exit::error(format!("ZeroMQ failed to start: {error}."))
}

/// Why an endpoint cannot be bound, and what to do.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "it is in use by another process. Stop EspoCRM's own daemon \
                                 (systemctl stop espocrm-websocket), or find the process: ss -lntxp"
            .to_owned(),
        ErrorKind::PermissionDenied => format!("this user has no permission ({error})"),
        ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ if error.raw_os_error() == Some(libc::ENODEV) => {
            "this machine has no such address".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The path of an endpoint that is a file. For `ipc://*` libzmq chooses a path; `ipc://@name` has
/// none.
fn socket_file(endpoint: &str) -> Option<&Path> {
    let path = endpoint.strip_prefix("ipc://")?;
    (!path.starts_with(['*', '@'])).then_some(Path::new(path))
}

/// Ensures that `path` does not exist or is a socket on which no process listens, since libzmq
/// deletes an existing file. Never blocks.
fn ensure_free(path: &Path) -> io::Result<()> {
    match is_socket(path) {
        Ok(true) => {}
        Ok(false) => {
            let text = "a file exists there that is not a socket. Remove it or use another path";
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

/// Replaces `localhost`: libzmq binds to addresses and interfaces only.
fn address(endpoint: &str) -> String {
    endpoint.replacen("tcp://localhost:", "tcp://127.0.0.1:", 1)
}

fn port(endpoint: &str) -> Option<&str> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':').map(|(_, port)| port)
}

#[cfg(test)]
impl ZmqReceiver {
    /// One without libzmq, as after a failed [`recreate`](Self::recreate).
    pub(crate) fn closed() -> Self {
        Self { libzmq: None, endpoint: String::new(), is_bound: true, max_senders: MAX_SENDERS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rebinds, with retries: on a busy machine libzmq may take longer to close the old endpoint
    /// than `retry_bind` waits. A daemon retries later.
    fn rebind(receiver: &mut ZmqReceiver, endpoint: &str) {
        eventually(|| receiver.rebind(endpoint).is_ok());
    }

    fn eventually(mut condition: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "it did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn receive(receiver: &ZmqReceiver) -> std::result::Result<String, Rejection> {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            match receiver.receive() {
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
    fn messages_are_received_and_multipart_messages_are_rejected_completely() {
        let receiver = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
        let sender = sender(receiver.endpoint());
        sender.send("one", 0).unwrap();
        sender.send_multipart(["a", "b", "c"], 0).unwrap();
        sender.send("two", 0).unwrap();
        let messages: Vec<_> = (0..3).map(|_| receive(&receiver)).collect();
        let expected = [Ok("one".to_owned()), Err(Rejection::Multipart), Ok("two".to_owned())];
        assert_eq!(messages, expected);
    }

    #[test]
    fn the_endpoint_can_be_changed() {
        let mut receiver = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
        let old = receiver.endpoint().to_owned();
        rebind(&mut receiver, "tcp://localhost:*");
        assert_ne!(receiver.endpoint(), old);
        sender(receiver.endpoint()).send("here", 0).unwrap();
        assert_eq!(receive(&receiver), Ok("here".to_owned()));
        // An endpoint that overlaps with the previous one.
        let (_, port) = receiver.endpoint().rsplit_once(':').unwrap();
        let everywhere = format!("tcp://0.0.0.0:{port}");
        let same = format!("tcp://localhost:{port}");
        // On a machine without /etc/hosts libzmq would try to resolve the name forever.
        let reachable = format!("tcp://127.0.0.1:{port}");
        rebind(&mut receiver, &same);
        assert_ne!(receiver.endpoint(), everywhere);
        rebind(&mut receiver, &everywhere);
        assert_eq!(receiver.endpoint(), everywhere);
        sender(&reachable).send("everywhere", 0).unwrap();
        assert_eq!(receive(&receiver), Ok("everywhere".to_owned()));
        // The first endpoint becomes free a little later: libzmq closes it in its own thread.
        eventually(|| ZmqReceiver::bind(&old).is_ok());
    }

    #[test]
    fn bind_errors_name_the_reason_and_the_setting() {
        let receiver = ZmqReceiver::bind("tcp://127.0.0.1:*").unwrap();
        for (endpoint, why) in [
            (receiver.endpoint(), "in use"),
            ("", "an endpoint is expected"),
            ("127.0.0.1:5555", "an endpoint is expected"),
            ("tcp://127.0.0.1:5555\0", "an endpoint is expected"),
            ("tcp://127.0.0.1", "Invalid argument"),
            ("tcp://127.0.0.1:", "a number from 0 to 65535"),
            ("tcp://127.0.0.1:99999", "a number from 0 to 65535"),
            ("tcp://192.0.2.1:5555", "no such address"),
        ] {
            let error = ZmqReceiver::bind(endpoint).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("webSocketZeroMQSubscriberDsn"), "{error}");
        }
    }
}
