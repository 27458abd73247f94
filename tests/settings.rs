//! The settings are described once, in packaging/config.toml, which is what an administrator has before
//! him. The manual and docs/configuration.md take them from there: `UPDATE=1 cargo test --test settings`
//! writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so"
)]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = include_str!("../packaging/config.toml");
const MANUAL: &str = "docs/man/espocrm-websocket.toml.5";
const DOCUMENT: &str = "docs/configuration.md";

/// A setting, as the configuration file describes it.
struct Setting {
    name: &'static str,
    /// What is written in the file: its default, or an example.
    line: &'static str,
    /// Sentences.
    about: String,
}

/// Every paragraph but the first is a setting: comments, and a line that sets it, perhaps commented out.
fn settings() -> Vec<Setting> {
    let paragraphs = SOURCE.split("\n\n").skip(1);
    let setting = |paragraph: &'static str| {
        let (about, line) = paragraph.trim_end().rsplit_once('\n').unwrap();
        let line = line.strip_prefix('#').unwrap_or(line);
        let words = about.lines().map(|line| line.strip_prefix("# ").expect(line));
        let about = words.collect::<Vec<_>>().join(" ");
        let (name, _) = line.split_once(" = ").expect(line);
        Setting { name, line, about }
    };
    let settings: Vec<_> = paragraphs.map(setting).collect();
    assert!(settings.len() > 20);
    settings
}

/// The flag that does the same.
fn flag(name: &str) -> String {
    match name {
        "trusted_proxies" => "trusted-proxy".to_owned(),
        "origins" => "origin".to_owned(),
        "worker" => "no-worker".to_owned(),
        name => name.replace('_', "-"),
    }
}

#[test]
fn the_manual_says_what_the_configuration_file_says() {
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
fn the_document_says_what_the_configuration_file_says() {
    let mut text = String::new();
    for Setting { name, line, about } in settings() {
        let flag = flag(name);
        write!(text, "### `{name}`\n\n{about}\n\n```toml\n{line}\n```\n\n").unwrap();
        writeln!(text, "On the command line: `--{flag}`.\n").unwrap();
    }
    let begin = "<!-- From packaging/config.toml, by UPDATE=1 cargo test --test settings -->\n\n";
    expect(DOCUMENT, begin, "<!-- End -->\n", &text);
}

#[test]
fn every_setting_has_its_flag() {
    let help = Command::new(env!("CARGO_BIN_EXE_espocrm-websocket")).arg("--help").output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    for Setting { name, line, .. } in settings() {
        let flag = format!("\n  --{} ", flag(name));
        let (_, about) = help.split_once(&flag).unwrap_or_else(|| panic!("{flag:?} is missing"));
        let about = about.split("\n  -").next().unwrap();
        // Where the file shows the default itself, the help tells the same.
        let value = line.split_once(" = ").unwrap().1.trim_matches('"');
        let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_plain && !["true", "false", "php", "4", "5000"].contains(&value) {
            let default = format!("default: {value}");
            assert!(about.contains(&default), "{default:?} is missing: {about}");
        }
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

/// What means something to the formatter, as what means itself.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('"', "\\(dq").replace('…', "...")
}

/// What stands in a file between two lines must be `text`; or is made so.
#[track_caller]
fn expect(file: &str, begin: &str, end: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let whole = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = whole.split_once(begin).unwrap_or_else(|| panic!("{file}: no {begin:?}"));
    let (found, after) = rest.split_once(end).unwrap_or_else(|| panic!("{file}: no {end:?}"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, [before, begin, text, end, after].concat()).unwrap();
    } else {
        assert!(found == text, "{file} is behind: UPDATE=1 cargo test --test settings");
    }
}
