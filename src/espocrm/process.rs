//! PHP as child processes: starts, reads, times, kills and reaps them without blocking.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use mio::unix::pipe::Receiver;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;

use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::{Failure, ProcessExit, first_line};
use crate::engine::espocrm::version::Convention;
use crate::engine::limits::MAX_CHILD_OUTPUT;
use crate::engine::time::Time;
use crate::platform::clock::Clock;
use crate::platform::sys;

/// The running children.
///
/// The end of a child's output is not its end: it has ended when it has exited. The caller must
/// call [`reap`](Self::reap) after a `SIGCHLD`.
pub(crate) struct Children {
    running: Slab<Child>,
    /// The first token; each child has two.
    first_token: usize,
}

/// The purpose of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// An access check, and the convention of its verdict.
    Check(JobId, Convention),
    /// The check of a random token, and the convention of its verdict.
    SelfCheck(Convention),
    /// Reading EspoCRM's settings.
    Probe,
}

/// A child that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its purpose.
    pub task: Task,
    /// How it exited, or why that is meaningless.
    pub exit: Result<ProcessExit, Failure>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

struct Child {
    task: Task,
    process: process::Child,
    stdout: Output,
    stderr: Output,
    deadline: Time,
    /// Why it was killed.
    killed: Option<Failure>,
}

struct Output {
    pipe: Receiver,
    bytes: Vec<u8>,
}

impl Children {
    /// Uses the tokens from `first_token` on.
    #[must_use]
    pub(crate) fn new(first_token: usize) -> Self {
        Self { running: Slab::new(), first_token }
    }

