//! The files of this machine, or of a system image in a directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::is_plain;
use crate::platform::{regular_file, sys};

/// The directory of the machine's `/`. All other paths are relative to it.
pub(crate) struct Files(PathBuf);

/// A line of `/etc/passwd`.
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// Entries of a directory that are read.
const MAX_ENTRIES: usize = 1_000;

/// Symbolic links that are followed, like in the kernel.
const MAX_LINKS: usize = 40;

impl Files {
    pub(crate) fn below(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Whether these are the files of a system image.
    pub(crate) fn is_image(&self) -> bool {
        self.0 != Path::new("/")
    }

    /// The path on this machine. It does not follow links, which could lead out of an image.
    pub(crate) fn at(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The path without symbolic links, if it exists.
    pub(crate) fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.walk(path, &mut |_| ())
    }

    /// Whether only root controls what a path refers to: every directory of the path, links
    /// included, belongs to root and is not writable for all users. In an image, root is the owner
    /// of its root directory.
    pub(crate) fn is_controlled_by_root(&self, path: &Path) -> bool {
        let Ok(root) = self.0.metadata().map(|metadata| metadata.uid()) else { return false };
        let mut trusted = true;
        let walked = self.walk(path, &mut |dir| {
            let metadata = dir.metadata();
            trusted &= metadata.is_ok_and(|it| it.uid() == root && it.mode() & 0o002 == 0);
        });
        walked.is_ok() && trusted
    }

    /// Resolves a path, and calls `visit` with each directory that it passes through.
    fn walk(&self, path: &Path, visit: &mut dyn FnMut(&Path)) -> io::Result<PathBuf> {
        let mut resolved = PathBuf::from("/");
        let mut rest = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            visit(&self.at(&resolved));
            let next = resolved.join(name);
            let host_path = self.at(&next);
            if !host_path.symlink_metadata()?.is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = host_path.read_link()?;
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            rest.extend(names(&target));
        }
        Ok(resolved)
    }

    /// The content of a regular file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        regular_file::read(&self.at(&self.resolve(path)?))
    }

    /// The sorted paths that match a pattern, without hidden files. `*` may be a name or begin one.
    pub(crate) fn find(&self, pattern: &str) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::from("/")];
        for name in pattern.split('/').filter(|name| !name.is_empty()) {
            found = match name.strip_prefix('*') {
                None => found.iter().map(|dir| dir.join(name)).collect(),
                Some(end) => found.iter().flat_map(|dir| self.list(dir, end)).collect(),
            };
        }
        found.retain(|path| self.resolve(path).is_ok());
        found
    }

    fn list(&self, dir: &Path, end: &str) -> Vec<PathBuf> {
        let Ok(entries) = self.resolve(dir).and_then(|dir| fs::read_dir(self.at(&dir))) else {
            return Vec::new();
        };
        // Sorting would add more code than the rest of this file.
        let mut names: Vec<OsString> = Vec::new();
        for name in entries.flatten().map(|entry| entry.file_name()).take(MAX_ENTRIES) {
            let bytes = name.as_bytes();
            if !bytes.starts_with(b".") && bytes.ends_with(end.as_bytes()) {
                let index = names.partition_point(|other| other.as_bytes() < bytes);
                names.insert(index, name);
            }
        }
        names.iter().map(|name| dir.join(name)).collect()
    }

    /// Writes a file atomically, as root. Returns false if the content has not changed.
    pub(crate) fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<bool> {
        let written = self.try_write(path, content, mode);
        written.map_err(|error| failed(path, "written", &error))
    }

    fn try_write(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
        let path = match self.resolve(path) {
            Ok(path) => path,
            Err(_) => self.make_dir(parent(path))?.join(path.file_name().unwrap_or_default()),
        };
        let host_path = self.at(&path);
        if self.read(&path).is_ok_and(|old| old == content) {
            own(&host_path, mode)?;
            return Ok(false);
        }
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".new");
        let draft = host_path.with_file_name(name);
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        let done = file
            .write_all(content)
            .and_then(|()| own(&draft, mode))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&draft, &host_path));
        if done.is_err() {
            let _ = fs::remove_file(&draft);
        }
        done.map(|()| true)
    }

    /// Creates a directory that all users may read, and missing parents.
    pub(crate) fn make_dir(&self, dir: &Path) -> io::Result<PathBuf> {
        if let Ok(dir) = self.resolve(dir) {
            return Ok(dir);
        }
        let dir = self.make_dir(parent(dir))?.join(dir.file_name().unwrap_or_default());
        fs::create_dir(self.at(&dir))?;
        own(&self.at(&dir), 0o755)?;
        Ok(dir)
    }

    /// Makes root the owner of a directory that all users may read.
    pub(crate) fn open_dir(&self, dir: &Path) -> Result<()> {
        let opened = self.make_dir(dir).and_then(|dir| own(&self.at(&dir), 0o755));
        opened.map_err(|error| failed(dir, "made readable for all users", &error))
    }

    /// Removes a file or a link; it need not exist.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        match fs::remove_file(self.entry_path(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(path, "removed", &error))
            }
            _ => Ok(()),
        }
    }

    /// The path on this machine, resolved except for its last name, which may be a link.
    pub(crate) fn entry_path(&self, path: &Path) -> PathBuf {
        let dir = self.resolve(parent(path)).unwrap_or_else(|_| parent(path).to_owned());
        self.at(&dir).join(path.file_name().unwrap_or_default())
    }

    /// The name of a user, or the number if it has no name.
    pub(crate) fn user_name(&self, uid: u32) -> String {
        self.find_user(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name)
    }

    /// The name of a user given by name or number, or the same text if the user has no name.
    pub(crate) fn known_name(&self, user: String) -> String {
        let is_number = user.parse::<u32>().is_ok();
        match self.user_id(&user).filter(|_| is_number) {
            Some(uid) => self.user_name(uid),
            None => user,
        }
    }

    /// Whether two names or numbers refer to the same user.
    pub(crate) fn is_same_user(&self, one: &str, other: &str) -> bool {
        one == other || self.user_id(one).is_some_and(|uid| self.user_id(other) == Some(uid))
    }

    /// The primary group of a user, if it is known.
    pub(crate) fn primary_group(&self, uid: u32) -> Option<u32> {
        self.find_user(|user| user.uid == uid).map(|user| user.gid)
    }

    /// The number of a user given by name or number.
    pub(crate) fn user_id(&self, user: &str) -> Option<u32> {
        let found = self.find_user(|known| known.name == user);
        found.map(|user| user.uid).or_else(|| user.parse().ok())
    }

    /// The first matching user in `/etc/passwd`.
    fn find_user(&self, matches: impl Fn(&User) -> bool) -> Option<User> {
        let list = self.read(Path::new("/etc/passwd")).unwrap_or_default();
        let list = String::from_utf8_lossy(&list);
        let mut users = list.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| is_plain(name) && !name.is_empty())?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(User { name: name.to_owned(), uid, gid })
        });
        users.find(matches)
    }
}

/// An error about a file: it could not be read, written and so on.
pub(crate) fn failed(path: &Path, what: &str, error: &io::Error) -> Exit {
    Exit::error(format!("{} could not be {what}: {error}.", path.display()))
}

fn own(host_path: &Path, mode: u32) -> io::Result<()> {
    let metadata = host_path.metadata()?;
    // An image may be built without root.
    if sys::is_root() && (metadata.uid(), metadata.gid()) != (0, 0) {
        chown(host_path, Some(0), Some(0))?;
    }
    if metadata.mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(host_path, Permissions::from_mode(mode))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The names of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    });
    names.map(OsStr::to_owned).collect()
}
