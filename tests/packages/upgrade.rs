//! Unattended upgrades while tabs are open.

use crate::container::{Container, Release};
use crate::package::{CONFIG, DROP_IN, install, installed, previous};
use crate::socket;
use crate::standin::{self, PORT};
use crate::tab::{self, UNIT};

on_each_release! {
    tabs_reconnect_after_an_upgrade
    an_older_package_can_be_installed_again
    an_upgrade_does_not_start_a_disabled_service
    an_upgrade_changes_no_setting_and_asks_no_question
    every_service_runs_the_new_version_after_an_upgrade
    an_upgrade_with_socket_activation_refuses_no_connection
}

fn with_previous(release: Release) -> Container {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    let previous = previous(&container);
    container.run(&format!("apt-get install -y {previous}"));
    container.wait_until_active(UNIT);
    assert_eq!(version(&container), "0.0.1");
    container
}

fn version(container: &Container) -> String {
    container.run("dpkg-query -W -f '${Version}' espocrm-websocket")
}

fn tabs_reconnect_after_an_upgrade(release: Release) {
    let container = with_previous(release);
    let mut tabs: Vec<_> = (0..20).map(|_| tab::open(PORT)).collect();
    let pid = container.main_pid(UNIT);
    install(&container);
    assert_ne!(version(&container), "0.0.1");
    container.wait_until_active(UNIT);
    assert_ne!(container.main_pid(UNIT), pid, "the old process still runs");
    for tab in &mut tabs {
        tab.expect_drop();
        *tab = tab::reconnect(PORT);
    }
    tab::expect_events(&container, UNIT, &mut tabs[0], 5555);
}

/// As described in docs/install.md.
fn an_older_package_can_be_installed_again(release: Release) {
    let container = installed(release);
    container.run(&format!("echo 'max_per_user = 7 # ours' >>{CONFIG}"));
    let kept = || (container.read(CONFIG), container.read(DROP_IN));
    let before = kept();
    let previous = previous(&container);
    let mut tab = tab::open(PORT);
    let pid = container.main_pid(UNIT);
    container.run(&format!("apt-get install -y --allow-downgrades {previous}"));
    assert_eq!(version(&container), "0.0.1");
    container.wait_until_active(UNIT);
    assert_ne!(container.main_pid(UNIT), pid, "the newer process still runs");
    tab.expect_drop();
    let mut tab = tab::reconnect(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    assert_eq!(kept(), before);
}

fn an_upgrade_changes_no_setting_and_asks_no_question(release: Release) {
    let container = with_previous(release);
    container.run(&format!("echo 'max_per_user = 7 # ours' >>{CONFIG}"));
    container.write(&format!("/etc/systemd/system/{UNIT}.d/50-own.conf"), "[Service]\nNice=5\n");
    let kept = || (container.read(CONFIG), container.read(DROP_IN), container.files());
    let before = kept();
    // Like unattended-upgrades: questions cannot be answered and would make it fail.
    let printed = install(&container);
    let after = kept();
    assert_eq!((&before.0, &before.1), (&after.0, &after.1));
    let odd = |file: &&String| file.contains("espocrm-websocket") && file.contains(".dpkg-");
    assert_eq!(after.2.iter().find(odd), None);
    assert!(!printed.contains("setup --espocrm"), "{printed}");
    assert_eq!(container.property(UNIT, "Nice"), "5");
}

fn an_upgrade_does_not_start_a_disabled_service(release: Release) {
    let container = with_previous(release);
    container.run(&format!("systemctl disable --now {UNIT}"));
    install(&container);
    assert_eq!(container.enablement(UNIT), "disabled");
    assert!(!container.is_active(UNIT));
}

fn every_service_runs_the_new_version_after_an_upgrade(release: Release) {
    let container = with_previous(release);
    standin::add_with(&container, "/srv/second", 8081, 5556);
    container.run("espocrm-websocket setup --espocrm /srv/second --name second");
    let second = "espocrm-websocket@second.service";
    let pids = [UNIT, second].map(|unit| container.main_pid(unit));
    install(&container);
    for (unit, pid) in [UNIT, second].into_iter().zip(pids) {
        container.wait_until_active(unit);
        assert_ne!(container.main_pid(unit), pid, "{unit}");
    }
    tab::open(8081);
    container.run("apt-get remove -y espocrm-websocket");
    assert!(!container.is_active(second));
}

fn an_upgrade_with_socket_activation_refuses_no_connection(release: Release) {
    let container = with_previous(release);
    socket::turn_on(&container);
    let mut tab = tab::open(PORT);
    let connector = socket::Connector::start();
    install(&container);
    tab.expect_drop();
    tab::open(PORT);
    connector.expect_never_refused();
}
