//! Scripted PHP processes, and the files of a scripted EspoCRM.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use mio::Registry;

use super::{Entry, Journal};
use crate::daemon::settings_reader::{self, Probed};
use crate::engine::checks::check::Check;
use crate::engine::checks::queue::JobId;
use crate::engine::checks::verdict::{ProcessExit, Verdict};
use crate::engine::reload::{Outcome, Php};
use crate::engine::time::Time;
use crate::espocrm::process::{Finished, Task};
use crate::platform::exit::{Exit, Result};
use crate::settings::{Layers, Settings};

/// PHP processes that end when the test decides it.
#[derive(Clone)]
pub(crate) struct Children(Rc<RefCell<Processes>>);

#[derive(Default)]
struct Processes {
    running: Vec<Process>,
    journal: Journal,
}

struct Process {
    task: Task,
    arguments: Vec<String>,
    /// It has exited, and is not reaped.
    verdict: Option<Verdict>,
}

/// Reads an EspoCRM, or the files and the outcome of the probe of a test.
#[allow(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum SettingsReader {
    Real(settings_reader::SettingsReader),
    Scripted(Probes),
}

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
    /// What the running probe will print.
    outcome: Option<(Outcome, Probed)>,
}

#[allow(
    clippy::needless_pass_by_value,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "the interface of the real type"
)]
impl Children {
    pub(crate) fn new(_first_token: usize) -> Self {
        Self(Rc::default())
    }

    pub(crate) fn record(&self, journal: &Journal) {
        self.0.borrow_mut().journal = Rc::clone(journal);
    }

    /// Ends a check unless it has ended.
    pub(crate) fn answer(&self, id: JobId, verdict: Verdict) {
        let mut processes = self.0.borrow_mut();
        let is_it = |it: &Process| {
            matches!(it.task, Task::Check(job, _) if job == id) && it.verdict.is_none()
        };
        if let Some(mut process) = processes.take(is_it) {
            process.verdict = Some(verdict);
            processes.running.push(process);
        }
    }

    /// Ends the self-check, which is reaped next.
    pub(crate) fn end_self_check(&self, verdict: Verdict) {
        self.end(|it| matches!(it.task, Task::SelfCheck(_)), verdict);
    }

    /// Ends the probe, which is reaped next.
    pub(crate) fn end_probe(&self) {
        self.end(|it| it.task == Task::Probe, Verdict::Denied);
    }

    fn end(&self, is_it: impl Fn(&Process) -> bool, verdict: Verdict) {
        let mut processes = self.0.borrow_mut();
        let mut process = processes.take(is_it).expect("it is running");
        process.verdict = Some(verdict);
        processes.running.insert(0, process);
    }

    /// How many have exited and are not reaped.
    pub(crate) fn exited(&self) -> usize {
        self.0.borrow().running.iter().filter(|it| it.verdict.is_some()).count()
    }

    pub(crate) fn spawn(
        &mut self,
        _: &Registry,
        _: Time,
        task: Task,
        command: Command,
        _: Duration,
    ) -> io::Result<()> {
        let mut processes = self.0.borrow_mut();
        let arguments = command.get_args().skip(1).map(|word| word.to_str().unwrap().to_owned());
        let arguments: Vec<_> = arguments.collect();
        match task {
            Task::Check(id, _) => processes.note(Entry::Started(id, arguments.join(" ").into())),
            Task::SelfCheck(_) => processes.note(Entry::SelfCheckStarted),
            Task::Probe => {}
        }
        processes.running.push(Process { task, arguments, verdict: None });
        Ok(())
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        std::iter::empty()
    }

    pub(crate) fn checks(&self) -> usize {
        let is_check = |it: &&Process| matches!(it.task, Task::Check(..));
        self.0.borrow().running.iter().filter(is_check).count()
    }

    pub(crate) fn readable(&mut self, _: usize) {}

