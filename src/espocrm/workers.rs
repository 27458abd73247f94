//! PHP processes that answer many checks: PHP's own web server on a loopback port, with a router that
//! runs EspoCRM's console commands. Asked without ever waiting for them.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::unix::pipe::Receiver;
use mio::{Interest, Registry, Token};
use slab::Slab;
use socket2::SockRef;

use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::first_line;
use crate::engine::checks::worker_pool::WorkerId;
use crate::engine::checks::worker_protocol;
use crate::engine::checks::worker_protocol::{InvalidResponse, Reply};
use crate::engine::espocrm::version::Convention;
use crate::engine::limits::MAX_CHILD_OUTPUT;
use crate::engine::time::Time;
use crate::espocrm::process::reap_killed;
use crate::platform::{random, sys};

/// The running workers. Each does one errand at a time; whoever gets `SIGCHLD` calls
/// [`reap`](Self::reap).
pub(crate) struct Workers {
    running: Slab<Worker>,
    /// Killed, and not yet reaped.
    dying: Vec<Dying>,
    /// A worker has two tokens from here on: its error output and its connection.
    first_token: usize,
}

/// One check that a worker is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errand {
    /// The check.
    pub job: JobId,
    /// How its outcome is to be read.
    pub convention: Convention,
    /// The worker has granted the check, and is asked for a random token before that counts.
    pub verifies: bool,
}

/// How an errand has ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The worker; unless it has answered, it has been stopped.
    pub worker: WorkerId,
    /// What it was asked for.
    pub errand: Errand,
    /// What came of it.
    pub result: Result<Reply, Problem>,
}

/// Why a worker has not answered.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The check took longer than it may. `begun`: the worker had begun it.
    TimedOut {
        /// Otherwise something keeps the worker from accepting requests.
        begun: bool,
    },
    /// The worker has not begun the check, though it had nothing else to do.
    NotBegun,
    /// It has not started, has ended or answered nonsense. Why, for the log.
    NoGood(String),
}

struct Worker {
    id: WorkerId,
    process: process::Child,
    stderr: Receiver,
    /// What a command prints belongs into the answer. What comes here instead is missing there.
    stdout: Receiver,
    /// What it has said before it told its port; then the end of what it said, in which the notice
    /// that it has begun a check may be incomplete.
    said: Vec<u8>,
    /// Bytes on its error output since it was started or asked last.
    printed: usize,
    /// Until when it must have told it.
    start_by: Time,
    address: Option<SocketAddr>,
    secret: String,
    /// See [`worker_protocol::Done::compared`].
    compared: Option<u64>,
    call: Option<Call>,
}

/// An errand under way.
struct Call {
    errand: Errand,
    deadline: Time,
    /// Until when the worker must have begun it.
    begin_by: Time,
    begun: bool,
    nonce: String,
    /// What is still to be written.
    request: Vec<u8>,
    tcp: Option<TcpStream>,
    answer: Vec<u8>,
}

/// A worker that was killed.
struct Dying {
    process: process::Child,
    since: Instant,
}

/// PHP says at once where it listens.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// A worker does nothing else when it is asked for a check, and begins it within milliseconds. It
/// does not if others hold so many connections to its port that PHP accepts no more (then it also
/// prints errors without end), or if the machine is overloaded.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);

/// What a worker writes to its error output, followed by the nonce, when it begins a check.
const BEGUN: &str = "espocrm-websocket begins ";

/// Bytes of its error output that are read before other events of the loop are handled.
const MAX_READ: usize = 64 * 1024;

/// Private memory of a worker; one that checks EspoCRM's access takes 20 to 60 MB. PHP allocates
/// whatever a request announces before the router can reject it: this ends the worker and not the
/// machine. A check that needs more is run again by the plain command.
const MAX_MEMORY: u64 = 256 * 1024 * 1024;

/// After this time a killed worker that has not exited is stuck in the kernel, and keeps its place.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Bytes in which it does.
const MAX_SAID: usize = 16 * 1024;

/// Bytes of an answer: the command's output, and as much again for the head.
const MAX_ANSWER: usize = 2 * MAX_CHILD_OUTPUT;

impl Workers {
    /// Registers what it reads with the tokens from `first_token` on.
    #[must_use]
    pub(crate) fn new(first_token: usize) -> Self {
        Self { running: Slab::new(), dying: Vec::new(), first_token }
    }

