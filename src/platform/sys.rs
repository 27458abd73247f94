//! What the standard library does not offer: the only place with `unsafe`.
#![expect(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Raises the limit of open files to what the administrator allows, and returns it.
#[must_use]
pub fn raise_open_files() -> u64 {
    let limit = open_files();
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: it only reads the struct that it is given.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 };
    if done { raised.rlim_cur } else { limit.rlim_cur }
}

/// The limit of open files that programs expect which do not raise it themselves.
const USUAL_OPEN_FILES: libc::rlim_t = 1024;

fn open_files() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: USUAL_OPEN_FILES, rlim_max: USUAL_OPEN_FILES };
    // SAFETY: it only writes to the struct that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

/// Keeps the kernel from writing our memory to a file if we crash: there are tokens in it. Holds for
/// PHP as well, which gets them from us.
pub fn forbid_core_dumps() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: they only write to and read the struct that they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) == 0 {
            // Not 0: then a dump is still piped into a program such as systemd's, with 1 it is not.
            limit.rlim_cur = limit.rlim_max.min(1);
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        }
    }
}

/// Whether a few kilobytes can be written to a descriptor without waiting.
#[must_use]
pub fn takes_output(descriptor: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 };
    // SAFETY: it only writes to the struct that it is given, and does not wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLOUT != 0 }
}

/// Gives memory that was freed back to the system. glibc keeps what lies between blocks in use.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches nothing but what the allocator has free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of memory that this process takes, swapped out or not; 0 if that cannot be told.
#[must_use]
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().filter_map(|line| {
        let value = line.strip_prefix("VmRSS:").or_else(|| line.strip_prefix("VmSwap:"))?;
        value.split_whitespace().next()?.parse::<usize>().ok()
    });
    kilobytes.sum::<usize>() * 1024
}

/// Processor time of this process.
#[must_use]
pub fn own_time() -> Duration {
    used(libc::RUSAGE_SELF)
}

/// Processor time of the children that have been reaped, and of theirs.
#[must_use]
pub fn time_of_children() -> Duration {
    used(libc::RUSAGE_CHILDREN)
}

fn used(whose: libc::c_int) -> Duration {
    // SAFETY: it only writes to the struct that it is given, for which zeros are valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(whose, &raw mut usage);
        usage
    };
    let times = [usage.ru_utime, usage.ru_stime].map(|time| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    });
    times.iter().sum()
}

/// Processor time of a process that runs, its own children not counted; none if that cannot be told.
#[must_use]
pub fn time_of(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name stands in parentheses and may hold anything.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|time| time.parse::<u64>().ok());
    // The kernel tells them in hundredths of a second, on all machines that we know of.
    Duration::from_millis(10 * ticks.sum::<u64>())
}

/// Takes over the first descriptors after the standard streams, which whoever has started us has opened
/// for us. Those that are not open are left out; a second call gets none.
#[must_use]
pub fn inherited(count: u16) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let take = |descriptor: RawFd| {
        // SAFETY: sets a flag, which fails if the descriptor is not open. By what its opener has said
        // it is not one that we have opened, and only here it is taken over, once.
        unsafe {
            let is_open = libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) == 0;
            is_open.then(|| OwnedFd::from_raw_fd(descriptor))
        }
    };
    (3..).take(usize::from(count)).filter_map(take).collect()
}

/// Makes `file` our standard error, and that of our children.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn replace_standard_error(file: &File) -> io::Result<()> {
    // SAFETY: both are open; whoever uses standard error does so by its number.
    let done = unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Microseconds of the clock that systemd compares reloads by.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it only writes to the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// The user as whom this runs.
#[must_use]
pub fn user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user as whom the other side of a Unix socket runs, or ran when it connected.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn peer_user(socket: RawFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: it writes to the struct that it is given, and not beyond the length.
    let done = unsafe {
        let place = (&raw mut peer).cast();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(peer.uid) }
}

/// Whether this process ignores a signal, as one does that `nohup(1)` has started.
#[must_use]
pub fn ignores(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain data, for which zeroes are valid, and it outlives the call, which only
    // writes to it.
    let (failed, action) = unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        (libc::sigaction(signal, std::ptr::null(), &raw mut action), action)
    };
    failed == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether this runs as root.
#[must_use]
pub fn is_root() -> bool {
    user() == 0
}

