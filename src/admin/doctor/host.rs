//! The machine itself: `SELinux`, ports that are open to the world, the clock, limits, memory, disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Stop;
use super::report::Finding;
use crate::admin::doctor::context::Context;
use crate::admin::doctor::ports::Port;
use crate::admin::doctor::zmq_endpoints;
use crate::admin::setup::Files;
use crate::engine::checks::verdict::ProcessExit;
use crate::engine::limits::RESERVED_DESCRIPTORS;
use crate::engine::printable::plural;
use crate::espocrm::Identity;
use crate::espocrm::process::Children;
use crate::platform::shell_word::shell_word;
use crate::platform::sys;
use crate::settings::megabytes;

/// No clock that is right shows less: the second in which 2026 began, the year of this program.
const YEAR: u64 = 1_767_225_600;

/// More than asking for the time takes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a PHP process takes that checks access.
const PHP_PROCESS: u64 = 50_000_000;

const MEGABYTE: u64 = 1_000_000;

/// EspoCRM writes caches and logs all the time.
const ENOUGH_DISK: u64 = 100 * MEGABYTE;

pub(super) fn selinux(files: &Files) -> Finding {
    let text = |name: &str| {
        let bytes = files.read(&Path::new("/sys/fs/selinux").join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    judge_selinux(text("enforce").as_deref(), text("booleans/httpd_can_network_connect").as_deref())
}

fn judge_selinux(enforce: Option<&str>, boolean: Option<&str>) -> Finding {
    const STEP: &str = "selinux";
    if enforce.map(str::trim) != Some("1") {
        return Finding::good(STEP, "SELinux is not in force");
    }
    // The present value, and the one that was asked for.
    match boolean.and_then(|it| it.split_whitespace().next()) {
        Some("1") => Finding::good(
            STEP,
            "SELinux is in force, and lets the web server connect to the daemon",
        ),
        Some(_) => Finding::bad(
            STEP,
            "SELinux keeps the web server from connecting to the daemon",
            "As root: setsebool -P httpd_can_network_connect 1",
        ),
        None => Finding::unknown(STEP, "SELinux is in force; what it allows cannot be seen"),
    }
}

/// Whether others can reach the port for EspoCRM's messages.
pub(super) fn zeromq_exposure(context: &Context, files: &Files, port: Option<&Port>) -> Finding {
    let zeromq = &context.settings.zeromq.value;
    let is_open = match port {
        Some(port) if port.is_ours() => port.is_open(),
        _ => !zmq_endpoints::is_local(zeromq),
    };
    let wanted = !zmq_endpoints::is_local(&zmq_endpoints::submission(context));
    judge_zeromq(zeromq, is_open, wanted || is_container(files))
}

fn judge_zeromq(zeromq: &str, is_open: bool, wanted: bool) -> Finding {
    const STEP: &str = "zeromq-exposure";
    if !is_open {
        return Finding::good(STEP, "Only this machine reaches the port for EspoCRM's messages");
    }
    let found = format!("Other machines may reach the port for EspoCRM's messages: {zeromq}");
    if wanted {
        return Finding::doubt(
            STEP,
            found,
            "Whoever reaches it can send to EspoCRM's users. Keep it in a network of its own, and \
             publish it nowhere.",
        );
    }
    Finding::bad(
        STEP,
        found,
        "Whoever reaches it can send to EspoCRM's users, and EspoCRM itself connects from here. \
         Set\n  'webSocketZeroMQSubscriberDsn' => 'tcp://127.0.0.1:5555',\n(with the port that you \
         have) in EspoCRM's data/config-internal.php and restart the daemon.",
    )
}

/// Whether others can pass by the proxy.
pub(super) fn port_exposure(
    context: &Context,
    files: &Files,
    port: &Port,
    direct: Option<bool>,
) -> Finding {
    let is_open =
        if port.is_ours() { port.is_open() } else { !context.settings.address.value.is_loopback() };
    judge_port(port.number, is_open, direct, is_container(files), &context.config)
}

fn judge_port(
    port: u16,
    is_open: bool,
    direct: Option<bool>,
    container: bool,
    config: &Path,
) -> Finding {
    const STEP: &str = "port-exposure";
    match (is_open, direct) {
        (false, _) => {
            Finding::good(STEP, format!("Only this machine reaches port {port}, as a proxy does"))
        }
        (true, Some(true)) => Finding::good(
            STEP,
            format!("Other machines reach port {port}, as they must: browsers connect to it"),
        ),
        (true, _) if container => Finding::good(
            STEP,
            format!("Port {port} is that of a container: who reaches it is decided outside"),
        ),
        (true, None) => Finding::unknown(
            STEP,
            format!("Other machines may reach port {port}; whether they must is not known"),
        ),
        (true, Some(false)) => Finding::doubt(
            STEP,
            format!("Other machines may reach port {port}, though browsers come through a proxy"),
            format!(
                "Without TLS tokens could be seen on the way. Set listen = \"127.0.0.1\" in {}, if \
                 the proxy is on this machine.",
                config.display()
            ),
        ),
    }
}

fn is_container(files: &Files) -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|it| files.resolve(Path::new(it)).is_ok())
}

