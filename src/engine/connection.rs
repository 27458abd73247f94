//! One connection of a browser: its phase, its deadlines, and the reason of its end.

mod frame_rate;
mod handshake;
mod pings;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use handshake::Handshake;

use std::net::IpAddr;
use std::time::Duration;

use tungstenite::Utf8Bytes;

use super::id::ConnId;
use super::limits::{CLOSE_DEADLINE, HANDSHAKE_DEADLINE};
use super::protocol::client_address::ClientKey;
use super::protocol::frame::{CloseReason, SharedFrame};
use super::protocol::http::{Refusal, Upgrade};
use super::protocol::outbox::{Full, Outbox};
use super::protocol::proxy_header;
use super::protocol::reader::{Incoming, Reader};
use super::telemetry::stats::End;
use super::time::Time;
use super::timers;
use frame_rate::FrameRate;
use pings::Pings;

/// The state of a connection. It decides when a connection is closed or ended; the caller has its
/// socket, its session and its timer. An idle connection has no buffers: partial input and queued
/// output are allocated only while they exist.
///
/// The methods are of three kinds:
///
/// - Input: [`handle_input`](Self::handle_input) with bytes that were read, then
///   [`handle_incoming`](Self::handle_incoming) with each item that they contain;
///   [`handle_written`](Self::handle_written) and [`handle_all_written`](Self::handle_all_written)
///   after a write; [`handle_timeout`](Self::handle_timeout).
/// - Decisions of the caller: [`accept`](Self::accept), [`refuse`](Self::refuse) and
///   [`respond`](Self::respond) answer the request; [`reject`](Self::reject) sets the reason of a
///   rejection; [`send`](Self::send), [`close`](Self::close) and [`end`](Self::end).
/// - Output, after each of the above: [`outbox`](Self::outbox) has the bytes to be written,
///   [`poll_timeout`](Self::poll_timeout) the time of the next `handle_timeout`, and
///   [`poll_end`](Self::poll_end) the reason of the end, once. If a method returns [`Full`], the
///   peer reads too slowly, and the caller ends the connection.
#[derive(Debug)]
pub struct Connection {
    id: ConnId,
    state: State,
    outbox: Outbox,
    /// The client it counts for, if that is known.
    client: Option<ClientKey>,
    /// Its deadline or next ping.
    due: Time,
    /// The second in which it was accepted.
    since: u32,
    frame_rate: FrameRate,
    pings: Pings,
    /// Why it was rejected, or why it is closed or ended: the first reason.
    reason: Option<End>,
    /// [`poll_end`](Self::poll_end) has returned the reason.
    is_reported: bool,
    /// Its login waits to be checked.
    is_logging_in: bool,
}

/// Phases of a connection, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The HTTP request is being read (after the TLS handshake, if there is one).
    Handshake,
    /// It is a WebSocket.
    Open,
    /// A Close frame has been queued; the peer's is awaited.
    Closing,
    /// The queued output is the last.
    Finishing,
    /// All output is written and the socket shut down; the peer's end is awaited, so that the peer
    /// can read everything.
    Draining,
    /// The socket is to be closed.
    Ended,
}

/// The content of bytes that were read.
#[derive(Debug)]
pub enum Input {
    /// Nothing complete.
    Nothing,
    /// A PROXY header: the client, if it names one, and the bytes after it. They are the beginning
    /// of TLS, or the next input.
    ProxyHeader(Option<IpAddr>, Vec<u8>),
    /// The PROXY header is missing or malformed: end the connection.
    InvalidProxyHeader,
    /// A request that may be complete: parse it, then answer it, or
    /// [`resume`](Connection::resume) if it is not.
    Request(Handshake),
    /// Items were appended: pass each to [`handle_incoming`](Connection::handle_incoming).
    Frames,
    /// Too many frames in this second. A Close frame was queued.
    Flood,
}

/// What an item requires from the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A message of the browser.
    Message(Utf8Bytes),
    /// The connection is no longer open: end its session.
    Closed,
}

#[derive(Debug)]
enum State {
    Handshake(Box<Handshake>),
    Open(Reader),
    Closing(Reader),
    Finishing,
    Draining,
    Ended,
}

impl Connection {
    /// A connection just accepted.
    #[must_use]
    pub fn new(id: ConnId, handshake: Handshake, now: Time) -> Self {
        Self {
            id,
            state: State::Handshake(handshake.into()),
            outbox: Outbox::default(),
            client: None,
            due: now.after(HANDSHAKE_DEADLINE),
            since: now.as_seconds(),
            frame_rate: FrameRate::default(),
            pings: Pings::default(),
            reason: None,
            is_reported: false,
            is_logging_in: false,
        }
    }

