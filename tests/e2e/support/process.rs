//! Information on processes from `/proc`.

use std::process::Command;

/// A process at this moment.
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// `Z` if it has ended and was not reaped.
    pub state: char,
}

impl Process {
    /// The process with this id, if it exists.
    pub fn find(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may contain any character.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        Some(Self { pid, parent: fields.next()?.parse().ok()?, state })
    }

    /// The children of a process, including those that were not reaped.
    pub fn children_of(parent: u32) -> Vec<Self> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter_map(Self::find).filter(|it| it.parent == parent).collect()
    }

    /// The argument list of a process; empty once it has ended.
    pub fn arguments(pid: u32) -> Vec<String> {
        let list = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let list = String::from_utf8_lossy(&list);
        list.split_terminator('\0').map(str::to_owned).collect()
    }

    /// Sends a signal to a process, which may have ended already.
    pub fn signal(pid: u32, name: &str) {
        let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).output();
    }

    /// Whether a process still runs.
    pub fn is_running(pid: u32) -> bool {
        Self::find(pid).is_some_and(|it| it.state != 'Z')
    }
}
