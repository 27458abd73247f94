//! A worker, started and used like by the daemon.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use espocrm_websocket::espocrm::WORKER_OPTIONS;
use serde_json::json;

use super::standin::Standin;

/// A worker for a stand-in.
pub struct Worker {
    pub process: Child,
    pub port: u16,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub output: String,
}

/// A response of the worker.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: Vec<u8>,
}

pub const SECRET: &str = "5ecre7aaaaaaaaaaaaaaaaaaaaaaaaaa";

const ROUTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/espocrm/php/worker.php");

const BLACKLIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/espocrm/php/worker.blacklist");

const COMMANDS: &str = "AuthTokenCheck AclCheck CustomCheck Extension";

impl Worker {
    pub fn start(standin: &Standin) -> Self {
        Self::start_with(standin, &[])
    }

    /// The same, with settings like those of php.ini, which the daemon's settings override.
    pub fn start_with(standin: &Standin, ini: &[&str]) -> Self {
        let blacklist = format!("opcache.blacklist_filename={BLACKLIST}");
        let mut command = Command::new("php");
        command.arg("-q");
        for option in ini.iter().chain(&WORKER_OPTIONS).chain([&&*blacklist]) {
            command.args(["-d", option]);
        }
        command.args(["-S", "127.0.0.1:0", ROUTER]).current_dir(&standin.0);
        command.env("ESPOCRM_WEBSOCKET_SECRET", SECRET).env("ESPOCRM_WEBSOCKET_COMMANDS", COMMANDS);
        command.env_remove("PHP_CLI_SERVER_WORKERS");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut errors = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(')').next());
        let port = port.and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no port in: {line}"));
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { process, port }
    }

    pub fn run(&self, words: &[&str]) -> Answer {
        self.post(SECRET, &json!(words).to_string())
    }

    /// Sends back `X-Compared` of the last response, as the daemon does.
    pub fn run_again(&self, words: &[&str], compared: &mut Option<String>) -> Answer {
        let header = compared.take().map(|at| format!("X-Compared: {at}\r\n"));
        let answer = self.post_with(&header.unwrap_or_default(), SECRET, &json!(words).to_string());
        *compared = answer.header("X-Compared").map(ToOwned::to_owned);
        answer
    }

    pub fn post(&self, secret: &str, body: &str) -> Answer {
        self.post_with("", secret, body)
    }

    fn post_with(&self, header: &str, secret: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(&format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Secret: {secret}\r\nX-Nonce: 1a2b\r\n{header}\
             Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\
             \r\n{body}"
        ))
    }

    pub fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        // A response may be endless.
        let mut bytes = Vec::new();
        let end = stream.take(4 * 1024 * 1024).read_to_end(&mut bytes);
        if bytes.is_empty() {
            end.unwrap();
        }
        let split = bytes.windows(4).position(|it| it == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = bytes.get(split + 4..).unwrap_or_default().to_vec();
        Answer { code, head, body }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// `None` if the response contains no result.
    pub fn outcome(&self) -> Option<Outcome> {
        let status = self.header("X-Exit-Status")?.parse().unwrap();
        assert_eq!((self.code, self.header("X-Nonce")), (200, Some("1a2b")), "{self:?}");
        let length: usize = self.header("Content-Length").unwrap().parse().unwrap();
        assert_eq!(self.body.len(), length, "{self:?}");
        Some(Outcome { status, output: String::from_utf8_lossy(&self.body).into_owned() })
    }
}
