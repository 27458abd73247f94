//! Parses a unit file for the settings that concern EspoCRM's own daemon.

use std::mem;
use std::path::{Path, PathBuf};

/// The relevant settings of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// The words of each command of `ExecStart`.
    commands: Vec<Vec<String>>,
    /// `WorkingDirectory`.
    directory: PathBuf,
    /// `User`.
    pub user: Option<String>,
    /// The files of `StandardOutput` and `StandardError`.
    pub logs: Vec<String>,
}

/// The script of EspoCRM's own daemon.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Script {
    /// Its directory, if the command contains it.
    pub dir: Option<PathBuf>,
}

impl Unit {
    /// Parses a unit file, or the concatenation of a unit file and its drop-ins.
    pub(super) fn read(text: &[u8]) -> Self {
        let mut unit = Self::default();
        let mut is_service = false;
        for line in lines(&String::from_utf8_lossy(text)) {
            if line.starts_with('[') {
                is_service = line.trim_end() == "[Service]";
            } else if let Some((name, value)) = line.split_once('=').filter(|_| is_service) {
                unit.set(name.trim_end(), value.trim());
            }
        }
        unit
    }

    fn set(&mut self, name: &str, value: &str) {
        match name {
            "ExecStart" if value.is_empty() => self.commands.clear(),
            "ExecStart" => {
                let value = value.trim_start_matches(['@', '-', ':', '+', '!', '|']);
                let words = words(value).iter().map(|word| word.replace("%%", "%")).collect();
                self.commands.push(words);
            }
            "WorkingDirectory" => {
                let value = value.trim_start_matches('-').replace("%%", "%");
                self.directory = value.into();
            }
            "User" => self.user = Some(value.to_owned()).filter(|user| !user.is_empty()),
            "StandardOutput" | "StandardError" => {
                let value = ["file:", "append:", "truncate:"]
                    .iter()
                    .find_map(|kind| value.strip_prefix(kind))
                    .unwrap_or(value);
                if value.starts_with('/') && !self.logs.iter().any(|log| log == value) {
                    self.logs.push(value.to_owned());
                }
            }
            _ => {}
        }
    }

    /// The `websocket.php` that the unit runs, with PHP or through a shell.
    pub(super) fn script(&self) -> Option<Script> {
        self.commands.iter().find_map(|command| {
            let mut dir = self.directory.clone();
            let inner = command.windows(2).find_map(|pair| match pair {
                [option, script] if option.starts_with('-') && option.ends_with('c') => {
                    Some(words(&script.replace([';', '&', '(', ')'], " ")))
                }
                _ => None,
            });
            let mut words = command.iter().chain(inner.iter().flatten());
            while let Some(word) = words.next() {
                let path = Path::new(word);
                if word == "cd" {
                    dir.push(words.next()?);
                } else if path.file_name().is_some_and(|name| name == "websocket.php") {
                    let path = dir.join(path);
                    let dir = path.parent().filter(|dir| dir.is_absolute());
                    return Some(Script { dir: dir.map(Path::to_owned) });
                }
            }
            None
        })
    }
}

/// The lines without comments. Lines continued with a backslash are joined.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for part in text.lines() {
        let part = part.trim_start();
        if part.starts_with(['#', ';']) {
            continue;
        }
        line.push_str(part);
        let slashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
        if slashes % 2 == 1 {
            line.pop();
            line.push(' ');
        } else {
            lines.push(mem::take(&mut line));
        }
    }
    lines.push(line);
    lines
}

