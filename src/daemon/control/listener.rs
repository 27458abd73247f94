//! The listeners: the control socket's file, and the metrics port.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};

use mio::net::{TcpListener, UnixListener};
use socket2::{Domain, SockAddr, Type};

use crate::platform::sys;
use crate::settings::ControlAt;

/// The control socket. Its file is removed on drop.
pub(super) struct Socket {
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: a file of another daemon in its place is not removed.
    file: (u64, u64),
}

/// The default name of the control socket's file.
const NAME: &str = "control.sock";

/// The default directory without systemd.
const DEFAULT_DIR: &str = "/run/espocrm-websocket";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The default path of the control socket, of the service or of one of its instances.
#[must_use]
pub(crate) fn default_path(instance: Option<&str>) -> PathBuf {
    let dir = instance.map_or(DEFAULT_DIR.to_owned(), |name| format!("{DEFAULT_DIR}-{name}"));
    Path::new(&dir).join(NAME)
}

impl Socket {
    /// Opens the control socket unless it is disabled.
    ///
    /// # Errors
    /// Why that fails, for the log.
    pub(super) fn open(at: &ControlAt) -> Result<Option<Self>, String> {
        let path = match at {
            ControlAt::Off => return Ok(None),
            ControlAt::Path(path) => path.clone(),
            ControlAt::Default => default_dir()?.join(NAME),
        };
        match Self::bind(&path) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) => Err(format!(
                "No control socket, so espocrm-websocket status and similar commands do not work: \
                 {}: {error}. Set control to another path, or to \"off\".",
                path.display()
            )),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn bind(path: &Path) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let of = fs::metadata(dir)?;
        // Any user could rename the file and create another in its place.
        if of.mode() & 0o1002 == 0o002 {
            let error = format!("{} is world-writable", dir.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, error));
        }
        remove_stale(path)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Set the mode before binding, so that the file is never accessible to other users.
        let socket = File::from(OwnedFd::from(socket));
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = socket2::Socket::from(OwnedFd::from(socket));
        socket.bind(&SockAddr::unix(path)?)?;
        let file = fs::symlink_metadata(path)?;
        socket.listen(BACKLOG)?;
        Ok(Self {
            listener: UnixListener::from_std(net::UnixListener::from(OwnedFd::from(socket))),
            path: path.to_owned(),
            file: (file.dev(), file.ino()),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The default directory: systemd's `RuntimeDirectory`, or the one that a package creates.
fn default_dir() -> Result<PathBuf, String> {
    if let Some(dirs) = std::env::var_os("RUNTIME_DIRECTORY") {
        let first = std::env::split_paths(&dirs).find(|dir| dir.is_absolute());
        if let Some(dir) = first {
            return Ok(dir);
        }
    }
    let dir = Path::new(DEFAULT_DIR);
    if sys::is_root() {
        // Binding the socket reports a directory that could not be created.
        let _ = DirBuilder::new().mode(0o755).create(dir);
    }
    let is_ours = fs::metadata(dir).is_ok_and(|of| of.uid() == sys::user());
    if sys::is_root() || is_ours {
        return Ok(dir.to_owned());
    }
    Err(format!(
        "No control socket, so espocrm-websocket status and similar commands do not work: \
         {DEFAULT_DIR} does not belong to this user. Set control = \"/…/{NAME}\", or \"off\"."
    ))
}

/// Removes the socket file of a daemon that was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let taken = |what: &str| Err(io::Error::new(ErrorKind::AddrInUse, what.to_owned()));
    if !file.file_type().is_socket() {
        return taken("a file exists there that is not a socket");
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Connecting to a suspended daemon with a full backlog would block.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => taken("another daemon uses it"),
    }
}

/// Opens the metrics port.
///
/// # Errors
/// Why that fails, for the log.
pub(super) fn open_port(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| {
        format!("Cannot serve metrics at {address}: {error}. Set metrics to another port.")
    })
}
