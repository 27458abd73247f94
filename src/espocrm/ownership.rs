//! Determines the user who owns an EspoCRM, in a way that no other user can influence.
//!
//! As root, the daemon runs EspoCRM's PHP as the owner of `data/`. A user who can replace `data/`
//! with another directory could therefore choose that user. The owner is accepted only if no other
//! user except root can have created or moved the directory there:
//!
//! - `data/` is a directory, not a symbolic link, and does not belong to root; and
//! - EspoCRM's root directory belongs to that user or to root, and no other user may write to it;
//!   or, where another user deploys the code, only the owner may write to `data/`, and
//!   `data/config.php`, which EspoCRM itself writes, belongs to the owner as well. A user cannot
//!   create a directory that belongs to another user, and cannot move one without write access to
//!   it.
//!
//! Write access of the owner's primary group counts as the owner's: EspoCRM's documentation
//! recommends mode 775 for `data`, `custom` and `client/custom`.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Why the owner of an EspoCRM is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ambiguity {
    /// `data` belongs to root.
    Root,
    /// `data` is a symbolic link or no directory.
    NotADirectory,
    /// Another user may have moved `data` there: other users may write to it.
    Writable,
    /// Another user may have moved `data` there: EspoCRM does not use it.
    Unused,
    /// A directory cannot be examined.
    Unreadable(io::ErrorKind),
}

/// Owner, group and mode of a directory or a file.
#[derive(Clone, Copy, Debug)]
struct Entry {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// The user who owns the EspoCRM in `root`, a path without symbolic links. `primary_group` returns
/// the primary group of a user, if that is known.
///
/// Opens each directory once and examines the open descriptors, so that concurrent changes have no
/// effect.
///
/// # Errors
/// Why the owner is not accepted.
pub(crate) fn owner(
    root: &Path,
    primary_group: impl FnOnce(u32) -> Option<u32>,
) -> Result<u32, Ambiguity> {
    let unreadable = |error: nix::Error| Ambiguity::Unreadable(io::Error::from(error).kind());
    let root = open_directory(root).map_err(unreadable)?;
    let data = open_below(&root, OsStr::new("data")).map_err(|error| match error {
        nix::Error::ENOTDIR | nix::Error::ELOOP => Ambiguity::NotADirectory,
        error => unreadable(error),
    })?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let config = openat(&data, "config.php", flags, Mode::empty()).ok().map(Entry::of);
    let entry = |directory| {
        Entry::of(directory).map_err(|error: io::Error| Ambiguity::Unreadable(error.kind()))
    };
    let (root, data) = (entry(root)?, entry(data)?);
    judge(root, data, config.and_then(Result::ok), primary_group(data.uid))
}

fn judge(
    root: Entry,
    data: Entry,
    config: Option<Entry>,
    group: Option<u32>,
) -> Result<u32, Ambiguity> {
    let owner = data.uid;
    if owner == 0 {
        return Err(Ambiguity::Root);
    }
    let others_write = |entry: Entry| {
        let is_trusted = entry.gid == 0 || Some(entry.gid) == group;
        entry.mode & 0o002 != 0 || entry.mode & 0o020 != 0 && !is_trusted
    };
    if [0, owner].contains(&root.uid) && !others_write(root) {
        return Ok(owner);
    }
    if others_write(data) {
        return Err(Ambiguity::Writable);
    }
    let is_file = |entry: &Entry| entry.mode & libc::S_IFMT == libc::S_IFREG;
    match config.filter(is_file) {
        Some(config) if config.uid == owner => Ok(owner),
        _ => Err(Ambiguity::Unused),
    }
}

/// Opens a directory by a path without symbolic links.
fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = open("/", flags, Mode::empty())?;
    for component in path.components() {
        if let Component::Normal(name) = component {
            directory = open_below(&directory, name)?;
        }
    }
    Ok(directory)
}

fn open_below(directory: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

impl Entry {
    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        File::from(descriptor).metadata().map(|metadata: Metadata| Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode(),
        })
    }
}

