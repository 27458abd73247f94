//! Wrappers of operating system services: system calls, signals, the clock, the log, safe reading
//! of files.

pub(crate) mod clock;
pub mod exit;
pub(crate) mod file_permissions;
pub mod logging;
pub(crate) mod process_stats;
pub(crate) mod random;
pub(crate) mod regular_file;
pub(crate) mod shell_word;
pub(crate) mod signals;
pub mod sys;
