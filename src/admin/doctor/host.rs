//! The machine: `SELinux`, ports open to other machines, clock, limits, memory, disk.

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

/// The beginning of 2026, the year of this program. An earlier time is wrong.
const YEAR: u64 = 1_767_225_600;

/// Ample time for `timedatectl`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that a PHP process needs for an access check.
const PHP_PROCESS: u64 = 50_000_000;

const MEGABYTE: u64 = 1_000_000;

/// EspoCRM writes caches and logs continuously.
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
        return Finding::ok(STEP, "SELinux is not enforcing");
    }
    // The current value, and the pending one.
    match boolean.and_then(|it| it.split_whitespace().next()) {
        Some("1") => Finding::ok(
            STEP,
            "SELinux is enforcing, and allows the web server to connect to the daemon",
        ),
        Some(_) => Finding::failure(
            STEP,
            "SELinux prevents the web server from connecting to the daemon",
            "As root: setsebool -P httpd_can_network_connect 1",
        ),
        None => Finding::unknown(STEP, "SELinux is enforcing; its booleans could not be read"),
    }
}

/// Whether other machines can reach the port for EspoCRM's messages.
pub(super) fn zeromq_exposure(context: &Context, files: &Files, port: Option<&Port>) -> Finding {
    let zeromq = &context.settings.zeromq.value;
    let is_open = match port {
        Some(port) if port.is_daemon() => port.is_open(),
        _ => !zmq_endpoints::is_local(zeromq),
    };
    let wanted = !zmq_endpoints::is_local(&zmq_endpoints::submission(context));
    judge_zeromq(zeromq, is_open, wanted || is_container(files))
}

fn judge_zeromq(zeromq: &str, is_open: bool, wanted: bool) -> Finding {
    const STEP: &str = "zeromq-exposure";
    if !is_open {
        return Finding::ok(STEP, "Only this machine can reach the port for EspoCRM's messages");
    }
    let found = format!("Other machines can reach the port for EspoCRM's messages: {zeromq}");
    if wanted {
        return Finding::warning(
            STEP,
            found,
            "Anyone who can reach this port can send messages to EspoCRM's users. Use a separate \
             network for it, and do not publish the port.",
        );
    }
    Finding::failure(
        STEP,
        found,
        "Anyone who can reach this port can send messages to EspoCRM's users. EspoCRM connects \
         from this machine, so set\n  'webSocketZeroMQSubscriberDsn' => 'tcp://127.0.0.1:5555',\n\
         (with your port) in EspoCRM's data/config-internal.php, and restart the daemon.",
    )
}

/// Whether other machines can bypass the proxy.
pub(super) fn port_exposure(
    context: &Context,
    files: &Files,
    port: &Port,
    direct: Option<bool>,
) -> Finding {
    let is_open = if port.is_daemon() {
        port.is_open()
    } else {
        !context.settings.address.value.is_loopback()
    };
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
        (false, _) => Finding::ok(STEP, format!("Only this machine can reach port {port}")),
        (true, Some(true)) => Finding::ok(
            STEP,
            format!("Other machines can reach port {port}; browsers connect to it directly"),
        ),
        (true, _) if container => Finding::ok(
            STEP,
            format!("Port {port} is in a container; the container's host controls access to it"),
        ),
        (true, None) => Finding::unknown(
            STEP,
            format!("Other machines can reach port {port}; it is unknown whether browsers need it"),
        ),
        (true, Some(false)) => Finding::warning(
            STEP,
            format!("Other machines can reach port {port}, although browsers use a proxy"),
            format!(
                "Connections to this port are not encrypted, so access tokens could be \
                 intercepted. If the proxy runs on this machine, set listen = \"127.0.0.1\" in {}.",
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
    let output = finished.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned());
    judge_clock(now, output.as_deref())
}

fn judge_clock(now: u64, synchronized: Option<&str>) -> Finding {
    const STEP: &str = "clock";
    if now < YEAR {
        return Finding::failure(
            STEP,
            "The system clock is wrong: it is earlier than the release of this program",
            "The expiry of tokens and certificates depends on it. As root: timedatectl set-ntp \
             true",
        );
    }
    match synchronized {
        Some("yes") => Finding::ok(STEP, "The system clock is synchronized"),
        Some("no") => Finding::warning(
            STEP,
            "The system clock is not synchronized",
            "The expiry of tokens and certificates depends on it. As root: timedatectl set-ntp \
             true\nIn a container or virtual machine, the host may synchronize the clock instead.",
        ),
        _ => Finding::ok(STEP, "The system clock is plausible"),
    }
}

/// Whether the running daemon may open enough files.
pub(super) fn open_files(context: &Context, daemon: Option<u32>) -> Finding {
    const STEP: &str = "open-files";
    let Some(pid) = daemon else {
        return Finding::unknown(STEP, "Limit on open files: no running daemon was found");
    };
    match fs::read_to_string(format!("/proc/{pid}/limits")) {
        Ok(limits) => judge_open_files(&limits, context.settings.max_connections.value as u64),
        Err(error) => Finding::unknown(STEP, format!("Limit on open files: {error}")),
    }
}

fn judge_open_files(limits: &str, connections: u64) -> Finding {
    const STEP: &str = "open-files";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = soft.map(|text| text.parse().unwrap_or(u64::MAX));
    let Some(soft) = soft else {
        return Finding::unknown(STEP, "Limit on open files: the kernel does not report it");
    };
    let wanted = connections + RESERVED_DESCRIPTORS;
    if soft >= wanted {
        return Finding::ok(
            STEP,
            format!(
                "The daemon may open enough files for {}",
                plural(connections, "connection", "connections")
            ),
        );
    }
    Finding::warning(
        STEP,
        format!(
            "The daemon may open {}, which is too few for max_connections = {connections}; it \
             accepts fewer connections",
            plural(soft, "file", "files")
        ),
        format!(
            "Add LimitNOFILE={wanted} to [Service]: systemctl edit espocrm-websocket\nOr reduce \
             max_connections."
        ),
    )
}

/// Whether the machine has the memory that the daemon may use.
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
    // The daemon's present memory is available to it.
    let own = daemon.and_then(|pid| kilobytes(&text(&format!("/proc/{pid}/status")), "VmRSS"));
    let worst = context.settings.worst_case() as u64;
    let php = context.settings.max_checks.value as u64 * PHP_PROCESS;
    judge_memory(available.map(|it| it + own.unwrap_or(0)), worst, php)
}