    /// The numbers of those that are not reaped.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        let running = self.running.iter().map(|(_, worker)| worker.process.id());
        running.chain(self.dying.iter().map(|it| it.process.id()))
    }

    /// Workers that were killed some time ago and still have not exited.
    #[must_use]
    pub(crate) fn stuck(&self) -> usize {
        self.stuck_at(Instant::now())
    }

    fn stuck_at(&self, now: Instant) -> usize {
        self.dying.iter().filter(|it| now.duration_since(it.since) >= STUCK_AFTER).count()
    }

    /// Starts a worker by a command that runs PHP's web server.
    ///
    /// # Errors
    /// Those of starting a process.
    pub(crate) fn start(
        &mut self,
        registry: &Registry,
        now: Time,
        id: WorkerId,
        mut command: Command,
    ) -> io::Result<()> {
        let secret = random::hex()?;
        command.env("ESPOCRM_WEBSOCKET_SECRET", &secret);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::tie(&mut command);
        sys::limit_memory(&mut command, MAX_MEMORY);
        let mut process = command.spawn()?;
        let entry = self.running.vacant_entry();
        let token = Token(self.first_token + 2 * entry.key());
        let outputs = process.stdout.take().zip(process.stderr.take());
        let outputs = outputs.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
        let registered = outputs.and_then(|(stdout, stderr)| {
            let (stdout, mut stderr) = (Receiver::from(stdout), Receiver::from(stderr));
            stdout.set_nonblocking(true)?;
            stderr.set_nonblocking(true)?;
            registry.register(&mut stderr, token, Interest::READABLE)?;
            Ok((stdout, stderr))
        });
        match registered {
            Ok((stdout, stderr)) => {
                entry.insert(Worker {
                    id,
                    process,
                    stderr,
                    stdout,
                    said: Vec::new(),
                    printed: 0,
                    start_by: now.after(START_DEADLINE),
                    address: None,
                    secret,
                    compared: None,
                    call: None,
                });
                Ok(())
            }
            Err(error) => {
                kill(process, &mut self.dying);
                Err(error)
            }
        }
    }

    /// Has a worker that is idle, or just started, run the command of a check.
    ///
    /// # Errors
    /// Those of connecting to it.
    pub(crate) fn run(
        &mut self,
        registry: &Registry,
        id: WorkerId,
        errand: Errand,
        words: &[Box<str>],
        now: Time,
        timeout: Duration,
    ) -> io::Result<()> {
        let nonce = random::hex()?;
        let first_token = self.first_token;
        let Some((key, worker)) = self.running.iter_mut().find(|(_, worker)| worker.id == id)
        else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let request = worker_protocol::request(&worker.secret, &nonce, worker.compared, words);
        let (tcp, answer) = (None, Vec::new());
        let deadline = now.after(timeout);
        // One that was just started first says where it listens.
        let ready_by = if worker.address.is_some() { now } else { worker.start_by };
        let begin_by = ready_by.after(BEGIN_DEADLINE);
        worker.printed = 0;
        worker.call =
            Some(Call { errand, deadline, begin_by, begun: false, nonce, request, tcp, answer });
        worker.connect(registry, Token(first_token + 2 * key + 1))
    }

    /// Goes on with what `token` announces.
    pub(crate) fn ready(&mut self, registry: &Registry, token: Token, outcomes: &mut Vec<Outcome>) {
        let number = token.0.saturating_sub(self.first_token);
        let Some(worker) = self.running.get_mut(number / 2) else { return };
        let result = if number.is_multiple_of(2) {
            let told = worker.listen();
            if told.is_more
                && registry.reregister(&mut worker.stderr, token, Interest::READABLE).is_err()
            {
                sys::kill_group(worker.process.id());
            }
            if let Some(problem) = worker.flood() {
                Err(problem)
            } else if !told.has_address {
                return;
            } else {
                match worker.connect(registry, Token(token.0 + 1)) {
                    Ok(()) => return,
                    Err(error) => Err(Problem::NoGood(error.to_string())),
                }
            }
        } else {
            match worker.converse() {
                Ok(None) => return,
                Ok(Some(reply)) => Ok(reply),
                Err(why) => Err(Problem::NoGood(why)),
            }
        };
        self.finish(number / 2, result, outcomes);
    }

    /// Takes the workers that have ended by themselves; those in `ended` had nothing to do.
    pub(crate) fn reap(&mut self, outcomes: &mut Vec<Outcome>, ended: &mut Vec<WorkerId>) {
        self.dying.retain_mut(|dying| matches!(dying.process.try_wait(), Ok(None)));
        let gone = |(key, worker): (usize, &mut Worker)| {
            if !sys::has_ended(worker.process.id()) {
                return None;
            }
            // What it has started ends with it. Until it is reaped the group's number is its own.
            sys::kill_group(worker.process.id());
            match worker.process.wait() {
                Ok(status) => Some((key, status.to_string())),
                Err(error) => Some((key, error.to_string())),
            }
        };
        for (key, how) in self.running.iter_mut().filter_map(gone).collect::<Vec<_>>() {
            if let Some(worker) = self.running.get_mut(key) {
                worker.listen();
                let why = format!("it ended ({how}){}", worker.complaint());
                let Worker { id, call, .. } = self.running.remove(key);
                if let Some(Call { errand, .. }) = call {
                    let result = Err(Problem::NoGood(why));
                    outcomes.push(Outcome { worker: id, errand, result });
                } else {
                    ended.push(id);
                }
            }
        }
    }

    /// Ends what takes too long.
    pub(crate) fn expire(&mut self, now: Time, outcomes: &mut Vec<Outcome>) {
        let overdue = |(key, worker): (usize, &Worker)| {
            if worker.address.is_none() && worker.start_by <= now {
                let why = format!("it did not say where it listens{}", worker.complaint());
                return Some((key, Problem::NoGood(why)));
            }
            let call = worker.call.as_ref()?;
            if call.deadline <= now {
                return Some((key, Problem::TimedOut { begun: call.begun }));
            }
            (!call.begun && call.begin_by <= now).then_some((key, Problem::NotBegun))
        };
        for (key, why) in self.running.iter().filter_map(overdue).collect::<Vec<_>>() {
            self.finish(key, Err(why), outcomes);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let starts = self.running.iter().filter(|(_, worker)| worker.address.is_none());
        let calls = self.running.iter().filter_map(|(_, worker)| worker.call.as_ref());
        let begins = calls.clone().filter(|call| !call.begun).map(|call| call.begin_by);
        let deadlines = calls.map(|call| call.deadline).chain(begins);
        starts.map(|(_, worker)| worker.start_by).chain(deadlines).min()
    }

    /// Stops a worker that has nothing to do.
    pub(crate) fn stop(&mut self, id: WorkerId) {
        let found = self.running.iter().find(|(_, worker)| worker.id == id);
        if let Some((key, _)) = found {
            kill(self.running.remove(key).process, &mut self.dying);
        }
    }

    /// Kills everything and waits for its end, but not for ever.
    pub(crate) fn kill_all(&mut self) {
        for worker in self.running.drain() {
            kill(worker.process, &mut self.dying);
        }
        reap_killed(&mut self.dying.drain(..).map(|it| it.process).collect());
    }

    /// A worker that has not answered is of no further use.
    fn finish(&mut self, key: usize, result: Result<Reply, Problem>, outcomes: &mut Vec<Outcome>) {
        let Some(worker) = self.running.get_mut(key) else { return };
        let id = worker.id;
        let call = worker.call.take();
        if result.is_err() {
            kill(self.running.remove(key).process, &mut self.dying);
        }
        if let Some(call) = call {
            outcomes.push(Outcome { worker: id, errand: call.errand, result });
        }
    }
}

