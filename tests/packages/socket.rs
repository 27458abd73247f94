//! Socket activation: systemd holds the port.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::container::{Container, Release};
use crate::package::installed;
use crate::standin::{self, PORT};
use crate::tab::{self, UNIT};

on_each_release! {
    a_restart_refuses_no_connection
    a_port_below_1024_needs_no_privileges
    the_socket_starts_only_in_the_documented_order
    each_of_several_services_has_its_own_socket
}

const SOCKET: &str = "espocrm-websocket.socket";

/// As described in its unit.
pub fn turn_on(container: &Container) {
    container.run(&format!("systemctl stop {UNIT}"));
    container.run(&format!("systemctl enable --now {SOCKET} 2>&1"));
    container.run(&format!("systemctl start {UNIT}"));
}

/// A client that connects repeatedly.
pub struct Connector {
    done: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<usize>>,
}

impl Connector {
    pub fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !until.load(Ordering::Relaxed) {
                TcpStream::connect(tab::address(PORT))?;
                count += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(count)
        });
        Self { done, thread }
    }

    pub fn expect_never_refused(self) {
        self.done.store(true, Ordering::Relaxed);
        assert!(self.thread.join().unwrap().unwrap() > 10);
    }
}

fn a_restart_refuses_no_connection(release: Release) {
    let container = installed(release);
    turn_on(&container);
    let connector = Connector::start();
    for _ in 0..3 {
        let pid = container.main_pid(UNIT);
        let mut tab = tab::open(PORT);
        container.run(&format!("systemctl restart {UNIT}"));
        tab.expect_drop();
        assert_ne!(container.main_pid(UNIT), pid);
        let mut tab = tab::open(PORT);
        tab::expect_events(&container, UNIT, &mut tab, 5555);
    }
    connector.expect_never_refused();
}

fn a_port_below_1024_needs_no_privileges(release: Release) {
    let container = installed(release);
    container.write(
        &format!("/etc/systemd/system/{SOCKET}.d/port.conf"),
        "[Socket]\nListenStream=\nListenStream=81\n",
    );
    container.run("systemctl daemon-reload");
    turn_on(&container);
    let mut tab = tab::open(81);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    let pid = container.main_pid(UNIT);
    let status = container.read(&format!("/proc/{pid}/status"));
    assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "{status}");
    assert!(TcpStream::connect(tab::address(PORT)).is_err());
}

fn the_socket_starts_only_in_the_documented_order(release: Release) {
    let container = installed(release);
    let pid = container.main_pid(UNIT);
    container.fail(&format!("systemctl enable --now {SOCKET}"));
    // The service is not affected.
    assert_eq!(container.main_pid(UNIT), pid);
    tab::open(PORT);
    turn_on(&container);
    tab::open(PORT);
    // And back, as described in the unit.
    container.run(&format!("systemctl disable --now {SOCKET} 2>&1"));
    container.run(&format!("systemctl restart {UNIT}"));
    let mut tab = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}

fn each_of_several_services_has_its_own_socket(release: Release) {
    let container = installed(release);
    standin::add_with(&container, "/srv/second", 8081, 5556);
    container.run("espocrm-websocket setup --espocrm /srv/second --name second");
    let (unit, socket) = ("espocrm-websocket@second.service", "espocrm-websocket@second.socket");
    container.wait_until_active(unit);
    container.write(
        &format!("/etc/systemd/system/{socket}.d/port.conf"),
        "[Socket]\nListenStream=\nListenStream=8082\n",
    );
    container.run("systemctl daemon-reload");
    container.run(&format!("systemctl stop {unit}"));
    container.run(&format!("systemctl enable --now {socket} 2>&1"));
    container.run(&format!("systemctl start {unit}"));
    let mut second = tab::open(8082);
    tab::expect_events(&container, unit, &mut second, 5556);
    let mut first = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut first, 5555);
}
