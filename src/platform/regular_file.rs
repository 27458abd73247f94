//! Reads files that other users control: EspoCRM's files, certificates, keys, configuration files.
//!
//! Another user may replace a file at any moment by a FIFO without a writer, an endless device, or
//! a device with side effects on opening. This module opens regular files only, so reading never
//! blocks and memory stays bounded. It follows symbolic links.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The maximum size of a file in bytes.
pub(crate) const MAX_FILE: u64 = 1024 * 1024;

/// Opens a file for reading if it is a regular one.
///
/// # Errors
/// Those of open(2), or if the file is not a regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // O_PATH refers to the file without opening it. Its type can no longer change.
    let found = options(libc::O_PATH).open(path)?;
    let kind = found.metadata()?;
    if !kind.is_file() {
        return Err(not_regular());
    }
    match options(0).open(format!("/proc/self/fd/{}", found.as_raw_fd())) {
        // If /proc is not mounted, open the path again and compare.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let file = options(0).open(path)?;
    let opened = file.metadata()?;
    let is_same = (opened.dev(), opened.ino()) == (kind.dev(), kind.ino());
    if opened.is_file() && is_same { Ok(file) } else { Err(not_regular()) }
}

/// Reads a regular file.
///
/// # Errors
/// Those of [`open`] and read(2), or if the file is larger than [`MAX_FILE`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Reads a regular text file.
///
/// # Errors
/// Those of [`read`], or if the file is not UTF-8.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not valid UTF-8"))
}

fn options(more: i32) -> OpenOptions {
    let mut options = OpenOptions::new();
    // O_CLOEXEC is added by the standard library.
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | more);
    options
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let name = format!("espocrm-websocket-{name}-{}", std::process::id());
            let dir = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(&dir.0).unwrap();
            dir
        }

        /// Creates a link to a file.
        fn link(&self, to: &Path) -> PathBuf {
            let link = self.0.join("link");
            let _ = fs::remove_file(&link);
            symlink(to, &link).unwrap();
            link
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = Dir::new("kinds");
        let fifo = dir.0.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let socket = dir.0.join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let devices = ["/dev/zero", "/dev/full", "/dev/null", "/dev/tty"].map(PathBuf::from);
        for path in [dir.0.clone(), fifo, socket].iter().chain(&devices) {
            for path in [path.clone(), dir.link(path)] {
                for error in [open(&path).map(drop), read(&path).map(drop)].map(Result::unwrap_err)
                {
                    assert_eq!(error.to_string(), "it is not a regular file", "{path:?}");
                }
            }
        }
        let missing = dir.0.join("missing");
        for path in [&missing, &dir.link(&missing)] {
            assert_eq!(read(path).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn files_over_one_mebibyte_are_rejected() {
        let dir = Dir::new("size");
        let path = dir.0.join("file");
        let most = usize::try_from(MAX_FILE).unwrap();
        for size in [0, 1, most] {
            fs::write(&path, vec![b'x'; size]).unwrap();
            assert_eq!(read(&path).unwrap().len(), size);
            assert_eq!(read_to_string(&dir.link(&path)).unwrap().len(), size);
        }
        // A sparse file needs no space.
        for size in [MAX_FILE + 1, 1 << 40] {
            File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            for path in [&path, &dir.link(&path)] {
                assert_eq!(read(path).unwrap_err().to_string(), "it is larger than 1 MiB");
            }
        }
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_to_string(&path).unwrap_err().to_string(), "it is not valid UTF-8");
        // A file of unknown size.
        assert!(read_to_string(Path::new("/proc/self/status")).unwrap().contains("Pid:"));
    }

    #[test]
    fn descriptors_are_not_inherited_by_children() {
        let file = open(Path::new("/proc/self/status")).unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        let wanted = libc::O_CLOEXEC | libc::O_NONBLOCK;
        assert_eq!(flags & (wanted | libc::O_ACCMODE), wanted | libc::O_RDONLY);
    }
}
