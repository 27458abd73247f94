//! The processes that listen on a port of this machine, read from `/proc`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lexopt::prelude::{Long, Value};

use super::report::Finding;
use crate::espocrm::identity::name_of;
use crate::platform::shell_word::shell_word;
use crate::settings::definitions::SETTINGS;
use crate::settings::{DEFAULT_FILE, Overrides};

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub address: IpAddr,
    user: u32,
    inode: u64,
}

/// The process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub pid: u32,
    pub command: String,
    pub kind: Kind,
    /// The systemd service of the process.
    pub unit: Option<String>,
}

/// The kind of process that holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The daemon that is examined.
    Daemon,
    /// The daemon of another service, or one that was started manually for another EspoCRM.
    OtherService,
    /// EspoCRM's own daemon.
    Original,
    /// systemd, for a socket unit of any service.
    Systemd,
    Other,
}

/// A port, its listening sockets and the process that holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    pub number: u16,
    pub sockets: Vec<Socket>,
    /// The process, if this user may see it.
    pub holder: Option<Holder>,
}

/// The daemon that is examined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The EspoCRM that it serves.
    pub root: &'a Path,
    /// Its systemd service, if that is known to serve this EspoCRM.
    pub unit: Option<&'a str>,
    /// The main process that systemd reports for the service, if it runs.
    pub main_pid: Option<u32>,
}

/// Bytes of a process's arguments that are read.
const MAX_ARGUMENTS: u64 = 16 * 1_024;

impl Port {
    /// Finds the sockets on port `number` that prevent another process from listening at `address`.
    pub(super) fn inspect(number: u16, address: Option<IpAddr>, expected: Expected<'_>) -> Self {
        let mut sockets = Vec::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let table = fs::read_to_string(table).unwrap_or_default();
            sockets.extend(listening(&table, number));
        }
        if let Some(address) = address.filter(|address| !address.is_unspecified()) {
            sockets.retain(|it| it.address == address || it.address.is_unspecified());
        }
        let holder = if sockets.is_empty() { None } else { find(&sockets, expected) };
        Self { number, sockets, holder }
    }

    /// Whether the daemon holds the port, or systemd does.
    pub(super) fn is_daemon(&self) -> bool {
        self.holder.as_ref().is_some_and(|it| matches!(it.kind, Kind::Daemon | Kind::Systemd))
    }

    /// Accepts this process as the daemon, whatever its name: it answers at the control socket.
    pub(super) fn recognize(&mut self, pid: Option<u32>) {
        let holder = self.holder.as_mut().filter(|it| Some(it.pid) == pid);
        if let Some(holder) = holder.filter(|it| it.kind == Kind::Other) {
            holder.kind = Kind::Daemon;
        }
    }

    /// Whether the daemon of another EspoCRM holds the port.
    pub(super) fn is_other_service(&self) -> bool {
        self.holder.as_ref().is_some_and(|it| it.kind == Kind::OtherService)
    }

    /// Whether no process holds the port.
    pub(super) fn is_free(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Whether other machines can reach the port.
    pub(super) fn is_open(&self) -> bool {
        self.sockets.iter().any(|it| !it.address.is_loopback())
    }

    /// `serves`: whether the port answers like this daemon.
    pub(super) fn judge(&self, step: &'static str, title: &str, serves: bool) -> Finding {
        let port = self.number;
        if self.is_free() {
            return Finding::ok(step, format!("{title}: {port} is free"));
        }
        let Some(holder) = &self.holder else {
            if serves {
                let found = format!(
                    "{title}: {port} is held by a process that answers as espocrm-websocket"
                );
                return Finding::ok(step, found);
            }
            let mut users = Vec::new();
            for user in self.sockets.iter().map(|it| name_of(it.user)) {
                if !users.contains(&user) {
                    users.push(user);
                }
            }
            return Finding::unknown(
                step,
                format!(
                    "{title}: {port} is held by a process of user {}; to identify it, run the \
                     doctor as root",
                    users.join(", ")
                ),
            );
        };
        let Holder { pid, command, kind, unit } = holder;
        let held = format!("{title}: {port} is held by process {pid}: {command}");
        match kind {
            Kind::Daemon => Finding::ok(step, held),
            Kind::Systemd => Finding::ok(
                step,
                format!(
                    "{title}: {port} is held by systemd, for espocrm-websocket.socket or another \
                     unit"
                ),
            ),
            Kind::OtherService => {
                let of = unit.as_deref().map(|unit| format!(" of {unit}")).unwrap_or_default();
                Finding::failure(
                    step,
                    format!(
                        "{title}: {port} is held by the daemon of another EspoCRM, process \
                         {pid}{of}: {command}"
                    ),
                    "Each EspoCRM needs its own ports. In data/config-internal.php of one of them, \
                     change webSocketPort, and for ZeroMQ webSocketZeroMQSubmissionDsn and \
                     webSocketZeroMQSubscriberDsn.",
                )
            }
            Kind::Original => Finding::failure(
                step,
                format!("{title}: {port} is held by EspoCRM's own daemon, process {pid}"),
                "Stop it, or replace it (reversible):\n  espocrm-websocket adopt\nIf supervisor, \
                 cron or a container starts it instead of systemd, stop it there.",
            ),
            Kind::Other => Finding::failure(
                step,
                held,
                format!(
                    "Stop that process, or choose another port: webSocketPort, and for ZeroMQ \
                     webSocketZeroMQSubmissionDsn and webSocketZeroMQSubscriberDsn, in EspoCRM's \
                     data/config-internal.php.\nShow the process: ss -ltnp {}",
                    shell_word(&format!("sport = :{port}"))
                ),
            ),
        }
    }
}

