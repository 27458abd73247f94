use std::io::Read;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;

#[test]
fn a_memory_file_is_read_from_its_start() {
    let mut text = String::new();
    memory_file(b"<?php").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "<?php");
}

#[test]
fn a_child_inherits_only_the_standard_streams() {
    let leak = File::open("/dev/null").unwrap();
    // Clears FD_CLOEXEC.
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut command = Command::new("ls");
    command.arg("/proc/self/fd");
    isolate(&mut command);
    let output = command.output().unwrap();
    // The fourth is the directory that ls reads.
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
}

#[test]
fn a_child_leads_a_session_without_a_terminal() {
    let mut command = Command::new("cat");
    command.arg("/proc/self/stat");
    isolate(&mut command);
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
fn free_space_is_reported() {
    let (bytes, files) = free_space(&std::env::temp_dir()).unwrap();
    assert!(bytes > 0 && files > 0);
    assert!(free_space(Path::new("/nonexistent")).is_err());
    assert!(free_space(Path::new("/\0")).is_err());
}

#[test]
fn the_limit_of_open_files_is_raised() {
    assert!(raise_open_files() >= 256);
}
