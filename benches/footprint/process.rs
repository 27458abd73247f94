//! A measured server, as the kernel reports it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running process, which is killed when it is dropped.
pub struct Process {
    child: Child,
    /// The address for browsers.
    pub address: SocketAddr,
    /// The endpoint for EspoCRM, if there is one.
    pub zeromq: String,
    /// The time from its start until a browser could connect.
    pub startup: Duration,
}

/// Bytes, from `/proc/PID/smaps_rollup`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident memory.
    pub rss: u64,
    /// Resident memory with shared pages divided among their users.
    pub pss: u64,
    /// Memory that no other process uses: includes the binary's file unless another process runs
    /// it.
    pub private: u64,
    /// Memory that the process has written.
    pub dirty: u64,
}

impl Process {
    /// Starts a daemon and waits until it answers. Works with every version of the daemon.
    pub fn daemon(command: &mut Command) -> Self {
        let (address, zeromq) = (free_address(), format!("tcp://{}", free_address()));
        command.args(["--listen", &address.to_string(), "--zeromq", &zeromq]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let problems = log.filter(|line| !line.contains("[INFO ]"));
        std::thread::spawn(move || problems.for_each(|line| eprintln!("{line}")));
        while !answers(address) {
            assert!(child.try_wait().unwrap().is_none(), "the daemon has exited");
            std::thread::sleep(Duration::from_micros(100));
        }
        Self { child, address, zeromq, startup: start.elapsed() }
    }

    /// The demo: the real daemon, except that it answers checks itself.
    pub fn demo(binary: impl AsRef<OsStr>, flags: &[&str]) -> Self {
        Self::daemon(Command::new(binary).arg("demo").args(flags))
    }

    /// Starts a program that prints its port and is controlled through standard input.
    pub fn with_stdin(command: &mut Command) -> Self {
        let start = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        Self { child, address, zeromq: String::new(), startup: start.elapsed() }
    }

    pub fn stdin(&mut self) -> &mut impl Write {
        self.child.stdin.as_mut().unwrap()
    }

    /// The processor time of all its threads so far, once all of them sleep.
    pub fn cpu(&self) -> Duration {
        self.settle();
        let nanoseconds = self.tasks().into_iter().map(|task| {
            let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
            schedstat.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// The number of voluntary context switches of its threads, and so of wake-ups.
    pub fn sleeps(&self) -> u64 {
        let tasks = self.tasks();
        let sleeps =
            tasks.iter().map(|task| number(task.join("status"), "voluntary_ctxt_switches"));
        sleeps.sum()
    }

    pub fn threads(&self) -> usize {
        self.tasks().len()
    }

    pub fn memory(&self) -> Memory {
        let rollup = PathBuf::from(format!("/proc/{}/smaps_rollup", self.child.id()));
        let bytes = |name| 1024 * number(rollup.clone(), name);
        Memory {
            rss: bytes("Rss"),
            pss: bytes("Pss"),
            private: bytes("Private_Clean") + bytes("Private_Dirty"),
            dirty: bytes("Private_Dirty"),
        }
    }

    /// Waits until every thread sleeps: the effects of the last message are over by then.
    pub fn settle(&self) {
        let is_asleep = || {
            self.tasks().iter().all(|task| {
                let stat = fs::read_to_string(task.join("stat")).unwrap();
                stat.rsplit(") ").next().unwrap().starts_with('S')
            })
        };
        let mut quiet = 0;
        while quiet < 3 {
            std::thread::sleep(Duration::from_millis(1));
            quiet = if is_asleep() { quiet + 1 } else { 0 };
        }
    }

    fn tasks(&self) -> Vec<PathBuf> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().path()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on which nothing listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Whether an HTTP server answers there.
fn answers(address: SocketAddr) -> bool {
    let Ok(mut tcp) = TcpStream::connect(address) else { return false };
    let _ = tcp.write_all(b"GET / HTTP/1.1\r\n\r\n");
    tcp.read(&mut [0; 1]).is_ok_and(|length| length > 0)
}

/// The number after `name:` in a file of `/proc`.
fn number(path: PathBuf, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
