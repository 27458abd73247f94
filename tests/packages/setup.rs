//! `espocrm-websocket setup` without EspoCRM, with several, and with one under /home.

use crate::container::{Container, Release};
use crate::package::{CONFIG, DROP_IN, install, installed};
use crate::standin::{self, PORT};
use crate::tab::{self, UNIT};

on_each_release! {
    without_espocrm_the_service_starts_only_after_setup
    with_several_espocrms_setup_requires_a_choice
    a_second_espocrm_has_its_own_service
    an_espocrm_under_home_is_served
    files_owned_by_root_are_rejected
}

fn without_espocrm_the_service_starts_only_after_setup(release: Release) {
    let container = Container::boot(release);
    let printed = install(&container);
    assert!(printed.contains("espocrm-websocket setup --espocrm"), "{printed}");
    expect_nothing(&container);
    standin::add(&container, "/opt/crm/site");
    let printed = container.run("espocrm-websocket setup --espocrm /opt/crm/site");
    container.wait_until_active(UNIT);
    assert!(printed.contains("/opt/crm/site"), "{printed}");
    assert_eq!(container.enablement(UNIT), "enabled");
    let mut tab = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
}

fn with_several_espocrms_setup_requires_a_choice(release: Release) {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/one");
    standin::add(&container, "/var/www/two");
    let printed = install(&container);
    for dir in ["/var/www/one", "/var/www/two", "espocrm-websocket setup --espocrm"] {
        assert!(printed.contains(dir), "{printed}");
    }
    expect_nothing(&container);
    let printed = container.fail("espocrm-websocket setup");
    assert!(printed.contains("/var/www/one") && printed.contains("/var/www/two"), "{printed}");
    expect_nothing(&container);
    container.run("espocrm-websocket setup --espocrm /var/www/two");
    container.wait_until_active(UNIT);
    tab::open(PORT);
    assert!(container.exists("/var/www/two/data/standin/runs"));
}

/// Expects that the service is installed, but neither set up nor running nor failed.
fn expect_nothing(container: &Container) {
    assert!(!container.exists(CONFIG));
    assert!(!container.exists(DROP_IN));
    assert!(!container.is_active(UNIT));
    assert_eq!(container.run("systemctl --failed --no-legend --plain"), "");
    assert_eq!(container.run("dpkg --audit"), "");
}

fn a_second_espocrm_has_its_own_service(release: Release) {
    let container = installed(release);
    let mut first = tab::open(PORT);
    standin::add_with(&container, "/srv/second", 8081, 5556);
    container.run("espocrm-websocket setup --espocrm /srv/second --name second");
    let unit = "espocrm-websocket@second.service";
    container.wait_until_active(unit);
    assert_eq!(container.enablement(unit), "enabled");
    let mut second = tab::open(8081);
    tab::expect_events(&container, unit, &mut second, 5556);
    tab::expect_events(&container, UNIT, &mut first, 5555);
    // A restart of one service does not affect the other.
    container.run(&format!("systemctl restart {unit}"));
    second.expect_drop();
    first.expect_silence();
}

fn an_espocrm_under_home_is_served(release: Release) {
    let container = Container::boot(release);
    container.run("useradd --create-home carol && useradd --create-home dave");
    standin::add(&container, "/home/carol/public_html");
    container
        .run("chown -R carol:carol /home/carol && chmod 711 /home/carol && touch /home/dave/x");
    // Not without confirmation: carol, not root, has installed it.
    let command = "espocrm-websocket setup --espocrm /home/carol/public_html";
    let printed = install(&container);
    assert!(printed.contains(command), "{printed}");
    expect_nothing(&container);
    container.run(command);
    container.wait_until_active(UNIT);
    let pid = container.main_pid(UNIT);
    assert_eq!(container.run(&format!("ps -o user= -p {pid}")).trim(), "carol");
    let mut tab = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    let seen = container.run(&format!("ls -A /proc/{pid}/root/home /proc/{pid}/root/home/carol"));
    assert!(!seen.contains("dave") && !seen.contains(".bashrc"), "{seen}");
}

fn files_owned_by_root_are_rejected(release: Release) {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    container.run("chown -R root:root /var/www/html");
    let printed = install(&container);
    assert!(printed.contains("chown"), "{printed}");
    expect_nothing(&container);
    let printed = container.fail("espocrm-websocket setup");
    assert!(printed.contains("chown"), "{printed}");
}
