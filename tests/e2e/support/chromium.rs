//! A headless Chromium, controlled through its debugging port.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, DEADLINE, ProcessGroup, TempDir, eventually, program};

/// Exits with the test and removes its files.
pub struct Chromium {
    _process: ProcessGroup,
    _profile: TempDir,
    /// The address of its developer tools.
    address: SocketAddr,
    browser: DevTools,
}

/// A tab of the browser.
pub struct Page(DevTools);

struct DevTools {
    client: Client,
    /// The id of the last command.
    last: u64,
    /// The events received so far.
    events: Vec<Value>,
}

const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--disable-crash-reporter",
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
];

impl Chromium {
    pub fn start() -> Self {
        let profile = TempDir::new("chromium");
        let path = profile.path();
        let mut command = program("/usr/bin/chromium");
        command.args(FLAGS).arg(format!("--user-data-dir={}", path.display()));
        // Replaces its start page.
        command.arg("about:blank");
        command.env("HOME", path).env("TMPDIR", path);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(path.join("stderr")).unwrap());
        let mut process = ProcessGroup::start(command);
        let mut port = None;
        eventually("DevTools listen", || {
            let stderr = || std::fs::read_to_string(path.join("stderr")).unwrap();
            assert!(process.is_running(), "it exited: {}", stderr());
            let file = std::fs::read_to_string(path.join("DevToolsActivePort"));
            port = file.ok().and_then(|it| it.split_once('\n').map(|(a, b)| (a.parse(), b.into())));
            port.is_some()
        });
        let (port, target): (_, String) = port.unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap()));
        let browser = DevTools::open(address, target.trim_end());
        Self { _process: process, _profile: profile, address, browser }
    }

    /// Opens a page and waits until it is loaded. Its requests are recorded.
    pub fn open(&mut self, url: &str) -> Page {
        let target = self.browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = format!("/devtools/page/{}", target["targetId"].as_str().unwrap());
        let mut page = Page(DevTools::open(self.address, &target));
        for domain in ["Network", "Page", "Runtime"] {
            page.0.call(&format!("{domain}.enable"), &json!({}));
        }
        page.0.call("Page.navigate", &json!({"url": url}));
        page.0.event(|event| event["method"] == "Page.loadEventFired");
        page
    }
}

impl Page {
    /// The value of a JavaScript expression; the resolved value if it is a promise.
    pub fn evaluate(&mut self, script: &str) -> Value {
        let parameters = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let mut result = self.0.call("Runtime.evaluate", &parameters);
        assert_eq!(result["exceptionDetails"], Value::Null, "{script}");
        result["result"]["value"].take()
    }

    /// Waits until an expression has this value.
    pub fn eventually(&mut self, script: &str, value: &Value) {
        let start = Instant::now();
        loop {
            let now = self.evaluate(script);
            if now == *value {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{script} is {now}, not {value}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the response to a request whose URL contains `part`, and returns its status.
    pub fn status(&mut self, part: &str) -> Value {
        let response = self.0.event(|event| {
            event["method"] == "Network.responseReceived"
                && event["params"]["response"]["url"].as_str().unwrap().contains(part)
        });
        response["params"]["response"]["status"].clone()
    }

    /// The URLs requested so far, including those of `WebSocket`s.
    pub fn requests(&self) -> Vec<&str> {
        let of = |event: &Value| match event["method"].as_str() {
            Some("Network.requestWillBeSent") => Some("/params/request/url"),
            Some("Network.webSocketCreated") => Some("/params/url"),
            _ => None,
        };
        let events = self.0.events.iter();
        events.filter_map(|event| event.pointer(of(event)?)?.as_str()).collect()
    }

    /// The errors of its scripts so far.
    pub fn errors(&self) -> Vec<&Value> {
        let events = self.0.events.iter();
        events.filter(|event| event["method"] == "Runtime.exceptionThrown").collect()
    }
}

impl DevTools {
    fn open(address: SocketAddr, target: &str) -> Self {
        let mut client = Client::tcp(address);
        // No extensions, since Chromium would compress, and no Origin, which Chromium rejects.
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        client.send(request.as_bytes());
        let response = client.read_head();
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        Self { client, last: 0, events: Vec::new() }
    }

    /// Runs a command and returns its result.
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let command = json!({"id": self.last, "method": method, "params": parameters});
        self.client.send_json(&command);
        loop {
            if let Some(mut answer) = self.receive() {
                assert_eq!(answer["error"], Value::Null, "{command}");
                return answer["result"].take();
            }
        }
    }

    /// Waits for an event and removes it from the stored events.
    fn event(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        let mut known = 0;
        loop {
            assert!(start.elapsed() < DEADLINE, "no such event: {:#?}", self.events);
            if let Some(index) = self.events[known..].iter().position(&is_it) {
                return self.events.remove(known + index);
            }
            known = self.events.len();
            self.receive();
        }
    }

    /// Receives a message; a response is returned, an event is stored.
    fn receive(&mut self) -> Option<Value> {
        let message = self.client.next_message();
        if message["id"] == self.last {
            return Some(message);
        }
        self.events.push(message);
        None
    }
}