    /// Takes bytes that were read, and appends the items of frames to `incoming`.
    ///
    /// # Errors
    /// [`Full`]
    pub fn handle_input(
        &mut self,
        now: Time,
        bytes: &[u8],
        incoming: &mut Vec<Incoming>,
    ) -> Result<Input, Full> {
        self.pings.heard();
        match &mut self.state {
            State::Handshake(handshake) => Ok(receive_request(handshake, bytes)),
            State::Open(reader) | State::Closing(reader) => {
                let frames = reader.feed(bytes, incoming);
                if self.frame_rate.is_exceeded_by(now, frames) {
                    incoming.clear();
                    self.close(now, CloseReason::Flood)?;
                    return Ok(Input::Flood);
                }
                Ok(Input::Frames)
            }
            State::Finishing | State::Draining | State::Ended => Ok(Input::Nothing),
        }
    }

    /// Continues reading a request that is not complete.
    pub fn resume(&mut self, request: Handshake) {
        debug_assert!(self.phase() == Phase::Handshake, "{:?}", self.phase());
        if let State::Handshake(handshake) = &mut self.state {
            **handshake = request;
        }
    }

    /// Sets the reason why it is not admitted. A request that is not complete yet is to be answered
    /// with 503.
    pub fn reject(&mut self, reason: End) {
        debug_assert!(self.phase() <= Phase::Open, "{:?}", self.phase());
        self.reason.get_or_insert(reason);
    }

    /// Whether it was rejected before its request was complete.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.reason.is_some()
    }

    /// Completes the handshake. The first ping is sent in the second half of `ping_interval`.
    pub fn accept(&mut self, now: Time, ping_interval: Duration, upgrade: &Upgrade) {
        self.answer(upgrade.response());
        self.state = State::Open(Reader::default());
        self.due = now.after(timers::spread(ping_interval, self.id));
    }

    /// Answers the request with an HTTP error.
    pub fn refuse(&mut self, now: Time, refusal: Refusal) {
        self.reject(End::NotWebSocket);
        self.respond(now, refusal.response());
    }

    /// Answers the request with an HTTP response, the last output.
    pub fn respond(&mut self, now: Time, response: String) {
        self.answer(response);
        self.finish(now);
    }

    /// Handles an item of the input.
    ///
    /// # Errors
    /// [`Full`]
    pub fn handle_incoming(
        &mut self,
        now: Time,
        incoming: Incoming,
    ) -> Result<Option<Event>, Full> {
        match (self.phase(), incoming) {
            (Phase::Closing, Incoming::Closed | Incoming::Violation(_)) => self.finish(now),
            (Phase::Open, Incoming::Message(text)) => return Ok(Some(self.message(text))),
            // EspoCRM's original daemon treats these as text.
            (Phase::Open, Incoming::Binary(bytes)) => match Utf8Bytes::try_from(bytes) {
                Ok(text) => return Ok(Some(self.message(text))),
                Err(_) => self.close(now, CloseReason::Malformed)?,
            },
            (Phase::Open, Incoming::Answer(frame)) => return self.send(frame).map(|()| None),
            (Phase::Open, Incoming::Closed) => {
                self.reason.get_or_insert(End::PeerClosed);
                self.finish(now);
            }
            (Phase::Open, Incoming::Violation(reason)) => {
                self.close(now, reason)?;
                // Further input is unreliable, including an answer to the Close frame.
                self.finish(now);
            }
            _ => return Ok(None),
        }
        Ok(Some(Event::Closed))
    }

    /// Queues a frame. Ignored unless the connection is open: nothing follows a Close frame.
    ///
    /// # Errors
    /// [`Full`]
    pub fn send(&mut self, frame: SharedFrame) -> Result<(), Full> {
        if let State::Open(_) = self.state { self.outbox.push(frame) } else { Ok(()) }
    }

    /// Closes a connection with a Close frame, and waits a limited time for the answer. The tab
    /// does not reconnect until it is reloaded.
    ///
    /// # Errors
    /// [`Full`]
    pub fn close(&mut self, now: Time, reason: CloseReason) -> Result<(), Full> {
        let State::Open(reader) = &mut self.state else { return Ok(()) };
        self.reason.get_or_insert(match reason {
            CloseReason::Refused if self.is_logging_in => End::TokenDenied,
            CloseReason::Refused => End::TokenRevoked,
            CloseReason::Forbidden => End::Forbidden,
            CloseReason::Protocol => End::Protocol,
            CloseReason::Malformed => End::Malformed,
            CloseReason::TooBig => End::TooBig,
            CloseReason::Flood => End::Flood,
        });
        self.outbox.push(SharedFrame::close(reason))?;
        self.state = State::Closing(std::mem::take(reader));
        self.due = now.after(CLOSE_DEADLINE);
        Ok(())
    }

    /// Ends a connection without a Close frame.
    pub fn end(&mut self, reason: End) {
        self.reason.get_or_insert(reason);
        self.outbox.clear();
        self.state = State::Ended;
    }

    /// The socket has accepted `bytes` of the outbound queue.
    pub fn handle_written(&mut self, bytes: usize) {
        self.pings.written(bytes);
    }

    /// The socket has accepted all output. Returns whether it was the last, so that the socket is
    /// to be shut down for writing.
    #[must_use]
    pub fn handle_all_written(&mut self) -> bool {
        debug_assert!(self.outbox.is_empty());
        self.pings.all_written();
        let is_last = matches!(self.state, State::Finishing);
        if is_last {
            self.state = State::Draining;
        }
        is_last
    }

    /// Sends a ping if one is due.
    ///
    /// # Errors
    /// The reason if the connection is to be ended instead: without a Close frame, so that a
    /// browser that was suspended reconnects.
    pub fn handle_timeout(
        &mut self,
        now: Time,
        ping_interval: Duration,
        ping: &SharedFrame,
    ) -> Result<(), End> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Ok(());
        }
        // Later phases have a reason already.
        let State::Open(reader) = &self.state else { return Err(End::HandshakeTimeout) };
        self.pings.count(!reader.is_idle(), self.outbox.buffered())?;
        self.outbox.push(ping.clone()).map_err(|Full| End::Slow)?;
        self.due = now.after(ping_interval);
        Ok(())
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called; `None` after the end.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (self.phase() != Phase::Ended).then_some(self.due)
    }

    /// The reason of its rejection, closing or end: once, as soon as it is known.
    pub fn poll_end(&mut self) -> Option<End> {
        self.reason.filter(|_| !std::mem::replace(&mut self.is_reported, true))
    }

    /// Whether [`poll_end`](Self::poll_end) has returned the reason.
    #[must_use]
    pub fn is_end_reported(&self) -> bool {
        self.is_reported
    }

    /// Slot and serial number.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Handshake(_) => Phase::Handshake,
            State::Open(_) => Phase::Open,
            State::Closing(_) => Phase::Closing,
            State::Finishing => Phase::Finishing,
            State::Draining => Phase::Draining,
            State::Ended => Phase::Ended,
        }
    }

    /// The second in which it was accepted.
    #[must_use]
    pub fn since(&self) -> u32 {
        self.since
    }

    /// The outbound queue.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The outbound queue, to remove bytes that were written.
    pub fn outbox_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Bytes that it uses beyond the cost of an idle connection.
    #[must_use]
    pub fn buffered(&self) -> usize {
        let incomplete = match &self.state {
            State::Handshake(handshake) => handshake.buffered(),
            State::Open(reader) | State::Closing(reader) => reader.buffered(),
            State::Finishing | State::Draining | State::Ended => 0,
        };
        incomplete + self.outbox.buffered()
    }

    /// The client that it counts for, if that is known.
    #[must_use]
    pub fn client(&self) -> Option<ClientKey> {
        self.client
    }

    /// Sets the client; returns the previous one.
    pub(super) fn replace_client(&mut self, client: Option<ClientKey>) -> Option<ClientKey> {
        std::mem::replace(&mut self.client, client)
    }

    /// Sets whether its login waits to be checked; returns whether it did before.
    pub(super) fn replace_logging_in(&mut self, is_logging_in: bool) -> bool {
        std::mem::replace(&mut self.is_logging_in, is_logging_in)
    }

    fn answer(&mut self, response: String) {
        debug_assert!(self.phase() == Phase::Handshake, "{:?}", self.phase());
        // An empty queue accepts any frame.
        let pushed = self.outbox.push(SharedFrame::encoded(response.into_bytes()));
        debug_assert_eq!(pushed, Ok(()));
    }

    fn message(&mut self, text: Utf8Bytes) -> Event {
        self.pings.completed();
        Event::Message(text)
    }

    /// No further output is queued.
    fn finish(&mut self, now: Time) {
        self.state = State::Finishing;
        self.due = now.after(CLOSE_DEADLINE);
    }
}

