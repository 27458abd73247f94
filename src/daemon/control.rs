//! The control socket: the administrator's way to see and say something while the daemon runs; and
//! the port for metrics, which has less.
//!
//! HTTP, one request for each connection. Nobody there can hold the loop up: everything is bounded,
//! and nothing is waited for.

mod client;
mod listener;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use log::Level;
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use slab::Slab;

use crate::engine::limits::{CLOSE_DEADLINE, CONTROL_DEADLINE, MAX_CONTROL, RELOAD_DEADLINE};
use crate::engine::protocol::control::{Listener, Refusal, Request};
use crate::engine::time::Time;
use crate::platform::sys;
use crate::settings::{ControlAt, Settings};
use client::{Client, State, Stream};
pub(crate) use listener::usual;
use listener::{Socket, open_port};

/// Both doors, and who has come in.
#[derive(Default)]
pub(crate) struct Control {
    socket: Option<Socket>,
    port: Option<TcpListener>,
    peers: Slab<Client>,
    /// Somebody may wait at a door.
    pending: bool,
    /// What could not be accepted is tried again then.
    again: Option<Time>,
    /// Given up for one that could not be accepted for want of a descriptor: whoever wants to know
    /// what is wrong must be heard just then.
    spare: Option<File>,
}

/// The tokens by which both doors and all peers are known.
pub(crate) const TOKENS: std::ops::Range<usize> = 32..64;
const SOCKET: Token = Token(TOKENS.start);
const PORT: Token = Token(TOKENS.start + 1);
const FIRST_PEER: usize = TOKENS.start + 2;

/// Names one who has asked, until the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(usize);

