//! The client of the control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::control::default_path;
use crate::platform::exit::{Exit, Result};
use crate::settings::{ControlAt, DEFAULT_FILE, Overrides};

/// A client of one daemon's control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    /// The systemd service.
    service: String,
}

/// The daemon that the command line selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The name of its service, if several run on this machine.
    pub name: Option<String>,
    /// Its control socket.
    pub control: Option<PathBuf>,
    /// Its configuration file.
    pub config: Option<PathBuf>,
}

/// A healthy daemon answers sooner.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Part of the error about a control socket without a listener.
pub(crate) const NOT_RUNNING: &str = "is it running?";

/// Bytes of a response's head.
const MAX_HEAD: u64 = 16 * 1024;

impl Target {
    /// The client of this daemon.
    ///
    /// # Errors
    /// If the control socket is turned off.
    pub fn client(&self) -> Result<Client> {
        let name = self.name.as_deref();
        if self.control.is_some() {
            return Client::find(name, self.control.as_deref());
        }
        let file = self.file().unwrap_or_else(|| DEFAULT_FILE.into());
        // A user who may not read the file uses the default path.
        let own = Overrides::text_of(&file).ok().and_then(|text| Overrides::from_toml(&text).ok());
        match own.and_then(|own| own.control) {
            Some(ControlAt::Path(path)) => Client::find(name, Some(&path)),
            Some(ControlAt::Off) => Err(Exit::error(format!(
                "The control socket is turned off by the setting control in {}.",
                file.display()
            ))),
            Some(ControlAt::Default) | None => Client::find(name, None),
        }
    }

    /// The daemon's configuration file, if the command line names it or its service.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let named = |name| Path::new("/etc/espocrm-websocket").join(format!("{name}.toml"));
        self.config.clone().or_else(|| self.name.as_ref().map(named))
    }
}

impl Client {
    /// The client of the daemon with this control socket, or else of the service with this name, or
    /// else of the default service.
    ///
    /// # Errors
    /// If the name is not a valid service name.
    pub fn find(name: Option<&str>, path: Option<&Path>) -> Result<Self> {
        if name.is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err(Exit::error("A service name must not be empty or contain '/'."));
        }
        let path = path.map_or_else(|| default_path(name), Path::to_owned);
        let service =
            name.map_or("espocrm-websocket".to_owned(), |name| format!("espocrm-websocket@{name}"));
        Ok(Self { path, service })
    }

    /// The path of the control socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The body of the response to a `GET`.
    ///
    /// # Errors
    /// If there is no response, or it is an error.
    pub fn get(&self, target: &str) -> Result<Vec<u8>> {
        self.whole("GET", target, b"", TIMEOUT)
    }

    /// The body of the response to a `POST`.
    ///
    /// # Errors
    /// If there is no response, or it is an error.
    pub fn post(&self, target: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.whole("POST", target, body, TIMEOUT)
    }

    /// Like [`Client::post`], with another timeout.
    ///
    /// # Errors
    /// If there is no response, or it is an error.
    pub fn post_within(&self, target: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.whole("POST", target, b"", timeout)
    }

    /// Whether the control socket accepts connections, or this user may not connect to it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let missing = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
        !UnixStream::connect(&self.path).is_err_and(|error| missing.contains(&error.kind()))
    }

    /// The lines of a response that ends with the daemon. The next line may take as long as
    /// `timeout`.
    ///
    /// # Errors
    /// If there is no response, or it is an error.
    pub fn lines(
        &self,
        target: &str,
        timeout: Option<Duration>,
    ) -> Result<io::Lines<BufReader<UnixStream>>> {
        let (reader, _) = self.send("GET", target, b"", TIMEOUT)?;
        let set = reader.get_ref().set_read_timeout(timeout);
        set.map_err(|error| self.problem(&error))?;
        Ok(reader.lines())
    }

    fn whole(&self, method: &str, target: &str, body: &[u8], timeout: Duration) -> Result<Vec<u8>> {
        let (mut reader, length) = self.send(method, target, body, timeout)?;
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).map_err(|error| self.problem(&error))?;
        if length.is_some_and(|length| length != answer.len()) {
            return Err(self.problem(&ErrorKind::UnexpectedEof.into()));
        }
        Ok(answer)
    }

    /// Sends a request and reads the head of the response. Returns a reader for the body, and its
    /// length if the head contains it.
    fn send(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        timeout: Duration,
    ) -> Result<(BufReader<UnixStream>, Option<usize>)> {
        let exchange = || {
            let mut stream = UnixStream::connect(&self.path)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            let length = body.len();
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            );
            // The daemon may reject the connection without reading the request.
            let written = stream.write_all(&[head.as_bytes(), body].concat());
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while reader.by_ref().take(MAX_HEAD).read_line(&mut head)? > 0
                && !head.ends_with("\r\n\r\n")
                && (head.len() as u64) < MAX_HEAD
            {}
            if head.is_empty() {
                written?;
            }
            Ok((reader, head))
        };
        let (mut reader, head) = exchange().map_err(|error: io::Error| self.problem(&error))?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next());
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.and_then(|length| length.parse().ok());
        match status {
            Some("200") => Ok((reader, length)),
            // The answer of an unhealthy daemon.
            Some("503") if target == "/healthz" => Ok((reader, length)),
            Some(_) => {
                let mut text = String::new();
                let _ = reader.by_ref().take(MAX_HEAD).read_to_string(&mut text);
                Err(Exit::error(format!("The daemon returned an error: {}", text.trim())))
            }
            None => Err(Exit::error(format!(
                "The program at {} is not espocrm-websocket, or it has ended.",
                self.path.display()
            ))),
        }
    }

    /// An error with advice for the administrator.
    fn problem(&self, error: &io::Error) -> Exit {
        let (path, service) = (self.path.display(), &self.service);
        Exit::error(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                "No daemon answers at {path}: {NOT_RUNNING} See systemctl status {service}. If its \
                 control socket has another path, use --control PATH."
            ),
            ErrorKind::PermissionDenied | ErrorKind::ConnectionReset => format!(
                "Permission denied at {path}: run the command as root, or as the daemon's user."
            ),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "The daemon at {path} does not answer: it is stopped, or overloaded. See systemctl \
                 status {service}."
            ),
            _ => format!("The request to the daemon at {path} failed: {error}."),
        })
    }
}