    /// Starts a command in its own session and process group, which are killed after `timeout`.
    ///
    /// # Errors
    /// Those of starting a process and of registering its output.
    pub(crate) fn spawn(
        &mut self,
        registry: &Registry,
        now: Time,
        task: Task,
        mut command: Command,
        timeout: Duration,
    ) -> io::Result<()> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::isolate(&mut command);
        let mut process = command.spawn()?;
        let entry = self.running.vacant_entry();
        let token = self.first_token + 2 * entry.key();
        let outputs = match (process.stdout.take(), process.stderr.take()) {
            (Some(stdout), Some(stderr)) => Output::register(stdout.into(), registry, token)
                .and_then(|out| Ok((out, Output::register(stderr.into(), registry, token + 1)?))),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        };
        match outputs {
            Ok((stdout, stderr)) => {
                let deadline = now.after(timeout);
                entry.insert(Child { task, process, stdout, stderr, deadline, killed: None });
                Ok(())
            }
            Err(error) => {
                sys::kill_group(process.id());
                process.wait()?;
                Err(error)
            }
        }
    }

    /// The process ids of children that are not reaped yet.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        self.running.iter().map(|(_, child)| child.process.id())
    }

    /// How many children run an access check.
    pub(crate) fn checks(&self) -> usize {
        let is_check = |child: &Child| matches!(child.task, Task::Check(..));
        self.running.iter().filter(|(_, child)| is_check(child)).count()
    }

    /// Reads output after an event of the token with this number, counted from the first one.
    pub(crate) fn readable(&mut self, number: usize) {
        if let Some(child) = self.running.get_mut(number / 2) {
            child.read();
        }
    }

    /// Reaps the children that have exited.
    pub(crate) fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.running.retain(|_, child| {
            let ended = sys::has_ended(child.process.id());
            if ended {
                finished.push(child.finish());
            }
            !ended
        });
    }

    /// Kills the children that have reached their timeout; they are then reaped like others.
    pub(crate) fn expire(&mut self, now: Time) {
        for (_, child) in &mut self.running {
            if child.deadline <= now && child.killed.is_none() {
                child.kill(Failure::TimedOut);
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let alive = self.running.iter().filter(|(_, child)| child.killed.is_none());
        alive.map(|(_, child)| child.deadline).min()
    }

    /// Kills all children and waits for a limited time until they exit.
    pub(crate) fn kill_all(&mut self) {
        let mut killed: Vec<_> = self.running.drain().map(|child| child.process).collect();
        for process in &killed {
            sys::kill_group(process.id());
        }
        reap_killed(&mut killed);
    }

    /// Runs one command and waits for its end or until `stop` returns true.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn) and of polling; `Interrupted` if it was stopped.
    pub(crate) fn run(
        command: Command,
        timeout: Duration,
        mut stop: impl FnMut() -> bool,
    ) -> io::Result<Finished> {
        Self::run_until(command, timeout, &mut stop)
    }

    /// Not generic, so that it is compiled only once.
    fn run_until(
        command: Command,
        timeout: Duration,
        stop: &mut dyn FnMut() -> bool,
    ) -> io::Result<Finished> {
        let clock = Clock::start();
        let mut poll = Poll::new()?;
        let mut children = Self::new(0);
        children.spawn(poll.registry(), clock.now(), Task::Probe, command, timeout)?;
        let mut events = Events::with_capacity(8);
        let mut finished = Vec::new();
        loop {
            // Without a SIGCHLD handler, polling detects the end of the child.
            match poll.poll(&mut events, Some(Duration::from_millis(10))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                children.readable(event.token().0);
            }
            if stop() {
                children.kill_all();
                return Err(io::ErrorKind::Interrupted.into());
            }
            children.expire(clock.now());
            children.reap(&mut finished);
            if let Some(finished) = finished.pop() {
                return Ok(finished);
            }
        }
    }
}

/// Waits until killed processes exit, but not longer than two seconds: a process in an
/// uninterruptible system call (a network file system without its server) may never exit.
pub(super) fn reap_killed(processes: &mut Vec<process::Child>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let start = Instant::now();
    loop {
        processes.retain_mut(|process| matches!(process.try_wait(), Ok(None)));
        if processes.is_empty() || start.elapsed() >= PATIENCE {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Finished {
    /// The first line of standard error, or else of standard output, for the log.
    #[must_use]
    pub fn first_line(&self) -> String {
        let line = first_line(&self.stderr);
        if line.is_empty() { first_line(&self.stdout) } else { line }
    }
}

impl Child {
    /// Reads the output, except of a killed child. Kills a child that prints too much.
    fn read(&mut self) {
        if self.killed.is_none() && !(self.stdout.read() && self.stderr.read()) {
            self.kill(Failure::Unreadable);
        }
    }

    fn kill(&mut self, why: Failure) {
        sys::kill_group(self.process.id());
        self.killed = Some(why);
    }

    fn finish(&mut self) -> Finished {
        // The pipes still contain the output from before the exit.
        self.read();
        // Kill its remaining descendants.
        sys::kill_group(self.process.id());
        let status = self.process.wait().ok();
        let exit = status.and_then(|status| {
            let signal = status.signal().map(ProcessExit::Signal);
            status.code().map(ProcessExit::Status).or(signal)
        });
        Finished {
            task: self.task,
            exit: match self.killed.take() {
                Some(failure) => Err(failure),
                None => exit.ok_or(Failure::Unreadable),
            },
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr: std::mem::take(&mut self.stderr.bytes),
        }
    }
}

impl Output {
    fn register(mut pipe: Receiver, registry: &Registry, token: usize) -> io::Result<Self> {
        pipe.set_nonblocking(true)?;
        registry.register(&mut pipe, Token(token), Interest::READABLE)?;
        Ok(Self { pipe, bytes: Vec::new() })
    }

    /// Reads available output; false if the child has printed more than the limit.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) => self.bytes.extend_from_slice(buffer.get(..length).unwrap_or(&[])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
            if self.bytes.len() > MAX_CHILD_OUTPUT {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: Duration) -> Finished {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::null());
        Children::run(command, timeout, || false).unwrap()
    }

    /// Waits until a process has exited or is a zombie.
    fn wait_for_end(process: &str) {
        let is_alive = || {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"));
            status.is_ok_and(|status| !status.contains("State:\tZ"))
        };
        let start = Instant::now();
        while is_alive() {
            assert!(start.elapsed() < LONG, "process {process} has not ended");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn status_and_both_outputs_are_returned() {
        let finished = run("printf out; printf err >&2; exit 7", LONG);
        assert_eq!(finished.exit, Ok(ProcessExit::Status(7)));
        assert_eq!((&finished.stdout[..], &finished.stderr[..]), (&b"out"[..], &b"err"[..]));
    }

    #[test]
    fn closed_outputs_do_not_end_a_child() {
        let finished = run("printf out; exec >&- 2>&-; sleep 0.3; exit 7", LONG);
        assert_eq!((finished.exit, finished.stdout), (Ok(ProcessExit::Status(7)), b"out".to_vec()));
    }

    #[test]
    fn an_output_that_a_descendant_keeps_open_does_not_delay_the_end() {
        let finished = run("sleep 600 & printf $!; exit 0", LONG);
        assert_eq!(finished.exit, Ok(ProcessExit::Status(0)));
        // The descendant was killed with the group. It stays a zombie if PID 1 does not reap
        // orphans.
        wait_for_end(&String::from_utf8(finished.stdout).unwrap());
    }

    #[test]
    fn a_child_that_times_out_is_killed_with_its_descendants() {
        let finished = run("sleep 600 & printf $!; wait", Duration::from_secs(3));
        assert_eq!(finished.exit, Err(Failure::TimedOut));
        wait_for_end(&String::from_utf8(finished.stdout).unwrap());
    }

    #[test]
    fn a_child_that_prints_endlessly_is_killed() {
        let finished = run("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", LONG);
        assert_eq!(finished.exit, Err(Failure::Unreadable));
        assert!(finished.stdout.len() < MAX_CHILD_OUTPUT + 5_000);
    }

    #[test]
    fn a_child_is_counted_until_it_is_reaped_and_killed_once() {
        let (poll, mut children) = (Poll::new().unwrap(), Children::new(0));
        let (start, deadline) = (Time::default(), Time::default().after(LONG));
        for task in [Task::Check(JobId::default(), Convention::Both), Task::Probe] {
            let mut command = Command::new("sleep");
            command.arg("600");
            children.spawn(poll.registry(), start, task, command, LONG).unwrap();
        }
        assert_eq!((children.processes().count(), children.checks()), (2, 1));
        children.expire(start);
        assert_eq!(children.next_deadline(), Some(deadline));
        children.expire(deadline);
        assert_eq!(children.next_deadline(), None);
        let mut finished = Vec::new();
        while finished.len() < 2 {
            assert_eq!(children.processes().count(), 2 - finished.len());
            children.reap(&mut finished);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(finished.iter().all(|child| child.exit == Err(Failure::TimedOut)));
        assert_eq!((children.processes().count(), children.checks()), (0, 0));
    }

    #[test]
    fn the_signal_that_ended_a_child_is_returned() {
        assert_eq!(run("kill -SEGV $$", LONG).exit, Ok(ProcessExit::Signal(11)));
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let command = Command::new("/nonexistent/php");
        let error = Children::run(command, LONG, || false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
