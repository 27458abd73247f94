//! Noticing that EspoCRM's settings have changed on disk.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files in which EspoCRM keeps its configuration and its compiled metadata.
///
/// They are looked at, not watched: seven `stat` calls when somebody needs the answer cost a
/// thousandth of the PHP process that is about to be started, work on network file systems, and
/// cost nothing while nobody is connected.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Fingerprint>>,
}

/// EspoCRM replaces its files, so that each change makes another inode.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

const FILES: [&str; 7] = [
    "data/config.php",
    "data/config-internal.php",
    "data/config-override.php",
    "data/config-internal-override.php",
    "data/state.php",
    "data/cache/application/metadata.php",
    "command.php",
];

impl Watch {
    /// Remembers the present state of the EspoCRM in `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let mut watch = Self { paths: FILES.map(|file| root.join(file)).into(), seen: Vec::new() };
        watch.seen = watch.look();
        watch
    }

    /// Whether something has changed since the last call.
    pub fn has_changed(&mut self) -> bool {
        let now = self.look();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }

    fn look(&self) -> Vec<Option<Fingerprint>> {
        self.paths.iter().map(|path| path.metadata().ok().map(|it| fingerprint(&it))).collect()
    }
}

fn fingerprint(file: &Metadata) -> Fingerprint {
    Fingerprint {
        inode: (file.dev(), file.ino()),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
    }
}
