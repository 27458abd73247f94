//! The control socket, by which the administrator inspects and controls a running daemon, and the
//! metrics port, which only serves /metrics and /healthz.
//!
//! HTTP with one request per connection. Clients cannot delay the event loop: everything is
//! bounded, and no call blocks.

mod client;
mod listener;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use log::Level;
use mio::net::TcpListener;
use mio::{Interest, Registry};
use slab::Slab;

use crate::daemon::token::EventSource;
use crate::engine::limits::{CLOSE_DEADLINE, CONTROL_DEADLINE, MAX_CONTROL, RELOAD_DEADLINE};
use crate::engine::protocol::control::{Listener, Refusal, Request};
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::{ControlAt, Settings};
use client::{Client, State, Stream};
pub(crate) use listener::default_path;
use listener::{Socket, open_port};

/// Both listeners and their clients.
#[derive(Default)]
pub(crate) struct Control {
    socket: Option<Socket>,
    port: Option<TcpListener>,
    clients: Slab<Client>,
    /// Connections may wait to be accepted.
    pending: bool,
    /// When to retry after a failed accept.
    retry_at: Option<Time>,
    /// A reserve descriptor, closed to accept a client when descriptors run out: an administrator
    /// must be able to connect to find the cause.
    spare: Option<File>,
}

/// The numbers of [`EventSource::Control`].
const SOCKET: usize = 0;
const PORT: usize = 1;
const FIRST_CLIENT: usize = 2;

/// Identifies the client of a request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(usize);

impl Control {
    /// Opens the configured listeners. Returns failures for the log, since they are no reason to
    /// stop; a failure of the default control socket is not even a warning.
    pub(crate) fn open(
        &mut self,
        registry: &Registry,
        settings: &Settings,
    ) -> Vec<(Level, String)> {
        let mut failures = Vec::new();
        // Close the old ones first: they may use the same path or port.
        (self.socket, self.port) = (None, None);
        let at = &settings.control.value;
        match Socket::open(at) {
            Ok(socket) => self.socket = socket,
            Err(error) if *at == ControlAt::Default => failures.push((Level::Info, error)),
            Err(error) => failures.push((Level::Warn, error)),
        }
        match settings.metrics.value.map(open_port).transpose() {
            Ok(port) => self.port = port,
            Err(error) => failures.push((Level::Warn, error)),
        }
        if let Err(error) = self.register(registry) {
            failures.push((Level::Warn, format!("No control socket: {error}.")));
        }
        self.spare = File::open("/dev/null").ok();
        self.pending = true;
        failures
    }

    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        if let Some(socket) = &mut self.socket {
            let token = EventSource::Control(SOCKET).token();
            registry.register(&mut socket.listener, token, Interest::READABLE)?;
        }
        if let Some(port) = &mut self.port {
            let token = EventSource::Control(PORT).token();
            registry.register(port, token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// The path of the control socket.
    #[must_use]
    pub(crate) fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(Socket::path)
    }

    /// The address of the metrics port.
    #[must_use]
    pub(crate) fn port(&self) -> Option<SocketAddr> {
        self.port.as_ref().and_then(|port| port.local_addr().ok())
    }

    /// Handles an event of [`EventSource::Control`]. Returns a request when it is complete.
    pub(crate) fn ready(&mut self, now: Time, source: usize) -> Option<(RequestId, Request)> {
        let Some(number) = source.checked_sub(FIRST_CLIENT) else {
            self.pending = true;
            return None;
        };
        self.read_and_write(now, number)
    }

    /// Accepts waiting connections. The kernel reports data that they have already sent.
    pub(crate) fn accept(&mut self, now: Time, registry: &Registry) {
        if !self.is_pending(now) {
            return;
        }
        (self.pending, self.retry_at) = (false, None);
        for listener in [Listener::Control, Listener::Metrics] {
            // At most twice the limit: the next turn of the event loop accepts the rest.
            for _ in 0..2 * MAX_CONTROL {
                match self.accept_one(listener) {
                    Ok(Some(stream)) => self.admit(now, registry, listener, stream),
                    Ok(None) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) if self.spare.take().is_some() => {}
                    Err(_) => {
                        self.retry_at = Some(now.after(std::time::Duration::from_secs(1)));
                        break;
                    }
                }
                self.pending = true;
            }
        }
    }

    /// Whether [`accept`](Self::accept) has something to do.
    #[must_use]
    pub(crate) fn is_pending(&self, now: Time) -> bool {
        self.pending || self.retry_at.is_some_and(|at| at <= now)
    }