fn judge_memory(available: Option<u64>, worst: u64, php: u64) -> Finding {
    const STEP: &str = "memory";
    let shown = |bytes: u64| megabytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    let Some(available) = available else {
        return Finding::unknown(STEP, "Memory: the kernel does not report how much is available");
    };
    let found = format!(
        "{} of memory available; the daemon uses at most {}, and PHP {} when many users log in",
        shown(available),
        shown(worst),
        shown(php)
    );
    if available >= worst.saturating_add(php) {
        return Finding::ok(STEP, found);
    }
    Finding::warning(
        STEP,
        found,
        "In the configuration file, reduce max_connections to the number of browser tabs that you \
         expect, and max_checks to 1 or 2.",
    )
}

/// Whether EspoCRM can write its caches and logs.
pub(super) fn data(context: &Context) -> Finding {
    const STEP: &str = "data";
    let dir = context.espocrm.root().join("data");
    let users = DataUsers {
        user: &context.user,
        owner: &Identity::owner_of(&dir).unwrap_or_default(),
        is_root: sys::is_root(),
    };
    match sys::free_space(&dir) {
        Ok((bytes, files)) => judge_data(&users, &dir, &context.php_info.unwritable, bytes, files),
        Err(error) => Finding::unknown(STEP, format!("EspoCRM's data/: {error}")),
    }
}

/// The users who may write to `data/`.
struct DataUsers<'a> {
    /// The user who runs PHP now.
    user: &'a str,
    /// The owner of `data/`.
    owner: &'a str,
    /// Whether the doctor can choose the user who runs PHP.
    is_root: bool,
}