    /// Reaps one, as if the others exited a moment later.
    pub(crate) fn reap(&mut self, finished: &mut Vec<Finished>) {
        let mut processes = self.0.borrow_mut();
        if let Some(process) = processes.take(|it| it.verdict.is_some()) {
            if let (Task::Check(id, _), Some(verdict)) = (process.task, &process.verdict) {
                processes.note(Entry::Answered(id, verdict.clone()));
            }
            finished.push(process.finish());
        }
    }

    pub(crate) fn expire(&mut self, _: Time) {}

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        None
    }

    pub(crate) fn kill_all(&mut self) {
        self.0.borrow_mut().running.clear();
    }
}

impl Processes {
    fn take(&mut self, is_it: impl Fn(&Process) -> bool) -> Option<Process> {
        let index = self.running.iter().position(is_it)?;
        Some(self.running.remove(index))
    }

    fn note(&self, entry: Entry) {
        self.journal.borrow_mut().push_back(entry);
    }
}

impl Process {
    /// What PHP prints in any version of EspoCRM if this is its verdict.
    fn finish(self) -> Finished {
        let granted = match &self.arguments[..] {
            [command, .., user] if command == Check::AUTHENTICATION => user,
            _ => "true",
        };
        let (exit, stdout) = match self.verdict.unwrap() {
            Verdict::Granted => (Ok(ProcessExit::Status(0)), granted),
            Verdict::Denied => (Ok(ProcessExit::Status(1)), ""),
            Verdict::Failed(failure) => (Err(failure), ""),
        };
        Finished { task: self.task, exit, stdout: stdout.into(), stderr: Vec::new() }
    }
}

impl SettingsReader {
    pub(crate) fn open(layers: Layers, stop: impl FnMut() -> bool) -> Result<(Self, Settings)> {
        let (reader, settings) = settings_reader::SettingsReader::open(layers, stop)?;
        Ok((Self::Real(reader), settings))
    }

    pub(crate) fn take_change(&mut self) -> bool {
        match self {
            Self::Real(reader) => reader.take_change(),
            Self::Scripted(probes) => {
                probes.journal.borrow_mut().push_back(Entry::FilesChecked);
                std::mem::take(&mut probes.disk.borrow_mut().is_changed)
            }
        }
    }

    pub(crate) fn record_files(&mut self) {
        match self {
            Self::Real(reader) => reader.record_files(),
            Self::Scripted(probes) => probes.disk.borrow_mut().is_changed = false,
        }
    }

    pub(crate) fn has_pending_change(&self) -> bool {
        match self {
            Self::Real(reader) => reader.has_pending_change(),
            Self::Scripted(probes) => probes.disk.borrow().is_changed,
        }
    }

    pub(crate) fn start_probe(
        &mut self,
        php: Php,
        spawn: impl FnOnce(Command) -> io::Result<()>,
    ) -> Result<()> {
        match self {
            Self::Real(reader) => reader.start_probe(php, spawn),
            Self::Scripted(probes) => probes.start(php, spawn),
        }
    }

    pub(crate) fn read(&mut self, finished: &Finished) -> (Outcome, Probed) {
        match self {
            Self::Real(reader) => reader.read(finished),
            Self::Scripted(probes) => probes.disk.borrow_mut().outcome.take().unwrap(),
        }
    }
}

impl Deref for SettingsReader {
    type Target = settings_reader::SettingsReader;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Real(reader) => reader,
            Self::Scripted(_) => unreachable!("only the commands use it"),
        }
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

    pub(crate) fn set_outcome(&self, outcome: Outcome, probed: Probed) {
        self.disk.borrow_mut().outcome = Some((outcome, probed));
    }

    fn start(&self, php: Php, spawn: impl FnOnce(Command) -> io::Result<()>) -> Result<()> {
        let mut disk = self.disk.borrow_mut();
        let fails = disk.failures > 0;
        disk.failures = disk.failures.saturating_sub(1);
        let entry = if fails { Entry::ProbeNotStarted(php) } else { Entry::ProbeStarted(php) };
        self.journal.borrow_mut().push_back(entry);
        if fails {
            return Err(Exit::error("not found"));
        }
        spawn(Command::new("php")).map_err(|error| Exit::error(error.to_string()))
    }
}
