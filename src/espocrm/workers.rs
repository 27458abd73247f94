//! Warm PHP processes that answer many checks: PHP's built-in web server on a loopback port, with a
//! router script that runs EspoCRM's console commands. No call blocks.

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
use crate::engine::checks::worker_pool::{Problem, WorkerId};
use crate::engine::checks::worker_protocol;
use crate::engine::checks::worker_protocol::{InvalidResponse, Reply};
use crate::engine::espocrm::version::Convention;
use crate::engine::limits::MAX_CHILD_OUTPUT;
use crate::engine::time::Time;
use crate::espocrm::process::reap_killed;
use crate::platform::{random, sys};

/// The running workers. Each answers one check at a time. The caller must call [`reap`](Self::reap)
/// after a `SIGCHLD`.
pub(crate) struct Workers {
    running: Slab<Worker>,
    /// Killed, and not yet reaped.
    dying: Vec<Dying>,
    /// The first token. Each worker has two: for its standard error and its connection.
    first_token: usize,
}

/// A check for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckRequest {
    pub job: JobId,
    /// How to read the outcome.
    pub convention: Convention,
}

/// The end of a check request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The worker. It has been stopped unless it answered.
    pub worker: WorkerId,
    pub request: CheckRequest,
    pub result: Result<Reply, Problem>,
}

struct Worker {
    id: WorkerId,
    process: process::Child,
    stderr: Receiver,
    /// Must stay empty: the router collects the output of a command for the response, so output
    /// here is missing there.
    stdout: Receiver,
    /// Until the address is known, the start of standard error. Then its end, which may contain an
    /// incomplete notice that a check has begun.
    output: Vec<u8>,
    /// Bytes on standard error since the start or the last request.
    printed: usize,
    /// The deadline to report the address.
    start_by: Time,
    address: Option<SocketAddr>,
    secret: String,
    /// See [`worker_protocol::Done::compared`].
    compared: Option<u64>,
    call: Option<Call>,
}

/// A request in progress.
struct Call {
    request: CheckRequest,
    deadline: Time,
    /// The deadline to begin the check.
    begin_by: Time,
    begun: bool,
    nonce: String,
    /// The rest of the HTTP request.
    unsent: Vec<u8>,
    tcp: Option<TcpStream>,
    answer: Vec<u8>,
}

/// A killed worker.
struct Dying {
    process: process::Child,
    since: Instant,
}

/// PHP reports its address immediately after the start.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// An idle worker begins a check within milliseconds, except if other processes hold so many
/// connections to its port that PHP accepts no more (PHP then also prints errors endlessly), or if
/// the machine is overloaded.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);

/// A worker writes this and the nonce to its standard error when it begins a check.
const BEGUN: &str = "espocrm-websocket begins ";

/// Bytes of standard error that are read before the event loop handles other events.
const MAX_READ: usize = 64 * 1024;

/// Private memory of a worker; one that checks access in EspoCRM needs 20 to 60 MB. PHP allocates
/// the announced length of a request before the router can reject it: the limit ends the worker and
/// protects the machine. A check that needs more runs again as a plain command.
const MAX_MEMORY: u64 = 256 * 1024 * 1024;

/// After this time, a killed worker that has not exited is stuck in the kernel and keeps its slot.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Bytes of standard error in which a worker must report its address.
const MAX_START_OUTPUT: usize = 16 * 1024;

/// Bytes of a response: the command's output, and as much again for the head.
const MAX_ANSWER: usize = 2 * MAX_CHILD_OUTPUT;

impl Workers {
    /// Uses the tokens from `first_token` on.
    #[must_use]
    pub(crate) fn new(first_token: usize) -> Self {
        Self { running: Slab::new(), dying: Vec::new(), first_token }
    }

