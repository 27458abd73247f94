//! The line `espocrm` in the configuration file.

use std::path::Path;

use crate::settings::Overrides;

/// The template of a new file.
pub(super) const TEMPLATE: &str = include_str!("../../../packaging/config.toml");

/// The text of a configuration file with this directory, otherwise unchanged.
///
/// # Errors
/// If the text is invalid; the message contains the line.
pub(super) fn with_espocrm(text: &str, dir: &str) -> Result<String, String> {
    if Overrides::from_toml(text)?.espocrm.as_deref() == Some(Path::new(dir)) {
        return Ok(text.to_owned());
    }
    let quoted = dir.replace('\\', "\\\\").replace('"', "\\\"");
    let line = format!("espocrm = \"{quoted}\"");
    let first = text.len() - text.trim_start_matches('\u{feff}').len();
    let position = value_of(text).or_else(|| commented_out(text));
    let (start, end) = position.unwrap_or((first, first));
    let line_break = if position.is_none() { "\n" } else { "" };
    let before = text.get(..start).unwrap_or_default();
    let after = text.get(end..).unwrap_or_default();
    let text = [before, &line, line_break, after].concat();
    let written = Overrides::from_toml(&text)?.espocrm;
    // The line could follow a table header, or be inside a multi-line string.
    if written.as_deref() != Some(Path::new(dir)) {
        return Err(format!("the espocrm line could not be set to {line}: edit it manually"));
    }
    Ok(text)
}

/// The position of the name and its value.
fn value_of(text: &str) -> Option<(usize, usize)> {
    let file = toml_span::parse(text).ok()?;
    let (key, value) = file.as_table()?.get_key_value("espocrm")?;
    // A span may or may not include the quotes.
    let is_quote = |byte: &u8| matches!(byte, b'"' | b'\'');
    let before = text.as_bytes().get(..key.span.start)?;
    let after = text.as_bytes().get(value.span.end..)?;
    let start = key.span.start - before.iter().rev().take_while(|byte| is_quote(byte)).count();
    Some((start, value.span.end + after.iter().take_while(|byte| is_quote(byte)).count()))
}

/// The position of a commented-out line.
fn commented_out(text: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let comment = line.strip_prefix('#').map(str::trim_start);
        let value = comment.and_then(|text| text.strip_prefix("espocrm"));
        if value.is_some_and(|value| value.trim_start().starts_with('=')) {
            return Some((start, start + line.trim_end().len()));
        }
        start += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_is_replaced() {
        for (text, expected) in [
            ("espocrm = \"/a\"\n", "espocrm = \"/b\"\n"),
            (
                "# x\r\n  espocrm='/a' # mine\r\nphp = 'p'\r\n",
                "# x\r\n  espocrm = \"/b\" # mine\r\nphp = 'p'\r\n",
            ),
            ("\"espocrm\" = '''/a'''", "espocrm = \"/b\""),
            ("espocrm = \"\"\"\n/a\"\"\"\n#end", "espocrm = \"/b\"\n#end"),
            ("espocrm = ''", "espocrm = \"/b\""),
            ("php = 'espocrm = 1'\nespocrm = '/a'", "php = 'espocrm = 1'\nespocrm = \"/b\""),
            ("#espocrm = '/x'\nespocrm = '/a'\n", "#espocrm = '/x'\nespocrm = \"/b\"\n"),
            (
                "debug = true\n# espocrm = '/x'\r\nphp = 'p'\n",
                "debug = true\nespocrm = \"/b\"\r\nphp = 'p'\n",
            ),
            (
                "# espocrm and more\ndebug = true\n",
                "espocrm = \"/b\"\n# espocrm and more\ndebug = true\n",
            ),
            ("", "espocrm = \"/b\"\n"),
            ("\u{feff}debug = true", "\u{feff}espocrm = \"/b\"\ndebug = true"),
            ("espocrm = '/b'   # as it is", "espocrm = '/b'   # as it is"),
        ] {
            assert_eq!(with_espocrm(text, "/b").as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn any_directory_can_be_written() {
        for dir in ["/srv/my crm", "/srv/a\"b", "/srv/a\\nb", "/srv/100%", "/srv/\u{e9}#'"] {
            let text = with_espocrm(TEMPLATE, dir).unwrap();
            assert_eq!(Overrides::from_toml(&text).unwrap().espocrm, Some(dir.into()));
            assert_eq!(text.lines().count(), TEMPLATE.lines().count());
        }
    }

    #[test]
    fn invalid_files_are_not_changed() {
        for (text, why) in [
            ("\nespocrm = [1]", "line 2: espocrm: array"),
            ("x", "line 1"),
            ("debug = 'maybe'", "debug"),
            ("php = '''\n#espocrm = 1\n'''\n", "manually"),
        ] {
            let error = with_espocrm(text, "/b").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for text in ["[".repeat(1 << 20), "a.".repeat(1 << 19), "a=".repeat(1 << 19)] {
            assert!(with_espocrm(&text, "/b").is_err());
        }
    }
}
