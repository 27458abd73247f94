//! `--help`: of the program and of each command.

use std::fmt::Write;

use super::commands::{COMMANDS, Info};

/// Columns of a line.
const WIDTH: usize = 100;

/// The column at which the description of an option begins.
const INDENT: usize = 27;

/// The help of the program.
pub(super) fn program() -> String {
    let mut text = "Real-time daemon for EspoCRM, a drop-in replacement for its websocket.php.\n\n\
                    Usage: espocrm-websocket COMMAND [OPTIONS]\n\nCommands:\n"
        .to_owned();
    for Info { name, help, .. } in COMMANDS {
        let _ = writeln!(text, "  {name:<8}  {help}");
    }
    text + "\nOptions:\n  -h, --help     show this help, or the help for a command\n  \
            -V, --version  show the version\n\n\
            espocrm-websocket COMMAND --help describes a command and its options. See also \
            espocrm-websocket(8)\nand espocrm-websocket.toml(5).\n"
}

/// The help of a command.
pub(super) fn command(info: &Info) -> String {
    let Info { name, arguments, help, details, options, settings } = info;
    let mut text = format!("espocrm-websocket {name}: {help}\n\nUsage: espocrm-websocket {name}");
    let mut flags = String::new();
    for flag in *options {
        option(&mut flags, flag.name, flag.value, flag.help, "");
    }
    for setting in settings.settings() {
        let default = if info.has_default(setting) { setting.default } else { "" };
        option(&mut flags, setting.flag, setting.value, setting.help, default);
        if setting.is_list() {
            flags.truncate(flags.trim_end().len());
            flags.push_str("; repeatable\n");
        }
    }
    if !flags.is_empty() {
        text += " [OPTIONS]";
    }
    if !arguments.is_empty() {
        let _ = write!(text, " {arguments}");
    }
    text.push('\n');
    if !details.is_empty() {
        let _ = writeln!(text, "\n{details}");
    }
    if !flags.is_empty() {
        let _ = write!(text, "\nOptions:\n{flags}");
    }
    text
}

fn option(text: &mut String, name: &str, value: &str, help: &str, default: &str) {
    let head = format!("  --{name} {value}");
    let default = if default.is_empty() { String::new() } else { format!(" (default: {default})") };
    let _ = write!(text, "{:<width$}", head.trim_end(), width = INDENT - 1);
    let mut column = INDENT - 1;
    for word in format!("{help}{default}").split(' ') {
        if column + 1 + word.len() > WIDTH {
            let _ = write!(text, "\n{:width$}", "", width = INDENT - 1);
            column = INDENT - 1;
        }
        let _ = write!(text, " {word}");
        column += 1 + word.len();
    }
    text.push('\n');
}
