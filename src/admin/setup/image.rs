//! For tests: a system image in a directory, with a script as a fake systemd.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::machine::Machine;
use super::systemctl::Systemctl;
use crate::platform::sys;

/// Records its arguments and answers like `systemctl`. Units in `fails` do not start, units in
/// `exits` end again; both apply to the package's units only, not to the administrator's files.
const SYSTEMCTL: &str = r#"cd "$0.d" && echo "$*" >> calls
own=../etc/systemd/system/$2
case $1 in
is-active) cat "active/$2" 2> /dev/null || { echo inactive; exit 3; } ;;
stop) rm -f "active/$2" ;;
restart)
    if [ -e "fails/$2" ] && [ ! -e "$own" ]; then
        rm -f "active/$2"; echo "Job for $2 failed." >&2; exit 1
    fi
    echo active > "active/$2"
    if [ -e "exits/$2" ] && [ ! -e "$own" ]; then echo activating > "active/$2"; fi ;;
show) echo 0815 ;;
--quiet) [ "$5" = _SYSTEMD_INVOCATION_ID=0815 ] && printf 'Nothing can be served.\nFix it.\n' ;;
enable) if [ -e "missing/$2" ]; then echo "Unit file $2 does not exist." >&2; exit 1; fi ;;
esac
"#;

pub(crate) struct Image(PathBuf);

impl Image {
    /// An image with the package's units only.
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("espocrm-websocket-image-{}-{number}", std::process::id());
        let image = Self(std::env::temp_dir().join(name));
        for unit in ["espocrm-websocket.service", "espocrm-websocket@.service"] {
            image.put(&format!("/usr/lib/systemd/system/{unit}"), "[Service]\n");
        }
        image.put("/systemctl", SYSTEMCTL);
        for dir in ["active", "fails", "exits", "missing"] {
            image.put(&format!("/systemctl.d/{dir}/.keep"), "");
        }
        let (user, group) = image.web();
        image.put("/etc/passwd", &format!("root:x:0:0\nweb:x:{user}:{group}::/:/bin/sh\n"));
        image.put("/etc/group", &format!("root:x:0:\nwebgroup:x:{group}:\n"));
        image
    }

    /// The owner of each EspoCRM: if possible, a user other than root.
    fn web(&self) -> (u32, u32) {
        let metadata = self.0.metadata().unwrap();
        if sys::is_root() { (33, 34) } else { (metadata.uid(), metadata.gid()) }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        Files::below(&self.0).at(Path::new(path))
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Creates the files that identify an EspoCRM.
    pub(crate) fn espocrm(&self, dir: &str) {
        for file in ["bootstrap.php", "command.php", "data/config.php"] {
            self.put(&format!("{dir}/{file}"), "<?php\n");
        }
        let (user, group) = self.web();
        chown(self.at(dir).join("data"), Some(user), Some(group)).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        symlink(target, self.at(path)).unwrap();
    }

    pub(crate) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.at(path).symlink_metadata().is_ok()
    }

    /// Whether no service was configured.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.has("/etc/espocrm-websocket") && !self.has("/var/lib/espocrm-websocket")
    }

    /// The calls of systemd since the last call of this function.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = self.text("/systemctl.d/calls");
        let _ = fs::remove_file(self.at("/systemctl.d/calls"));
        calls.lines().map(str::to_owned).collect()
    }

    /// Runs a command on the image. Returns its output and its result.
    pub(crate) fn run<T>(&self, command: impl FnOnce(&Machine) -> T) -> (String, T) {
        let output = self.at("/output");
        let machine = Machine {
            files: Files::below(&self.0),
            systemctl: Some(Systemctl::fake(vec!["sh".into(), self.at("/systemctl").into()])),
            out: fs::File::create(&output).ok(),
        };
        let result = command(&machine);
        (fs::read_to_string(output).unwrap(), result)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
