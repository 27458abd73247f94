//! A browser's tab, as EspoCRM's client is: it comes back after an unclean end.

use std::net::SocketAddr;

use crate::container::Container;
use crate::standin::notification;
use crate::support::{Client, Pusher, eventually};

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
        tab = Client::attempt(address(port));
        tab.is_some()
    });
    tab.unwrap()
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
