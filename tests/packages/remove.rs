//! `apt remove` and `apt purge`.

use std::collections::BTreeSet;

use crate::container::{Container, Release};
use crate::package::{CONFIG, install, installed};
use crate::standin;
use crate::support::eventually;
use crate::tab::{self, UNIT};

on_each_release! {
    a_removal_keeps_only_the_settings
    a_purge_leaves_nothing_behind
    a_reinstallation_finds_the_previous_settings
}

fn a_removal_keeps_only_the_settings(release: Release) {
    let container = installed(release);
    let mut tab = tab::open(standin::PORT);
    let config = container.read(CONFIG);
    container.run("apt-get remove -y espocrm-websocket");
    tab.expect_drop();
    assert!(!container.is_active(UNIT));
    container.fail("pgrep -f '[e]spocrm-websocket' || pgrep -x php");
    assert!(!container.exists("/usr/bin/espocrm-websocket"));
    assert_eq!(container.read(CONFIG), config);
    assert_eq!(container.run("systemctl --failed --no-legend --plain"), "");
}

fn a_reinstallation_finds_the_previous_settings(release: Release) {
    let container = installed(release);
    container.run(&format!("echo 'max_per_user = 7' >>{CONFIG}"));
    let config = container.read(CONFIG);
    container.run("apt-get remove -y espocrm-websocket");
    install(&container);
    container.wait_until_active(UNIT);
    assert_eq!(container.enablement(UNIT), "enabled");
    assert_eq!(container.read(CONFIG), config);
}

fn a_purge_leaves_nothing_behind(release: Release) {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    let before: BTreeSet<_> = container.files().into_iter().collect();
    install(&container);
    container.wait_until_active(UNIT);
    container.run("espocrm-websocket setup --espocrm /var/www/html --name second || true");
    container.run("apt-get purge -y espocrm-websocket");
    let left = || {
        let after = container.files().into_iter();
        // EspoCRM's own cache, and the data that dpkg and systemd keep about each package.
        let own = ["/var/www/html/data/", "/var/lib/systemd/", "/var/lib/apt/", "/var/lib/dpkg/"];
        let ours = after.filter(|file| !own.iter().any(|own| file.starts_with(own)));
        ours.filter(|file| !before.contains(file)).collect::<Vec<_>>()
    };
    let known = "find /var/lib/systemd /var/lib/dpkg/info /etc /run | grep espocrm-websocket";
    eventually("all processes have ended", || {
        container.attempt("pgrep -f '[e]spocrm-websocket'").1.is_empty()
    });
    assert_eq!(left(), Vec::<String>::new());
    assert_eq!(container.attempt(known).1, "");
    assert_eq!(container.enablement(UNIT), "");
    assert_eq!(container.run("systemctl --failed --no-legend --plain"), "");
}
