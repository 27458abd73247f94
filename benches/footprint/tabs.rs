//! Many browser tabs in one thread: they upgrade, subscribe, answer pings, and count received
//! bytes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// The tabs of one server.
pub struct BrowserTabs {
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    tabs: Vec<Tab>,
    /// Tabs that have not finished subscribing.
    connecting: usize,
    /// Bytes of events so far.
    received: u64,
    /// When events were read.
    reads: Vec<Instant>,
}

/// The user and the subscriptions of a tab.
pub struct TabSetup {
    /// The user of the tab.
    pub user: String,
    /// The topics to which it subscribes, all at once.
    pub topics: Vec<String>,
}

struct Tab {
    stream: TcpStream,
    stage: Stage,
}

enum Stage {
    /// Waits for the upgrade response and the welcome; then sends this.
    Upgrading(Vec<u8>),
    /// Waits for the answer to the ping that followed its subscriptions.
    Subscribing,
    Open,
}

/// Concurrent upgrades: some tabs reconnect together, but not all.
const MAX_CONNECTING: usize = 256;

/// Far more than any operation takes.
const DEADLINE: Duration = Duration::from_secs(60);

const PING: [u8; 2] = [0x89, 0];
const PONG: [u8; 2] = [0x8a, 0];

impl BrowserTabs {
    pub fn new() -> Self {
        Self {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(1_024),
            buffer: vec![0; 256 * 1024].into_boxed_slice(),
            tabs: Vec::new(),
            connecting: 0,
            received: 0,
            reads: Vec::new(),
        }
    }

    /// Increases the number of tabs to `count` and waits until they have subscribed.
    pub fn grow(&mut self, server: SocketAddr, count: usize, setup: impl Fn(usize) -> TabSetup) {
        for number in self.tabs.len()..count {
            self.open(server, &setup(number));
            if self.connecting == MAX_CONNECTING {
                self.pump_until("half of the tabs have subscribed", |it| {
                    it.connecting <= MAX_CONNECTING / 2
                });
            }
        }
        self.pump_until("all tabs have subscribed", |it| it.connecting == 0);
    }

    pub fn len(&self) -> usize {
        self.tabs.len()
    }

    /// Bytes of events so far, of all tabs.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Reads until this many bytes of events have been received; calls `meanwhile` in between.
    /// Returns the times of the last reads.
    pub fn receive(&mut self, received: u64, mut meanwhile: impl FnMut()) -> &[Instant] {
        self.reads.clear();
        self.pump_until("everything was received", |it| {
            meanwhile();
            it.received >= received
        });
        assert_eq!(self.received, received, "more was received than was sent");
        &self.reads
    }

    /// Answers pings for a while; no other input is expected.
    pub fn idle(&mut self, time: Duration) {
        let (end, received) = (Instant::now() + time, self.received);
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            self.pump(rest);
        }
        assert_eq!(self.received, received, "something other than pings was received");
    }

    fn open(&mut self, server: SocketAddr, setup: &TabSetup) {
        let mut stream = std::net::TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(request(&setup.user).as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.tabs.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
        self.tabs.push(Tab { stream, stage: Stage::Upgrading(setup.subscriptions()) });
        self.connecting += 1;
    }

    fn pump_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < DEADLINE, "timed out: {what}");
            self.pump(Duration::from_millis(1));
        }
    }

    fn pump(&mut self, timeout: Duration) {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            other => other.unwrap(),
        }
        for event in &self.events {
            let tab = &mut self.tabs[event.token().0];
            loop {
                match tab.stream.read(&mut self.buffer) {
                    Ok(0) => {
                        panic!("the server closed the connection of tab {:?}", event.token())
                    }
                    Ok(length) => {
                        self.reads.push(Instant::now());
                        let (events, arrived) = tab.take(&self.buffer[..length]);
                        self.received += events;
                        self.connecting -= usize::from(arrived);
                        // The socket is drained, or there will be another event.
                        if length < self.buffer.len() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

impl Tab {
    /// Processes what was read; returns how many bytes of it are events, and whether the tab has
    /// just subscribed. Small messages are never split, since the loopback interface does not split
    /// them.
    fn take(&mut self, bytes: &[u8]) -> (u64, bool) {
        match &self.stage {
            Stage::Upgrading(subscriptions) => {
                // The end of the welcome; the upgrade response may arrive alone.
                if bytes.ends_with(b",1]") {
                    self.stream.write_all(subscriptions).unwrap();
                    self.stage = Stage::Subscribing;
                }
                (0, false)
            }
            Stage::Subscribing => {
                assert_eq!(bytes, PONG);
                self.stage = Stage::Open;
                (0, true)
            }
            Stage::Open if bytes == PING => {
                self.stream.write_all(&frame(0x8a, b"")).unwrap();
                (0, false)
            }
            Stage::Open => (bytes.len() as u64, false),
        }
    }
}

impl TabSetup {
    /// A page of EspoCRM that shows a record.
    pub fn record(user: String, id: &str) -> Self {
        let mut topics = vec!["newNotification".to_owned(), "popupNotifications.event".to_owned()];
        topics.extend(["recordUpdate", "streamUpdate"].map(|kind| format!("{kind}.Account.{id}")));
        Self { user, topics }
    }

    /// The subscription frames, and a ping.
    fn subscriptions(&self) -> Vec<u8> {
        let texts = self.topics.iter().map(|topic| format!("[5,\"{topic}\"]"));
        let mut frames: VecDeque<Vec<u8>> =
            texts.map(|text| frame(0x81, text.as_bytes())).collect();
        frames.push_back(frame(0x89, b""));
        frames.into_iter().flatten().collect()
    }
}

/// An upgrade request as sent by Chromium, with the demo's token for a user.
fn request(user: &str) -> String {
    format!(
        "GET /?authToken=tok-{user}&userId={user} HTTP/1.1\r\n\
         Host: localhost\r\n\
         Connection: Upgrade\r\n\
         Pragma: no-cache\r\n\
         Cache-Control: no-cache\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
         Chrome/140.0.0.0 Safari/537.36\r\n\
         Upgrade: websocket\r\n\
         Origin: http://localhost\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Accept-Encoding: gzip, deflate, br, zstd\r\n\
         Accept-Language: en-US,en;q=0.9\r\n\
         Cookie: auth-token-secret=0123456789abcdef0123456789abcdef; auth-token={user}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
         Sec-WebSocket-Protocol: wamp\r\n\r\n"
    )
}

/// A short masked frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).unwrap();
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [first, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
}