/// Columns and lines of the terminal at a descriptor; nothing if it is none, or its size is unknown.
#[must_use]
pub fn terminal_size(terminal: RawFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize to the struct that it is given.
    let done = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    let is_known = done == 0 && size.ws_row > 0 && size.ws_col > 0;
    is_known.then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// A terminal that passes keys on at once and does not echo them. Its previous mode is restored on drop.
pub struct KeyMode {
    terminal: RawFd,
    before: libc::termios,
}

impl KeyMode {
    /// Changes the mode of the terminal at a descriptor; nothing if it is none, or if this process is not
    /// in its foreground: it would be stopped. Ctrl-C still sends `SIGINT`.
    #[must_use]
    pub fn begin(terminal: RawFd) -> Option<Self> {
        // SAFETY: both have only numbers as arguments and results.
        if unsafe { libc::tcgetpgrp(terminal) != libc::getpgrp() } {
            return None;
        }
        // SAFETY: zeros are a valid termios; tcgetattr(3) writes to the struct that it is given.
        let before = unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(terminal, &raw mut mode) == 0).then_some(mode)?
        };
        let mut mode = before;
        mode.c_lflag &= !(libc::ICANON | libc::ECHO);
        // A read returns what there is, and does not wait.
        for index in [libc::VMIN, libc::VTIME] {
            if let Some(value) = mode.c_cc.get_mut(index) {
                *value = 0;
            }
        }
        set_mode(terminal, &mode).then_some(Self { terminal, before })
    }
}

impl Drop for KeyMode {
    fn drop(&mut self) {
        set_mode(self.terminal, &self.before);
    }
}

fn set_mode(terminal: RawFd, mode: &libc::termios) -> bool {
    // SAFETY: it reads the struct that it is given.
    unsafe { libc::tcsetattr(terminal, libc::TCSANOW, mode) == 0 }
}

/// Sends `SIGHUP` to a process.
///
/// # Errors
/// If there is none of this number, or this user may not.
pub fn hang_up(process: u32) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).ok().filter(|process| *process > 0);
    let process = process.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill(2) has only numbers as arguments.
    match unsafe { libc::kill(process, libc::SIGHUP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills a child and whatever it has started; it must lead its process group.
pub fn kill_group(leader: u32) {
    let Ok(leader) = i32::try_from(leader) else { return };
    if leader > 1 {
        // SAFETY: sends a signal; the group is one that we created and have not reaped.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

/// Whether a child has ended, without reaping it: until then its number is nobody else's.
#[must_use]
pub fn has_ended(child: u32) -> bool {
    // SAFETY: it only writes to the struct that it is given, for which zeros are valid.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, child, &raw mut info, flags) != 0 || info.si_pid() != 0
    }
}

/// Bytes and files for which a file system has room.
///
/// # Errors
/// Those of `statvfs(3)`.
pub fn free_space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: it reads a C string and writes to the struct that it is given, for which zeros are
    // valid.
    let space = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &raw mut space) != 0 {
            return Err(io::Error::last_os_error());
        }
        space
    };
    // Some file systems do not count files.
    let files = if space.f_files == 0 { u64::MAX } else { space.f_favail };
    Ok((space.f_bavail.saturating_mul(space.f_frsize), files))
}

/// A file that exists in memory only, to be read from its beginning.
///
/// # Errors
/// Those of `memfd_create(2)` and of writing to it.
pub fn memory_file(content: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor that comes back is new and nobody else's.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"espocrm-websocket".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(descriptor)
    };
    let mut file = File::from(file);
    file.write_all(content)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// Reaps child processes that have exited and that we did not start. PID 1 of a container becomes the
/// parent of every orphan in it. `is_ours` names the processes whose status we still need.
pub fn reap_orphans(is_ours: impl Fn(u32) -> bool) {
    loop {
        // SAFETY: both calls only write to the struct, for which zeros are valid. Neither waits.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let peek = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, peek) != 0 {
                return;
            }
            let Ok(pid @ 1..) = u32::try_from(info.si_pid()) else { return };
            // One of ours that exited just now: its own SIGCHLD leads back here.
            if is_ours(pid) {
                return;
            }
            if libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOHANG) != 0 {
                return;
            }
        }
    }
}

/// Limits the private memory (`RLIMIT_DATA`) of a child and of each of its descendants.
pub fn limit_memory(command: &mut Command, bytes: libc::rlim_t) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are plain system
    // calls on a struct of their own.
    unsafe {
        command.pre_exec(move || {
            let mut limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit);
            limit.rlim_max = limit.rlim_max.min(bytes);
            limit.rlim_cur = limit.rlim_max.min(limit.rlim_cur);
            // Lowering cannot fail.
            libc::setrlimit(libc::RLIMIT_DATA, &raw const limit);
            Ok(())
        });
    }
}

