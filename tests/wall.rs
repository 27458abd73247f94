//! The wall between the storeys: what the core may not know.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on shall say so")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    files
}

fn expect_nowhere(files: &[(PathBuf, String)], words: &[&str]) {
    assert!(!files.is_empty());
    for (path, text) in files {
        for word in words {
            assert!(!text.contains(word), "{} must not use {word}", path.display());
        }
    }
}

#[test]
fn the_core_knows_no_socket_process_file_thread_clock_or_log() {
    let core = sources("src/core");
    expect_nowhere(&core, &["crate::shell", "crate::cli", "mio::", "zmq::", "log::", "rustls::"]);
    expect_nowhere(&core, &["std::fs", "std::process", "std::thread", "std::env", "std::os"]);
    // An address is a value.
    expect_nowhere(&core, &["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"]);
    expect_nowhere(&core, &["Instant", "SystemTime", "println!", "getrandom"]);
}

#[test]
fn the_hub_knows_neither_the_queue_of_checks_nor_what_waits_to_be_sent() {
    let mut hub = sources("src/core/hub");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/hub.rs");
    hub.push((root.clone(), fs::read_to_string(root).unwrap()));
    expect_nowhere(&hub, &["access::", "outbox", "timers", "reader"]);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let all = sources("src");
    let with = all.iter().filter(|(_, text)| text.contains("unsafe {"));
    let names: Vec<_> = with.map(|(path, _)| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["sys.rs"]);
}