pub(super) fn clock(stop: Stop<'_>) -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut command = Command::new("timedatectl");
    command.args(["show", "-p", "NTPSynchronized", "--value"]).stdin(Stdio::null());
    let finished = Children::run(command, TIMEOUT, stop).ok();
    let finished = finished.filter(|it| it.exit == Ok(ProcessExit::Status(0)));
    let said = finished.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned());
    judge_clock(now, said.as_deref())
}

fn judge_clock(now: u64, synchronized: Option<&str>) -> Finding {
    const STEP: &str = "clock";
    if now < YEAR {
        return Finding::bad(
            STEP,
            "The clock is wrong: it shows a time before this program was made",
            "Tokens and certificates expire by it. As root: timedatectl set-ntp true",
        );
    }
    match synchronized {
        Some("yes") => Finding::good(STEP, "The clock is kept right by the network"),
        Some("no") => Finding::doubt(
            STEP,
            "The clock is not kept right by the network",
            "Tokens and certificates expire by it. As root: timedatectl set-ntp true\nIn a container \
             or a virtual machine its host may do that.",
        ),
        _ => Finding::good(STEP, "The clock shows a time that may be right"),
    }
}

/// Whether the running daemon may open as many files as it has to.
pub(super) fn open_files(context: &Context, daemon: Option<u32>) -> Finding {
    const STEP: &str = "open-files";
    let Some(pid) = daemon else {
        return Finding::unknown(STEP, "The limit of open files: no daemon of ours is seen to run");
    };
    match fs::read_to_string(format!("/proc/{pid}/limits")) {
        Ok(limits) => judge_open_files(&limits, context.settings.max_connections.value as u64),
        Err(error) => Finding::unknown(STEP, format!("The limit of open files: {error}")),
    }
}

fn judge_open_files(limits: &str, connections: u64) -> Finding {
    const STEP: &str = "open-files";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = soft.map(|text| text.parse().unwrap_or(u64::MAX));
    let Some(soft) = soft else {
        return Finding::unknown(STEP, "The limit of open files is not told");
    };
    let wanted = connections + RESERVED_DESCRIPTORS;
    if soft >= wanted {
        return Finding::good(
            STEP,
            format!(
                "The daemon may open files for {}",
                plural(connections, "connection", "connections")
            ),
        );
    }
    Finding::doubt(
        STEP,
        format!(
            "The daemon may open {}: too few for max_connections = {connections}, so that it lets in \
             fewer",
            plural(soft, "file", "files")
        ),
        format!(
            "systemctl edit espocrm-websocket, then in [Service]: LimitNOFILE={wanted}\nOr lower \
             max_connections."
        ),
    )
}

