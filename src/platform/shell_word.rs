//! Quotes words of command lines that an administrator copies into a shell.

use crate::engine::printable::printable;

/// Quotes a word for a POSIX shell if it contains characters other than letters, digits and `/._-`.
/// Escapes characters that are not printable for display; the shell does not decode those.
#[must_use]
pub(crate) fn shell_word(word: &str) -> String {
    if is_plain(word) && !word.is_empty() {
        word.to_owned()
    } else {
        format!("'{}'", printable(word).replace('\'', "'\\''"))
    }
}

/// Whether a text contains only characters without a special meaning in shells and files.
#[must_use]
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_quoted() {
        for (word, expected) in [
            ("/srv/crm", "/srv/crm"),
            ("", "''"),
            ("/srv/my crm", "'/srv/my crm'"),
            ("it's", r"'it'\''s'"),
            ("$(reboot)", "'$(reboot)'"),
        ] {
            assert_eq!(shell_word(word), expected);
        }
    }
}
