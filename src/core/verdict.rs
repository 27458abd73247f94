//! Reading the outcome of EspoCRM's access checks.

use super::limits::MAX_PARAMETER;
use super::version::Convention;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// EspoCRM allows it.
    Granted,
    /// EspoCRM denies it.
    Denied,
    /// It could not be found out. Never a reason to grant, and none to refuse for good.
    Unchecked(Failure),
}

/// Why a check gave no verdict; for the log, never with what was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// PHP could not be started.
    NotStarted(String),
    /// It did not end within the deadline and was killed.
    TimedOut,
    /// It was ended by this signal.
    Signal(i32),
    /// It ended with this status, and printed this line first.
    Status(i32, String),
    /// It ended well but printed something else than a verdict.
    Output(String),
    /// It printed more than it may, or its output could not be read.
    Unreadable,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted(error) => write!(f, "PHP could not be started: {error}"),
            Self::TimedOut => f.write_str("PHP did not finish in time and was killed"),
            Self::Signal(signal) => write!(f, "PHP was ended by signal {signal}"),
            Self::Status(status, line) if line.is_empty() => {
                write!(f, "PHP ended with status {status}")
            }
            Self::Status(status, line) => write!(f, "PHP ended with status {status}: {line}"),
            Self::Output(line) => write!(f, "PHP printed something unexpected: {line}"),
            Self::Unreadable => f.write_str("PHP's output was too long or could not be read"),
        }
    }
}

/// What a command says when it allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Affirmation {
    /// `AuthTokenCheck` prints the id of the token's user, which must be this one.
    UserId(Box<str>),
    /// An access check prints `true`.
    True,
}

/// How a PHP process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// Reads the outcome of one command: its end, its standard output, and `complaint`, a line fit
/// for the log.
#[must_use]
pub fn read(
    convention: Convention,
    affirmation: &Affirmation,
    exit: Exit,
    output: &[u8],
    complaint: impl FnOnce() -> String,
) -> Verdict {
    let status = match exit {
        Exit::Status(status) => status,
        Exit::Signal(signal) => return Verdict::Unchecked(Failure::Signal(signal)),
    };
    let output = output.trim_ascii();
    match (convention, status) {
        (Convention::ExitStatus, 0) => Verdict::Granted,
        (_, 1) if output.is_empty() => Verdict::Denied,
        (Convention::Output | Convention::Both, 0) => match affirmation {
            _ if output.is_empty() => Verdict::Denied,
            Affirmation::UserId(user) if output == user.as_bytes() => Verdict::Granted,
            // The token is good, but it is another user's.
            Affirmation::UserId(_) if is_id(output) => Verdict::Denied,
            Affirmation::True if output == b"true" => Verdict::Granted,
            _ => Verdict::Unchecked(Failure::Output(complaint())),
        },
        _ => Verdict::Unchecked(Failure::Status(status, complaint())),
    }
}

/// The first line of what PHP has printed, fit for the log.
#[must_use]
pub fn first_line(output: &[u8]) -> String {
    let line = output.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    let mut line = line.unwrap_or_default().trim_ascii();
    // The sentence of the log in which it stands has a full stop of its own.
    while let [rest @ .., b'.'] = line {
        line = rest;
    }
    let line = line.get(..line.len().min(MAX_LINE)).unwrap_or_default();
    String::from_utf8_lossy(line).escape_debug().to_string()
}

/// Bytes of PHP's output in one line of the log.
const MAX_LINE: usize = 300;

