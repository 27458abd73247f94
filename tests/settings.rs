//! The settings are described once, in packaging/config.toml, the file that administrators edit.
//! The manual and docs/configuration.md are generated from it: `UPDATE=1 cargo test --test
//! settings` rewrites them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("../packaging/config.toml");
const MANUAL: &str = "docs/man/espocrm-websocket.toml.5";
const DOCUMENT: &str = "docs/configuration.md";

/// A setting as described in the configuration file.
struct Setting {
    name: &'static str,
    /// The line in the file: its default, or an example.
    line: &'static str,
    /// Sentences, one of which states the default.
    about: String,
}

/// Every paragraph but the first describes a setting: comments, and a line that sets it, which may
/// be commented out.
fn settings() -> Vec<Setting> {
    let paragraphs = SOURCE.split("\n\n").skip(1);
    let setting = |paragraph: &'static str| {
        let (about, line) = paragraph.trim_end().rsplit_once('\n').unwrap();
        let commented_out = line.starts_with('#');
        let line = line.strip_prefix('#').unwrap_or(line);
        let words = about.lines().map(|line| line.strip_prefix("# ").expect(line));
        let about = words.collect::<Vec<_>>().join(" ");
        let (name, value) = line.split_once(" = ").expect(line);
        let is_told = about.contains("Default:") || !commented_out;
        let default = if is_told { String::new() } else { format!(" Default: {value}.") };
        Setting { name, line, about: about + &default }
    };
    let settings: Vec<_> = paragraphs.map(setting).collect();
    assert!(settings.len() > 20);
    settings
}

fn help() -> String {
    let help = Command::new(env!("CARGO_BIN_EXE_espocrm-websocket")).arg("--help").output();
    String::from_utf8(help.unwrap().stdout).unwrap()
}

/// The help text of a flag: its value, and its description.
fn of_flag<'a>(help: &'a str, flag: &str) -> (&'a str, &'a str) {
    let begin = format!("\n  --{flag} ");
    let (_, about) = help.split_once(&begin).unwrap_or_else(|| panic!("{begin:?} is missing"));
    let about = about.split("\n  -").next().unwrap();
    let (value, _) = about.split_once(' ').unwrap();
    let is_value = value.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b':');
    (if is_value { value } else { "" }, about)
}

/// The corresponding flag.
fn flag(name: &str) -> String {
    match name {
        "trusted_proxies" => "trusted-proxy".to_owned(),
        "origins" => "origin".to_owned(),
        "worker" => "no-worker".to_owned(),
        name => name.replace('_', "-"),
    }
}

#[test]
fn the_manual_matches_the_configuration_file() {
    let mut text = String::new();
    for Setting { name, line, about } in settings() {
        writeln!(text, ".It Ic {name}").unwrap();
        for words in wrapped(&about) {
            writeln!(text, "{words}").unwrap();
        }
        writeln!(text, ".Dl {}", roff(line)).unwrap();
    }
    let begin = ".Sh SETTINGS\n.Bl -tag -width Ds\n";
    expect(MANUAL, begin, ".El\n.Sh FILES\n", &text);
}

#[test]
fn the_document_matches_the_configuration_file() {
    let (help, mut text) = (help(), String::new());
    for Setting { name, line, about } in settings() {
        let flag = flag(name);
        let (value, about_flag) = of_flag(&help, &flag);
        let flag = [&flag, value].join(" ");
        let flag = flag.trim_end();
        let end = if about_flag.contains("may be repeated") { ", may be repeated" } else { "" };
        write!(text, "### `{name}`\n\n{about}\n\n```toml\n{line}\n```\n\n").unwrap();
        writeln!(text, "On the command line: `--{flag}`{end}.\n").unwrap();
    }
    let begin = "<!-- From packaging/config.toml, by UPDATE=1 cargo test --test settings -->\n\n";
    expect(DOCUMENT, begin, "<!-- End -->\n", &text);
}

#[test]
fn every_setting_has_its_flag() {
    let help = help();
    for Setting { name, about, .. } in settings() {
        let (value, said) = of_flag(&help, &flag(name));
        // A flag without a value, or a repeatable flag, is empty by default.
        let is_empty = value.is_empty() || said.contains("may be repeated");
        if let Some((_, default)) = about.split_once(" Default: ").filter(|_| !is_empty) {
            assert!(said.contains("(default: "), "--{}: {said}", flag(name));
            let default = default.trim_end_matches('.').trim_matches('"');
            if default.bytes().all(|byte| byte.is_ascii_digit()) || name.ends_with("_interval") {
                assert!(said.contains(&format!("default: {default}")), "{default}: {said}");
            }
        }
    }
}

/// The other flags and arguments of the command line.
const NO_SETTINGS: [&str; 11] = [
    "allow-root",
    "at-install",
    "check",
    "config",
    "json",
    "name",
    "root",
    "undo",
    "user",
    "version",
    "watch",
];

#[test]
fn every_flag_is_a_setting_or_a_known_exception() {
    let settings: Vec<_> = settings().iter().map(|setting| flag(setting.name)).collect();
    for line in help().lines() {
        let Some((_, flag)) = line.split_once("--").filter(|(begin, _)| begin.trim().len() < 4)
        else {
            continue;
        };
        let flag = flag.split(' ').next().unwrap();
        let is_known = settings.iter().any(|name| name == flag) || NO_SETTINGS.contains(&flag);
        assert!(is_known || flag == "help", "--{flag}");
    }
}

#[test]
fn the_document_lists_every_espocrm_parameter_that_the_probe_reads() {
    let probe = include_str!("../src/espocrm/php/probe.php");
    let (_, list) = probe.split_once("foreach (array(\n").unwrap();
    let (list, _) = list.split_once(") as $name").unwrap();
    let document = std::fs::read_to_string(path(DOCUMENT)).unwrap();
    let names: Vec<_> = list.split('\'').skip(1).step_by(2).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
}

/// Text as lines of a manual's source.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in roff(text).split(' ') {
        let line = lines.last_mut().unwrap();
        if !line.is_empty() && line.len() + word.len() >= 80 || line.ends_with('.') {
            lines.push(word.to_owned());
        } else {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines
}

/// Escapes the characters that have a meaning in roff.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('"', "\\(dq").replace('…', "...")
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Expects that `text` is between two lines of a file, or writes it there.
#[track_caller]
fn expect(file: &str, begin: &str, end: &str, text: &str) {
    let path = path(file);
    let whole = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = whole.split_once(begin).unwrap_or_else(|| panic!("{file}: no {begin:?}"));
    let (found, after) = rest.split_once(end).unwrap_or_else(|| panic!("{file}: no {end:?}"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, [before, begin, text, end, after].concat()).unwrap();
    } else {
        assert!(found == text, "{file} is outdated: run UPDATE=1 cargo test --test settings");
    }
}
