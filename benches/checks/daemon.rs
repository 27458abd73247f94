//! The measured daemon, and its clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

pub struct Daemon {
    process: Child,
    address: SocketAddr,
    /// Topics granted so far.
    topics: Arc<AtomicUsize>,
}

/// The connection of a tab, which stays open.
pub struct Tab(#[expect(dead_code, reason = "it only stays open")] TcpStream);

/// Longer than any operation takes.
const DEADLINE: Duration = Duration::from_secs(600);

impl Daemon {
    pub fn start(binary: &Path, espocrm: &Path, mode: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.arg("run").arg("--espocrm").arg(espocrm).args(["--config", "/dev/null", "--debug"]);
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        command.args(["--listen", &address.to_string(), "--zeromq", "tcp://127.0.0.1:*"]);
        // Tabs do not answer pings.
        command.args(["--check-cache", "0", "--ping-interval", "1h"]).args(mode);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let stderr = process.stderr.take().unwrap();
        // The daemon drops log lines rather than wait for a reader, and hundreds of PHP processes
        // leave this one little CPU.
        let _ = fcntl(&stderr, FcntlArg::F_SETPIPE_SZ(1 << 20));
        let log = BufReader::new(stderr).lines().map_while(Result::ok);
        let topics = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&topics);
        std::thread::spawn(move || {
            for line in log {
                if line.contains(": add topic ") {
                    counter.fetch_add(1, Ordering::Relaxed);
                } else if line.contains("WARN") && !line.contains("as root") {
                    eprintln!("{line}");
                }
            }
        });
        while TcpStream::connect(address).is_err() {
            assert!(process.try_wait().unwrap().is_none(), "the daemon has exited");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { process, address, topics }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Logs in, waits for the welcome, and disconnects.
    pub fn log_in(&self, user: &str) {
        let mut tab = TcpStream::connect(self.address).unwrap();
        tab.write_all(request(user).as_bytes()).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
        while !got.ends_with(b",1]") {
            let length = tab.read(&mut buffer).unwrap();
            assert!(length > 0, "the login failed");
            got.extend_from_slice(&buffer[..length]);
        }
    }

    /// Opens a tab and subscribes to the topics of a page with a record of its own.
    pub fn open(&self, user: usize) -> Tab {
        let mut tab = TcpStream::connect(self.address).unwrap();
        let mut bytes = request(&format!("user{user}")).into_bytes();
        for topic in [
            "newNotification",
            "popupNotifications.event",
            &format!("recordUpdate.Account.{user}"),
            &format!("streamUpdate.Account.{user}"),
        ] {
            bytes.extend(frame(format!("[5,\"{topic}\"]").as_bytes()));
        }
        tab.write_all(&bytes).unwrap();
        Tab(tab)
    }

    pub fn wait_for_topics(&self, count: usize) {
        let start = Instant::now();
        while self.topics.load(Ordering::Relaxed) < count {
            assert!(start.elapsed() < DEADLINE, "only {:?} of {count}", self.topics);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its workers, too.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.process.wait();
    }
}

fn request(user: &str) -> String {
    format!(
        "GET /?authToken=tok-{user}&userId={user} HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wamp\r\n\r\n"
    )
}

/// A short text frame with a zero mask.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0x81, 0x80 | length, 0, 0, 0, 0], payload].concat()
}