/// The predicate of a sentence about the directory: "/var/www/html/data belongs to root".
impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("belongs to root"),
            Self::NotADirectory => f.write_str("is a symbolic link or not a directory"),
            Self::Writable => f.write_str(
                "and the directory that contains it are writable by users other than its owner",
            ),
            Self::Unused => f.write_str(
                "is in another user's directory and contains no config.php of its owner",
            ),
            Self::Unreadable(kind) => write!(f, "cannot be examined: {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const WEB: u32 = 33;
    const DEPLOY: u32 = 1000;
    const STAFF: u32 = 50;

    /// `uid:gid mode` of a directory.
    fn directory(text: &str) -> Entry {
        entry(text, libc::S_IFDIR)
    }

    fn entry(text: &str, kind: u32) -> Entry {
        let (ids, mode) = text.split_once(' ').unwrap();
        let (uid, gid) = ids.split_once(':').unwrap();
        let id = |name: &str| match name {
            "root" => 0,
            "web" => WEB,
            "deploy" => DEPLOY,
            "staff" => STAFF,
            other => panic!("{other}"),
        };
        let mode = u32::from_str_radix(mode, 8).unwrap();
        Entry { uid: id(uid), gid: id(gid), mode: kind | mode }
    }

    /// Common layouts, and layouts that an attacker could create. The primary groups of web and
    /// deploy are their own.
    #[test]
    fn the_owner_is_accepted_if_no_other_user_can_have_chosen_it() {
        let web = Ok(WEB);
        for (layout, root, data, config, expected) in [
            ("Debian package style", "root:root 755", "web:web 755", "web:web 644", web),
            ("documented permissions", "web:web 755", "web:web 775", "web:web 664", web),
            ("not yet configured", "web:web 755", "web:web 775", "", web),
            ("mode 777 below the root", "web:web 755", "web:web 777", "web:web 666", web),
            ("root directory 775 of its group", "web:web 775", "web:web 775", "web:web 664", web),
            ("root with the web group", "root:web 775", "web:web 775", "web:web 664", web),
            ("group 0 as on OpenShift", "web:root 775", "web:root 775", "web:root 664", web),
            ("a panel's account", "deploy:deploy 750", "deploy:deploy 755", "", Ok(DEPLOY)),
            (
                "panel, group of the web server",
                "deploy:web 2750",
                "deploy:web 2770",
                "",
                Ok(DEPLOY),
            ),
            ("a deploy user", "deploy:deploy 755", "web:web 755", "web:web 644", web),
            ("a deploy user in the group", "deploy:web 2775", "web:web 2775", "web:web 664", web),
            ("data of root", "web:web 755", "root:root 755", "root:root 644", Err(Ambiguity::Root)),
            (
                "another user's directory, moved here",
                "deploy:deploy 755",
                "web:staff 775",
                "web:web 644",
                Err(Ambiguity::Writable),
            ),
            (
                "a world-writable directory",
                "deploy:deploy 755",
                "web:web 777",
                "web:web 644",
                Err(Ambiguity::Writable),
            ),
            (
                "a directory that is not EspoCRM's",
                "deploy:deploy 755",
                "web:web 775",
                "",
                Err(Ambiguity::Unused),
            ),
            (
                "a configuration of the wrong user",
                "deploy:deploy 755",
                "web:web 775",
                "deploy:deploy 644",
                Err(Ambiguity::Unused),
            ),
            (
                "a world-writable root directory",
                "root:root 777",
                "web:web 777",
                "web:web 644",
                Err(Ambiguity::Writable),
            ),
            ("the same, with a private data", "root:root 777", "web:web 750", "web:web 640", web),
            (
                "both writable by a shared group",
                "web:staff 775",
                "web:staff 775",
                "web:web 644",
                Err(Ambiguity::Writable),
            ),
        ] {
            let config = Some(config).filter(|text| !text.is_empty());
            let config = config.map(|text| entry(text, libc::S_IFREG));
            let (root, data) = (directory(root), directory(data));
            assert_eq!(judge(root, data, config, Some(data.uid)), expected, "{layout}");
        }
    }

    #[test]
    fn a_link_named_config_php_proves_nothing() {
        let link = Some(entry("web:web 777", libc::S_IFLNK));
        let (root, data) = (directory("deploy:deploy 755"), directory("web:web 755"));
        assert_eq!(judge(root, data, link, Some(WEB)), Err(Ambiguity::Unused));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = std::env::temp_dir().join(format!("espocrm-owner-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("site/elsewhere")).unwrap();
        let dir = dir.canonicalize().unwrap();
        let root = dir.join("site");
        let kind = io::ErrorKind::NotFound;
        assert_eq!(owner(&root, |_| None), Err(Ambiguity::Unreadable(kind)));
        symlink("elsewhere", root.join("data")).unwrap();
        assert_eq!(owner(&root, |_| None), Err(Ambiguity::NotADirectory));
        std::fs::remove_file(root.join("data")).unwrap();
        std::fs::write(root.join("data"), "").unwrap();
        assert_eq!(owner(&root, |_| None), Err(Ambiguity::NotADirectory));
        std::fs::remove_file(root.join("data")).unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        let me = root.metadata().unwrap().uid();
        let expected = if me == 0 { Err(Ambiguity::Root) } else { Ok(me) };
        assert_eq!(owner(&root, |_| None), expected);
        symlink("site", dir.join("link")).unwrap();
        assert!(matches!(owner(&dir.join("link"), |_| None), Err(Ambiguity::Unreadable(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
