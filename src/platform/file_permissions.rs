//! Accesses files with the permissions of another user: root must not read files named by a site
//! with its own permissions.

use std::io;

use nix::unistd::{Gid, Uid, getgroups, setfsgid, setfsuid};

use super::sys;

/// Runs `action` with the file permissions of another user. The kernel checks them, including
/// access control lists, without root's capability to bypass them. Affects this thread only. Only
/// for root.
///
/// # Errors
/// If the permissions cannot be changed; `action` does not run then.
pub(crate) fn with_permissions_of<T>(
    user: u32,
    group: u32,
    groups: &[u32],
    action: impl FnOnce() -> T,
) -> io::Result<T> {
    let own = getgroups()?.into_iter().map(Gid::as_raw).collect();
    let restore = Restore(own);
    sys::set_thread_groups(groups)?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    setfsgid(group);
    setfsuid(user);
    // These calls return the previous value; an invalid argument changes nothing.
    let is_group = setfsgid(Gid::from_raw(u32::MAX)) == group;
    if !is_group || setfsuid(Uid::from_raw(u32::MAX)) != user {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let done = action();
    drop(restore);
    Ok(done)
}

/// Restores root's permissions and these groups, even after a panic.
struct Restore(Vec<u32>);

impl Drop for Restore {
    fn drop(&mut self) {
        // These cannot fail: the effective user is root.
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::effective());
        let _ = sys::set_thread_groups(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::regular_file;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::path::Path;

    #[test]
    fn files_are_opened_with_the_permissions_of_another_user() {
        if !sys::is_root() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("espocrm-files-of-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file");
        fs::write(&path, "x").unwrap();
        let set = |path: &Path, group: u32, mode: u32| {
            chown(path, Some(0), Some(group)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let is_readable = |group: u32, groups: &[u32]| {
            with_permissions_of(4_711, group, groups, || regular_file::read(&path).is_ok()).unwrap()
        };
        set(&dir, 0, 0o755);
        set(&path, 0, 0o640);
        // The user's groups count, and not those of root.
        assert!(!is_readable(4_711, &[]));
        set(&path, 4_712, 0o640);
        assert!(!is_readable(4_711, &[]));
        assert!(is_readable(4_712, &[]) && is_readable(4_711, &[4_712]));
        // The permissions of the directory count as well.
        set(&dir, 0, 0o700);
        assert!(!is_readable(4_712, &[]));
        // Afterwards root's permissions are restored.
        assert!(fs::read(&path).is_ok());
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in ["Uid:\t0\t0\t0\t0", "Gid:\t0\t0\t0\t0"] {
            assert!(status.contains(line), "{status}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