/// Makes a child end with us, and keeps every descriptor except the standard streams from it.
/// libzmq does not mark all of its own as close-on-exec, and those that it accepts in its thread
/// only a moment later.
///
/// The child leads a session and a process group of its own: it has no controlling terminal, so that
/// it cannot read from the administrator's terminal or insert input into it, and [`kill_group`] ends
/// it with its children. It must not lead a process group yet (no `process_group(0)`).
pub fn tie(command: &mut Command) {
    let parent = std::process::id();
    let most = open_files().rlim_max;
    let files = libc::rlimit { rlim_cur: USUAL_OPEN_FILES.min(most), rlim_max: most };
    // SAFETY: between fork and exec only calls that are async-signal-safe are allowed; these are
    // plain system calls. A kernel without close_range (before 5.9) answers ENOSYS: see
    // `mark_close_on_exec`.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().cast_unsigned() != parent {
                // We have ended in between.
                return Err(io::ErrorKind::Interrupted.into());
            }
            give_way();
            // Some libraries walk through all that there could be. Lowering cannot fail.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags);
            Ok(())
        });
    }
}

/// Has a command run as another user, with no way to gain privileges again. Only for root.
pub fn run_as(command: &mut Command, user: u32, group: u32, groups: &[u32]) {
    let groups: Vec<libc::gid_t> = groups.to_vec();
    // SAFETY: between fork and exec only calls that are async-signal-safe are allowed; these are
    // plain system calls. The groups live as long as the closure.
    unsafe {
        command.pre_exec(move || {
            // Before: of a process that has changed its user the kernel keeps this file for root.
            give_way();
            let done = libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setgid(group) == 0
                && libc::setuid(user) == 0
                && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

/// Sets the supplementary groups of this thread. This is the system call itself: the function of the C
/// library changes all threads.
///
/// # Errors
/// Those of `setgroups(2)`.
pub fn set_thread_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: it only reads the groups that it is given.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel end this process before others when memory runs out: a check can be repeated.
fn give_way() {
    // SAFETY: plain system calls, with a C string and bytes that live as long as the program.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
        if file >= 0 {
            let score = b"500";
            libc::write(file, score.as_ptr().cast(), score.len());
            libc::close(file);
        }
    }
}

/// Marks every open descriptor except the standard streams as close-on-exec.
pub fn mark_close_on_exec() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let names = entries.flatten().map(|entry| entry.file_name());
    let open = names.filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    for descriptor in open.filter(|descriptor| *descriptor > 2).collect::<Vec<_>>() {
        // SAFETY: sets a flag; a descriptor that is closed by now gives an error, to be ignored.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// A context of libzmq. Its sockets keep it open.
///
/// The zmq crate panics on errno values that it does not know, such as ENOTDIR or ENFILE. The calls
/// here can fail with any of them, so they report the errno as it is. The crate's other calls fail
/// only with values that it knows.
#[derive(Clone)]
pub struct ZmqContext(Rc<RawContext>);

struct RawContext(NonNull<c_void>);

/// A socket of libzmq.
pub struct ZmqSocket {
    // Closed before its context: fields are dropped in their order.
    socket: zmq::Socket,
    _context: ZmqContext,
}

/// The types of sockets in use.
#[derive(Clone, Copy, Debug)]
pub enum ZmqType {
    /// Receives from PUSH sockets.
    Pull,
    /// Sends to a PULL socket.
    Push,
    /// Reads the events of another socket.
    Pair,
}

impl ZmqContext {
    /// # Errors
    /// Those of `zmq_ctx_new(3)`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: it takes nothing; what it returns is null or a context that only this owns.
        let context = unsafe { zmq_sys::zmq_ctx_new() };
        NonNull::new(context)
            .map(|context| Self(Rc::new(RawContext(context))))
            .ok_or_else(zmq_error)
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// Those of `zmq_socket(3)`.
    pub fn socket(&self, kind: ZmqType) -> io::Result<ZmqSocket> {
        let kind = match kind {
            ZmqType::Pull => zmq_sys::ZMQ_PULL,
            ZmqType::Push => zmq_sys::ZMQ_PUSH,
            ZmqType::Pair => zmq_sys::ZMQ_PAIR,
        };
        // SAFETY: the context is open as long as `self` exists. A socket that is not null is new, so
        // that the crate's `Socket` becomes its only owner and closes it; the context is kept beside
        // it and therefore closed later.
        let socket = unsafe {
            let socket = zmq_sys::zmq_socket(self.0.0.as_ptr(), kind.cast_signed());
            if socket.is_null() {
                return Err(zmq_error());
            }
            zmq::Socket::from_raw(socket)
        };
        Ok(ZmqSocket { socket, _context: self.clone() })
    }
}

impl Drop for RawContext {
    fn drop(&mut self) {
        // SAFETY: the context is open, and all of its sockets are closed: each keeps the context. A
        // call that a signal interrupted has not closed it.
        unsafe {
            while zmq_sys::zmq_ctx_term(self.0.as_ptr()) != 0 && zmq_sys::zmq_errno() == libc::EINTR
            {
            }
        }
    }
}

impl ZmqSocket {
    /// Accepts connections at `endpoint`.
    ///
    /// # Errors
    /// Those of `zmq_bind(3)`, and those of `bind(2)` and others that it passes on.
    pub fn bind(&mut self, endpoint: &CStr) -> io::Result<()> {
        // SAFETY: the socket is open as long as `self` exists, and it reads a C string.
        zmq_result(unsafe { zmq_sys::zmq_bind(self.socket.as_mut_ptr(), endpoint.as_ptr()) })
    }

    /// Accepts no more connections at `endpoint`.
    ///
    /// # Errors
    /// Those of `zmq_unbind(3)`.
    pub fn unbind(&mut self, endpoint: &CStr) -> io::Result<()> {
        // SAFETY: as above.
        zmq_result(unsafe { zmq_sys::zmq_unbind(self.socket.as_mut_ptr(), endpoint.as_ptr()) })
    }

    /// Connects to `endpoint`.
    ///
    /// # Errors
    /// Those of `zmq_connect(3)`.
    pub fn connect(&mut self, endpoint: &CStr) -> io::Result<()> {
        // SAFETY: as above.
        zmq_result(unsafe { zmq_sys::zmq_connect(self.socket.as_mut_ptr(), endpoint.as_ptr()) })
    }

    /// Reports `events` of this socket to a PAIR socket that connects to `endpoint`.
    ///
    /// # Errors
    /// Those of `zmq_socket_monitor(3)` and of opening a socket.
    pub fn monitor(&mut self, endpoint: &CStr, events: i32) -> io::Result<()> {
        // SAFETY: as above.
        zmq_result(unsafe {
            zmq_sys::zmq_socket_monitor(self.socket.as_mut_ptr(), endpoint.as_ptr(), events)
        })
    }
}

impl std::ops::Deref for ZmqSocket {
    type Target = zmq::Socket;

    fn deref(&self) -> &zmq::Socket {
        &self.socket
    }
}

fn zmq_result(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(zmq_error()) }
}

fn zmq_error() -> io::Error {
    // SAFETY: it reads this thread's errno.
    io::Error::from_raw_os_error(unsafe { zmq_sys::zmq_errno() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_memory_file_is_read_from_its_beginning() {
        let mut text = String::new();
        memory_file(b"<?php").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "<?php");
    }

    #[test]
    fn a_child_gets_the_standard_streams_only() {
        use std::os::fd::AsRawFd;
        let leak = File::open("/dev/null").unwrap();
        // SAFETY: clears the flag of a descriptor that this test owns.
        unsafe { libc::fcntl(leak.as_raw_fd(), libc::F_SETFD, 0) };
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd");
        tie(&mut command);
        let output = command.output().unwrap();
        // The fourth is the directory that ls itself reads.
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
    }

    #[test]
    fn a_child_leads_a_session_without_a_terminal() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/stat");
        tie(&mut command);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let pid = output.split(' ').next().unwrap();
        let (_, rest) = output.rsplit_once(") ").unwrap();
        // State, parent, process group, session, terminal.
        let fields: Vec<&str> = rest.split(' ').collect();
        assert_eq!(&fields[2..5], [pid, pid, "0"]);
    }

    #[test]
    fn the_memory_of_a_child_is_limited() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/limits");
        limit_memory(&mut command, 1 << 28);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = output.lines().find(|line| line.starts_with("Max data size")).unwrap();
        let values: Vec<&str> = line.split_whitespace().skip(3).collect();
        assert_eq!(&values[..2], ["268435456", "268435456"]);
    }

    #[test]
    fn a_file_system_has_room() {
        let (bytes, files) = free_space(&std::env::temp_dir()).unwrap();
        assert!(bytes > 0 && files > 0);
        assert!(free_space(Path::new("/nonexistent")).is_err());
        assert!(free_space(Path::new("/\0")).is_err());
    }

    #[test]
    fn a_process_takes_some_memory() {
        assert!((500_000..10_000_000_000).contains(&resident()), "{}", resident());
    }

    #[test]
    fn the_limit_of_open_files_is_at_least_what_it_was() {
        assert!(raise_open_files() >= 256);
    }
}
