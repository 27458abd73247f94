//! An access check, and the ticket of a connection that waits for it.

use std::rc::Rc;

use super::verdict::Affirmation;
use crate::engine::id::ConnId;

/// A check that EspoCRM runs: the arguments of `php command.php`, and the output that grants
/// access.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// The user whose access is checked.
    pub user: Rc<str>,
    /// The command's name and its arguments. May contain a token: must never be logged.
    pub arguments: Box<[Box<str>]>,
    /// What the command prints if it grants access.
    pub affirmation: Affirmation,
}

/// What a check is for; the first is the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A browser tab waits for its welcome.
    Login,
    /// A browser tab waits for a topic.
    Subscription,
    /// Granted access is checked again; no browser tab waits.
    Recheck,
}

/// Identifies a check that a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The connection.
    pub conn: ConnId,
    /// Its login, or the n-th check after that.
    pub serial: u32,
}

impl Ticket {
    /// The serial number of a connection's login.
    pub const AUTHENTICATION: u32 = 0;
}

impl Check {
    /// EspoCRM's console command that checks a token.
    pub const AUTHENTICATION: &str = "AuthTokenCheck";

    /// EspoCRM's console command that checks access to a record or a scope.
    pub const ACCESS: &str = "AclCheck";

    /// Checks that `token` is valid and belongs to `user`.
    #[must_use]
    pub fn authentication(token: &str, user: &str) -> Self {
        Self {
            user: user.into(),
            arguments: [Self::AUTHENTICATION, token, user].map(Box::from).into(),
            affirmation: Affirmation::UserId(user.into()),
        }
    }

    /// Checks that `user` may see a topic, with the command of its category.
    #[must_use]
    pub fn topic(user: &str, arguments: Box<[Box<str>]>) -> Self {
        let name = arguments.first().map_or("", |name| name);
        let affirmation = if is_command(name, Self::ACCESS) {
            Affirmation::True
        } else if is_command(name, Self::AUTHENTICATION) {
            Affirmation::UserId(user.into())
        } else {
            Affirmation::Status
        };
        Self { user: user.into(), arguments, affirmation }
    }

    /// Whether it checks a token, not a topic.
    #[must_use]
    pub fn is_authentication(&self) -> bool {
        matches!(self.affirmation, Affirmation::UserId(_))
    }

    /// Whether it is EspoCRM's own check of access to a record or a scope.
    #[must_use]
    pub fn is_access(&self) -> bool {
        self.affirmation == Affirmation::True
    }

    /// Removes the token from a line that the command has printed.
    #[must_use]
    pub fn redact(&self, line: &str) -> String {
        let Some(token) = self.arguments.get(1).filter(|_| self.is_authentication()) else {
            return line.to_owned();
        };
        let mut redacted = String::new();
        let mut rest = line;
        while !rest.is_empty() {
            // PHP's stack traces show only a part of it, and long lines were truncated.
            let part = common_part(rest, token);
            if part >= MIN_REDACTED.min(token.len()) {
                redacted.push_str("(token)");
                rest = rest.get(part..).unwrap_or_default();
            } else {
                let mut chars = rest.chars();
                redacted.extend(chars.next());
                rest = chars.as_str();
            }
        }
        redacted
    }
}

/// Whether EspoCRM may run `command` for this name: it also accepts `acl-check` for `AclCheck`.
fn is_command(name: &str, command: &str) -> bool {
    let name = name.bytes().filter(|byte| *byte != b'-').map(|byte| byte.to_ascii_lowercase());
    name.eq(command.bytes().map(|byte| byte.to_ascii_lowercase()))
}

/// This many consecutive characters of a token are removed from logged text.
const MIN_REDACTED: usize = 5;

/// Length of the longest prefix of `line` that occurs in `token`.
fn common_part(line: &str, token: &str) -> usize {
    let equal = |from: &str| {
        let pairs = line.bytes().zip(from.bytes());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let longest = token.char_indices().map(|(at, _)| equal(token.get(at..).unwrap_or("")));
    longest.max().unwrap_or(0)
}

/// Omits the arguments, which may contain a token.
impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.arguments.first().map_or("", |name| name);
        f.debug_struct("Check").field("command", &name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_of_extensions_grant_by_exit_status() {
        let affirmation = |name: &str| Check::topic("u", [name.into()].into()).affirmation;
        for name in ["AclCheck", "acl-check", "aclCheck", "ACLCHECK", "Acl-Check"] {
            assert_eq!(affirmation(name), Affirmation::True, "{name}");
        }
        for name in ["AuthTokenCheck", "auth-token-check"] {
            assert_eq!(affirmation(name), Affirmation::UserId("u".into()), "{name}");
        }
        for name in ["CustomCheck", "AclCheckMore", "MyAclCheck", "Acl"] {
            assert_eq!(affirmation(name), Affirmation::Status, "{name}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let check = Check::authentication("0123456789abcdef0123", "u");
        let line = "Uncaught x('0123456789abcde...') in y?t=0123456789abcdef0123&u";
        assert_eq!(check.redact(line), "Uncaught x('(token)...') in y?t=(token)&u");
        // Parts from anywhere in the token.
        assert_eq!(check.redact("é 6789abc|0123|f0123"), "é (token)|0123|(token)");
        let check = Check::authentication("abc", "u");
        assert_eq!(check.redact("ab abc"), "ab (token)");
        let check = Check::authentication("s3cret", "u");
        assert!(!format!("{check:?}").contains("s3cret"));
    }
}
