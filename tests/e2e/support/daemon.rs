//! The tested daemon, as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use espocrm_websocket::platform::sys;
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::Value;

use super::{Client, DEADLINE, Process, Standin, eventually, find_leak, readable, register_secret};

pub struct Daemon {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    /// The address for browsers.
    pub address: SocketAddr,
    /// The endpoint for PHP.
    pub zeromq: String,
}

/// Bytes of log that wait for the test, 16 times the default.
const LOG_PIPE: i32 = 1 << 20;

/// The program, without arguments.
pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_espocrm-websocket"))
}

/// The command that serves a stand-in, without a configuration file and without a control socket.
pub fn serving(standin: &Standin) -> Command {
    serving_by(command(), standin.path())
}

/// The same with another program, or with one that runs as another user.
pub fn serving_by(mut program: Command, espocrm: &Path) -> Command {
    program.args(["run", "--control", "off", "--config", "/dev/null", "--espocrm"]).arg(espocrm);
    program
}

/// The program in a stand-in's directory, run by a user who is subject to file permissions.
pub fn command_as_nobody(standin: &Standin) -> Command {
    let copy = standin.path().join("espocrm-websocket");
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(command().get_program()).arg(&copy);
    assert!(install.status().unwrap().success());
    let mut command = Command::new(copy);
    command.current_dir(standin.path());
    if is_root() {
        command.uid(65_534).gid(65_534);
    }
    command
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs a command that exits by itself. If it does not, it is killed and has no exit code.
pub fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let start = Instant::now();
    while process.try_wait().unwrap().is_none() && start.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let output = process.wait_with_output().unwrap();
    for text in [&output.stdout, &output.stderr] {
        readable(text.clone()).lines().for_each(expect_no_leak);
    }
    output
}

fn expect_no_leak(line: &str) {
    assert_eq!(find_leak(line), None);
}

impl Daemon {
    /// Serves a stand-in at 127.0.0.1.
    pub fn start(standin: &Standin) -> Self {
        Self::start_with(standin, &[])
    }

    /// The same with more flags. Each check runs in its own PHP process.
    pub fn start_with(standin: &Standin, flags: &[&str]) -> Self {
        Self::with_workers(standin, &[&["--no-worker", "--check-cache", "0"], flags].concat())
    }

    /// The same with PHP workers.
    pub fn with_workers(standin: &Standin, flags: &[&str]) -> Self {
        let mut command = serving(standin);
        command.arg("--debug").args(flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1"]);
        }
        // Files that a killed daemon leaves behind are removed with the stand-in.
        command.env("TMPDIR", standin.path());
        Self::spawn(command)
    }

    /// The demo, which needs no EspoCRM.
    pub fn demo() -> Self {
        Self::demo_at("127.0.0.1:0")
    }

    /// The demo at this address.
    pub fn demo_at(address: &str) -> Self {
        let mut command = command();
        command.args(["demo", "--debug", "--listen", address]);
        Self::spawn(command)
    }

    /// Ends the daemon with a signal and waits for its exit.
    pub fn stop(mut self, signal: &str) {
        self.signal(signal);
        self.wait();
    }

