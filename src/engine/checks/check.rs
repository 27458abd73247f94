//! An access check: a question to EspoCRM, and who asks it.

use std::rc::Rc;

use super::verdict::Affirmation;
use crate::engine::id::ConnId;

/// A question to EspoCRM: the arguments of `php command.php`, and what it says if the answer is
/// yes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// For whom it is made.
    pub user: Rc<str>,
    /// The command's name and its arguments. May hold a token: never to be logged.
    pub arguments: Box<[Box<str>]>,
    /// What the command prints if it allows.
    pub affirmation: Affirmation,
}

/// What a check is for; the first is the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A tab waits for its welcome.
    Authentication,
    /// A tab waits for a topic.
    Subscription,
    /// Nobody waits: whether what was granted still is.
    Recheck,
}

/// Who waits for a verdict: this connection, for this of its questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The connection.
    pub conn: ConnId,
    /// Its authentication, or the n-th thing that it asks after that.
    pub serial: u32,
}

impl Ticket {
    /// The serial number of a connection's authentication.
    pub const AUTHENTICATION: u32 = 0;
}

impl Check {
    /// EspoCRM's console command that tells whether a token is valid.
    pub const AUTHENTICATION: &str = "AuthTokenCheck";

    /// EspoCRM's console command that checks access to a record or a scope.
    pub const ACCESS: &str = "AclCheck";

    /// Whether `token` is valid and `user`'s.
    #[must_use]
    pub fn authentication(token: &str, user: &str) -> Self {
        Self {
            user: user.into(),
            arguments: [Self::AUTHENTICATION, token, user].map(Box::from).into(),
            affirmation: Affirmation::UserId(user.into()),
        }
    }

    /// Whether `user` may see a topic, by the command of its category.
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

    /// Whether it asks for a token, not for a topic.
    #[must_use]
    pub fn is_authentication(&self) -> bool {
        matches!(self.affirmation, Affirmation::UserId(_))
    }

    /// Whether it is EspoCRM's own check of access to a record or a scope.
    #[must_use]
    pub fn is_access(&self) -> bool {
        self.affirmation == Affirmation::True
    }

    /// A line that the command has printed, without the token that it was given.
    #[must_use]
    pub fn redact(&self, line: &str) -> String {
        let Some(token) = self.arguments.get(1).filter(|_| self.is_authentication()) else {
            return line.to_owned();
        };
        let mut redacted = String::new();
        let mut rest = line;
        while !rest.is_empty() {
            // PHP's traces show a part only, and a line that is too long was cut.
            let part = common_part(rest, token);
            if part >= TELLING.min(token.len()) {
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

/// So many characters of a token in a row are taken out of whatever is logged.
const TELLING: usize = 5;

/// How many bytes at the beginning of `line` also stand somewhere in `token`.
fn common_part(line: &str, token: &str) -> usize {
    let equal = |from: &str| {
        let pairs = line.bytes().zip(from.bytes());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let longest = token.char_indices().map(|(at, _)| equal(token.get(at..).unwrap_or("")));
    longest.max().unwrap_or(0)
}

/// Never shows the arguments, among which may be a token.
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
    fn only_an_extensions_command_grants_by_exit_status() {
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
        // Parts of it, from anywhere in it.
        assert_eq!(check.redact("é 6789abc|0123|f0123"), "é (token)|0123|(token)");
        let check = Check::authentication("abc", "u");
        assert_eq!(check.redact("ab abc"), "ab (token)");
        let check = Check::authentication("s3cret", "u");
        assert!(!format!("{check:?}").contains("s3cret"));
    }
}
