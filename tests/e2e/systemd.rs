//! The interface to systemd, which the test replaces; and the log, in the journal or in a file.

mod log_file;
mod notifications;
mod service;
mod sockets;
mod watchdog;

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::{Standin, eventually};

/// The service manager that started the daemon and receives its notifications.
struct Manager {
    /// The value of `NOTIFY_SOCKET`.
    name: OsString,
    address: SocketAddr,
    notifications: Arc<Mutex<Vec<String>>>,
}

/// Sent by the test itself to mark the end.
const END: &str = "END";

impl Manager {
    /// Uses a socket file in the stand-in's directory.
    fn new(standin: &Standin) -> Self {
        let path = standin.path().join("notify");
        Self::at(SocketAddr::from_pathname(&path).unwrap(), path.into())
    }

    /// Uses an abstract socket address.
    fn with_abstract_address(standin: &Standin) -> Self {
        let name = standin.path().to_str().unwrap();
        Self::at(SocketAddr::from_abstract_name(name).unwrap(), format!("@{name}").into())
    }

    fn at(address: SocketAddr, name: OsString) -> Self {
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let notifications = Arc::new(Mutex::new(Vec::new()));
        let texts = Arc::clone(&notifications);
        // Reads continuously, since the daemon does not wait; the thread ends with the tests.
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length) = socket.recv(&mut buffer) {
                texts.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self { name, address, notifications }
    }

    /// The notifications received so far.
    fn notifications(&self) -> Vec<String> {
        self.notifications.lock().unwrap().clone()
    }

    /// The notification with this index, counted from 0; waits for it.
    fn wait_for_number(&self, number: usize) -> String {
        eventually(&format!("notification {number} is received"), || {
            self.notifications().len() > number
        });
        self.notifications().swap_remove(number)
    }

    /// Waits for a notification that contains this text.
    fn wait_for(&self, text: &str) {
        eventually(&format!("systemd receives {text:?}"), || {
            self.notifications().iter().any(|it| it.contains(text))
        });
    }

    /// All notifications, once no process is left that could send more.
    fn all(&self) -> Vec<String> {
        UnixDatagram::unbound().unwrap().send_to_addr(END.as_bytes(), &self.address).unwrap();
        eventually("the end is received", || {
            self.notifications().last().is_some_and(|it| it == END)
        });
        let mut notifications = self.notifications();
        notifications.pop();
        notifications
    }
}

/// The variable names in these notifications.
fn kinds(texts: &[String]) -> Vec<&str> {
    texts.iter().map(|text| text.split_once('=').unwrap().0).collect()
}

/// The command that serves a stand-in.
fn serving(standin: &Standin, flags: &[&str]) -> Command {
    let mut command = crate::support::serving(standin);
    command.args(["--listen", "127.0.0.1", "--debug"]);
    command.args(["--no-worker", "--check-cache", "0"]).args(flags);
    // Files that a killed daemon leaves behind are removed with the stand-in.
    command.env("TMPDIR", standin.path());
    command
}

/// A command that a shell executes after `script` in the same process, so that the script knows its
/// process id.
fn after(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{script}; exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}