    /// The process ids of workers that are not reaped yet.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        let running = self.running.iter().map(|(_, worker)| worker.process.id());
        running.chain(self.dying.iter().map(|it| it.process.id()))
    }

    /// How many workers run an access check.
    pub(crate) fn busy(&self) -> usize {
        self.running.iter().filter(|(_, worker)| worker.call.is_some()).count()
    }

    /// The number of workers that were killed some time ago and have not exited.
    #[must_use]
    pub(crate) fn stuck(&self) -> usize {
        self.stuck_at(Instant::now())
    }

    fn stuck_at(&self, now: Instant) -> usize {
        self.dying.iter().filter(|it| now.duration_since(it.since) >= STUCK_AFTER).count()
    }

    /// Starts a worker with a command that runs PHP's web server.
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
        sys::isolate(&mut command);
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
                    output: Vec::new(),
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

    /// Sends a check to a worker that is idle or was just started.
    ///
    /// # Errors
    /// Those of connecting to it.
    pub(crate) fn run(
        &mut self,
        registry: &Registry,
        id: WorkerId,
        request: CheckRequest,
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
        let unsent = worker_protocol::request(&worker.secret, &nonce, worker.compared, words);
        let (tcp, answer) = (None, Vec::new());
        let deadline = now.after(timeout);
        // A new worker first has to report its address.
        let ready_by = if worker.address.is_some() { now } else { worker.start_by };
        let begin_by = ready_by.after(BEGIN_DEADLINE);
        worker.printed = 0;
        worker.call =
            Some(Call { request, deadline, begin_by, begun: false, nonce, unsent, tcp, answer });
        worker.connect(registry, Token(first_token + 2 * key + 1))
    }

    /// Handles an event of the token with this number, counted from the first one.
    pub(crate) fn ready(
        &mut self,
        registry: &Registry,
        number: usize,
        outcomes: &mut Vec<Outcome>,
    ) {
        let token = Token(self.first_token + number);
        let Some(worker) = self.running.get_mut(number / 2) else { return };
        let result = if number.is_multiple_of(2) {
            let read = worker.read_stderr();
            if read.is_more
                && registry.reregister(&mut worker.stderr, token, Interest::READABLE).is_err()
            {
                sys::kill_group(worker.process.id());
            }
            if let Some(problem) = worker.flood() {
                Err(problem)
            } else if !read.has_address {
                return;
            } else {
                match worker.connect(registry, Token(token.0 + 1)) {
                    Ok(()) => return,
                    Err(error) => Err(Problem::Failed(error.to_string())),
                }
            }
        } else {
            match worker.converse() {
                Ok(None) => return,
                Ok(Some(reply)) => Ok(reply),
                Err(why) => Err(Problem::Failed(why)),
            }
        };
        self.finish(number / 2, result, outcomes);
    }

    /// Reaps the workers that have exited. Adds idle ones to `ended`, the others to `outcomes`.
    pub(crate) fn reap(&mut self, outcomes: &mut Vec<Outcome>, ended: &mut Vec<WorkerId>) {
        self.dying.retain_mut(|dying| matches!(dying.process.try_wait(), Ok(None)));
        let exited = |(key, worker): (usize, &mut Worker)| {
            if !sys::has_ended(worker.process.id()) {
                return None;
            }
            // Kill its descendants too. The group id cannot be reused before the worker is reaped.
            sys::kill_group(worker.process.id());
            match worker.process.wait() {
                Ok(status) => Some((key, status.to_string())),
                Err(error) => Some((key, error.to_string())),
            }
        };
        for (key, how) in self.running.iter_mut().filter_map(exited).collect::<Vec<_>>() {
            if let Some(worker) = self.running.get_mut(key) {
                worker.read_stderr();
                let why = format!("it exited ({how}){}", worker.start_error());
                let Worker { id, call, .. } = self.running.remove(key);
                if let Some(Call { request, .. }) = call {
                    let result = Err(Problem::Failed(why));
                    outcomes.push(Outcome { worker: id, request, result });
                } else {
                    ended.push(id);
                }
            }
        }
    }

    /// Stops the workers that exceed a deadline.
    pub(crate) fn expire(&mut self, now: Time, outcomes: &mut Vec<Outcome>) {
        let overdue = |(key, worker): (usize, &Worker)| {
            if worker.address.is_none() && worker.start_by <= now {
                let why = format!("it did not report its address{}", worker.start_error());
                return Some((key, Problem::Failed(why)));
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

    /// Stops an idle worker.
    pub(crate) fn stop(&mut self, id: WorkerId) {
        let found = self.running.iter().find(|(_, worker)| worker.id == id);
        if let Some((key, _)) = found {
            kill(self.running.remove(key).process, &mut self.dying);
        }
    }

    /// Kills all workers and waits for a limited time until they exit.
    pub(crate) fn kill_all(&mut self) {
        for worker in self.running.drain() {
            kill(worker.process, &mut self.dying);
        }
        reap_killed(&mut self.dying.drain(..).map(|it| it.process).collect());
    }

    /// Ends a request. Kills a worker that has not answered.
    fn finish(&mut self, key: usize, result: Result<Reply, Problem>, outcomes: &mut Vec<Outcome>) {
        let Some(worker) = self.running.get_mut(key) else { return };
        let id = worker.id;
        let call = worker.call.take();
        if result.is_err() {
            kill(self.running.remove(key).process, &mut self.dying);
        }
        if let Some(call) = call {
            outcomes.push(Outcome { worker: id, request: call.request, result });
        }
    }
}

impl Worker {
    /// Reads standard error.
    fn read_stderr(&mut self) -> StderrRead {
        let mut result = StderrRead { has_address: false, is_more: true };
        let mut buffer = [0; 4096];
        let mut read = 0;
        while read < MAX_READ && self.printed <= MAX_CHILD_OUTPUT {
            match self.stderr.read(&mut buffer) {
                Ok(length @ 1..) => {
                    read += length;
                    self.printed += length;
                    result.has_address |= self.parse(buffer.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    result.is_more = false;
                    break;
                }
            }
        }
        if self.printed > MAX_CHILD_OUTPUT {
            // The same limit as for a plain command. The worker is then reaped like any other.
            sys::kill_group(self.process.id());
            result = StderrRead { has_address: false, is_more: false };
        }
        result
    }

    /// The problem of a worker that was killed during a check because it printed too much.
    fn flood(&self) -> Option<Problem> {
        let call = self.call.as_ref().filter(|_| self.printed > MAX_CHILD_OUTPUT)?;
        if self.address.is_some() && !call.begun {
            // PHP's web server endlessly prints that it cannot accept more connections.
            return Some(Problem::NotBegun);
        }
        Some(Problem::Failed("it wrote more than 1 MiB to standard error".to_owned()))
    }

    /// Parses a piece of standard error. Returns whether it has completed the worker's address.
    fn parse(&mut self, piece: &[u8]) -> bool {
        if self.address.is_none() {
            if self.output.len() < MAX_START_OUTPUT {
                self.output.extend_from_slice(piece);
            }
            self.address = address(&self.output);
            return self.address.is_some();
        }
        // Other output is ignored: it is also in EspoCRM's log.
        match &mut self.call {
            Some(call) if !call.begun => {
                let notice = [BEGUN, &call.nonce].concat();
                self.output.extend_from_slice(piece);
                call.begun = self.output.windows(notice.len()).any(|it| it == notice.as_bytes());
                let rest = self.output.len().saturating_sub(notice.len());
                drop(self.output.drain(..rest));
            }
            _ => self.output.clear(),
        }
        false
    }

    /// Connects for the current call, if the worker's address is known.
    fn connect(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let (Some(address), Some(call)) = (self.address, &mut self.call) else { return Ok(()) };
        let mut tcp = TcpStream::connect(address)?;
        registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE)?;
        call.tcp = Some(tcp);
        Ok(())
    }

    /// Sends the request and receives the response, as far as possible without waiting.
    fn converse(&mut self) -> Result<Option<Reply>, String> {
        let Some(call) = &mut self.call else { return Ok(None) };
        let Some(tcp) = &mut call.tcp else { return Ok(None) };
        while !call.unsent.is_empty() {
            match tcp.write(&call.unsent) {
                Ok(length) => drop(call.unsent.drain(..length.min(call.unsent.len()))),
                Err(error) if would_block(&error) => return Ok(None),
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
                Err(error) if would_block(&error) => {
                    // PHP sends the head first, and the rest when the head is acknowledged.
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
                "" => "it closed the connection without a response".to_owned(),
                line => format!("it sent an invalid response: {line}"),
            },
        )?;
        if reply.is_some() && matches!(self.stdout.read(&mut buffer), Ok(1..)) {
            return Err("EspoCRM bypassed PHP's output buffer".to_owned());
        }
        if let Some(Reply::Done(done)) = &reply {
            self.compared = done.compared;
        }
        Ok(reply)
    }

    /// The output of a worker that has not reported its address.
    fn start_error(&self) -> String {
        if self.address.is_some() || self.output.trim_ascii().is_empty() {
            String::new()
        } else {
            format!(" and printed: {}", first_line(&self.output))
        }
    }
}

/// The result of reading a worker's standard error.
struct StderrRead {
    /// The worker has just reported its address.
    has_address: bool,
    /// There may be more to read.
    is_more: bool,
}

/// Whether the connection is not established yet, or nothing is available for now.
fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

/// Finds the address in `… PHP 8.2.7 Development Server (http://127.0.0.1:39645) started`.
fn address(output: &[u8]) -> Option<SocketAddr> {
    let output = String::from_utf8_lossy(output);
    let (_, rest) = output.split_once("(http://")?;
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
    fn a_killed_worker_counts_as_stuck_until_it_is_reaped() {
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
