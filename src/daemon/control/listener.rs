//! Where one comes in: the control socket's file, and the port for metrics.

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

/// The control socket. Its file goes with it.
pub(super) struct Socket {
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file: another daemon's in its place stays.
    file: (u64, u64),
}

/// The usual name of the control socket's file.
const NAME: &str = "control.sock";

/// Where it lies if nobody says anything else, and systemd gives no place.
const USUAL_DIR: &str = "/run/espocrm-websocket";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Where the control socket of a daemon is that was told nothing else: of the service, or of its
/// instance of this name.
#[must_use]
pub(crate) fn usual(instance: Option<&str>) -> PathBuf {
    let dir = instance.map_or(USUAL_DIR.to_owned(), |name| format!("{USUAL_DIR}-{name}"));
    Path::new(&dir).join(NAME)
}

impl Socket {
    /// Opens it, unless it is not wanted.
    ///
    /// # Errors
    /// Why that is not possible, for the log.
    pub(super) fn open(at: &ControlAt) -> Result<Option<Self>, String> {
        let path = match at {
            ControlAt::Off => return Ok(None),
            ControlAt::Path(path) => path.clone(),
            ControlAt::Usual => usual_dir()?.join(NAME),
        };
        match Self::bind(&path) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) => Err(format!(
                "There is no control socket, so espocrm-websocket status and the like do not work: \
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
        // Whoever may rename it could put another one in its place.
        if of.mode() & 0o1002 == 0o002 {
            let error = format!("everybody may write in {}", dir.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, error));
        }
        remove_stale(path)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Of the socket before it has a name: the file is never anybody else's.
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

/// The directory of a daemon that was told nothing: systemd's for it, or the one that a package makes.
fn usual_dir() -> Result<PathBuf, String> {
    if let Some(dirs) = std::env::var_os("RUNTIME_DIRECTORY") {
        let first = std::env::split_paths(&dirs).find(|dir| dir.is_absolute());
        if let Some(dir) = first {
            return Ok(dir);
        }
    }
    let dir = Path::new(USUAL_DIR);
    if sys::is_root() {
        // If it is there, or cannot be made, that is seen when the socket is.
        let _ = DirBuilder::new().mode(0o755).create(dir);
    }
    let is_ours = fs::metadata(dir).is_ok_and(|of| of.uid() == sys::user());
    if sys::is_root() || is_ours {
        return Ok(dir.to_owned());
    }
    Err(format!(
        "There is no control socket, so espocrm-websocket status and the like do not work: {USUAL_DIR} \
         is not this user's. Set control = \"/…/{NAME}\", or \"off\"."
    ))
}

/// Removes the file of a daemon that has ended without doing so itself.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let taken = |what: &str| Err(io::Error::new(ErrorKind::AddrInUse, what.to_owned()));
    if !file.file_type().is_socket() {
        return taken("something else is there, which is not a socket");
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One that is stopped, with many who wait, would keep us waiting as well.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => taken("another daemon has it, which is running"),
    }
}

/// Opens the port for metrics.
///
/// # Errors
/// Why that is not possible, for the log.
pub(super) fn open_port(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| {
        format!("Metrics are not served at {address}: {error}. Set metrics to another port.")
    })
}
