//! The two small files that PHP's web server needs to run EspoCRM's commands. They exist while the
//! daemon runs.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::platform::{random, sys};

/// A directory with the router script and the list of files that opcache must not cache. It
/// contains no secrets, since PHP may run as another user and must be able to read it.
#[derive(Debug)]
pub struct Router {
    dir: PathBuf,
}

const PREFIX: &str = "espocrm-websocket-router-";

const MODE: u32 = 0o755;

const SCRIPT_NAME: &str = "router.php";

const BLACKLIST_NAME: &str = "opcache.blacklist";

/// Entries of the parent directory that [`Router::sweep`] reads: other users may create any number.
const MAX_ENTRIES: usize = 10_000;

const SCRIPT: &str = include_str!("php/worker.php");

const BLACKLIST: &str = include_str!("php/worker.blacklist");

impl Router {
    /// Writes the files.
    ///
    /// # Errors
    /// Those of creating the directory and the files.
    pub fn write() -> io::Result<Self> {
        let dir = parent().join(format!("{PREFIX}{}-{}", std::process::id(), random::hex()?));
        // Fails if the directory exists.
        DirBuilder::new().mode(MODE).create(&dir)?;
        let router = Self { dir };
        fs::set_permissions(&router.dir, Permissions::from_mode(MODE))?;
        for (path, text) in [(router.script(), SCRIPT), (router.blacklist(), BLACKLIST)] {
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        }
        Ok(router)
    }

    /// Removes the directories of killed daemons of this user. Called once, at startup, since it
    /// may take a moment.
    pub fn sweep() {
        sweep(&parent());
    }

    /// Whether the files still exist.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.script().exists() && self.blacklist().exists()
    }

    /// The script that answers every request.
    #[must_use]
    pub fn script(&self) -> PathBuf {
        self.dir.join(SCRIPT_NAME)
    }

    /// For `opcache.blacklist_filename`.
    #[must_use]
    pub fn blacklist(&self) -> PathBuf {
        self.dir.join(BLACKLIST_NAME)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Prefers the unit's `RuntimeDirectory`, which systemd empties even after a SIGKILL.
fn parent() -> PathBuf {
    let parent = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    parent.filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir)
}

fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.take(MAX_ENTRIES).flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a router's directory if it belongs to this user and only this user can have changed it.
/// Removes no other files in it, follows no links, and does not touch a directory that replaces it
/// meanwhile.
fn remove(dir: &Path) {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let Ok(open) = OpenOptions::new().read(true).custom_flags(flags).open(dir) else { return };
    let is_safe = |open: &File| {
        let data = open.metadata().ok()?;
        Some(data.uid() == sys::user() && data.mode() & 0o7777 == MODE)
    };
    if is_safe(&open) != Some(true) {
        return;
    }
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    for name in [SCRIPT_NAME, BLACKLIST_NAME] {
        let _ = fs::remove_file(by_descriptor.join(name));
    }
    // This fails for links and for directories that are not empty.
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    /// No process has this id.
    const UNUSED_PID: u32 = 4_194_305;

    struct Parent(PathBuf);

    impl Parent {
        /// Creates the directory of a killed daemon.
        fn stale_directory(&self, name: &str) -> PathBuf {
            let dir = self.0.join(format!("{PREFIX}{name}"));
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, Permissions::from_mode(MODE)).unwrap();
            fs::write(dir.join(SCRIPT_NAME), SCRIPT).unwrap();
            fs::write(dir.join(BLACKLIST_NAME), BLACKLIST).unwrap();
            dir
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_directories_of_this_user_with_the_expected_form_are_removed() {
        let name = format!("espocrm-websocket-sweep-{}", std::process::id());
        let parent = Parent(std::env::temp_dir().join(name));
        fs::create_dir_all(&parent.0).unwrap();
        let own = parent.stale_directory(&format!("{UNUSED_PID}-own"));
        let running = parent.stale_directory(&format!("{}-running", std::process::id()));
        let open_to_all = parent.stale_directory(&format!("{UNUSED_PID}-open"));
        fs::set_permissions(&open_to_all, Permissions::from_mode(0o777)).unwrap();
        let fuller = parent.stale_directory(&format!("{UNUSED_PID}-fuller"));
        fs::create_dir(fuller.join("tree")).unwrap();
        fs::write(fuller.join("tree/file"), "").unwrap();
        let target = parent.0.join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join(SCRIPT_NAME), "").unwrap();
        let link = parent.0.join(format!("{PREFIX}{UNUSED_PID}-link"));
        symlink(&target, &link).unwrap();
        let foreign = parent.stale_directory(&format!("{UNUSED_PID}-foreign"));
        // Without permission to change the owner, it is like the first directory.
        let is_foreign = chown(&foreign, Some(65_534), Some(65_534)).is_ok();

        sweep(&parent.0);

        assert!(!own.exists());
        assert!(running.join(SCRIPT_NAME).exists());
        assert!(open_to_all.join(SCRIPT_NAME).exists());
        assert!(fuller.join("tree/file").exists());
        assert!(link.is_symlink() && target.join(SCRIPT_NAME).exists());
        assert_eq!(foreign.join(SCRIPT_NAME).exists(), is_foreign);
    }
}
