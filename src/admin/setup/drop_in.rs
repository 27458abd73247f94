//! The drop-in with the settings of this machine for the package's unit.

use std::path::Path;

use super::files::Files;
use crate::platform::shell_word::is_plain;

/// The drop-in of a service.
pub(super) struct DropIn<'a> {
    /// The user who runs the service.
    pub user: &'a str,
    /// EspoCRM's `data/`, without symbolic links.
    pub data: &'a str,
    /// Directories in home directories, which the sandbox otherwise hides.
    pub homes: &'a [&'a str],
    /// Whether systemd can increase the delay between restarts.
    pub has_restart_steps: bool,
}

/// The version of systemd that introduced `RestartSteps=`. Older versions log a warning whenever
/// they load the unit.
const RESTART_STEPS_SINCE: u32 = 254;

/// The paths of systemd's private library, whose file name contains the version.
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
    /// The text of the file. `command`: the command that writes it.
    pub(super) fn render(&self, command: &str) -> String {
        let mut text = format!(
            "# Written by `{command}`, which overwrites it. For your own changes, use another \
             file:\n# systemctl edit\n[Service]\nUser={}\n",
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
            // The delay grows from RestartSec=3, so that a daemon that cannot start does not fill
            // the journal.
            text += "RestartSteps=6\nRestartMaxDelaySec=60\n";
        }
        text
    }
}

/// A path in systemd's syntax for lists of paths. It must not contain control characters.
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

    const COMMENT: &str = "# Written by `espocrm-websocket setup`, which overwrites it. For your \
        own changes, use another file:\n# systemctl edit\n";

    #[test]
    fn the_drop_in_contains_user_and_data() {
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
    fn directories_in_homes_are_made_visible() {
        let homes = ["/home/ann/my crm", "/home/ann/data"];
        let drop_in =
            DropIn { user: "1000", data: "/home/ann/data", homes: &homes, has_restart_steps: true };
        let expected = "[Service]\nUser=1000\nReadWritePaths=/home/ann/data\nProtectHome=tmpfs\n\
                        BindPaths=\"/home/ann/my crm\"\nBindPaths=/home/ann/data\n\
                        RestartSteps=6\nRestartMaxDelaySec=60\n";
        assert_eq!(drop_in.render("espocrm-websocket setup"), [COMMENT, expected].concat());
    }

    #[test]
    fn the_version_of_systemd_is_read_from_its_library() {
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
    fn special_characters_are_escaped() {
        assert_eq!(escape("/srv/a b:c/100%/\"q\"\\"), r#""/srv/a b:c/100%%/\"q\"\\""#);
        assert_eq!(escape("/srv/\u{e9}"), "\"/srv/\u{e9}\"");
    }
}
