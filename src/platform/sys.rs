//! System calls that the standard library does not offer: the only file with `unsafe` code.
#![expect(unsafe_code, reason = "system calls; each block states why it is sound")]

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

/// Raises the limit of open files to the hard limit, and returns it.
#[must_use]
pub fn raise_open_files() -> u64 {
    let limit = open_files();
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: only reads the struct.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 };
    if done { raised.rlim_cur } else { limit.rlim_cur }
}

/// The usual limit of open files, which programs expect that do not raise it.
const USUAL_OPEN_FILES: libc::rlim_t = 1024;

fn open_files() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: USUAL_OPEN_FILES, rlim_max: USUAL_OPEN_FILES };
    // SAFETY: only writes to the struct.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

/// Replaces libstdc++'s handler of uncaught C++ exceptions, which prints the type of the exception and
/// therefore links a demangler of 50 KB. The mangled name is that of
/// `__gnu_cxx::__verbose_terminate_handler()`.
// SAFETY: the signature is that of libstdc++; no other object of the program defines the name.
// cargo-fuzz links libstdc++ before this crate, whose handler would be a duplicate there.
#[cfg(not(fuzzing))]
#[unsafe(export_name = "_ZN9__gnu_cxx27__verbose_terminate_handlerEv")]
extern "C" fn terminate() -> ! {
    std::process::abort()
}

/// Prevents core dumps, since memory contains tokens. PHP, which receives tokens, inherits the
/// limit.
pub fn forbid_core_dumps() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls only write to and read the struct.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) == 0 {
            // 1 instead of 0: with 0 the kernel still pipes a dump into a program such as
            // systemd's.
            limit.rlim_cur = limit.rlim_max.min(1);
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        }
    }
}

/// Whether a few kilobytes can be written to a descriptor without blocking.
#[must_use]
pub fn is_writable(descriptor: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 };
    // SAFETY: only writes to the struct, and does not block.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLOUT != 0 }
}

/// Returns freed memory to the system. glibc by itself keeps free memory between blocks in use.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only affects memory that is free in the allocator.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Processor time of this process.
#[must_use]
pub fn cpu_time() -> Duration {
    rusage_time(libc::RUSAGE_SELF)
}

/// Processor time of reaped children and their descendants.
#[must_use]
pub fn children_cpu_time() -> Duration {
    rusage_time(libc::RUSAGE_CHILDREN)
}

fn rusage_time(whose: libc::c_int) -> Duration {
    // SAFETY: only writes to the struct, for which zeros are valid.
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

/// Takes over the first `count` descriptors after the standard streams, which the service manager
/// has opened. Omits those that are not open. A second call returns none.
#[must_use]
pub fn take_inherited(count: u16) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let take = |descriptor: RawFd| {
        // SAFETY: sets a flag, which fails if the descriptor is not open. The service manager has
        // announced it, so this process has not opened it, and only this code takes it over, once.
        unsafe {
            let is_open = libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) == 0;
            is_open.then(|| OwnedFd::from_raw_fd(descriptor))
        }
    };
    (3..).take(usize::from(count)).filter_map(take).collect()
}

/// Makes `file` the standard error of this process and its children.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn replace_standard_error(file: &File) -> io::Result<()> {
    // SAFETY: both are open, and all code accesses standard error by its number.
    let done = unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Microseconds of `CLOCK_MONOTONIC`, for systemd's `MONOTONIC_USEC`.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: only writes to the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// The effective user of this process.
