//! Noticing that EspoCRM's settings have changed on disk.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files in which EspoCRM keeps its configuration and its compiled metadata, and those of our
/// own TLS.
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

/// EspoCRM compiles its metadata when it is asked for it and finds none.
const METADATA: usize = 0;

const FILES: [&str; 7] = [
    "data/cache/application/metadata.php",
    "data/config.php",
    "data/config-internal.php",
    "data/config-override.php",
    "data/config-internal-override.php",
    "data/state.php",
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

    /// Looks at these files, too, and no longer at others that were added before.
    pub fn add(&mut self, others: impl IntoIterator<Item = PathBuf>) {
        self.paths.truncate(FILES.len());
        self.seen.truncate(FILES.len());
        for path in others {
            self.seen.push(fingerprint_of(&path));
            self.paths.push(path);
        }
    }

    /// Whether something has changed since the last call.
    pub fn has_changed(&mut self) -> bool {
        let now = self.look();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }

    /// Whether something has changed that [`has_changed`](Self::has_changed) has not told yet.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.look() != self.seen
    }

    /// EspoCRM has been asked for its settings since the last call of
    /// [`has_changed`](Self::has_changed): that it has compiled its metadata meanwhile is no change.
    pub fn has_been_read(&mut self) {
        let compiled = self.look().into_iter().next().flatten();
        if let Some(seen @ None) = self.seen.get_mut(METADATA) {
            *seen = compiled;
        }
    }

    fn look(&self) -> Vec<Option<Fingerprint>> {
        self.paths.iter().map(|path| fingerprint_of(path)).collect()
    }
}

fn fingerprint_of(path: &Path) -> Option<Fingerprint> {
    let file = path.metadata().ok()?;
    Some(Fingerprint {
        inode: (file.dev(), file.ino()),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn changes_are_noticed_once() {
        let root = std::env::temp_dir().join(format!("espocrm-watch-{}", std::process::id()));
        let cache = root.join("data/cache/application");
        fs::create_dir_all(&cache).unwrap();
        let mut watch = Watch::new(&root);
        assert!(!watch.has_changed());

        fs::write(root.join("data/config.php"), "1").unwrap();
        assert!(watch.differs() && watch.differs());
        assert!(watch.has_changed() && !watch.has_changed() && !watch.differs());
        fs::write(root.join("data/config.new"), "2").unwrap();
        assert!(!watch.has_changed());
        fs::rename(root.join("data/config.new"), root.join("data/config.php")).unwrap();
        assert!(watch.has_changed() && !watch.has_changed());

        // Compiled by EspoCRM because we asked: no change. Compiled anew later: one.
        fs::write(cache.join("metadata.php"), "1").unwrap();
        watch.has_been_read();
        assert!(!watch.has_changed());
        fs::remove_file(cache.join("metadata.php")).unwrap();
        assert!(watch.has_changed());
        fs::write(cache.join("metadata.php"), "22").unwrap();
        assert!(watch.has_changed());

        // A certificate.
        let certificate = root.join("certificate.pem");
        watch.add([certificate.clone()]);
        assert!(!watch.has_changed());
        fs::write(&certificate, "1").unwrap();
        assert!(watch.has_changed());
        watch.add([]);
        fs::write(&certificate, "22").unwrap();
        assert!(!watch.has_changed());
        fs::remove_dir_all(root).unwrap();
    }
}
