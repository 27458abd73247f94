//! Scripted replacements of the kernel, ZeroMQ and PHP for tests. They return scripted results and
//! record the server's calls in one journal.

mod socket;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::daemon::zmq::Received;
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::Verdict;
use crate::engine::espocrm::submission::Rejection;
pub(crate) use crate::engine::random::Random;
use crate::engine::reload::Php;
use crate::platform::exit::{self, Exit};
pub(crate) use socket::{Kernel, Socket};

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
    Started(JobId, Rc<Check>),
    Answered(JobId, Rc<Check>, Verdict),
}

/// Connections that wait to be accepted.
#[derive(Clone)]
pub(crate) struct Arrivals(Rc<RefCell<Queue<io::Result<Socket>>>>);

/// Messages that wait to be received.
#[derive(Clone)]
pub(crate) struct Messages(Rc<RefCell<Queue<Message>>>);

pub(crate) type Message = Result<Rc<str>, Rejection>;

/// EspoCRM's files, and the start of the probe.
#[derive(Clone)]
pub(crate) struct Probes {
    disk: Rc<RefCell<Disk>>,
    journal: Journal,
}

#[derive(Default)]
struct Disk {
    is_changed: bool,
    /// So many probes cannot be started.
    failures: u32,
}

/// Records the checks that the server starts, and provides their scripted answers.
#[derive(Clone)]
pub(crate) struct Checks {
    answers: Rc<RefCell<VecDeque<Answer>>>,
    journal: Journal,
}

pub(crate) type Answer = (JobId, Rc<Check>, Verdict);

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

impl Probes {
    pub(crate) fn new(journal: &Journal) -> Self {
        Self { disk: Rc::default(), journal: Rc::clone(journal) }
    }

    /// Changes the files.
    pub(crate) fn change(&self) {
        self.disk.borrow_mut().is_changed = true;
    }

    pub(crate) fn fail_to_start(&self, times: u32) {
        self.disk.borrow_mut().failures = times;
    }

    pub(crate) fn has_pending_change(&self) -> bool {
        self.disk.borrow().is_changed
    }

    pub(crate) fn record_files(&self) {
        self.disk.borrow_mut().is_changed = false;
    }

    pub(crate) fn take_change(&self) -> bool {
        self.journal.borrow_mut().push_back(Entry::FilesChecked);
        std::mem::take(&mut self.disk.borrow_mut().is_changed)
    }

    pub(crate) fn start(&self, php: Php) -> exit::Result<()> {
        let mut disk = self.disk.borrow_mut();
        let fails = disk.failures > 0;
        disk.failures = disk.failures.saturating_sub(1);
        let entry = if fails { Entry::ProbeNotStarted(php) } else { Entry::ProbeStarted(php) };
        self.journal.borrow_mut().push_back(entry);
        if fails { Err(Exit::error("not found")) } else { Ok(()) }
    }
}

impl Checks {
    pub(crate) fn new(journal: &Journal) -> Self {
        Self { answers: Rc::default(), journal: Rc::clone(journal) }
    }

    pub(crate) fn start(&self, id: JobId, check: Rc<Check>) {
        self.journal.borrow_mut().push_back(Entry::Started(id, check));
    }

    pub(crate) fn answer(&self, id: JobId, check: Rc<Check>, verdict: Verdict) {
        self.answers.borrow_mut().push_back((id, check, verdict));
    }

    pub(crate) fn is_answered(&self, id: JobId) -> bool {
        self.answers.borrow().iter().any(|(answered, ..)| *answered == id)
    }

    /// Number of answers that the server has not taken.
    pub(crate) fn answered(&self) -> usize {
        self.answers.borrow().len()
    }

    /// Takes the next answer and records it.
    pub(crate) fn take(&self) -> Option<Answer> {
        let (id, check, verdict) = self.answers.borrow_mut().pop_front()?;
        let entry = Entry::Answered(id, Rc::clone(&check), verdict.clone());
        self.journal.borrow_mut().push_back(entry);
        Some((id, check, verdict))
    }
}
