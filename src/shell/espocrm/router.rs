//! What PHP's web server needs to run EspoCRM's commands: two small files, for as long as the daemon
//! runs.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::shell::random;

/// A directory of our own with the router and the list of files that opcache must not keep. Nothing
/// in it is secret; PHP may run as another user and has to read it.
#[derive(Debug)]
pub struct Router {
    dir: PathBuf,
}

const PREFIX: &str = "espocrm-websocket-router-";

const SCRIPT: &str = include_str!("../worker.php");

const BLACKLIST: &str = include_str!("../worker.blacklist");

impl Router {
    /// Writes the files.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn write() -> io::Result<Self> {
        // A unit's RuntimeDirectory is the better place: it is emptied even after a SIGKILL.
        let parent = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let parent = parent.filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        sweep(&parent);
        let dir = parent.join(format!("{PREFIX}{}-{}", std::process::id(), random::hex()?));
        // Fails if somebody else has it.
        DirBuilder::new().mode(0o755).create(&dir)?;
        let router = Self { dir };
        fs::set_permissions(&router.dir, Permissions::from_mode(0o755))?;
        for (path, text) in [(router.script(), SCRIPT), (router.blacklist(), BLACKLIST)] {
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        }
        Ok(router)
    }

    /// Whether nobody has removed the files.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.script().exists() && self.blacklist().exists()
    }

    /// The script that answers every request.
    #[must_use]
    pub fn script(&self) -> PathBuf {
        self.dir.join("router.php")
    }

    /// For `opcache.blacklist_filename`.
    #[must_use]
    pub fn blacklist(&self) -> PathBuf {
        self.dir.join("opcache.blacklist")
    }
}

/// Removes what a daemon has left behind that was killed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another user's cannot be removed, and need not be.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
