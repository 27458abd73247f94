//! What the standard library and Linux offer, in the form that the rest of the program needs: system
//! calls, signals, the clock, the log, careful reading of files.

pub mod clock;
pub mod exit;
pub(crate) mod file_permissions;
pub mod logging;
pub mod random;
pub mod regular_file;
pub(crate) mod shell_word;
pub mod signals;
pub mod sys;
