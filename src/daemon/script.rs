//! Scripted replacements of the types of [`seam`](super::seam) for tests. They return scripted
//! results and record the server's calls in one journal. Some wrap the real type as well.

mod php;
mod socket;
mod tcp;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use mio::{Registry, Token};

use crate::daemon::zmq::{Received, receiver};
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::submission::Rejection;
pub(crate) use crate::engine::random::Random;
use crate::engine::reload::Php;
use crate::engine::time::Time;
use crate::platform::exit::Result;
use crate::platform::signals::{self, Pending};
pub(crate) use php::{Children, Probes, SettingsReader};
pub(crate) use socket::{Kernel, Socket};
pub(crate) use tcp::{TcpListener, TcpStream};

/// The server's actions, in order.
pub(crate) type Journal = Rc<RefCell<VecDeque<Entry>>>;

/// Unique number of a scripted socket.
pub(crate) type Number = usize;

#[derive(Debug)]
pub(crate) enum Entry {
    /// It accepted a connection.
    Accepted(Number),
    /// It read this many bytes; 0 is the end.
    Read(Number, usize),
    /// It wrote this many bytes.
    Wrote(Number, usize),
    /// A read failed because the connection was reset.
    ReadFailed(Number),
    /// A write failed because the connection was reset.
    WriteFailed(Number),
    /// It shut down its side of the connection.
    Finished(Number),
    /// It closed the socket.
    Dropped(Number),
    /// It received a message of EspoCRM, or other input.
    Received(Message),
    /// It checked EspoCRM's files for changes.
    FilesChecked,
    ProbeStarted(Php),
    ProbeNotStarted(Php),
    /// It started a check with these arguments of `command.php`.
    Started(JobId, Rc<str>),
    Answered(JobId, Verdict),
    SelfCheckStarted,
}

/// Connections that wait to be accepted.
#[derive(Clone)]
pub(crate) struct Arrivals(Rc<RefCell<Queue<io::Result<Socket>>>>);

/// Messages that wait to be received.
#[derive(Clone)]
pub(crate) struct Messages(Rc<RefCell<Queue<Message>>>);

pub(crate) type Message = std::result::Result<Rc<str>, Rejection>;

pub(crate) struct ZmqReceiver {
    receiver: receiver::ZmqReceiver,
    /// Replace the messages of libzmq.
    messages: Option<Messages>,
}

pub(crate) enum Signals {
    Real(signals::Signals),
    /// Each event reports that a child has exited.
    Scripted,
}

/// A clock that stands still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(pub(crate) Time);

struct Queue<T> {
    waiting: VecDeque<T>,
    /// A readiness event is due.
    edge: bool,
    random: Random,
    journal: Journal,
}

impl<T> Queue<T> {
    fn new(journal: &Journal, random: Random) -> Self {
        Self { waiting: VecDeque::new(), edge: false, random, journal: Rc::clone(journal) }
    }

    fn push(&mut self, item: T) {
        self.waiting.push_back(item);
        self.edge = true;
    }

    fn is_stuck(&self) -> bool {
        !self.waiting.is_empty() && !self.edge
    }

    /// The next item; sometimes `None`, as if it arrived a moment later.
    fn next(&mut self) -> Option<T> {
        if !self.waiting.is_empty() && self.random.chance(5) {
            self.edge = true;
            return None;
        }
        self.waiting.pop_front()
    }
}

impl Arrivals {
    pub(crate) fn new(journal: &Journal, random: Random) -> Self {
        Self(Rc::new(RefCell::new(Queue::new(journal, random))))
    }

    pub(crate) fn push(&self, arrival: io::Result<Socket>) {
        self.0.borrow_mut().push(arrival);
    }

    /// Takes a readiness event that is due.
    pub(crate) fn take_edge(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().edge)
    }

    /// Whether items are waiting without a readiness event.
    pub(crate) fn is_stuck(&self) -> bool {
        self.0.borrow().is_stuck()
    }

    pub(crate) fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let mut queue = self.0.borrow_mut();
        let socket = queue.next().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        let number = socket.kernel().number;
        queue.journal.borrow_mut().push_back(Entry::Accepted(number));
        Ok((socket, SocketAddr::new(address_of(number), 50_000)))
    }
}

/// Remote address of a connection, one of three.
pub(crate) fn address_of(number: Number) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + (number % 3) as u8])
}

impl Messages {
    pub(crate) fn new(journal: &Journal, random: Random) -> Self {
        Self(Rc::new(RefCell::new(Queue::new(journal, random))))
    }

    pub(crate) fn push(&self, message: Message) {
        self.0.borrow_mut().push(message);
    }

    pub(crate) fn take_edge(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().edge)
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.0.borrow().is_stuck()
    }

    pub(crate) fn receive(&self) -> Received {
        let mut queue = self.0.borrow_mut();
        let Some(next) = queue.next() else { return Received::Nothing };
        let received = match &next {
            Ok(message) => Received::Message(message.as_bytes().into()),
            Err(rejection) => Received::Rejected(*rejection),
        };
        queue.journal.borrow_mut().push_back(Entry::Received(next));
        received
    }
}

impl ZmqReceiver {
    pub(crate) fn bind(endpoint: &str) -> Result<Self> {
        Ok(Self { receiver: receiver::ZmqReceiver::bind(endpoint)?, messages: None })
    }

    pub(crate) fn scripted(messages: Messages) -> Self {
        Self { receiver: receiver::ZmqReceiver::closed(), messages: Some(messages) }
    }

    pub(crate) fn receive(&self) -> Received {
        self.messages.as_ref().map_or_else(|| self.receiver.receive(), Messages::receive)
    }
}

impl Deref for ZmqReceiver {
    type Target = receiver::ZmqReceiver;

    fn deref(&self) -> &Self::Target {
        &self.receiver
    }
}

impl DerefMut for ZmqReceiver {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.receiver
    }
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        signals::Signals::new().map(Self::Real)
    }

    pub(crate) fn for_terminal() -> io::Result<Self> {
        signals::Signals::for_terminal().map(Self::Real)
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Real(signals) => signals.register(registry, token),
            Self::Scripted => Ok(()),
        }
    }

    pub(crate) fn take(&mut self) -> Pending {
        match self {
            Self::Real(signals) => signals.take(),
            Self::Scripted => Pending { child: true, ..Pending::default() },
        }
    }
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Time::default())
    }

    pub(crate) fn now(self) -> Time {
        self.0
    }
}