/// The listening sockets in `/proc/net/tcp` or `tcp6`.
fn listening(table: &str, port: u16) -> Vec<Socket> {
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number).copied();
        let (address, number) = field(1)?.split_once(':')?;
        let is_it = u16::from_str_radix(number, 16).ok()? == port && field(3)? == LISTEN;
        is_it.then_some(())?;
        Some(Socket {
            address: decode(address)?,
            user: field(7)?.parse().ok()?,
            inode: field(9)?.parse().ok()?,
        })
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// An address in the kernel's format: 32-bit words in the machine's byte order.
fn decode(text: &str) -> Option<IpAddr> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at_checked(8)?;
        words.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = after;
    }
    if let Ok(bytes) = <[u8; 4]>::try_from(&*words) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(&*words).ok()?;
    Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
}

/// A process that holds one of these sockets, preferably an espocrm-websocket.
fn find(sockets: &[Socket], expected: Expected<'_>) -> Option<Holder> {
    let names: Vec<_> = sockets.iter().map(|it| format!("socket:[{}]", it.inode)).collect();
    let mut found: Option<Holder> = None;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            let target = fs::read_link(descriptor.path());
            target.is_ok_and(|target| names.iter().any(|name| target.as_os_str() == &**name))
        });
        if holds {
            let holder = Holder::of(pid, expected);
            if matches!(holder.kind, Kind::Daemon | Kind::OtherService) {
                return Some(holder);
            }
            // The process that passed the socket on, and its children, may hold it too.
            if found.as_ref().is_none_or(|found| found.kind == Kind::Systemd) {
                found = Some(holder);
            }
        }
    }
    found
}

impl Holder {
    fn of(pid: u32, expected: Expected<'_>) -> Self {
        let mut list = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
            let _ = file.take(MAX_ARGUMENTS).read_to_end(&mut list);
        }
        let list = String::from_utf8_lossy(&list);
        let words: Vec<&str> = list.split_terminator('\0').collect();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let unit = unit(&cgroup).map(str::to_owned);
        let kind = match kind(pid, &words) {
            Kind::Other if is_same_program(pid) || expected.main_pid == Some(pid) => Kind::Daemon,
            kind => kind,
        };
        let is_another = || expected.is_another(pid, unit.as_deref(), root(pid, &words).as_deref());
        let kind = if kind == Kind::Daemon && is_another() { Kind::OtherService } else { kind };
        Self { pid, command: command(&words), kind, unit }
    }
}

impl Expected<'_> {
    /// Whether this espocrm-websocket process is the daemon of another EspoCRM. `root`: the
    /// EspoCRM that it serves according to its command line.
    fn is_another(&self, pid: u32, unit: Option<&str>, root: Option<&Path>) -> bool {
        let by_unit = match (self.unit, self.main_pid, unit) {
            (Some(_), Some(main_pid), _) => return main_pid != pid,
            (Some(own), None, Some(unit)) => unit.starts_with("espocrm-websocket") && unit != own,
            _ => false,
        };
        by_unit || root.and_then(|root| is_same_file(root, self.root)) == Some(false)
    }
}

