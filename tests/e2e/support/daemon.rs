//! The daemon under test, as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{Client, Standin, eventually};

pub struct Daemon {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    /// Where browsers connect.
    pub address: SocketAddr,
    /// Where PHP connects.
    pub zeromq: String,
}

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_espocrm-websocket"))
}

impl Daemon {
    /// Serves a stand-in at 127.0.0.1.
    pub fn start(standin: &Standin) -> Self {
        Self::start_with(standin, &[])
    }

    /// The same with more flags.
    pub fn start_with(standin: &Standin, flags: &[&str]) -> Self {
        let mut command = command();
        command.arg("run").arg("--espocrm").arg(standin.path());
        command.args(["--config", "/dev/null", "--debug"]).args(flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1"]);
        }
        Self::spawn(command)
    }

    /// The demo, which needs no EspoCRM.
    pub fn demo() -> Self {
        Self::demo_at("127.0.0.1:0")
    }

    /// The demo at an address.
    pub fn demo_at(address: &str) -> Self {
        let mut command = command();
        command.args(["demo", "--debug", "--listen", address]);
        Self::spawn(command)
    }

    /// Ends it by a signal, and waits for its end.
    pub fn stop(mut self, signal: &str) {
        self.signal(signal);
        self.wait();
    }

    /// Starts a command and waits until it serves.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let reader = Some(reader);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Self { process, log, reader, address, zeromq: String::new() };
        let browsers = daemon.wait_for("Browsers are served at ");
        let zeromq = daemon.wait_for("EspoCRM's messages are received at ");
        let (_, address) = browsers.trim_end_matches('.').rsplit_once("://").unwrap();
        daemon.address = address.parse().unwrap();
        daemon.zeromq = zeromq.trim_end_matches('.').rsplit_once(' ').unwrap().1.to_owned();
        daemon
    }

    /// A WebSocket of this user's, welcomed.
    pub fn connect(&self, user: &str) -> Client {
        let mut client = Client::open(self.address, user, &format!("tok-{user}"));
        client.expect_welcome();
        client
    }

    /// Subscribes and waits until it is granted.
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

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of the log that contains `text`, and returns it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut found = None;
        eventually(&format!("the log says {text:?}"), || {
            found = self.log().into_iter().find(|line| line.contains(text));
            if found.is_none() && self.process.try_wait().unwrap().is_some() {
                // What it said last may still be on its way.
                if let Some(reader) = self.reader.take() {
                    reader.join().unwrap();
                }
                found = self.log().into_iter().find(|line| line.contains(text));
                assert!(found.is_some(), "it ended without saying {text:?}: {:#?}", self.log());
            }
            found.is_some()
        });
        found.unwrap()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
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

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("The daemon's log:\n{}", self.log().join("\n"));
            return;
        }
        // Whatever a test was about: no token of the stand-in's users was logged.
        let told = self.log().into_iter().find(|line| line.contains("tok-"));
        assert_eq!(told, None, "a token was logged");
    }
}
