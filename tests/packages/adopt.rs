//! Replacing `websocket.php`, and restoring it.

use std::net::{TcpListener, TcpStream};

use crate::container::{Container, Release};
use crate::package::{CONFIG, install, name, previous};
use crate::standin::{self, PORT};
use crate::support::eventually;
use crate::tab::{self, UNIT};

on_each_release! {
    an_installation_keeps_websocket_php_and_adopt_replaces_it
    a_unit_adopted_under_another_name_can_be_restored
    if_the_daemon_does_not_start_the_old_service_continues
    an_upgrade_and_a_removal_keep_websocket_php
    without_a_package_one_changed_line_of_the_unit_is_enough
}

/// As administrators write it, with the name from EspoCRM's documentation.
const OLD_UNIT: &str = "# Ours since 2019.
[Unit]
Description=WebSocket of our CRM
After=network.target mariadb.service

[Service]
User=www-data
Group=www-data
ExecStart=/usr/bin/php /var/www/html/websocket.php
Restart=always
RestartSec=5
StandardError=append:/var/log/crm-websocket.log

[Install]
WantedBy=default.target
";

/// Serves the port and identifies itself.
const WEBSOCKET_PHP: &str = "<?php
$server = stream_socket_server('tcp://0.0.0.0:8080');
while (true) {
    $client = @stream_socket_accept($server, 60);
    if ($client) {
        fwrite($client, 'websocket.php');
        fclose($client);
    }
}
";

/// Debian with EspoCRM, whose websocket.php is run by this unit.
fn with_websocket_php(release: Release, unit: &str) -> Container {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    container.write("/var/www/html/websocket.php", WEBSOCKET_PHP);
    container.write(&format!("/etc/systemd/system/{unit}"), OLD_UNIT);
    container.run(&format!("systemctl daemon-reload && systemctl enable --now {unit} 2>&1"));
    eventually("websocket.php serves", websocket_php_serves);
    container
}

fn websocket_php_serves() -> bool {
    let mut printed = String::new();
    TcpStream::connect(tab::address(PORT)).is_ok_and(|mut stream| {
        std::io::Read::read_to_string(&mut stream, &mut printed).is_ok()
            && printed == "websocket.php"
    })
}

fn an_installation_keeps_websocket_php_and_adopt_replaces_it(release: Release) {
    let container = with_websocket_php(release, UNIT);
    let path = format!("/etc/systemd/system/{UNIT}");
    let pid = container.main_pid(UNIT);
    let printed = install(&container);
    assert!(printed.contains("espocrm-websocket adopt"), "{printed}");
    assert_eq!(container.main_pid(UNIT), pid, "it was restarted");
    assert!(websocket_php_serves());
    assert_eq!(container.read(&path), OLD_UNIT);
    assert!(!container.exists(CONFIG));

    let printed = container.run("espocrm-websocket adopt");
    assert!(printed.contains("espocrm-websocket adopt --undo"), "{printed}");
    assert!(!container.exists(&path));
    container.wait_until_active(UNIT);
    assert_eq!(container.enablement(UNIT), "enabled");
    let mut tab = tab::reconnect(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    drop(tab);

    container.run("espocrm-websocket adopt --undo");
    eventually("websocket.php serves again", websocket_php_serves);
    assert_eq!(container.read(&path), OLD_UNIT);
    assert_eq!(container.enablement(UNIT), "enabled");
    container.fail("pgrep -f '^/usr/bin/[e]spocrm-websocket run'");
}

fn a_unit_adopted_under_another_name_can_be_restored(release: Release) {
    let old_unit = "crm-realtime.service";
    let container = with_websocket_php(release, old_unit);
    container.write(&format!("/etc/systemd/system/{old_unit}.d/own.conf"), "[Service]\nNice=3\n");
    container.run("systemctl daemon-reload");
    install(&container);
    assert!(websocket_php_serves());
    assert!(!container.is_active(UNIT));

    container.run("espocrm-websocket adopt");
    container.wait_until_active(UNIT);
    assert!(!container.is_active(old_unit));
    assert_eq!(container.enablement(old_unit), "");
    tab::reconnect(PORT);

    container.run("espocrm-websocket adopt --undo");
    eventually("websocket.php serves again", websocket_php_serves);
    assert_eq!(container.enablement(old_unit), "enabled");
    assert_eq!(container.property(old_unit, "Nice"), "3");
    assert_eq!(container.read(&format!("/etc/systemd/system/{old_unit}")), OLD_UNIT);
    assert!(!container.is_active(UNIT));
}

fn if_the_daemon_does_not_start_the_old_service_continues(release: Release) {
    let container = with_websocket_php(release, UNIT);
    install(&container);
    // The daemon cannot start without this port.
    let listener = TcpListener::bind(tab::address(5555)).unwrap();
    let printed = container.fail("espocrm-websocket adopt");
    assert!(printed.contains("was restored") && printed.contains("journalctl"), "{printed}");
    // The command quotes the daemon's log.
    let words = "Cannot receive EspoCRM's messages at tcp://127.0.0.1:5555: it is in use";
    assert!(printed.contains(words), "{printed}");
    assert!(container.logged(UNIT, "5555") > 0);
    eventually("websocket.php serves again", websocket_php_serves);
    assert_eq!(container.read(&format!("/etc/systemd/system/{UNIT}")), OLD_UNIT);
    assert_eq!(container.enablement(UNIT), "enabled");
    drop(listener);
    // Nothing of the failed attempt prevents the next one.
    container.run("espocrm-websocket adopt");
    let mut tab = tab::reconnect(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}

/// Without `adopt`, the package is installed and does nothing.
fn an_upgrade_and_a_removal_keep_websocket_php(release: Release) {
    let container = with_websocket_php(release, UNIT);
    let pid = container.main_pid(UNIT);
    let previous = previous(&container);
    container.run(&format!("apt-get install -y {previous}"));
    for action in ["install -y /packages/*.deb", "remove -y espocrm-websocket"] {
        container.run(&format!("apt-get {action}"));
        assert_eq!(container.main_pid(UNIT), pid, "{action}");
        assert_eq!(container.enablement(UNIT), "enabled", "{action}");
    }
    container.run("apt-get purge -y espocrm-websocket");
    assert_eq!(container.main_pid(UNIT), pid);
    assert_eq!(container.enablement(UNIT), "enabled");
    assert_eq!(container.read(&format!("/etc/systemd/system/{UNIT}")), OLD_UNIT);
    assert!(websocket_php_serves());
}

/// As described in docs/install.md for administrators who build the binary themselves.
fn without_a_package_one_changed_line_of_the_unit_is_enough(release: Release) {
    let container = with_websocket_php(release, UNIT);
    container.run(&format!(
        "dpkg-deb -x /packages/{} /tmp/built && install /tmp/built/usr/bin/espocrm-websocket \
         /usr/local/bin/",
        name("deb")
    ));
    let (old_command, dir) = ("/usr/bin/php /var/www/html/websocket.php", "/var/www/html");
    let command = format!("/usr/local/bin/espocrm-websocket {dir}");
    let unit = OLD_UNIT.replace(old_command, &command).replace("StandardError", "#StandardError");
    container.write(&format!("/etc/systemd/system/{UNIT}"), &unit);
    container.run(&format!("systemctl daemon-reload && systemctl restart {UNIT}"));
    let mut tab = tab::reconnect(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    container.run(&format!("systemctl stop {UNIT}"));
    tab.expect_drop();
    assert_eq!(container.logged(UNIT, "with 1 connection open"), 1);
}