#[must_use]
pub fn user() -> u32 {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user of the peer of a Unix socket when it connected.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn peer_user(socket: RawFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: writes to the struct, and not beyond the length.
    let done = unsafe {
        let value = (&raw mut peer).cast();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(peer.uid) }
}

/// Whether this process ignores a signal, for example because `nohup(1)` has started it.
#[must_use]
pub fn ignores(signal: i32) -> bool {
    // SAFETY: only writes to the struct, for which zeros are valid.
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

/// Columns and lines of a terminal; `None` if it is not a terminal or its size is unknown.
#[must_use]
pub fn terminal_size(terminal: RawFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize to the struct.
    let done = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    let is_known = done == 0 && size.ws_row > 0 && size.ws_col > 0;
    is_known.then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// A terminal without line buffering and echo. Its previous mode is restored on drop.
pub struct KeyMode {
    terminal: RawFd,
    before: libc::termios,
}

impl KeyMode {
    /// Changes the mode of a terminal. `None` if it is not a terminal, or if this process is not in
    /// its foreground (the kernel would stop it). Ctrl-C still sends `SIGINT`.
    #[must_use]
    pub fn begin(terminal: RawFd) -> Option<Self> {
        // SAFETY: arguments and results are numbers.
        if unsafe { libc::tcgetpgrp(terminal) != libc::getpgrp() } {
            return None;
        }
        // SAFETY: zeros are a valid termios; tcgetattr(3) only writes to the struct.
        let before = unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(terminal, &raw mut mode) == 0).then_some(mode)?
        };
        let mut mode = before;
        mode.c_lflag &= !(libc::ICANON | libc::ECHO);
        // A read returns available bytes and does not block.
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
    // SAFETY: only reads the struct.
    unsafe { libc::tcsetattr(terminal, libc::TCSANOW, mode) == 0 }
}

/// Sends `SIGHUP` to a process.
///
/// # Errors
/// If there is no such process, or this user is not permitted to signal it.
pub fn send_hangup(process: u32) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).ok().filter(|process| *process > 0);
    let process = process.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the arguments are numbers.
    match unsafe { libc::kill(process, libc::SIGHUP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills a child and its descendants. The child must lead its process group.
pub fn kill_group(leader: u32) {
    let Ok(leader) = i32::try_from(leader) else { return };
    if leader > 1 {
        // SAFETY: sends a signal to a process group that this process created and has not reaped.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

/// Whether a child has exited. Does not reap it: before that its process id cannot be reused.
#[must_use]
pub fn has_ended(child: u32) -> bool {
    // SAFETY: only writes to the struct, for which zeros are valid.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, child, &raw mut info, flags) != 0 || info.si_pid() != 0
    }
}

/// The number of bytes and files for which a file system has space.
///
/// # Errors
/// Those of `statvfs(3)`.
pub fn free_space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: reads a C string and only writes to the struct, for which zeros are valid.
    let space = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &raw mut space) != 0 {
            return Err(io::Error::last_os_error());
        }
        space
    };
    // Some file systems have no limit of files and report 0.
    let files = if space.f_files == 0 { u64::MAX } else { space.f_favail };
    Ok((space.f_bavail.saturating_mul(space.f_frsize), files))
}

/// Creates a file in memory, positioned at its start.
///
/// # Errors
/// Those of `memfd_create(2)` and of writing to it.
pub fn memory_file(content: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the returned descriptor is new, and only this code owns it.
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

/// Reaps exited child processes that this process did not start: PID 1 of a container becomes the
/// parent of every orphan. `is_own` returns whether the caller itself reaps a process.
pub fn reap_orphans(is_own: impl Fn(u32) -> bool) {
    loop {
        // SAFETY: both calls only write to the struct, for which zeros are valid. Neither blocks.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let peek = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, peek) != 0 {
                return;
            }
            let Ok(pid @ 1..) = u32::try_from(info.si_pid()) else { return };
            // This one has just exited; its own SIGCHLD leads to another call.
            if is_own(pid) {
                return;
            }
            if libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOHANG) != 0 {
                return;
            }
        }
    }
}