fn receive_request(handshake: &mut Handshake, bytes: &[u8]) -> Input {
    let is_parse_due = handshake.feed(bytes);
    if handshake.expects_proxy_header() {
        return match proxy_header::parse(handshake.bytes()) {
            Ok(None) => Input::Nothing,
            Ok(Some(header)) => {
                let rest = handshake.skip_proxy_header(header.length);
                Input::ProxyHeader(header.client, rest)
            }
            Err(proxy_header::Malformed) => Input::InvalidProxyHeader,
        };
    }
    if is_parse_due { Input::Request(handshake.take()) } else { Input::Nothing }
}

#[cfg(test)]
impl Connection {
    pub(crate) fn is_logging_in(&self) -> bool {
        self.is_logging_in
    }

    /// Checks what holds after each call.
    pub(crate) fn check_invariants(&self) {
        use crate::engine::limits::MAX_OUTBOX;

        let phase = self.phase();
        assert!(self.outbox.buffered() <= MAX_OUTBOX, "{} B are queued", self.outbox.buffered());
        assert_eq!(self.poll_timeout().is_none(), phase == Phase::Ended);
        assert!(phase != Phase::Ended || self.reason.is_some(), "it has ended without a reason");
        assert!(phase != Phase::Closing || self.reason.is_some(), "it is closing without a reason");
        assert!(!self.is_reported || self.reason.is_some());
        let has_output = !self.outbox.is_empty();
        let may_have_output = matches!(phase, Phase::Open | Phase::Closing | Phase::Finishing);
        assert!(may_have_output || !has_output, "output in phase {phase:?}");
    }
}
