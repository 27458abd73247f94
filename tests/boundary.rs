//! The dependencies between the parts of the program, and what the engine must not use.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot continue must fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The parts of the program, each with those that its production code may use. Each uses only earlier
/// ones, so there is no cycle.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("engine", &[]),
    ("platform", &["engine"]),
    ("espocrm", &["engine", "platform"]),
    ("settings", &["engine", "platform", "espocrm"]),
    ("daemon", &["engine", "platform", "espocrm", "settings"]),
    ("admin", &["engine", "platform", "espocrm", "settings", "daemon"]),
    ("cli", &["engine", "platform", "espocrm", "settings", "daemon", "admin"]),
];

#[test]
fn each_part_uses_only_lower_parts() {
    let used = dependencies();
    let parts: BTreeSet<&str> = MAY_USE.iter().map(|(part, _)| *part).collect();
    assert_eq!(parts, used.keys().map(String::as_str).collect(), "parts of the program");
    for (position, (part, allowed)) in MAY_USE.iter().enumerate() {
        for lower in *allowed {
            assert!(MAY_USE[..position].iter().any(|(earlier, _)| earlier == lower), "{lower}");
        }
        for (other, file) in &used[*part] {
            let allowed = part == other || allowed.contains(&other.as_str());
            assert!(allowed, "{part} must not use {other}: {file}");
        }
    }
}

/// The parts that each part uses, with a file that uses it.
fn dependencies() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut used: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (path, text) in sources("src") {
        let path = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        let part = path.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&part.as_str()) {
            continue;
        }
        let of_part = used.entry(part).or_default();
        for (index, _) in text.match_indices("crate::") {
            let rest = &text[index + "crate::".len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            of_part.entry(rest[..end.unwrap()].to_owned()).or_insert_with(|| path.clone());
        }
    }
    used
}

#[test]
fn the_engine_uses_no_socket_process_file_thread_clock_or_log() {
    let engine = sources("src/engine");
    expect_nowhere(&engine, &["mio::", "zmq::", "log::", "rustls::", "libc::", "nix::"]);
    expect_nowhere(&engine, &["std::fs", "std::process", "std::thread", "std::env", "std::os"]);
    // Addresses are plain values.
    expect_nowhere(&engine, &["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"]);
    expect_nowhere(&engine, &["Instant", "SystemTime", "println!", "getrandom"]);
}

#[test]
fn the_short_lived_commands_do_not_use_the_event_loop() {
    expect_nowhere(&sources("src/admin"), &["event_loop"]);
}

#[test]
fn the_hub_uses_neither_the_check_queue_nor_outbound_queues() {
    let mut hub = sources("src/engine/hub");
    let parent = root().join("src/engine/hub.rs");
    hub.push((parent.clone(), fs::read_to_string(parent).unwrap()));
    expect_nowhere(&hub, &["queue::", "outbox", "timers", "reader"]);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let all = sources("src");
    let with = all.iter().filter(|(_, text)| text.contains("unsafe {"));
    let names: Vec<_> = with.map(|(path, _)| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["sys.rs"]);
}

fn expect_nowhere(files: &[(PathBuf, String)], words: &[&str]) {
    assert!(!files.is_empty());
    for (path, text) in files {
        for word in words {
            assert!(!text.contains(word), "{} must not use {word}", path.display());
        }
    }
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
