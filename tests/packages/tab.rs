//! A browser's tab, as EspoCRM's client is: it comes back after an unclean end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::container::Container;
use crate::standin::notification;
use crate::support::{Client, DEADLINE, Pusher, eventually, request};

/// The daemon's unit that most tests are about.
pub const UNIT: &str = "espocrm-websocket.service";

/// A tab of alice's at 127.0.0.1 that is welcome.
pub fn open(port: u16) -> Client {
    open_as(port, "alice")
}

/// The same of another user's.
pub fn open_as(port: u16, user: &str) -> Client {
    let mut tab = Client::open(address(port), user, &format!("tok-{user}"));
    tab.expect_welcome();
    tab
}

/// The same, which tries until it is.
pub fn come_back(port: u16) -> Client {
    let mut tab = None;
    eventually("a tab comes back", || {
        tab = attempt(port);
        tab.is_some()
    });
    tab.unwrap()
}

/// `None` if the daemon is not there, will not have it, or ends meanwhile.
pub fn attempt(port: u16) -> Option<Client> {
    let mut stream = TcpStream::connect_timeout(&address(port), Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(request("/?authToken=tok-alice&userId=alice").as_bytes()).ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let mut tab = Client::over(stream);
    (head.starts_with(b"HTTP/1.1 101 ") && tab.next()?.opcode == 1).then_some(tab)
}

/// Shows that a tab of alice's gets what EspoCRM sends, from subscribing on.
pub fn expect_events(container: &Container, unit: &str, tab: &mut Client, zeromq: u16) {
    let added = "add topic newNotification for user alice";
    let before = container.logged(unit, added);
    tab.subscribe("newNotification");
    eventually("it is granted", || container.logged(unit, added) > before);
    let pusher = Pusher::connect(&format!("tcp://127.0.0.1:{zeromq}"));
    pusher.send(&notification(1));
    tab.expect_event(&notification(1));
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