    fn accept_one(&self, listener: Listener) -> io::Result<Option<Stream>> {
        match (listener, &self.socket, &self.port) {
            (Listener::Control, Some(socket), _) => {
                let (stream, _) = socket.listener.accept()?;
                Ok(Some(Stream::Unix(stream)))
            }
            (Listener::Metrics, _, Some(port)) => Ok(Some(Stream::Tcp(port.accept()?.0))),
            _ => Ok(None),
        }
    }

    fn admit(&mut self, now: Time, registry: &Registry, listener: Listener, stream: Stream) {
        let is_authorized = stream.user().is_none_or(|user| user == 0 || user == sys::user());
        let mut client = Client::new(stream, listener, now.after(CONTROL_DEADLINE));
        if !is_authorized {
            // The mode of the socket file ensures the same, unless it was changed.
            return client.reject(&Refusal::Forbidden.response());
        }
        if !self.make_room(listener) {
            return client.reject(&Refusal::Busy.response());
        }
        let entry = self.clients.vacant_entry();
        let token = EventSource::Control(FIRST_CLIENT + entry.key()).token();
        if client.register(registry, token).is_ok() {
            entry.insert(client);
        }
    }

    /// Closes the slowest client if the limit is reached, but none that watches messages.
    fn make_room(&mut self, listener: Listener) -> bool {
        let clients = self.clients.iter().filter(|(_, client)| client.listener == listener);
        if clients.clone().count() < MAX_CONTROL {
            return true;
        }
        let slowest = clients.filter_map(|(number, client)| Some((client.deadline?, number))).min();
        slowest.is_some_and(|(_, number)| {
            self.remove(number);
            true
        })
    }

    fn remove(&mut self, number: usize) {
        self.clients.try_remove(number);
        if self.spare.is_none() {
            self.spare = File::open("/dev/null").ok();
        }
    }

    /// Reads and writes as much as possible.
    fn read_and_write(&mut self, now: Time, number: usize) -> Option<(RequestId, Request)> {
        let client = self.clients.get_mut(number)?;
        let Ok(request) = client.read() else {
            self.remove(number);
            return None;
        };
        if let Some(request) = request {
            return Some((RequestId(number), request));
        }
        self.write(now, number);
        None
    }

    fn write(&mut self, now: Time, number: usize) {
        let Some(client) = self.clients.get_mut(number) else { return };
        let before = client.state;
        let mut written = client.write();
        if client.state == State::Closing && before != State::Closing {
            client.deadline = Some(now.after(CLOSE_DEADLINE));
            // It may have closed its side before: the kernel reports that only once.
            written = written.and_then(|()| client.read().map(drop));
        }
        if written.is_err() {
            self.remove(number);
        }
    }

    /// Sends a complete response.
    pub(crate) fn answer(&mut self, now: Time, request: RequestId, response: &str) {
        if let Some(client) = self.clients.get_mut(request.0) {
            client.answer(response);
            self.write(now, request.0);
        }
    }

    /// Defers the response of this request to [`answer_reload`](Self::answer_reload).
    pub(crate) fn wait_for_reload(&mut self, now: Time, request: RequestId) {
        if let Some(client) = self.clients.get_mut(request.0) {
            client.wait_for_reload(now.after(RELOAD_DEADLINE));
        }
    }

    /// Responds to all clients that wait for the end of a reload.
    pub(crate) fn answer_reload(&mut self, now: Time, response: &str) {
        for number in 0..self.clients.capacity() {
            let Some(client) = self.clients.get_mut(number) else { continue };
            if client.state == State::Reloading {
                client.deadline = Some(now.after(CONTROL_DEADLINE));
                client.answer(response);
                self.write(now, number);
            }
        }
    }

    /// Starts to send delivered messages to this client.
    pub(crate) fn watch(&mut self, now: Time, request: RequestId) {
        if let Some(client) = self.clients.get_mut(request.0) {
            client.watch();
            self.write(now, request.0);
        }
    }

    /// Whether any client watches messages.
    #[must_use]
    pub(crate) fn is_watched(&self) -> bool {
        self.clients.iter().any(|(_, client)| client.state == State::Watching)
    }

    /// Sends a line to the clients that watch messages. A client that does not read loses lines; it
    /// receives their number later.
    pub(crate) fn show(&mut self, now: Time, line: &str) {
        for number in 0..self.clients.capacity() {
            if self.clients.get_mut(number).is_some_and(|client| client.show(line)) {
                self.write(now, number);
            }
        }
    }

    /// When [`expire`](Self::expire) or [`accept`](Self::accept) has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let deadlines = self.clients.iter().filter_map(|(_, client)| client.deadline);
        deadlines.chain(self.retry_at).min()
    }

    /// Closes clients whose deadline has passed.
    pub(crate) fn expire(&mut self, now: Time) {
        for number in 0..self.clients.capacity() {
            let deadline = self.clients.get(number).and_then(|client| client.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.remove(number);
            }
        }
    }
}
