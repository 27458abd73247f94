//! Detects changes of EspoCRM's settings on disk.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files of EspoCRM's configuration and compiled metadata, and the certificate files.
///
/// They are polled with `stat` when a check starts, not watched: seven calls cost a thousandth of
/// the PHP process that follows, work on network file systems, and cost nothing while no client is
/// connected.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    known: Vec<Option<Fingerprint>>,
}

/// EspoCRM replaces its files, so each change creates a new inode.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

/// The index of the compiled metadata, which EspoCRM creates on demand.
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
    /// Records the current state of the EspoCRM in `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let mut watch = Self { paths: FILES.map(|file| root.join(file)).into(), known: Vec::new() };
        watch.known = watch.current();
        watch
    }

    /// Sets the additional files, instead of those of the previous call.
    pub fn set_additional(&mut self, others: impl IntoIterator<Item = PathBuf>) {
        self.paths.truncate(FILES.len());
        self.known.truncate(FILES.len());
        for path in others {
            self.known.push(fingerprint_of(&path));
            self.paths.push(path);
        }
    }

    /// Whether a file has changed since the last call. Records the current state.
    pub fn take_change(&mut self) -> bool {
        let now = self.current();
        let changed = now != self.known;
        self.known = now;
        changed
    }

    /// Whether a file has changed since the last call of [`take_change`](Self::take_change).
    #[must_use]
    pub fn has_pending_change(&self) -> bool {
        self.current() != self.known
    }

    /// Must be called after the probe: metadata that it made EspoCRM compile is not a change.
    pub fn ignore_compiled_metadata(&mut self) {
        let compiled = self.current().into_iter().next().flatten();
        if let Some(known @ None) = self.known.get_mut(METADATA) {
            *known = compiled;
        }
    }

    fn current(&self) -> Vec<Option<Fingerprint>> {
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
    fn each_change_is_detected_once() {
        let root = std::env::temp_dir().join(format!("espocrm-watch-{}", std::process::id()));
        let cache = root.join("data/cache/application");
        fs::create_dir_all(&cache).unwrap();
        let mut watch = Watch::new(&root);
        assert!(!watch.take_change());

        fs::write(root.join("data/config.php"), "1").unwrap();
        assert!(watch.has_pending_change() && watch.has_pending_change());
        assert!(watch.take_change() && !watch.take_change() && !watch.has_pending_change());
        fs::write(root.join("data/config.new"), "2").unwrap();
        assert!(!watch.take_change());
        fs::rename(root.join("data/config.new"), root.join("data/config.php")).unwrap();
        assert!(watch.take_change() && !watch.take_change());

        // Metadata compiled by the probe is not a change; metadata compiled later is one.
        fs::write(cache.join("metadata.php"), "1").unwrap();
        watch.ignore_compiled_metadata();
        assert!(!watch.take_change());
        fs::remove_file(cache.join("metadata.php")).unwrap();
        assert!(watch.take_change());
        fs::write(cache.join("metadata.php"), "22").unwrap();
        assert!(watch.take_change());

        // A certificate.
        let certificate = root.join("certificate.pem");
        watch.set_additional([certificate.clone()]);
        assert!(!watch.take_change());
        fs::write(&certificate, "1").unwrap();
        assert!(watch.take_change());
        watch.set_additional([]);
        fs::write(&certificate, "22").unwrap();
        assert!(!watch.take_change());
        fs::remove_dir_all(root).unwrap();
    }
}
