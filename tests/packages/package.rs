//! The Debian package and its installation in each test.

use std::path::PathBuf;

use crate::container::{Container, Release, project};
use crate::standin;
use crate::tab::UNIT;

pub const CONFIG: &str = "/etc/espocrm-websocket/config.toml";
pub const DROP_IN: &str = "/etc/systemd/system/espocrm-websocket.service.d/10-setup.conf";

/// Installs the package as an administrator does. Returns the output.
pub fn install(container: &Container) -> String {
    container.run(&format!("apt-get install -y /packages/{}", name("deb")))
}

/// Debian with one EspoCRM at its usual path and the package, which serves it.
pub fn installed(release: Release) -> Container {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    install(&container);
    container.wait_until_active(UNIT);
    container
}

/// Builds the same package with a lower version. Returns its path.
pub fn previous(container: &Container) -> &'static str {
    container.run(&format!(
        "dpkg-deb -R /packages/{} /tmp/previous
        sed -i 's/^Version: .*/Version: 0.0.1/' /tmp/previous/DEBIAN/control
        dpkg-deb -Zgzip -z1 -b /tmp/previous /tmp/previous.deb",
        name("deb")
    ));
    "/tmp/previous.deb"
}

/// The file name of the only package of this kind.
pub fn name(kind: &str) -> String {
    let packages = std::env::var_os("PACKAGES").map_or(project("target/packages"), PathBuf::from);
    let files = std::fs::read_dir(&packages).unwrap().map(|file| file.unwrap().file_name());
    let names = files.map(|name| name.into_string().unwrap());
    let is_it = |name: &String| name.ends_with(&format!(".{kind}")) && !name.contains("dbg");
    let names: Vec<_> = names.filter(|name| is_it(name) && !name.contains(".src.")).collect();
    let [name] = names.as_slice() else {
        panic!("one .{kind} is needed in {}: {names:?}", packages.display());
    };
    name.clone()
}