impl Worker {
    /// Reads its error output.
    fn listen(&mut self) -> Heard {
        let mut heard = Heard { has_address: false, is_more: true };
        let mut buffer = [0; 4096];
        let mut read = 0;
        while read < MAX_READ && self.printed <= MAX_CHILD_OUTPUT {
            match self.stderr.read(&mut buffer) {
                Ok(length @ 1..) => {
                    read += length;
                    self.printed += length;
                    heard.has_address |= self.hear(buffer.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    heard.is_more = false;
                    break;
                }
            }
        }
        if self.printed > MAX_CHILD_OUTPUT {
            // As a plain check that prints so much. It is then reaped as any other that has ended.
            sys::kill_group(self.process.id());
            heard = Heard { has_address: false, is_more: false };
        }
        heard
    }

    /// Why it was killed while it ran a check, if it has printed too much.
    fn flood(&self) -> Option<Problem> {
        let call = self.call.as_ref().filter(|_| self.printed > MAX_CHILD_OUTPUT)?;
        if self.address.is_some() && !call.begun {
            // PHP's web server prints without end that it can accept no more connections.
            return Some(Problem::NotBegun);
        }
        Some(Problem::NoGood("it wrote more than 1 MiB to its error output".to_owned()))
    }

    /// Takes a piece of its error output. Whether it has just told where it listens.
    fn hear(&mut self, piece: &[u8]) -> bool {
        if self.address.is_none() {
            if self.said.len() < MAX_SAID {
                self.said.extend_from_slice(piece);
            }
            self.address = address(&self.said);
            return self.address.is_some();
        }
        // Whatever else it says stands in EspoCRM's log, too.
        match &mut self.call {
            Some(call) if !call.begun => {
                let notice = [BEGUN, &call.nonce].concat();
                self.said.extend_from_slice(piece);
                call.begun = self.said.windows(notice.len()).any(|it| it == notice.as_bytes());
                let rest = self.said.len().saturating_sub(notice.len());
                drop(self.said.drain(..rest));
            }
            _ => self.said.clear(),
        }
        false
    }

    /// Begins the call that waits for it, once it is known where the worker listens.
    fn connect(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let (Some(address), Some(call)) = (self.address, &mut self.call) else { return Ok(()) };
        let mut tcp = TcpStream::connect(address)?;
        registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE)?;
        call.tcp = Some(tcp);
        Ok(())
    }