fn judge_data(
    users: &DataUsers<'_>,
    dir: &Path,
    unwritable: &[String],
    bytes: u64,
    files: u64,
) -> Finding {
    const STEP: &str = "data";
    let DataUsers { user, owner, is_root } = users;
    if !unwritable.is_empty() {
        let what = unwritable.join(", ");
        if !is_root && user != owner {
            return Finding::unknown(
                STEP,
                format!(
                    "User {user} cannot write to EspoCRM's {what}, which belongs to {owner}; to \
                     test the service's user, run the doctor as root"
                ),
            );
        }
        let found = format!("User {user} cannot write to EspoCRM's {what}");
        if user != owner {
            return Finding::failure(
                STEP,
                found,
                format!(
                    "data/ belongs to {owner}. If the web server's PHP runs as {owner}, the daemon \
                     must run as the same user: espocrm-websocket setup --user {owner}"
                ),
            );
        }
        return Finding::failure(
            STEP,
            found,
            format!(
                "PHP writes caches and logs there. The directories should belong to this user, \
                 with mode 775: chown -R {user}: {}",
                shell_word(&dir.to_string_lossy())
            ),
        );
    }
    let free = bytes / MEGABYTE;
    let found = format!("User {user} can write to EspoCRM's data/, with {free} MB free");
    if bytes < MEGABYTE || files == 0 {
        return Finding::failure(
            STEP,
            "The disk with EspoCRM's data/ is full",
            "PHP cannot write caches and logs. Find large directories: df -h; df -i; du -x / | \
             sort -n | tail",
        );
    }
    if bytes < ENOUGH_DISK {
        return Finding::warning(STEP, found, "The disk is almost full. See: df -h");
    }
    Finding::ok(STEP, found)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn selinux_may_block_the_web_server() {
        for (enforce, boolean, state) in [
            (None, None, State::Ok),
            (Some("0"), Some("0 0"), State::Ok),
            (Some("1\n"), Some("1 1\n"), State::Ok),
            (Some("1"), Some("0 0"), State::Failure),
            (Some("1"), None, State::Unknown),
        ] {
            assert_eq!(judge_selinux(enforce, boolean).state, state, "{enforce:?} {boolean:?}");
        }
    }

    #[test]
    fn ports_open_to_other_machines_are_reported() {
        assert_eq!(judge_zeromq("tcp://127.0.0.1:1", false, false).state, State::Ok);
        assert_eq!(judge_zeromq("tcp://*:1", true, false).state, State::Failure);
        assert_eq!(judge_zeromq("tcp://*:1", true, true).state, State::Warning);
        for (is_open, direct, container, state) in [
            (false, Some(false), false, State::Ok),
            (true, Some(true), false, State::Ok),
            (true, Some(false), false, State::Warning),
            (true, Some(false), true, State::Ok),
            (true, None, false, State::Unknown),
        ] {
            let config = Path::new("/etc/espocrm-websocket/crm.toml");
            let finding = judge_port(8080, is_open, direct, container, config);
            assert_eq!(finding.state, state);
            if state == State::Warning {
                assert!(finding.fix.contains("in /etc/espocrm-websocket/crm.toml"));
            }
        }
    }

    #[test]
    fn the_clock_is_judged() {
        for (now, synchronized, state) in [
            (0, Some("yes"), State::Failure),
            (YEAR, Some("yes"), State::Ok),
            (YEAR, Some("no"), State::Warning),
            (YEAR, None, State::Ok),
        ] {
            assert_eq!(judge_clock(now, synchronized).state, state);
        }
    }

    #[test]
    fn limits_are_judged() {
        let limits = |soft: &str| format!("Limit  Soft\nMax open files   {soft}  524288  files\n");
        assert_eq!(judge_open_files(&limits("16384"), 10_000).state, State::Ok);
        assert_eq!(judge_open_files(&limits("unlimited"), 10_000).state, State::Ok);
        assert_eq!(judge_open_files(&limits("1024"), 10_000).state, State::Warning);
        assert_eq!(judge_open_files("", 10_000).state, State::Unknown);
        assert_eq!(judge_memory(Some(10), 5, 5).state, State::Ok);
        assert_eq!(judge_memory(Some(9), 5, 5).state, State::Warning);
        assert_eq!(judge_memory(None, 5, 5).state, State::Unknown);
        let users = DataUsers { user: "web", owner: "web", is_root: false };
        let dir = Path::new("/srv/my crm/data");
        let data = |bytes, files| judge_data(&users, dir, &[], bytes, files).state;
        assert_eq!(data(1_000 * MEGABYTE, 7), State::Ok);
        assert_eq!(data(50 * MEGABYTE, 7), State::Warning);
        assert_eq!(data(0, 7), State::Failure);
        assert_eq!(data(1_000 * MEGABYTE, 0), State::Failure);
    }

    #[test]
    fn advice_on_permissions_is_for_the_services_user() {
        let judged = |user, owner, is_root| {
            let users = DataUsers { user, owner, is_root };
            let dir = Path::new("/srv/my crm/data");
            judge_data(&users, dir, &["data/cache".to_owned()], 1_000 * MEGABYTE, 7)
        };
        for is_root in [false, true] {
            let finding = judged("web", "web", is_root);
            assert_eq!(finding.state, State::Failure);
            assert!(finding.fix.ends_with("chown -R web: '/srv/my crm/data'"), "{}", finding.fix);
        }
        // An ordinary user cannot test the service's user.
        let finding = judged("ann", "web", false);
        assert_eq!((finding.state, &*finding.fix), (State::Unknown, ""));
        let finding = judged("ann", "web", true);
        assert_eq!(finding.state, State::Failure);
        assert!(!finding.fix.contains("chown") && finding.fix.contains("setup --user web"));
    }
}