/// Whether `text` can be a token, a user's id: letters, digits and hyphens, and never something
/// that a command would take for an option.
#[must_use]
pub fn is_id(text: &[u8]) -> bool {
    matches!(text, [first, ..] if *first != b'-')
        && text.len() <= MAX_PARAMETER
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(convention: Convention, status: i32, output: &str) -> Verdict {
        let user = Affirmation::UserId("6b030f5b450565077".into());
        read(convention, &user, Exit::Status(status), output.as_bytes(), String::new)
    }

    fn topic(convention: Convention, status: i32, output: &str) -> Verdict {
        read(convention, &Affirmation::True, Exit::Status(status), output.as_bytes(), String::new)
    }

    fn is_unchecked(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Unchecked(_))
    }

    #[test]
    fn from_9_2_on_the_exit_status_decides() {
        use Convention::ExitStatus as Now;
        assert_eq!(auth(Now, 0, "6b030f5b450565077"), Verdict::Granted);
        assert_eq!(auth(Now, 1, ""), Verdict::Denied);
        assert_eq!(topic(Now, 0, "true"), Verdict::Granted);
        assert_eq!(topic(Now, 0, "truetrue"), Verdict::Granted);
        assert_eq!(topic(Now, 0, ""), Verdict::Granted);
        assert_eq!(topic(Now, 1, ""), Verdict::Denied);
        assert_eq!(topic(Now, 1, "\n"), Verdict::Denied);
        for (status, output) in
            [(1, "Error: SQLSTATE[HY000] [2002]"), (1, "true"), (255, ""), (2, ""), (127, "")]
        {
            assert!(is_unchecked(&topic(Now, status, output)), "{status} {output}");
            assert!(is_unchecked(&auth(Now, status, output)), "{status} {output}");
        }
    }

    #[test]
    fn before_9_2_the_output_decides() {
        use Convention::Output as Then;
        assert_eq!(auth(Then, 0, "6b030f5b450565077"), Verdict::Granted);
        assert_eq!(auth(Then, 0, ""), Verdict::Denied);
        assert_eq!(auth(Then, 0, "0123456789abcdef0"), Verdict::Denied);
        assert!(is_unchecked(&auth(Then, 0, "PHP Warning:  something")));
        assert_eq!(topic(Then, 0, "true"), Verdict::Granted);
        assert_eq!(topic(Then, 0, ""), Verdict::Denied);
        for (status, output) in
            [(0, "truetrue"), (0, "1"), (0, "Error: x"), (255, ""), (255, "true"), (1, "true")]
        {
            assert!(is_unchecked(&topic(Then, status, output)), "{status} {output}");
        }
    }

    #[test]
    fn an_unknown_version_must_say_yes_in_both_ways() {
        use Convention::Both;
        assert_eq!(topic(Both, 0, "true"), Verdict::Granted);
        assert_eq!(topic(Both, 0, ""), Verdict::Denied);
        assert_eq!(topic(Both, 1, ""), Verdict::Denied);
        assert!(is_unchecked(&topic(Both, 1, "true")));
        assert_eq!(auth(Both, 0, "6b030f5b450565077"), Verdict::Granted);
    }

    #[test]
    fn of_what_php_prints_the_first_line_is_told_as_part_of_a_sentence() {
        for (output, line) in [
            ("", ""),
            ("\n \nError: no.\nmore", "Error: no"),
            ("  and so on...  ", "and so on"),
            ("...", ""),
            ("9.2.7", "9.2.7"),
            ("a\u{1b}b", "a\\u{1b}b"),
        ] {
            assert_eq!(first_line(output.as_bytes()), line, "{output}");
        }
        assert_eq!(first_line(&[b'x'; 2 * MAX_LINE]).len(), MAX_LINE);
    }

    #[test]
    fn a_signal_is_no_verdict() {
        for convention in [Convention::ExitStatus, Convention::Output, Convention::Both] {
            let verdict =
                read(convention, &Affirmation::True, Exit::Signal(9), b"true", String::new);
            assert_eq!(verdict, Verdict::Unchecked(Failure::Signal(9)));
        }
    }

    #[test]
    fn ids_are_letters_digits_and_hyphens() {
        for id in ["a", "6b030f5b450565077", "0f8fad5b-d9cb-469f-a165-70867728950e"] {
            assert!(is_id(id.as_bytes()), "{id}");
        }
        let long = "a".repeat(MAX_PARAMETER + 1);
        for id in ["", "-a", "a b", "a_b", "a.b", "a\0", "a\n", "é", "$(id)", &long] {
            assert!(!is_id(id.as_bytes()), "{id}");
        }
        assert!(is_id(&long.as_bytes()[1..]));
    }
}
