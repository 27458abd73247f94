//! A browser tab that, like EspoCRM's client, reconnects after an unclean close.

use std::net::SocketAddr;

use crate::container::Container;
use crate::standin::notification;
use crate::support::{Client, Pusher, eventually};

/// The daemon's unit in most tests.
pub const UNIT: &str = "espocrm-websocket.service";

/// A tab of alice at 127.0.0.1 that received its welcome.
pub fn open(port: u16) -> Client {
    open_as(port, "alice")
}

/// The same for another user.
pub fn open_as(port: u16, user: &str) -> Client {
    let mut tab = Client::open(address(port), user, &format!("tok-{user}"));
    tab.expect_welcome();
    tab
}

/// The same, but retries until it succeeds.
pub fn reconnect(port: u16) -> Client {
    let mut tab = None;
    eventually("a tab reconnects", || {
        tab = Client::attempt(address(port));
        tab.is_some()
    });
    tab.unwrap()
}

/// Expects that a tab of alice receives what EspoCRM sends, from the subscription on.
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
