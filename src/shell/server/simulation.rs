//! The real server with everything at its ends scripted: sockets, ZeroMQ, PHP, the clock.

use std::rc::Rc;
use std::time::Duration;

use mio::{Poll, Token};

use super::accept::Accepting;
use super::{BUS, Backend, FIRST_WORKER, LISTENER, Ready, Server};
use crate::core::time::Time;
use crate::core::verdict::Verdict;
use crate::shell::bus::Bus;
use crate::shell::clock::Clock;
use crate::shell::espocrm::Facts;
use crate::shell::listener::Listener;
use crate::shell::script::{Arrivals, Checks, Entry, Journal, Kernel, Messages, Random, Socket};
use crate::shell::settings::{Layers, Own, Settings};
use crate::shell::signals::Signals;

/// The server and its scripted ends.
struct Ends {
    server: Server,
    journal: Journal,
    arrivals: Arrivals,
    messages: Messages,
    checks: Checks,
}

impl Ends {
    fn new(settings: Settings, seed: u64) -> Self {
        let journal = Journal::default();
        let arrivals = Arrivals::new(&journal, Random::new(seed ^ 1));
        let messages = Messages::new(&journal, Random::new(seed ^ 2));
        let checks = Checks::new(&journal);
        let server = Server::assemble(
            settings,
            Backend::Scripted(checks.clone()),
            Signals::none().unwrap(),
            Poll::new().unwrap(),
            Accepting::new(Listener::scripted(arrivals.clone()), None),
            Bus::scripted(messages.clone()),
        );
        Self { server, journal, arrivals, messages, checks }
    }

    fn at(&mut self, now: Time) {
        self.server.clock = Clock::Stopped(now);
    }
}

fn settings() -> Settings {
    let categories = serde_json::json!({"open": {}});
    let facts = Facts::new(serde_json::Map::new(), &categories);
    Settings::resolve(&Layers::of_flags(Own::default()), &facts).unwrap()
}

fn ready(token: Token) -> Ready {
    Ready { token, readable: true, writable: true, ended: false }
}

#[test]
fn a_scripted_browser_is_served() {
    let mut ends = Ends::new(settings(), 0);
    ends.at(Time::from_millis(1_000));
    let kernel = Kernel::new(0, &ends.journal, Random::new(0));
    ends.arrivals.push(Ok(Socket::new(&kernel)));
    assert_eq!(ends.server.settle(), Some(Duration::ZERO));
    assert!(ends.arrivals.take_edge());
    ends.server.take([ready(LISTENER)].into_iter());
    kernel.borrow_mut().arrive(
        b"GET /?authToken=a&userId=u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wamp\r\n\r\n\
        \x81\x8a\0\0\0\0[5,\"open\"]",
    );
    let token = kernel.borrow().token.unwrap();
    ends.server.settle();
    ends.server.take([ready(token)].into_iter());
    let started = ends.journal.borrow_mut().drain(..).find_map(|entry| match entry {
        Entry::Started(id, check) => Some((id, check)),
        _ => None,
    });
    let (id, check) = started.unwrap();
    ends.checks.answer(id, Rc::clone(&check), Verdict::Granted);
    ends.messages.push(Ok("{\"topicId\":\"open\"}".into()));
    ends.server.settle();
    assert!(ends.messages.take_edge());
    ends.server.take([ready(Token(FIRST_WORKER)), ready(BUS)].into_iter());
    let wait = ends.server.settle();
    assert!(wait.is_some_and(|wait| wait > Duration::ZERO), "{wait:?}");
    let written = String::from_utf8_lossy(&kernel.borrow().outgoing).into_owned();
    assert!(written.starts_with("HTTP/1.1 101 "));
    assert!(written.ends_with("[8,\"open\",{\"topicId\":\"open\"}]"), "{written}");
}
