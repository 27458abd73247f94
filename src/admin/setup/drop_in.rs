//! What a machine adds to the package's unit.

use std::path::Path;

use super::files::Files;
use crate::platform::shell_word::is_plain;

/// The drop-in of a service.
pub(super) struct DropIn<'a> {
    /// Whom it runs as.
    pub user: &'a str,
    /// EspoCRM's `data/`, where it really is.
    pub data: &'a str,
    /// Directories in people's homes, all of which are hidden otherwise.
    pub homes: &'a [&'a str],
    /// Whether systemd can increase the delay between restarts.
    pub has_restart_steps: bool,
}

/// The version of systemd that introduced `RestartSteps=`. Older ones log a warning about it whenever
/// they load the unit.
const RESTART_STEPS_SINCE: u32 = 254;

/// Where systemd's own library is. Its name contains the version.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/systemd/*.so",
    "/usr/lib/*/systemd/*.so",
    "/usr/lib64/systemd/*.so",
    "/lib/systemd/*.so",
    "/lib/*/systemd/*.so",
];

/// Whether the systemd of this machine has `RestartSteps=`.
pub(super) fn has_restart_steps(files: &Files) -> bool {
    let mut found = LIBRARIES.iter().flat_map(|pattern| files.find(pattern));
    found.any(|library| version(&library).is_some_and(|it| it >= RESTART_STEPS_SINCE))
}

fn version(library: &Path) -> Option<u32> {
    let name = library.file_name()?.to_str()?.strip_prefix("libsystemd-shared-")?;
    name.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl DropIn<'_> {
    /// Its text. `again` is the command that writes it anew.
    pub(super) fn render(&self, again: &str) -> String {
        let mut text = format!(
            "# Written by `{again}`, which writes it anew. Your own changes belong into another \
             file beside it:\n# that of systemctl edit.\n[Service]\nUser={}\n",
            self.user
        );
        text = text + "ReadWritePaths=" + &escape(self.data) + "\n";
        if !self.homes.is_empty() {
            text += "ProtectHome=tmpfs\n";
        }
        for home in self.homes {
            text = text + "BindPaths=" + &escape(home) + "\n";
        }
        if self.has_restart_steps {
            // From RestartSec=3 up, so that a daemon that cannot start does not fill the journal.
            text += "RestartSteps=6\nRestartMaxDelaySec=60\n";
        }
        text
    }
}

/// A path as systemd reads it in a list of such. It must not hold control characters.
fn escape(path: &str) -> String {
    if is_plain(path) {
        return path.to_owned();
    }
    let path = path.replace('%', "%%").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{path}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMENT: &str = "# Written by `espocrm-websocket setup`, which writes it anew. Your own \
        changes belong into another file beside it:\n# that of systemctl edit.\n";

    #[test]
    fn user_and_data_are_named() {
        let drop_in = DropIn {
            user: "www-data",
            data: "/var/www/html/data",
            homes: &[],
            has_restart_steps: false,
        };
        let expected = "[Service]\nUser=www-data\nReadWritePaths=/var/www/html/data\n";
        assert_eq!(drop_in.render("espocrm-websocket setup"), [COMMENT, expected].concat());
    }

    #[test]
    fn a_home_is_let_in() {
        let homes = ["/home/ann/my crm", "/home/ann/data"];
        let drop_in =
            DropIn { user: "1000", data: "/home/ann/data", homes: &homes, has_restart_steps: true };
        let expected = "[Service]\nUser=1000\nReadWritePaths=/home/ann/data\nProtectHome=tmpfs\n\
                        BindPaths=\"/home/ann/my crm\"\nBindPaths=/home/ann/data\n\
                        RestartSteps=6\nRestartMaxDelaySec=60\n";
        assert_eq!(drop_in.render("espocrm-websocket setup"), [COMMENT, expected].concat());
    }

    #[test]
    fn the_version_of_systemd_is_known_by_its_library() {
        for (name, expected) in [
            ("libsystemd-shared-252.so", Some(252)),
            ("libsystemd-shared-252-46.el9.so", Some(252)),
            ("libsystemd-shared-257.8-2.so", Some(257)),
            ("libsystemd-core-257.so", None),
            ("libsystemd-shared-.so", None),
        ] {
            assert_eq!(version(&Path::new("/usr/lib/systemd").join(name)), expected, "{name}");
        }
    }

    #[test]
    fn what_systemd_would_take_for_something_else_is_escaped() {
        assert_eq!(escape("/srv/a b:c/100%/\"q\"\\"), r#""/srv/a b:c/100%%/\"q\"\\""#);
        assert_eq!(escape("/srv/\u{e9}"), "\"/srv/\u{e9}\"");
    }
}