/// Whether the machine has the memory that the daemon may take.
pub(super) fn memory(context: &Context, files: &Files, daemon: Option<u32>) -> Finding {
    let kilobytes = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let number: u64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        Some(number * 1024)
    };
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut available = kilobytes(&text("/proc/meminfo"), "MemAvailable");
    let limit = files.read(Path::new("/sys/fs/cgroup/memory.max")).unwrap_or_default();
    if let Ok(limit) = String::from_utf8_lossy(&limit).trim().parse::<u64>() {
        available = available.map(|available| available.min(limit));
    }
    // What it has already.
    let own = daemon.and_then(|pid| kilobytes(&text(&format!("/proc/{pid}/status")), "VmRSS"));
    let worst = context.settings.worst_case() as u64;
    let php = context.settings.max_checks.value as u64 * PHP_PROCESS;
    judge_memory(available.map(|it| it + own.unwrap_or(0)), worst, php)
}

fn judge_memory(available: Option<u64>, worst: u64, php: u64) -> Finding {
    const STEP: &str = "memory";
    let shown = |bytes: u64| megabytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    let Some(available) = available else {
        return Finding::unknown(STEP, "The memory of this machine is not told");
    };
    let found = format!(
        "{} of memory are available; the daemon takes {} at most, and PHP {} while many log in",
        shown(available),
        shown(worst),
        shown(php)
    );
    if available >= worst.saturating_add(php) {
        return Finding::good(STEP, found);
    }
    Finding::doubt(
        STEP,
        found,
        "Lower max_connections to the number of tabs that there are, and max_checks to 1 or 2, in \
         our configuration.",
    )
}

/// Whether EspoCRM can write its caches and logs.
pub(super) fn data(context: &Context) -> Finding {
    const STEP: &str = "data";
    let dir = context.espocrm.root().join("data");
    let who = Who {
        user: &context.user,
        owner: &Identity::owner_of(&dir).unwrap_or_default(),
        is_root: sys::is_root(),
    };
    match sys::free_space(&dir) {
        Ok((bytes, files)) => judge_data(&who, &dir, &context.about.unwritable, bytes, files),
        Err(error) => Finding::unknown(STEP, format!("EspoCRM's data/: {error}")),
    }
}

/// Users whose permissions on `data/` matter.
struct Who<'a> {
    /// Runs PHP now.
    user: &'a str,
    /// Owns `data/`.
    owner: &'a str,
    /// Whether the doctor can choose the user who runs PHP.
    is_root: bool,
}