impl Control {
    /// Opens the doors that are wanted. What cannot be had is returned for the log: it is no reason
    /// not to serve, nor to warn of if nobody has asked for it.
    pub(crate) fn open(
        &mut self,
        registry: &Registry,
        settings: &Settings,
    ) -> Vec<(Level, String)> {
        let mut missing = Vec::new();
        // The old ones first: they may be in the way.
        (self.socket, self.port) = (None, None);
        let at = &settings.control.value;
        match Socket::open(at) {
            Ok(socket) => self.socket = socket,
            Err(error) if *at == ControlAt::Usual => missing.push((Level::Info, error)),
            Err(error) => missing.push((Level::Warn, error)),
        }
        match settings.metrics.value.map(open_port).transpose() {
            Ok(port) => self.port = port,
            Err(error) => missing.push((Level::Warn, error)),
        }
        if let Err(error) = self.register(registry) {
            missing.push((Level::Warn, format!("There is no control socket: {error}.")));
        }
        self.spare = File::open("/dev/null").ok();
        self.pending = true;
        missing
    }

    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        if let Some(socket) = &mut self.socket {
            registry.register(&mut socket.listener, SOCKET, Interest::READABLE)?;
        }
        if let Some(port) = &mut self.port {
            registry.register(port, PORT, Interest::READABLE)?;
        }
        Ok(())
    }

    /// Where the control socket is.
    #[must_use]
    pub(crate) fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(Socket::path)
    }

    /// Where metrics are told.
    #[must_use]
    pub(crate) fn port(&self) -> Option<SocketAddr> {
        self.port.as_ref().and_then(|port| port.local_addr().ok())
    }

    /// Something has happened to one of [`TOKENS`]: who has asked for what.
    pub(crate) fn ready(&mut self, now: Time, token: Token) -> Option<(RequestId, Request)> {
        let Some(number) = token.0.checked_sub(FIRST_PEER) else {
            self.pending = true;
            return None;
        };
        self.go_on(now, number)
    }

    /// Lets in those who wait. What they have sent already is told by the kernel.
    pub(crate) fn accept(&mut self, now: Time, registry: &Registry) {
        if !self.is_pending(now) {
            return;
        }
        (self.pending, self.again) = (false, None);
        for door in [Listener::Control, Listener::Metrics] {
            // Twice as many as there can be: the rest gets its turn in the next one.
            for _ in 0..2 * MAX_CONTROL {
                match self.accept_one(door) {
                    Ok(Some(stream)) => self.let_in(now, registry, door, stream),
                    Ok(None) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) if self.spare.take().is_some() => {}
                    Err(_) => {
                        self.again = Some(now.after(std::time::Duration::from_secs(1)));
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
        self.pending || self.again.is_some_and(|again| again <= now)
    }

    fn accept_one(&self, door: Listener) -> io::Result<Option<Stream>> {
        match (door, &self.socket, &self.port) {
            (Listener::Control, Some(socket), _) => {
                let (stream, _) = socket.listener.accept()?;
                Ok(Some(Stream::Unix(stream)))
            }
            (Listener::Metrics, _, Some(port)) => Ok(Some(Stream::Tcp(port.accept()?.0))),
            _ => Ok(None),
        }
    }

    fn let_in(&mut self, now: Time, registry: &Registry, door: Listener, stream: Stream) {
        let may_ask = stream.user().is_none_or(|user| user == 0 || user == sys::user());
        let mut peer = Client::new(stream, door, now.after(CONTROL_DEADLINE));
        if !may_ask {
            // The socket's mode says the same, unless somebody has changed it.
            return peer.turn_away(&Refusal::Forbidden.response());
        }
        if !self.make_room(door) {
            return peer.turn_away(&Refusal::Busy.response());
        }
        let entry = self.peers.vacant_entry();
        let token = Token(FIRST_PEER + entry.key());
        if peer.register(registry, token).is_ok() {
            entry.insert(peer);
        }
    }

    /// Whoever takes long is ended for whoever comes; but not those who watch.
    fn make_room(&mut self, door: Listener) -> bool {
        let ours = self.peers.iter().filter(|(_, peer)| peer.door == door);
        if ours.clone().count() < MAX_CONTROL {
            return true;
        }
        let slowest = ours.filter_map(|(number, peer)| Some((peer.deadline?, number))).min();
        slowest.is_some_and(|(_, number)| {
            self.remove(number);
            true
        })
    }

    fn remove(&mut self, number: usize) {
        self.peers.try_remove(number);
        if self.spare.is_none() {
            self.spare = File::open("/dev/null").ok();
        }
    }

    /// Reads and writes what can be.
    fn go_on(&mut self, now: Time, number: usize) -> Option<(RequestId, Request)> {
        let peer = self.peers.get_mut(number)?;
        let Ok(request) = peer.read() else {
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
        let Some(peer) = self.peers.get_mut(number) else { return };
        let was = peer.stage;
        let mut written = peer.write();
        if peer.stage == State::Leaving && was != State::Leaving {
            peer.deadline = Some(now.after(CLOSE_DEADLINE));
            // It may have ended before, which is told only once.
            written = written.and_then(|()| peer.read().map(drop));
        }
        if written.is_err() {
            self.remove(number);
        }
    }

    /// Answers, by a whole response.
    pub(crate) fn answer(&mut self, now: Time, asker: RequestId, response: &str) {
        if let Some(peer) = self.peers.get_mut(asker.0) {
            peer.answer(response);
            self.write(now, asker.0);
        }
    }

    /// This one gets its response by [`answer_reload`](Self::answer_reload).
    pub(crate) fn wait_for_reload(&mut self, now: Time, asker: RequestId) {
        if let Some(peer) = self.peers.get_mut(asker.0) {
            peer.wait_for_reload(now.after(RELOAD_DEADLINE));
        }
    }

    /// Responds to all clients that wait for the end of a reload.
    pub(crate) fn answer_reload(&mut self, now: Time, response: &str) {
        for number in 0..self.peers.capacity() {
            let Some(peer) = self.peers.get_mut(number) else { continue };
            if peer.stage == State::Reloading {
                peer.deadline = Some(now.after(CONTROL_DEADLINE));
                peer.answer(response);
                self.write(now, number);
            }
        }
    }

    /// From now on this one sees what passes.
    pub(crate) fn watch(&mut self, now: Time, asker: RequestId) {
        if let Some(peer) = self.peers.get_mut(asker.0) {
            peer.watch();
            self.write(now, asker.0);
        }
    }

    /// Whether anybody does.
    #[must_use]
    pub(crate) fn is_watched(&self) -> bool {
        self.peers.iter().any(|(_, peer)| peer.stage == State::Watching)
    }

    /// Shows those a line. Who does not read misses it, and is told so.
    pub(crate) fn show(&mut self, now: Time, line: &str) {
        for number in 0..self.peers.capacity() {
            if self.peers.get_mut(number).is_some_and(|peer| peer.show(line)) {
                self.write(now, number);
            }
        }
    }

    /// When [`expire`](Self::expire) or [`accept`](Self::accept) has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let deadlines = self.peers.iter().filter_map(|(_, peer)| peer.deadline);
        deadlines.chain(self.again).min()
    }

    /// Ends those who take too long.
    pub(crate) fn expire(&mut self, now: Time) {
        for number in 0..self.peers.capacity() {
            let deadline = self.peers.get(number).and_then(|peer| peer.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.remove(number);
            }
        }
    }
}
