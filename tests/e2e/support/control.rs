//! The control socket at byte level.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use super::{DEADLINE, Daemon, Standin, command, eventually, find_leak, run};

/// A daemon with a control socket.
pub struct Control(PathBuf);

impl Control {
    /// The path of the socket in a stand-in's directory.
    pub fn path(standin: &Standin) -> PathBuf {
        standin.path().join("control.sock")
    }

    /// Starts a daemon with a control socket for a stand-in.
    pub fn start(standin: &Standin, flags: &[&str]) -> (Daemon, Self) {
        let path = Self::path(standin);
        let control = ["--control", path.to_str().unwrap()];
        (Daemon::start_with(standin, &[&control[..], flags].concat()), Self(path))
    }

    /// The control socket of a running daemon.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// The status and the body of the response.
    pub fn ask(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        exchange(self.connect(), method, target, body)
    }

    pub fn get(&self, target: &str) -> String {
        let (status, body) = self.ask("GET", target, "");
        assert_eq!(status, 200, "{target}: {body}");
        body
    }

    pub fn json(&self, target: &str) -> Value {
        serde_json::from_str(&self.get(target)).unwrap()
    }

    /// A number in the status.
    pub fn number(&self, pointer: &str) -> u64 {
        let status = self.json("/status");
        status.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| {
            panic!("no number {pointer} in {status}");
        })
    }

    /// Waits until a number in the status has this value.
    pub fn expect(&self, pointer: &str, number: u64) {
        let mut previous = None;
        eventually(&format!("{pointer} is {number}"), || {
            let is = self.number(pointer);
            if previous.replace(is) != Some(is) {
                println!("{pointer} is {is}");
            }
            is == number
        });
    }

    /// Runs one of the commands that query a daemon.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command();
        command.args(arguments).arg("--control").arg(&self.0);
        run(command)
    }

    /// Runs a command that must succeed, and returns its output.
    pub fn output_of(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Sends one request to a TCP port.
pub fn ask_port(address: SocketAddr, method: &str, target: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    exchange(stream, method, target, "")
}

/// Sends one request and reads the complete response, which must not contain a secret.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}: {answer}"),
        _ => {}
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
    body.lines().for_each(|line| assert_eq!(find_leak(line), None));
    let status = head.strip_prefix("HTTP/1.1 ").unwrap().split(' ').next().unwrap();
    (status.parse().unwrap(), body.to_owned())
}
