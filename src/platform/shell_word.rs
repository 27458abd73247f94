//! Words of a command line that an administrator copies into a shell.

use crate::engine::printable::printable;

/// A word as a POSIX shell reads it: quoted if it contains anything but letters, digits and `/._-`.
/// Characters that are not printable are escaped for display; the shell does not read those back.
#[must_use]
pub(crate) fn shell_word(word: &str) -> String {
    if is_plain(word) && !word.is_empty() {
        word.to_owned()
    } else {
        format!("'{}'", printable(word).replace('\'', "'\\''"))
    }
}

/// Whether a text contains no character that any kind of file or shell could interpret.
#[must_use]
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_one_word() {
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
