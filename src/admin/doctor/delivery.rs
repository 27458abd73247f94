//! Messages that really pass: PHP sends them, and they arrive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Stop;
use super::daemon::Control;
use super::php;
use super::report::Finding;
use crate::admin::doctor::context::Context;
use crate::admin::health;
use crate::espocrm::Identity;
use crate::platform::{random, sys};

/// Far more than anything here takes that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// PHP gives up after a second.
const LOST_MS: u64 = 950;

/// Bytes that are read of a WebSocket.
const MOST: usize = 16 * 1024;

/// Through a daemon of the doctor's own: PHP, ZeroMQ, this program, a WebSocket.
pub(super) fn own_loop(context: &Context, stop: Stop<'_>) -> Finding {
    const STEP: &str = "loop";
    match through_own(context, stop) {
        Ok(took) => Finding::good(
            STEP,
            format!(
                "A message sent by PHP arrives at a WebSocket, in a daemon made for that: {} ms",
                took.as_millis()
            ),
        ),
        Err(error) => Finding::bad(
            STEP,
            "A message sent by PHP does not arrive, in a daemon made for that",
            format!("{error}\nTry by hand: espocrm-websocket demo"),
        ),
    }
}

fn through_own(context: &Context, stop: Stop<'_>) -> Result<Duration, String> {
    let failed = |error: io::Error| format!("The WebSocket: {error}");
    let demo = Demo::start(context.espocrm.identity())?;
    let mut tab = Tab::open(demo.address).map_err(failed)?;
    tab.send(0x81, br#"[5,"newNotification"]"#).map_err(failed)?;
    tab.send(0x89, b"taken").map_err(failed)?;
    tab.wait_for(b"taken").map_err(failed)?;
    let mark = random::hex().map_err(failed)?;
    let message = json!({"topicId": "newNotification", "userId": "doctor", "mark": mark});
    let start = Instant::now();
    send(context, &demo.zeromq, &message.to_string(), stop)?;
    tab.wait_for(mark.as_bytes()).map_err(failed)?;
    Ok(start.elapsed())
}

/// To the daemon that runs, for a user whom there is not.
pub(super) fn message(
    context: &Context,
    to: &str,
    control: Option<&Control>,
    stop: Stop<'_>,
) -> Finding {
    const STEP: &str = "message";
    let mark = format!("doctor-{}", random::hex().unwrap_or_default());
    let message = json!({"topicId": "newNotification", "userId": mark}).to_string();
    let watched = control.and_then(|it| it.client.lines_within("/tail", PATIENCE).ok());
    let took = match send(context, to, &message, stop) {
        Ok(took) => took,
        Err(error) => {
            let found = format!("A message of PHP's cannot be sent to {to}");
            return Finding::bad(STEP, found, error);
        }
    };
    if took >= LOST_MS {
        return Finding::bad(
            STEP,
            format!("A message that PHP sends to {to} is taken by nobody"),
            "Messages are lost: other users see nothing. PHP commands such as cron jobs wait a second when they end. Does the \
             daemon run, and receive there? See above.",
        );
    }
    let Some(watched) = watched else {
        return Finding::good(
            STEP,
            format!("A message that PHP sends to {to} is taken, in {took} ms"),
        );
    };
    let end = Instant::now() + PATIENCE;
    for line in watched.map_while(Result::ok) {
        if line.contains(&mark) {
            return Finding::good(
                STEP,
                format!("A message that PHP sends to {to} arrives at the daemon, in {took} ms"),
            );
        }
        if Instant::now() > end {
            break;
        }
    }
    Finding::bad(
        STEP,
        format!("A message that PHP sends to {to} is taken, but not by this daemon"),
        "Somebody else receives there: another daemon, perhaps in a container.",
    )
}

/// Sends as EspoCRM does, and tells how many milliseconds that took.
fn send(context: &Context, to: &str, message: &str, stop: Stop<'_>) -> Result<u64, String> {
    let task = json!({"task": "send", "dsn": to, "message": message});
    let answer = php::ask(&context.espocrm, &task, stop)?;
    answer.get("ms").and_then(serde_json::Value::as_u64).ok_or_else(|| {
        let error = answer.get("error").and_then(serde_json::Value::as_str);
        error.unwrap_or("PHP does not tell why").to_owned()
    })
}

/// This very program as a daemon without EspoCRM, which ends with us.
struct Demo {
    process: Child,
    address: SocketAddr,
    zeromq: String,
}

impl Demo {
    fn start(identity: &Identity) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        // Unlike a pipe it can be read with a deadline.
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        // The one that runs, even if another has taken its place on the disk.
        let mut command = Command::new("/proc/self/exe");
        command.args(["demo", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(OwnedFd::from(theirs));
        identity.apply(&mut command);
        sys::isolate(&mut command);
        let process = command.spawn().map_err(failed)?;
        // Its end is then the end of what it says.
        drop(command);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        // From here on it ends whatever happens.
        let mut demo = Self { process, address, zeromq: String::new() };
        let mut lines = BufReader::new(ours).lines();
        let mut last = String::new();
        while demo.zeromq.is_empty() || demo.address.port() == 0 {
            let Some(Ok(line)) = lines.next() else {
                return Err(["That daemon does not start. ", &last].concat());
            };
            let words = line.trim_end_matches('.');
            if let Some((_, address)) = words.split_once("Browsers are served at http://") {
                demo.address = address.parse().unwrap_or(demo.address);
            } else if let Some((_, endpoint)) = words.split_once("messages are received at ") {
                endpoint.clone_into(&mut demo.zeromq);
            }
            last = line;
        }
        Ok(demo)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        sys::kill_group(self.process.id());
        let _ = self.process.wait();
    }
}

/// A WebSocket, as far as it takes to see something arrive.
struct Tab {
    tcp: TcpStream,
    end: Instant,
    read: Vec<u8>,
}

impl Tab {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let mut tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let key = health::KEY;
        let request = format!(
            "GET /?authToken=tok-doctor&userId=doctor HTTP/1.1\r\nHost: {address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: wamp\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        tcp.write_all(request.as_bytes())?;
        let mut tab = Self { tcp, end: Instant::now() + PATIENCE, read: Vec::new() };
        tab.wait_for(health::ACCEPT.as_bytes())?;
        Ok(tab)
    }

    /// Sends a short frame; a mask of zeros changes nothing.
    fn send(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let length = u8::try_from(payload.len()).unwrap_or(0) | 0x80;
        self.tcp.write_all(&[&[first, length, 0, 0, 0, 0], payload].concat())
    }

    /// Reads until these bytes have come.
    fn wait_for(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut piece = [0; 2048];
        self.end = Instant::now() + PATIENCE;
        while !self.read.windows(bytes.len()).any(|it| it == bytes) {
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.read.len() > MOST {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.tcp.set_read_timeout(Some(left))?;
            match self.tcp.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.read.extend_from_slice(piece.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
