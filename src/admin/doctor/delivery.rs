//! End-to-end tests with real messages from PHP.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Stop;
use super::daemon::Control;
use super::php;
use super::report::Finding;
use crate::admin::doctor::context::Context;
use crate::admin::ws_probe::{Outcome, Response, WebSocket, upgrade};
use crate::espocrm::Identity;
use crate::platform::{random, sys};

/// Far more than each operation needs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Milliseconds after which a message counts as lost: PHP gives up after a second.
const LOST_MS: u64 = 950;

/// Sends a message through PHP, ZeroMQ, a temporary daemon and a WebSocket.
pub(super) fn temporary_daemon(context: &Context, stop: Stop<'_>) -> Finding {
    const STEP: &str = "loop";
    match send_through_temporary(context, stop) {
        Ok(took) => Finding::ok(
            STEP,
            format!(
                "A message from PHP arrives at a WebSocket of a temporary daemon, in {} ms",
                took.as_millis()
            ),
        ),
        Err(error) => Finding::failure(
            STEP,
            "A message from PHP does not arrive at a WebSocket of a temporary daemon",
            format!("{error}\nTry it manually: espocrm-websocket demo"),
        ),
    }
}

fn send_through_temporary(context: &Context, stop: Stop<'_>) -> Result<Duration, String> {
    let failed = |error: io::Error| format!("The WebSocket: {error}");
    let demo = Demo::start(context.espocrm.identity())?;
    let request = upgrade("/?authToken=tok-doctor&userId=doctor", &demo.address.to_string(), "");
    let deadline = || Instant::now() + TIMEOUT;
    let mut socket = WebSocket::open(demo.address, &request, deadline()).map_err(failed)?;
    let is_open = |received: &Response| received.outcome() == Outcome::Open;
    socket.read_until(deadline(), is_open).map_err(failed)?;
    socket.send(0x81, br#"[5,"newNotification"]"#).map_err(failed)?;
    socket.send(0x89, b"taken").map_err(failed)?;
    socket.read_until(deadline(), |received| received.contains(b"taken")).map_err(failed)?;
    let mark = random::hex().map_err(failed)?;
    let message = json!({"topicId": "newNotification", "userId": "doctor", "mark": mark});
    let start = Instant::now();
    send(context, &demo.zeromq, &message.to_string(), stop)?;
    let has_arrived = |received: &Response| received.contains(mark.as_bytes());
    socket.read_until(deadline(), has_arrived).map_err(failed)?;
    Ok(start.elapsed())
}

/// Sends a message to the running daemon, for a user who does not exist.
pub(super) fn message(
    context: &Context,
    to: &str,
    control: Option<&Control>,
    stop: Stop<'_>,
) -> Finding {
    const STEP: &str = "message";
    let mark = format!("doctor-{}", random::hex().unwrap_or_default());
    let message = json!({"topicId": "newNotification", "userId": mark}).to_string();
    let watched = control.and_then(|it| it.client.lines("/tail", Some(TIMEOUT)).ok());
    let took = match send(context, to, &message, stop) {
        Ok(took) => took,
        Err(error) => {
            let found = format!("PHP cannot send a message to {to}");
            return Finding::failure(STEP, found, error);
        }
    };
    if took >= LOST_MS {
        return Finding::failure(
            STEP,
            format!("No program receives the messages that PHP sends to {to}"),
            "Messages are lost, and users get no updates. PHP commands such as cron jobs wait a \
             second when they end. Check that the daemon runs and receives at this endpoint: see \
             above.",
        );
    }
    let Some(watched) = watched else {
        return Finding::ok(STEP, format!("A message from PHP to {to} is received, in {took} ms"));
    };
    let end = Instant::now() + TIMEOUT;
    for line in watched.map_while(Result::ok) {
        if line.contains(&mark) {
            return Finding::ok(
                STEP,
                format!("A message from PHP to {to} arrives at the daemon, in {took} ms"),
            );
        }
        if Instant::now() > end {
            break;
        }
    }
    Finding::failure(
        STEP,
        format!("A message from PHP to {to} is received, but not by this daemon"),
        "Another program receives at this endpoint, for example a second daemon in a container. \
         Stop it, or change the endpoint.",
    )
}

/// Sends a message as EspoCRM does. Returns the milliseconds that it took.
fn send(context: &Context, to: &str, message: &str, stop: Stop<'_>) -> Result<u64, String> {
    let task = json!({"task": "send", "dsn": to, "message": message});
    let answer = php::run_task(&context.espocrm, &task, stop)?;
    answer.get("ms").and_then(Value::as_u64).ok_or_else(|| {
        let error = answer.get("error").and_then(Value::as_str);
        error.unwrap_or("PHP reported no reason").to_owned()
    })
}

/// A temporary daemon without EspoCRM: this program's `demo`. It ends with the doctor.
struct Demo {
    process: Child,
    address: SocketAddr,
    zeromq: String,
}

impl Demo {
    fn start(identity: &Identity) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        // Unlike a pipe, a socket can be read with a timeout.
        let (output, stdout) = UnixStream::pair().map_err(failed)?;
        output.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        let stderr = stdout.try_clone().map_err(failed)?;
        // The running program, even if its file was replaced.
        let mut command = Command::new("/proc/self/exe");
        command.args(["demo", "--listen", "127.0.0.1:0", "--print-addresses"]);
        command.stdin(Stdio::null());
        command.stdout(OwnedFd::from(stdout)).stderr(OwnedFd::from(stderr));
        identity.apply(&mut command);
        sys::isolate(&mut command);
        let process = command.spawn().map_err(failed)?;
        // Closes this process's copies, so that the output ends when the daemon ends.
        drop(command);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        // From here on, dropping `demo` ends the process.
        let mut demo = Self { process, address, zeromq: String::new() };
        let mut last = String::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let addresses: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = |name: &str| addresses.get(name).and_then(Value::as_str);
            if let (Some(listen), Some(zeromq)) = (text("listen"), text("zeromq")) {
                demo.address = listen.parse().unwrap_or(demo.address);
                zeromq.clone_into(&mut demo.zeromq);
                return Ok(demo);
            }
            last = line;
        }
        Err(["The temporary daemon does not start. ", &last].concat())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        sys::kill_group(self.process.id());
        let _ = self.process.wait();
    }
}