    /// Sends the request and receives the answer, as far as possible.
    fn converse(&mut self) -> Result<Option<Reply>, String> {
        let Some(call) = &mut self.call else { return Ok(None) };
        let Some(tcp) = &mut call.tcp else { return Ok(None) };
        while !call.request.is_empty() {
            match tcp.write(&call.request) {
                Ok(length) => drop(call.request.drain(..length.min(call.request.len()))),
                Err(error) if waits(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut buffer = [0; 4096];
        let mut ended = false;
        while !ended && call.answer.len() < MAX_ANSWER {
            match tcp.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(length) => call.answer.extend_from_slice(buffer.get(..length).unwrap_or(&[])),
                Err(error) if waits(&error) => {
                    // PHP sends the head first, and the rest when that is acknowledged.
                    let _ = SockRef::from(&*tcp).set_tcp_quickack(true);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let complete = ended || call.answer.len() >= MAX_ANSWER;
        let reply = worker_protocol::read(&call.answer, &call.nonce, complete).map_err(
            |InvalidResponse| match &*first_line(&call.answer) {
                "" => "it ended without an answer".to_owned(),
                line => format!("it answered {line}"),
            },
        )?;
        if reply.is_some() && matches!(self.stdout.read(&mut buffer), Ok(1..)) {
            return Err("EspoCRM has printed past it".to_owned());
        }
        if let Some(Reply::Done(done)) = &reply {
            self.compared = done.compared;
        }
        Ok(reply)
    }

    /// What it said instead of where it listens.
    fn complaint(&self) -> String {
        if self.address.is_some() || self.said.trim_ascii().is_empty() {
            String::new()
        } else {
            format!(", and said {}", first_line(&self.said))
        }
    }
}

/// What was read of a worker's error output.
struct Heard {
    /// It has just told where it listens.
    has_address: bool,
    /// There may be more to read.
    is_more: bool,
}

/// Not connected yet, or nothing for now.
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

/// In `… PHP 8.2.7 Development Server (http://127.0.0.1:39645) started`.
fn address(said: &[u8]) -> Option<SocketAddr> {
    let said = String::from_utf8_lossy(said);
    let (_, rest) = said.split_once("(http://")?;
    let address: SocketAddr = rest.split_once(')')?.0.parse().ok()?;
    (address.ip().is_loopback() && address.port() != 0).then_some(address)
}

fn kill(process: process::Child, dying: &mut Vec<Dying>) {
    sys::kill_group(process.id());
    dying.push(Dying { process, since: Instant::now() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checks::worker_pool::{Pool, Runner};

    #[test]
    fn a_killed_worker_that_does_not_exit_is_counted_until_it_is_reaped() {
        let poll = mio::Poll::new().unwrap();
        let mut workers = Workers::new(0);
        let Some(Runner::New(id)) = Pool::new(1).take(Time::default(), 0) else { panic!() };
        let mut command = Command::new("sleep");
        command.arg("600");
        workers.start(poll.registry(), Time::default(), id, command).unwrap();
        let late = Instant::now() + 2 * STUCK_AFTER;
        assert_eq!(workers.stuck_at(late), 0);
        workers.stop(id);
        assert_eq!((workers.stuck_at(late), workers.stuck_at(workers.dying[0].since)), (1, 0));
        assert_eq!(workers.processes().count(), 1);
        workers.kill_all();
        assert_eq!((workers.stuck_at(late), workers.processes().count()), (0, 0));
    }
}