/// Splits words by systemd's rules, which resemble those of a shell.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    // Bytes, because an escape may stand for part of a character.
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut text = text.as_bytes();
    while let Some((&byte, rest)) = text.split_first() {
        text = rest;
        match byte {
            _ if quote == Some(byte) => quote = None,
            b'"' | b'\'' if quote.is_none() => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            b'\\' => {
                let (byte, rest) = unescape(text);
                word.get_or_insert_default().push(byte);
                text = rest;
            }
            byte if quote.is_none() && byte.is_ascii_whitespace() => words.extend(word.take()),
            byte => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The byte of an escape sequence, given the bytes after the backslash, and the remaining bytes.
fn unescape(text: &[u8]) -> (u8, &[u8]) {
    let number = |from: usize, to: usize, radix: u32| {
        let digits = std::str::from_utf8(text.get(from..to)?).ok()?;
        Some((u8::from_str_radix(digits, radix).ok()?, text.get(to..)?))
    };
    let Some((&byte, rest)) = text.split_first() else { return (b'\\', text) };
    match byte {
        b's' => (b' ', rest),
        b'n' => (b'\n', rest),
        b't' => (b'\t', rest),
        b'x' => number(1, 3, 16).unwrap_or((byte, rest)),
        b'0'..=b'3' => number(0, 3, 8).unwrap_or((byte, rest)),
        byte => (byte, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &str = "[Unit]\nDescription=EspoCRM WebSocket Service\n\
        Requires=mysql.service\nAfter=mysql.service\n\n[Service]\nType=simple\nRestart=always\n\
        RestartSec=5\nStartLimitInterval=0\nUser=www-data\n\
        ExecStart=/usr/bin/php /var/www/html/websocket.php\n\
        StandardError=/var/www/html/data/logs/websocket.log\n\n[Install]\n\
        WantedBy=default.target\n";

    /// The directory of the script that a service with these lines runs; empty if unknown.
    fn dir(lines: &str) -> Option<String> {
        let script = Unit::read(format!("[Service]\n{lines}\n").as_bytes()).script()?;
        Some(script.dir.map(|dir| dir.display().to_string()).unwrap_or_default())
    }

    #[test]
    fn the_documented_unit_is_parsed() {
        let unit = Unit::read(DOCUMENTED.as_bytes());
        assert_eq!(unit.script(), Some(Script { dir: Some("/var/www/html".into()) }));
        assert_eq!(unit.user.as_deref(), Some("www-data"));
        assert_eq!(unit.logs, ["/var/www/html/data/logs/websocket.log"]);
    }

    #[test]
    fn the_script_is_found_in_every_spelling() {
        for (lines, expected) in [
            ("ExecStart = php -f  /srv/crm/websocket.php", "/srv/crm"),
            ("ExecStart=-@/usr/bin/php php /srv/crm/websocket.php", "/srv/crm"),
            (
                "ExecStart=/usr/bin/php \\\n# comment\n  ; another\n  /srv/crm/websocket.php",
                "/srv/crm",
            ),
            ("ExecStart=php \"/srv/my crm/websocket.php\"", "/srv/my crm"),
            ("ExecStart=php '/srv/100%%/websocket.php'", "/srv/100%"),
            ("ExecStart=php /srv/my\\x20crm\\s\\303\\xa9/websocket.php", "/srv/my crm \u{e9}"),
            ("WorkingDirectory=/srv/crm\nExecStart=php websocket.php", "/srv/crm"),
            ("ExecStart=php ./websocket.php\r\nWorkingDirectory=-/srv/my crm\r", "/srv/my crm"),
            ("ExecStart=/bin/sh -c 'cd /srv/crm && exec php websocket.php'", "/srv/crm"),
            ("ExecStart=/bin/bash -lc \"php '/srv/my crm/websocket.php'; exit 1\"", "/srv/my crm"),
            ("ExecStart=/bin/true\nExecStart=php /srv/crm/websocket.php", "/srv/crm"),
            ("ExecStart=php /a/websocket.php\nExecStart=\nExecStart=php /b/websocket.php", "/b"),
            ("ExecStart=php websocket.php", ""),
            ("WorkingDirectory=~\nExecStart=php websocket.php", ""),
        ] {
            assert_eq!(dir(lines).as_deref(), Some(expected), "{lines}");
        }
    }

    #[test]
    fn other_units_run_no_script() {
        for lines in [
            "",
            "ExecStart=/usr/bin/espocrm-websocket run --config /etc/espocrm-websocket/config.toml",
            "ExecStart=php /srv/crm/daemon.php",
            "ExecStart=php /srv/crm/not-websocket.php",
            "#ExecStart=php /srv/crm/websocket.php",
            "ExecStart=php /srv/crm/websocket.php\nExecStart=",
            "ExecStopPost=php /srv/crm/websocket.php",
            "[Unit]\nExecStart=php /srv/crm/websocket.php",
        ] {
            assert_eq!(dir(lines), None, "{lines}");
        }
    }

    #[test]
    fn logs_are_files() {
        let lines = "[Service]\nStandardOutput=append:/var/log/a.log\nStandardError=file:/b.log\n\
                     StandardError=journal\nStandardOutput=append:/var/log/a.log\n";
        assert_eq!(Unit::read(lines.as_bytes()).logs, ["/var/log/a.log", "/b.log"]);
    }

    #[test]
    fn any_input_is_parsed_without_a_panic() {
        for lines in [
            "ExecStart=\\",
            "ExecStart=\\x",
            "ExecStart=\\x\u{e9}",
            "ExecStart=\"",
            "=",
            "ExecStart=cd",
        ] {
            assert_eq!(dir(lines), None, "{lines}");
        }
        let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        assert_eq!(Unit::read(&[b"[Service]\nExecStart=", &*all].concat()).script(), None);
        Unit::read("\\\n".repeat(1 << 19).as_bytes());
    }
}
