//! The package for Fedora and its relatives, installed by Debian's rpm: the order of its scripts,
//! and their effect on units. Its dependencies have other names there and are not checked.

use crate::container::{Container, Release};
use crate::package::{CONFIG, name};
use crate::standin::{self, PORT};
use crate::tab::{self, UNIT};

const RPM: &str = "rpm --nodeps --nodigest --nosignature";

#[test]
#[ignore = "boots a container: make test-packages"]
fn an_rpm_is_installed_upgraded_and_removed() {
    let container = Container::boot(Release::Trixie);
    standin::add(&container, "/var/www/html");
    let package = format!("/packages/{}", name("rpm"));
    let previous = previous(&container, &package);
    container.run(&format!("{RPM} -i {previous}"));
    assert!(container.exists(CONFIG));
    assert_eq!(version(&container), "0.0.1");
    // Distributions decide which services are enabled: there, this is the administrator's task.
    container.run(&format!("systemctl enable --now {UNIT} 2>&1"));
    container.wait_until_active(UNIT);
    let mut tab = tab::open(PORT);
    tab::expect_events(&container, UNIT, &mut tab, 5555);
    container.run(&format!("echo 'max_per_user = 7' >>{CONFIG}"));
    let config = container.read(CONFIG);
    let pid = container.main_pid(UNIT);

    container.run(&format!("{RPM} -U {package}"));
    assert_ne!(version(&container), "0.0.1");
    tab.expect_drop();
    let mut tab = tab::reconnect(PORT);
    assert_ne!(container.main_pid(UNIT), pid);
    assert_eq!(container.enablement(UNIT), "enabled");
    assert_eq!(container.read(CONFIG), config);

    container.run(&format!("{RPM} -e espocrm-websocket"));
    tab.expect_drop();
    assert!(!container.is_active(UNIT));
    assert_eq!(container.enablement(UNIT), "");
    assert!(!container.exists("/usr/bin/espocrm-websocket"));
    // The settings are kept, under whatever file name.
    let kept = container.run("cat /etc/espocrm-websocket/config.toml*");
    assert_eq!(kept, config);
    assert_eq!(container.run("systemctl --failed --no-legend --plain"), "");
}

fn version(container: &Container) -> String {
    container.run("rpm -q --qf '%{VERSION}' espocrm-websocket")
}

/// Creates the same package with a lower version. There is no tool for that: this changes the
/// header, where the versions have the same length, and the digests of the header, whose expected
/// values rpm prints.
fn previous<'a>(container: &Container, package: &str) -> &'a str {
    let version = container.run(&format!("rpm -qp --qf '%{{VERSION}}' {package} 2>/dev/null"));
    assert_eq!(version.len(), "0.0.1".len(), "{version}");
    let version = version.replace('.', "\\.");
    container.run(&format!(
        r"export LC_ALL=C
        sed 's/{version}/0.0.1/g' {package} >/tmp/previous.rpm
        rpm -Kv /tmp/previous.rpm | sed -n 's/.*BAD (Expected \(.*\) != \(.*\))/s!\1!\2!/p' >/tmp/digests
        sed -i -f /tmp/digests /tmp/previous.rpm"
    ));
    "/tmp/previous.rpm"
}