/// The EspoCRM that a daemon serves according to its command line and its configuration file.
fn root(pid: u32, words: &[&str]) -> Option<PathBuf> {
    // The process may run in another directory, or in a container.
    let path = |path: &Path| match path.strip_prefix("/") {
        Ok(path) => Path::new(&format!("/proc/{pid}/root")).join(path),
        Err(_) => Path::new(&format!("/proc/{pid}/cwd")).join(path),
    };
    let (mut dir, mut config) = (None, OsString::from(DEFAULT_FILE));
    let mut parser = lexopt::Parser::from_args(words.iter().skip(1));
    while let Ok(Some(argument)) = parser.next() {
        match argument {
            Long("espocrm") => dir = Some(parser.value().ok()?),
            Long("config") => config = parser.value().ok()?,
            Long(flag) => {
                let setting = SETTINGS.iter().find(|setting| setting.flag == flag);
                if flag == "user" || setting.is_some_and(|setting| !setting.value.is_empty()) {
                    parser.value().ok()?;
                }
            }
            Value(word) if word == "demo" => return None,
            Value(word) if word == "." || word.to_string_lossy().contains('/') => dir = Some(word),
            _ => {}
        }
    }
    if let Some(dir) = dir {
        return Some(path(dir.as_ref()));
    }
    let text = Overrides::text_of(&path(config.as_ref())).ok()?;
    Some(path(&Overrides::from_toml(&text).ok()?.espocrm?))
}

/// The service in a process's control group.
fn unit(cgroup: &str) -> Option<&str> {
    let mut names = cgroup.lines().filter_map(|line| line.rsplit('/').next());
    names.find(|name| name.ends_with(".service"))
}

/// Whether a process runs this program, whatever its name.
fn is_same_program(pid: u32) -> bool {
    let exe = format!("/proc/{pid}/exe");
    is_same_file("/proc/self/exe".as_ref(), exe.as_ref()) == Some(true)
}

/// Whether two paths lead to the same file, if both can be examined.
fn is_same_file(one: &Path, other: &Path) -> Option<bool> {
    let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    Some(identity(one)? == identity(other)?)
}

fn kind(pid: u32, words: &[&str]) -> Kind {
    let name = |word: &str| Path::new(word).file_name().map(OsStr::to_owned).unwrap_or_default();
    match words {
        [first, ..] if name(first) == "espocrm-websocket" => Kind::Daemon,
        // In a container, process 1 may be any program.
        [first, ..] if pid == 1 && matches!(name(first).to_str(), Some("systemd" | "init")) => {
            Kind::Systemd
        }
        [_, rest @ ..] if rest.iter().any(|word| name(word) == "websocket.php") => Kind::Original,
        _ => Kind::Other,
    }
}

