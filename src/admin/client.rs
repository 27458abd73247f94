//! The other side of the control socket: what our own commands ask a running daemon.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::control::usual;
use crate::platform::exit::{Exit, Result};
use crate::settings::{ControlAt, DEFAULT_FILE, Overrides};

/// Asks the daemon at one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    /// What systemd calls it.
    service: String,
}

/// Which daemon is meant: what the command line says about that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// One of several services.
    pub name: Option<String>,
    /// Its control socket.
    pub control: Option<PathBuf>,
    /// Its configuration file.
    pub config: Option<PathBuf>,
}

/// A daemon that takes longer has other problems.
const PATIENCE: Duration = Duration::from_secs(10);

/// In the error about a control socket at which nothing listens.
pub(crate) const NOT_RUNNING: &str = "is it running?";

/// Bytes of an answer's head.
const MAX_HEAD: u64 = 16 * 1024;

impl Target {
    /// The client for that daemon.
    ///
    /// # Errors
    /// If its control socket is turned off.
    pub fn client(&self) -> Result<Client> {
        let name = self.name.as_deref();
        if self.control.is_some() {
            return Client::find(name, self.control.as_deref());
        }
        let file = self.file().unwrap_or_else(|| DEFAULT_FILE.into());
        // Who may not read it may still know the usual place.
        let own = Overrides::text_of(&file).ok().and_then(|text| Overrides::from_toml(&text).ok());
        match own.and_then(|own| own.control) {
            Some(ControlAt::Path(path)) => Client::find(name, Some(&path)),
            Some(ControlAt::Off) => Err(Exit::error(format!(
                "The control socket is turned off: see control in {}.",
                file.display()
            ))),
            Some(ControlAt::Usual) | None => Client::find(name, None),
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
    /// The client of the daemon with this control socket, or else of the service, or of its instance
    /// of this name.
    ///
    /// # Errors
    /// If the name cannot be that of a service.
    pub fn find(name: Option<&str>, path: Option<&Path>) -> Result<Self> {
        if name.is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err(Exit::error("No service has such a name."));
        }
        let path = path.map_or_else(|| usual(name), Path::to_owned);
        let service =
            name.map_or("espocrm-websocket".to_owned(), |name| format!("espocrm-websocket@{name}"));
        Ok(Self { path, service })
    }

    /// Where it asks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a `GET` of this target says.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn get(&self, target: &str) -> Result<Vec<u8>> {
        self.whole("GET", target, b"")
    }

    /// What a `POST` to this target says.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn post(&self, target: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.whole("POST", target, body)
    }

    /// The same for a response that may take longer than usual.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn post_within(&self, target: &str, patience: Duration) -> Result<Vec<u8>> {
        self.whole_within("POST", target, b"", patience)
    }

    /// Whether something accepts connections at the control socket, or this user may not connect.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let missing = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
        !UnixStream::connect(&self.path).is_err_and(|error| missing.contains(&error.kind()))
    }

    /// The lines that a `GET` of this target goes on to tell, for as long as the daemon runs.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn lines(&self, target: &str) -> Result<impl Iterator<Item = io::Result<String>> + use<>> {
        let (reader, _) = self.ask("GET", target, b"", PATIENCE)?;
        // The next one may take long.
        let endless = reader.get_ref().set_read_timeout(None);
        endless.map_err(|error| self.problem(&error))?;
        Ok(reader.lines())
    }

    /// The same, where each line comes within this time or is an error.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn lines_within(
        &self,
        target: &str,
        patience: Duration,
    ) -> Result<io::Lines<BufReader<UnixStream>>> {
        let (reader, _) = self.ask("GET", target, b"", PATIENCE)?;
        let limited = reader.get_ref().set_read_timeout(Some(patience));
        limited.map_err(|error| self.problem(&error))?;
        Ok(reader.lines())
    }

    fn whole(&self, method: &str, target: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.whole_within(method, target, body, PATIENCE)
    }

    fn whole_within(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>> {
        let (mut reader, length) = self.ask(method, target, body, patience)?;
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).map_err(|error| self.problem(&error))?;
        if length.is_some_and(|length| length != answer.len()) {
            return Err(self.problem(&ErrorKind::UnexpectedEof.into()));
        }
        Ok(answer)
    }

    /// Asks, and reads the answer's head; what follows is to be read, so many bytes if that is said.
    fn ask(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<(BufReader<UnixStream>, Option<usize>)> {
        let exchange = || {
            let mut stream = UnixStream::connect(&self.path)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let length = body.len();
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            );
            // Who is turned away is told so without being heard.
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
            // Not well is an answer, too.
            Some("200") => Ok((reader, length)),
            Some("503") if target == "/healthz" => Ok((reader, length)),
            Some(_) => {
                let mut text = String::new();
                let _ = reader.by_ref().take(MAX_HEAD).read_to_string(&mut text);
                Err(Exit::error(format!("The daemon says: {}", text.trim())))
            }
            None => Err(Exit::error(format!(
                "What answers at {} is not espocrm-websocket, or has ended meanwhile.",
                self.path.display()
            ))),
        }
    }

    /// What an administrator can do about it.
    fn problem(&self, error: &io::Error) -> Exit {
        let (path, service) = (self.path.display(), &self.service);
        Exit::error(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                "No daemon answers at {path}: {NOT_RUNNING} See systemctl status {service}. If its \
                 control socket is elsewhere, name it by --control PATH."
            ),
            ErrorKind::PermissionDenied | ErrorKind::ConnectionReset => format!(
                "You may not ask the daemon at {path}: do it as root, or as the daemon's user."
            ),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "The daemon at {path} does not answer: it is stopped, or too busy. See systemctl \
                 status {service}."
            ),
            _ => format!("The daemon at {path} cannot be asked: {error}."),
        })
    }
}