fn judge_data(who: &Who<'_>, dir: &Path, unwritable: &[String], bytes: u64, files: u64) -> Finding {
    const STEP: &str = "data";
    let Who { user, owner, is_root } = who;
    if !unwritable.is_empty() {
        let what = unwritable.join(", ");
        if !is_root && user != owner {
            return Finding::unknown(
                STEP,
                format!(
                    "{user} cannot write into EspoCRM's {what}, which belongs to {owner}; whether \
                     the service's user can is known only if root runs the doctor"
                ),
            );
        }
        let found = format!("{user} cannot write into EspoCRM's {what}");
        if user != owner {
            return Finding::bad(
                STEP,
                found,
                format!(
                    "data/ belongs to {owner}. If the web server's PHP runs as {owner}, the daemon \
                     must, too: espocrm-websocket setup --user {owner}"
                ),
            );
        }
        return Finding::bad(
            STEP,
            found,
            format!(
                "PHP writes caches and logs there. They should belong to that user, with mode 775: \
                 chown -R {user}: {}",
                shell_word(&dir.to_string_lossy())
            ),
        );
    }
    let found = format!("{user} can write into EspoCRM's data/, with {} MB free", bytes / MEGABYTE);
    if bytes < MEGABYTE || files == 0 {
        return Finding::bad(
            STEP,
            "The disk with EspoCRM's data/ is full",
            "PHP cannot write caches and logs there. See: df -h; df -i; du -x / | sort -n | tail",
        );
    }
    if bytes < ENOUGH_DISK {
        return Finding::doubt(STEP, found, "That is soon full. See: df -h");
    }
    Finding::good(STEP, found)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn selinux_may_keep_the_web_server_away() {
        for (enforce, boolean, state) in [
            (None, None, State::Good),
            (Some("0"), Some("0 0"), State::Good),
            (Some("1\n"), Some("1 1\n"), State::Good),
            (Some("1"), Some("0 0"), State::Bad),
            (Some("1"), None, State::Unknown),
        ] {
            assert_eq!(judge_selinux(enforce, boolean).state, state, "{enforce:?} {boolean:?}");
        }
    }

    #[test]
    fn open_ports_are_told() {
        assert_eq!(judge_zeromq("tcp://127.0.0.1:1", false, false).state, State::Good);
        assert_eq!(judge_zeromq("tcp://*:1", true, false).state, State::Bad);
        assert_eq!(judge_zeromq("tcp://*:1", true, true).state, State::Doubt);
        for (is_open, direct, container, state) in [
            (false, Some(false), false, State::Good),
            (true, Some(true), false, State::Good),
            (true, Some(false), false, State::Doubt),
            (true, Some(false), true, State::Good),
            (true, None, false, State::Unknown),
        ] {
            let config = Path::new("/etc/espocrm-websocket/crm.toml");
            let finding = judge_port(8080, is_open, direct, container, config);
            assert_eq!(finding.state, state);
            if state == State::Doubt {
                assert!(finding.fix.contains("in /etc/espocrm-websocket/crm.toml"));
            }
        }
    }

    #[test]
    fn the_clock_is_judged() {
        for (now, said, state) in [
            (0, Some("yes"), State::Bad),
            (YEAR, Some("yes"), State::Good),
            (YEAR, Some("no"), State::Doubt),
            (YEAR, None, State::Good),
        ] {
            assert_eq!(judge_clock(now, said).state, state);
        }
    }

    #[test]
    fn limits_are_judged() {
        let limits = |soft: &str| format!("Limit  Soft\nMax open files   {soft}  524288  files\n");
        assert_eq!(judge_open_files(&limits("16384"), 10_000).state, State::Good);
        assert_eq!(judge_open_files(&limits("unlimited"), 10_000).state, State::Good);
        assert_eq!(judge_open_files(&limits("1024"), 10_000).state, State::Doubt);
        assert_eq!(judge_open_files("", 10_000).state, State::Unknown);
        assert_eq!(judge_memory(Some(10), 5, 5).state, State::Good);
        assert_eq!(judge_memory(Some(9), 5, 5).state, State::Doubt);
        assert_eq!(judge_memory(None, 5, 5).state, State::Unknown);
        let who = Who { user: "web", owner: "web", is_root: false };
        let dir = Path::new("/srv/my crm/data");
        let data = |bytes, files| judge_data(&who, dir, &[], bytes, files).state;
        assert_eq!(data(1_000 * MEGABYTE, 7), State::Good);
        assert_eq!(data(50 * MEGABYTE, 7), State::Doubt);
        assert_eq!(data(0, 7), State::Bad);
        assert_eq!(data(1_000 * MEGABYTE, 0), State::Bad);
    }

    #[test]
    fn advice_on_permissions_is_for_the_services_user() {
        let judged = |user, owner, is_root| {
            let (who, dir) = (Who { user, owner, is_root }, Path::new("/srv/my crm/data"));
            judge_data(&who, dir, &["data/cache".to_owned()], 1_000 * MEGABYTE, 7)
        };
        for is_root in [false, true] {
            let finding = judged("web", "web", is_root);
            assert_eq!(finding.state, State::Bad);
            assert!(finding.fix.ends_with("chown -R web: '/srv/my crm/data'"), "{}", finding.fix);
        }
        // An ordinary user: nothing is known of the service's.
        let finding = judged("ann", "web", false);
        assert_eq!((finding.state, &*finding.fix), (State::Unknown, ""));
        let finding = judged("ann", "web", true);
        assert_eq!(finding.state, State::Bad);
        assert!(!finding.fix.contains("chown") && finding.fix.contains("setup --user web"));
    }
}