    /// Starts a command and waits until it serves.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::spawn_with_stdin(command)
    }

    /// The same, with the standard input of the command.
    pub fn spawn_with_stdin(mut command: Command) -> Self {
        // Some tests open thousands of connections.
        let _ = sys::raise_open_files();
        let (reader, writer) = std::io::pipe().unwrap();
        // The daemon drops lines rather than wait for a reader, and this one may get little CPU.
        let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(LOG_PIPE));
        command.arg("--print-addresses").stdout(writer.try_clone().unwrap()).stderr(writer);
        let process = command.spawn().unwrap();
        drop(command);
        Self::watch(process, reader)
    }

    /// Reads the log and the addresses of a process, both from `output`, and waits until it serves.
    pub fn watch(process: Child, output: impl Read + Send + 'static) -> Self {
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let (sender, addresses) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if line.starts_with(b"{\"listen\":") {
                    let _ = sender.send(line);
                } else {
                    lines.lock().unwrap().push(readable(line));
                }
            }
        });
        let reader = Some(reader);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Self { process, log, reader, address, zeromq: String::new() };
        let line = addresses.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|_| panic!("it does not serve: {:#?}", daemon.log()));
        let addresses: Value = serde_json::from_slice(&line).unwrap();
        daemon.address = addresses["listen"].as_str().unwrap().parse().unwrap();
        addresses["zeromq"].as_str().unwrap().clone_into(&mut daemon.zeromq);
        // No check is started before that. The demo has no EspoCRM to check.
        if daemon.count(" for EspoCRM ") > 0 {
            daemon.wait_for("elf-check");
        }
        daemon
    }

    /// A WebSocket of this user that received its welcome.
    pub fn connect(&self, user: &str) -> Client {
        let mut client = Client::open(self.address, user, &format!("tok-{user}"));
        client.expect_welcome();
        client
    }

    /// Subscribes and waits until access is granted.
    pub fn subscribe<S: Read + Write>(&mut self, client: &mut Client<S>, user: &str, topic: &str) {
        let line = format!("add topic {topic} for user {user}");
        let count = |log: &[String]| log.iter().filter(|it| it.ends_with(&line)).count();
        let before = count(&self.log());
        client.subscribe(topic);
        eventually(&line, || count(&self.log()) > before);
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its child processes, including those that it has not reaped.
    pub fn children(&self) -> Vec<Process> {
        Process::children_of(self.pid())
    }

    /// The PHP workers among its children.
    pub fn workers(&self) -> Vec<u32> {
        let is_worker = |pid: &u32| Process::arguments(*pid).iter().any(|word| word == "-S");
        self.children().iter().map(|it| it.pid).filter(is_worker).collect()
    }

    /// The number of log lines that contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a log line that contains `text`, and returns it.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_after(0, text)
    }

    /// The same, but skips the first `lines` lines of the log.
    pub fn wait_for_after(&mut self, lines: usize, text: &str) -> String {
        let mut found = None;
        let find = |log: Vec<String>| log.into_iter().skip(lines).find(|it| it.contains(text));
        eventually(&format!("the log contains {text:?}"), || {
            found = find(self.log());
            if found.is_none() && self.process.try_wait().unwrap().is_some() {
                // The last lines may not have been read yet.
                if let Some(reader) = self.reader.take() {
                    reader.join().unwrap();
                }
                found = find(self.log());
                assert!(found.is_some(), "it exited without logging {text:?}: {:#?}", self.log());
            }
            found.is_some()
        });
        found.unwrap()
    }

    /// Reloads the settings and waits for a log line about that which contains `text`.
    pub fn reload(&mut self, text: &str) -> String {
        let lines = self.log().len();
        self.signal("HUP");
        self.wait_for_after(lines, text)
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its exit.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the daemon ends", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// A line of `/proc/PID/status`, as a number.
    pub fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The processor time that it has used, without its children.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        // User and system time, in hundredths of a second.
        let times = rest.split(' ').skip(11).take(2).map(|time| time.parse::<u64>().unwrap());
        Duration::from_millis(10 * times.sum::<u64>())
    }

    /// Sets a limit of the running process with prlimit(1).
    pub fn limit(&self, limit: &str) {
        let mut prlimit = Command::new("prlimit");
        // As the same user: root may lack the capability to do it for another user.
        let user = std::fs::metadata(format!("/proc/{}", self.pid())).unwrap();
        prlimit.uid(user.uid()).gid(user.gid());
        prlimit.args(["--pid", &self.pid().to_string(), limit]);
        assert!(prlimit.status().unwrap().success(), "{limit}");
    }

    /// Reverts [`limit`](Self::limit), as far as the hard limit permits.
    pub fn unlimit(&self, name: &str, option: &str) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.pid())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let most = line.split_whitespace().nth(1).unwrap();
        self.limit(&format!("--{option}={most}:"));
    }

    /// Lowers its limit of open files so that it can open exactly this many more.
    pub fn leave_descriptors(&self, count: usize) {
        let open = self.open_descriptors();
        let free = (0..).filter(|number| !open.contains(number));
        let limit = free.clone().nth(count).unwrap();
        self.limit(&format!("--nofile={limit}:"));
    }

    /// The number of its open descriptors.
    pub fn descriptors(&self) -> usize {
        self.open_descriptors().len()
    }

    fn open_descriptors(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        entries.map(|it| it.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let children = self.children();
        // The secrets of the workers.
        for child in &children {
            let environment = std::fs::read(format!("/proc/{}/environ", child.pid));
            let environment =
                String::from_utf8_lossy(&environment.unwrap_or_default()).into_owned();
            let secret = environment.split('\0').find_map(|it| it.split_once("WEBSOCKET_SECRET="));
            secret.inspect(|(_, secret)| register_secret(secret));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A killed daemon cannot end its children; each of them leads a process group.
        for child in children {
            let _ = Command::new("kill")
                .args(["-s", "KILL", "--"])
                .arg(format!("-{}", child.pid))
                .output();
        }
        if std::thread::panicking() {
            eprintln!("The daemon's log:\n{}", self.log().join("\n"));
            return;
        }
        if let Some(reader) = self.reader.take() {
            // Read to the last line.
            eventually("its log ends", || reader.is_finished());
        }
        // Regardless of the test.
        self.log().iter().for_each(|line| expect_no_leak(line));
    }
}