/// The beginning of a command line: further arguments may be confidential.
fn command(words: &[&str]) -> String {
    let shown: Vec<&str> = words.iter().copied().take(3).collect();
    let text: String = shown.join(" ").chars().take(100).collect();
    if text.is_empty() { "unknown".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use crate::admin::setup::image::Image;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:15B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4711 1 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0
   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0
   odd
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_socket_table_is_parsed() {
        let zeromq = Socket { address: Ipv4Addr::LOCALHOST.into(), user: 33, inode: 4711 };
        assert_eq!(listening(TABLE, 5555), [zeromq]);
        let [socket] = &listening(TABLE, 8080)[..] else { panic!() };
        assert!(socket.address.is_unspecified() && socket.inode == 4712);
        assert_eq!(listening(TABLE, 1), []);
        let six = TABLE.replace("00000000:1F90", "0000000000000000FFFF00000100007F:1F90");
        assert_eq!(listening(&six, 8080)[0].address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let loopback = decode("00000000000000000000000001000000");
        assert_eq!(loopback, Some(Ipv6Addr::LOCALHOST.into()));
        for odd in ["", "0100007", "0100007g", "é000000000000000"] {
            assert_eq!(decode(odd), None);
        }
    }

    #[test]
    fn processes_are_recognized_by_their_command() {
        for (pid, words, expected) in [
            (7, &["/usr/bin/espocrm-websocket", "run"][..], Kind::Daemon),
            (7, &["php", "/var/www/html/websocket.php"], Kind::Original),
            (7, &["/usr/bin/php8.2", "-f", "websocket.php"], Kind::Original),
            (1, &["/lib/systemd/systemd", "--system"], Kind::Systemd),
            (1, &["/sbin/init"], Kind::Systemd),
            (7, &["/sbin/init"], Kind::Other),
            (7, &["python3", "x"], Kind::Other),
            (7, &[], Kind::Other),
        ] {
            assert_eq!(kind(pid, words), expected, "{words:?}");
        }
        assert_eq!(command(&["a", "b", "c", "secret"]), "a b c");
        assert_eq!(command(&[]), "unknown");
    }

    #[test]
    fn the_process_that_holds_a_port_decides_the_finding() {
        let mut port = Port { number: 8080, sockets: Vec::new(), holder: None };
        assert!(port.judge("port", "Port", false).is_ok());
        port.sockets = listening(TABLE, 8080);
        assert_eq!(port.judge("port", "Port", false).state, State::Unknown);
        // One user for both address families, by name, or by number if it has no name.
        for (user, name) in [(0, "root"), (4_711_000, "4711000")] {
            let socket = Socket { user, ..port.sockets[0].clone() };
            port.sockets = vec![socket.clone(), socket];
            let found = port.judge("port", "Port", false).found;
            assert!(found.contains(&format!("of user {name};")), "{found}");
        }
        assert!(port.judge("port", "Port", true).is_ok());
        for (kind, state) in [
            (Kind::Daemon, State::Ok),
            (Kind::Systemd, State::Ok),
            (Kind::OtherService, State::Failure),
            (Kind::Original, State::Failure),
            (Kind::Other, State::Failure),
        ] {
            port.holder = Some(Holder { pid: 7, command: "x".to_owned(), kind, unit: None });
            assert_eq!(port.judge("port", "Port", true).state, state);
        }
        port.recognize(Some(8));
        assert!(!port.is_daemon());
        port.recognize(Some(7));
        assert!(port.is_daemon());
    }

    #[test]
    fn the_daemon_of_another_service_is_not_the_expected_one() {
        let group = "0::/system.slice/system-x.slice/espocrm-websocket@crm.service\n";
        assert_eq!(unit(group), Some("espocrm-websocket@crm.service"));
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), None);
        let name = "espocrm-websocket@crm.service";
        let root = "/".as_ref();
        let expected = |main_pid| Expected { root, unit: Some(name), main_pid };
        for (main_pid, unit, is_another) in [
            (Some(7), Some("espocrm-websocket@crm.service"), false),
            (Some(8), Some("espocrm-websocket@crm.service"), true),
            (None, Some("espocrm-websocket@crm.service"), false),
            (None, Some("espocrm-websocket.service"), true),
            // Started manually or by another unit.
            (None, Some("crm.service"), false),
            (None, None, false),
        ] {
            let judged = expected(main_pid).is_another(7, unit, None);
            assert_eq!(judged, is_another, "{main_pid:?} {unit:?}");
        }
        let guessed = Expected { unit: None, ..expected(Some(8)) };
        assert!(!guessed.is_another(7, Some("espocrm-websocket.service"), None));
        // By the EspoCRM that the command line names.
        assert!(guessed.is_another(7, None, Some("/proc".as_ref())));
        assert!(!guessed.is_another(7, None, Some(root)));
        assert!(!guessed.is_another(7, None, Some("/nonexistent".as_ref())));
        assert!(!expected(Some(7)).is_another(7, None, Some("/proc".as_ref())));
        assert!(is_same_program(std::process::id()) && !is_same_program(u32::MAX));
    }

    #[test]
    fn a_daemon_serves_the_espocrm_that_its_command_line_or_configuration_names() {
        let image = Image::new();
        image.put("/a.toml", "espocrm = '/srv/a'\n");
        let pid = std::process::id();
        let config = image.at("/a.toml").display().to_string();
        let missing = image.at("/b.toml").display().to_string();
        for (words, expected) in [
            (&["--espocrm", "/srv/b"][..], Some("root/srv/b")),
            (&["run", "--espocrm=/srv/b", "--config", &config], Some("root/srv/b")),
            (&["run", "--listen", "1.2.3.4", "/srv/b"], Some("root/srv/b")),
            (&["--control", "/run/x", "--debug", "./b"], Some("cwd/./b")),
            (&["run", "--config", &config], Some("root/srv/a")),
            (&["run", "--config", &missing], None),
            (&["demo", "--listen", "127.0.0.1"], None),
            (&["run", "--espocrm"], None),
        ] {
            let found = root(pid, &[&["espocrm-websocket"], words].concat());
            let expected = expected.map(|it| format!("/proc/{pid}/{it}").into());
            assert_eq!(found, expected, "{words:?}");
        }
    }
}
