//! Text from untrusted sources, made safe for terminals and logs.

use std::fmt::{self, Write};

/// Formats a text on one line: unprintable characters are escaped as in Rust (`\n`, `\u{1b}`).
/// Quotes and backslashes are not escaped.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

/// Like [`Printable`], but keeps line feeds. Only for text in which the program has put them.
#[derive(Clone, Copy, Debug)]
pub struct PrintableLines<T>(pub T);

/// Escapes unprintable characters, including line feeds.
#[must_use]
pub fn printable(text: &str) -> String {
    Printable(text).to_string()
}

/// Escapes unprintable characters except line feeds.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    PrintableLines(text).to_string()
}

/// A count with its noun: `1 connection`, `2 connections`.
#[must_use]
pub fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", noun(count, one, many))
}

/// The form of a noun after a count: singular only after 1.
#[must_use]
pub fn noun<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// A number of times: `once`, `2 times`.
#[must_use]
pub fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// Escapes unprintable characters except line feeds as `\uXXXX`, without changing the meaning of
/// the JSON: in valid JSON such characters occur in strings only.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for char in json.chars() {
        if char == '\n' || is_printable(char) {
            escaped.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// Whether a character is visible text or a space. Control and format characters (bidirectional
/// overrides, zero width, tags), line and paragraph separators, unusual spaces, private and
/// unassigned characters are unprintable.
#[must_use]
pub fn is_printable(char: char) -> bool {
    match char {
        ' '..='~' => true,
        // Control characters, and letters and marks without a visible shape.
        '\0'..='\u{a0}'
        | '\u{34f}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}' => false,
        // Marks that combine with the preceding character are printable, but `char::escape_debug`
        // escapes them. `str::escape_debug` does so only at the beginning of a text.
        _ => {
            let mut text = [b'a', 0, 0, 0, 0];
            let length = text.get_mut(1..).map_or(0, |rest| char.encode_utf8(rest).len());
            let text = text.get(..=length).and_then(|text| std::str::from_utf8(text).ok());
            text.is_some_and(|text| text.escape_debug().nth(2).is_none())
        }
    }
}

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { inner: f, keeps_lines: false }, "{}", self.0)
    }
}

impl<T: fmt::Display> fmt::Display for PrintableLines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { inner: f, keeps_lines: true }, "{}", self.0)
    }
}

struct Escaping<'a, 'b> {
    inner: &'a mut fmt::Formatter<'b>,
    keeps_lines: bool,
}

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return self.inner.write_str(text);
        }
        text.chars().try_for_each(|char| match char {
            '\n' if self.keeps_lines => self.inner.write_char('\n'),
            '\0' | '\t' | '\n' | '\r' => write!(self.inner, "{}", char.escape_debug()),
            _ if is_printable(char) => self.inner.write_char(char),
            _ => write!(self.inner, "{}", char.escape_unicode()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of each kind of unprintable characters.
    const HOSTILE: [char; 40] = [
        '\0',
        '\u{7}',
        '\u{8}',
        '\t',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{80}',
        '\u{85}',
        '\u{9b}',
        '\u{9f}',
        '\u{a0}',
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{180e}',
        '\u{200b}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2069}',
        '\u{3164}',
        '\u{e000}',
        '\u{fe0f}',
        '\u{feff}',
        '\u{fff9}',
        '\u{fff9}',
        '\u{ffff}',
        '\u{1d173}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e0100}',
        '\u{f0000}',
        '\u{10ffff}',
    ];

    #[test]
    fn unprintable_characters_are_escaped() {
        let text = "it's \"a\" \\ Київ\n\r\u{1b}[2J\u{202e}\u{200b}\u{85}\0";
        let expected = "it's \"a\" \\ Київ\\n\\r\\u{1b}[2J\\u{202e}\\u{200b}\\u{85}\\0";
        assert_eq!(printable(text), expected);
        assert_eq!(printable_lines("a\nb\r\n\u{1b}"), "a\nb\\r\n\\u{1b}");
        for char in HOSTILE {
            assert!(!is_printable(char), "{char:?}");
            for escaped in [printable(&format!("a{char}b")), printable_lines(&char.to_string())] {
                assert!(escaped.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{escaped}");
            }
        }
    }

    #[test]
    fn text_of_any_language_is_printable() {
        for text in [
            "a~ \"'\\`<>&",
            "Zoë, Zoe\u{308}",
            "Київ",
            "日本語、東京",
            "한국어",
            "हिन्दी",
            "ไทย",
            "עברית",
            "العربية",
            "€ – … ✓ 😀",
        ] {
            assert_eq!(printable(text), text);
            assert_eq!(printable_json(text), text);
        }
    }

    #[test]
    fn only_one_is_singular() {
        let shown = [0, 1, 2].map(|count| plural(count, "entry", "entries"));
        assert_eq!(shown, ["0 entries", "1 entry", "2 entries"]);
        assert_eq!([0, 1, 2].map(times), ["0 times", "once", "2 times"]);
    }

    #[test]
    fn json_keeps_its_meaning() {
        for char in HOSTILE.into_iter().chain(['\n', 'ä', '"', '\\', '😀']) {
            let text = format!("x{char}y");
            let json = printable_json(&serde_json::to_string(&text).unwrap());
            assert!(json.chars().all(is_printable), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
        assert_eq!(printable_json("[\n\"\u{9b}\u{e0001}\"]"), "[\n\"\\u009b\\udb40\\udc01\"]");
    }
}