/// Limits the private memory (`RLIMIT_DATA`) of a child and each of its descendants.
pub fn limit_memory(command: &mut Command, bytes: libc::rlim_t) {
    // SAFETY: only async-signal-safe calls are allowed between fork and exec; these are plain
    // system calls on a local struct.
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

/// Isolates a child: it is killed when this process ends, and inherits no descriptors except the
/// standard streams. libzmq does not mark all of its descriptors as close-on-exec, and marks
/// accepted connections only a moment later in its thread.
///
/// The child leads its own session and process group: it has no controlling terminal, so it cannot
/// read from the administrator's terminal or insert input into it, and [`kill_group`] also kills
/// its descendants. The command must not already lead a process group (no `process_group(0)`).
pub fn isolate(command: &mut Command) {
    let parent = std::process::id();
    let hard = open_files().rlim_max;
    let files = libc::rlimit { rlim_cur: USUAL_OPEN_FILES.min(hard), rlim_max: hard };
    // SAFETY: only async-signal-safe calls are allowed between fork and exec; these are plain
    // system calls. A kernel without close_range (before 5.9) returns ENOSYS: see
    // `mark_close_on_exec`.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().cast_unsigned() != parent {
                // The parent has ended in between.
                return Err(io::ErrorKind::Interrupted.into());
            }
            raise_oom_score();
            // Some libraries iterate over all possible descriptors. Lowering cannot fail.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags);
            Ok(())
        });
    }
}

/// Makes a command run as another user without a way to regain privileges. Only for root.
pub fn run_as(command: &mut Command, user: u32, group: u32, groups: &[u32]) {
    let groups: Vec<libc::gid_t> = groups.to_vec();
    // SAFETY: only async-signal-safe calls are allowed between fork and exec; these are plain
    // system calls. The groups live as long as the closure.
    unsafe {
        command.pre_exec(move || {
            // First: after a change of the user, only root may write this file.
            raise_oom_score();
            let done = libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setgid(group) == 0
                && libc::setuid(user) == 0
                && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

/// Sets the supplementary groups of this thread. Uses the system call itself, since the function of
/// the C library changes all threads.
///
/// # Errors
/// Those of `setgroups(2)`.
pub fn set_thread_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: only reads the groups.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the kernel kill this process before others when memory runs out: checks can be repeated.
fn raise_oom_score() {
    // SAFETY: plain system calls with static strings.
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
        // SAFETY: sets a flag. The error for a descriptor that was closed meanwhile is ignored.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// A context of libzmq. Its sockets keep it open.
///
/// The zmq crate panics on unknown errno values, such as ENOTDIR or ENFILE. The calls here can fail
/// with any value and therefore return the raw errno. The crate's other calls fail only with values
/// that it knows.
#[derive(Clone)]
pub struct ZmqContext(Rc<RawContext>);

struct RawContext(NonNull<c_void>);

/// A socket of libzmq.
pub struct ZmqSocket {
    // Closed before its context: fields are dropped in their order.
    socket: zmq::Socket,
    _context: ZmqContext,
}

/// The types of sockets that the program uses.
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
        // SAFETY: has no arguments and returns null or a new context, which only this code owns.
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
        // SAFETY: the context is open as long as `self` exists. A socket that is not null is new,
        // so the crate's `Socket` becomes its only owner and closes it. `ZmqSocket` also holds the
        // context, which is therefore closed later.
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
        // SAFETY: the context is open, and all of its sockets are closed, since each holds the
        // context. An interrupted call has not closed it.
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
    /// Those of `zmq_bind(3)`, including those of `bind(2)` and other system calls.
    pub fn bind(&mut self, endpoint: &CStr) -> io::Result<()> {
        // SAFETY: the socket is open as long as `self` exists; the call reads a C string.
        zmq_result(unsafe { zmq_sys::zmq_bind(self.socket.as_mut_ptr(), endpoint.as_ptr()) })
    }

    /// Stops accepting connections at `endpoint`.
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
    // SAFETY: reads this thread's errno.
    io::Error::from_raw_os_error(unsafe { zmq_sys::zmq_errno() })
}

#[cfg(test)]
mod tests;
