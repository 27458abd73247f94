//! Interprets the outcome of EspoCRM's access checks.

use crate::engine::espocrm::version::Convention;
use crate::engine::limits::MAX_PARAMETER;
use crate::engine::printable::printable;

/// The verdict of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// EspoCRM grants access.
    Granted,
    /// EspoCRM denies access.
    Denied,
    /// The check failed: neither a reason to grant access nor a permanent denial.
    Failed(Failure),
}

/// Why a check failed; for the log, without its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// PHP could not be started.
    NotStarted(String),
    /// PHP did not finish within the deadline and was killed.
    TimedOut,
    /// PHP was killed by this signal.
    Signal(i32),
    /// PHP exited with this status after printing this line.
    Status(i32, String),
    /// PHP exited with status 0, but its output is not a verdict.
    Output(String),
    /// PHP exited with status 0 without output, as it also does when nothing was checked.
    NothingChecked,
    /// EspoCRM accepts a random token, so its grants are meaningless.
    Untrusted,
    /// PHP printed too much, or its output could not be read.
    Unreadable,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted(error) => write!(f, "PHP could not be started: {error}"),
            Self::TimedOut => f.write_str("PHP did not finish in time and was killed"),
            Self::Signal(signal) => write!(f, "PHP was killed by signal {signal}"),
            Self::Status(status, line) if line.is_empty() => {
                write!(f, "PHP exited with status {status}")
            }
            Self::Status(status, line) => write!(f, "PHP exited with status {status}: {line}"),
            Self::Output(line) => write!(f, "PHP printed unexpected output: {line}"),
            Self::NothingChecked => f.write_str(
                "PHP exited with status 0 without output, so nothing was checked: EspoCRM's files may be \
 incomplete, PHP may not be the command-line version, or a wrapper script may hide its \
 exit status",
            ),
            Self::Untrusted => f.write_str("EspoCRM accepts any token"),
            Self::Unreadable => f.write_str("PHP's output was too long or could not be read"),
        }
    }
}

/// How a command grants access. Exit status 0 is always required; PHP also exits with it when
/// nothing was checked, so EspoCRM's own commands must print their answer as well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Affirmation {
    /// `AuthTokenCheck` prints the id of the token's user, which must be this user.
    UserId(Box<str>),
    /// `AclCheck` prints `true`, for portal users `truetrue`.
    True,
    /// Commands of extensions: since EspoCRM 9.2 the exit status is enough, and they may print
    /// anything. Before 9.2, where the status is always 0, they print exactly `true`.
    Status,
}

impl Affirmation {
    /// Whether the output alone grants access, in any version.
    fn accepts(&self, output: &[u8]) -> bool {
        match self {
            Self::UserId(user) => output == user.as_bytes(),
            Self::True => {
                let (words, rest) = output.as_chunks::<4>();
                !words.is_empty() && rest.is_empty() && words.iter().all(|word| word == b"true")
            }
            Self::Status => output == b"true",
        }
    }
}

/// How a PHP process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessExit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// Interprets the outcome of a command: its exit, its standard output, and `message`, a printable
/// line for the log.
#[must_use]
pub fn read(
    convention: Convention,
    affirmation: &Affirmation,
    exit: ProcessExit,
    output: &[u8],
    message: impl FnOnce() -> String,
) -> Verdict {
    let status = match exit {
        ProcessExit::Status(status) => status,
        ProcessExit::Signal(signal) => return Verdict::Failed(Failure::Signal(signal)),
    };
    let output = output.trim_ascii();
    match status {
        0 if affirmation.accepts(output) => Verdict::Granted,
        0 if *affirmation == Affirmation::Status && convention == Convention::ExitStatus => {
            Verdict::Granted
        }
        0 if output.is_empty() => match convention {
            Convention::Output | Convention::Both => Verdict::Denied,
            Convention::ExitStatus | Convention::InDoubt => {
                Verdict::Failed(Failure::NothingChecked)
            }
        },
        // Before 9.2: the token is valid, but for another user.
        0 if matches!(affirmation, Affirmation::UserId(_))
            && matches!(convention, Convention::Output | Convention::Both)
            && is_id(output) =>
        {
            Verdict::Denied
        }
        0 => Verdict::Failed(Failure::Output(message())),
        // PHP 8.4 prints this to standard error: files are being replaced, and no command has run.
        1 if output.is_empty() => match message() {
            line if line.starts_with(NO_SCRIPT) => Verdict::Failed(Failure::Status(1, line)),
            _ => Verdict::Denied,
        },
        _ => Verdict::Failed(Failure::Status(status, message())),
    }
}

/// What PHP prints if the script does not exist.
const NO_SCRIPT: &str = "Could not open input file: ";

/// The first line of PHP's output, made printable for the log.
#[must_use]
pub fn first_line(output: &[u8]) -> String {
    let line = output.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    let mut line = line.unwrap_or_default().trim_ascii();
    // The log line ends with its own full stop.
    while let [rest @ .., b'.'] = line {
        line = rest;
    }
    let line = line.get(..line.len().min(MAX_LINE)).unwrap_or_default();
    printable(&String::from_utf8_lossy(line))
}

/// Bytes of PHP's output in a log line.
const MAX_LINE: usize = 300;

/// Whether `text` can be a token or a user id: letters, digits and hyphens, and not something that
/// a command would parse as an option.
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
        read(convention, &user, ProcessExit::Status(status), output.as_bytes(), String::new)
    }

    fn topic(convention: Convention, status: i32, output: &str) -> Verdict {
        read(
            convention,
            &Affirmation::True,
            ProcessExit::Status(status),
            output.as_bytes(),
            String::new,
        )
    }

    fn extension(convention: Convention, status: i32, output: &str) -> Verdict {
        read(
            convention,
            &Affirmation::Status,
            ProcessExit::Status(status),
            output.as_bytes(),
            String::new,
        )
    }

    const ALL: [Convention; 4] =
        [Convention::ExitStatus, Convention::Output, Convention::Both, Convention::InDoubt];

    fn is_failed(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Failed(_))
    }

    #[test]
    fn quotes_in_output_of_php_are_not_escaped() {
        assert_eq!(
            first_line(b"\nScope \"X\" isn't \x1b there.\n"),
            "Scope \"X\" isn't \\u{1b} there"
        );
    }

    #[test]
    fn a_missing_script_is_not_a_denial() {
        let messages = ["Could not open input file: command.php", "", "PHP Warning:  x"];
        let denied = messages.map(|line| {
            let exit = ProcessExit::Status(1);
            let verdict =
                read(Convention::ExitStatus, &Affirmation::True, exit, b"", || line.to_owned());
            verdict == Verdict::Denied
        });
        assert_eq!(denied, [false, true, true]);
    }

    #[test]
    fn no_version_grants_by_exit_status_alone() {
        for convention in ALL {
            let output = "6b030f5b450565077";
            assert_eq!(auth(convention, 0, output), Verdict::Granted);
            for output in ["", " \n", "true", "6b030f5b450565077 ok", "PHP Warning:  x", "-"] {
                assert_ne!(auth(convention, 0, output), Verdict::Granted, "{output}");
            }
            for output in ["true", "truetrue", "truetruetrue", "true\n"] {
                assert_eq!(topic(convention, 0, output), Verdict::Granted, "{output}");
            }
            for output in ["", "1", "tru", "truet", "true true", "True", "6b030f5b450565077"] {
                assert_ne!(topic(convention, 0, output), Verdict::Granted, "{output}");
            }
        }
    }

    #[test]
    fn commands_of_extensions_grant_by_exit_status_since_9_2() {
        use Convention::{Both, ExitStatus, InDoubt, Output};
        for output in ["", "true", "yes", "Error: x"] {
            assert_eq!(extension(ExitStatus, 0, output), Verdict::Granted, "{output}");
        }
        for convention in [Output, Both, InDoubt] {
            assert_eq!(extension(convention, 0, "true"), Verdict::Granted);
            for output in ["yes", "truetrue", "Error: x"] {
                assert!(is_failed(&extension(convention, 0, output)), "{output}");
            }
        }
        assert_eq!(extension(Output, 0, ""), Verdict::Denied);
        assert_eq!(extension(Both, 0, ""), Verdict::Denied);
        assert!(is_failed(&extension(InDoubt, 0, "")));
        for convention in ALL {
            assert_eq!(extension(convention, 1, ""), Verdict::Denied);
            assert!(is_failed(&extension(convention, 1, "Error: x")));
            assert!(is_failed(&extension(convention, 255, "true")));
        }
    }

    #[test]
    fn since_9_2_status_0_without_output_is_not_a_denial() {
        let nothing = Verdict::Failed(Failure::NothingChecked);
        for convention in [Convention::ExitStatus, Convention::InDoubt] {
            assert_eq!(auth(convention, 0, ""), nothing);
            assert_eq!(topic(convention, 0, "\n"), nothing);
            assert!(is_failed(&auth(convention, 0, "0123456789abcdef0")));
            assert!(is_failed(&topic(convention, 0, "Only for the command line.")));
        }
    }

    #[test]
    fn since_9_2_status_1_without_output_denies() {
        use Convention::ExitStatus as Now;
        assert_eq!(auth(Now, 1, ""), Verdict::Denied);
        assert_eq!(topic(Now, 1, ""), Verdict::Denied);
        assert_eq!(topic(Now, 1, "\n"), Verdict::Denied);
        for (status, output) in
            [(1, "Error: SQLSTATE[HY000] [2002]"), (1, "true"), (255, ""), (2, ""), (127, "")]
        {
            assert!(is_failed(&topic(Now, status, output)), "{status} {output}");
            assert!(is_failed(&auth(Now, status, output)), "{status} {output}");
        }
    }

    #[test]
    fn before_9_2_the_output_decides() {
        use Convention::Output as Then;
        assert_eq!(auth(Then, 0, "6b030f5b450565077"), Verdict::Granted);
        assert_eq!(auth(Then, 0, ""), Verdict::Denied);
        assert_eq!(auth(Then, 0, "0123456789abcdef0"), Verdict::Denied);
        assert!(is_failed(&auth(Then, 0, "PHP Warning:  something")));
        assert_eq!(topic(Then, 0, "true"), Verdict::Granted);
        assert_eq!(topic(Then, 0, ""), Verdict::Denied);
        for (status, output) in [(0, "1"), (0, "Error: x"), (255, ""), (255, "true"), (1, "true")] {
            assert!(is_failed(&topic(Then, status, output)), "{status} {output}");
        }
    }

    #[test]
    fn an_unknown_version_must_grant_by_status_and_output() {
        use Convention::Both;
        assert_eq!(topic(Both, 0, "true"), Verdict::Granted);
        assert_eq!(topic(Both, 0, ""), Verdict::Denied);
        assert_eq!(topic(Both, 1, ""), Verdict::Denied);
        assert!(is_failed(&topic(Both, 1, "true")));
        assert_eq!(auth(Both, 0, "6b030f5b450565077"), Verdict::Granted);
    }

    #[test]
    fn the_first_line_of_output_becomes_part_of_a_sentence() {
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
    fn a_signal_is_not_a_verdict() {
        for convention in ALL {
            let verdict =
                read(convention, &Affirmation::True, ProcessExit::Signal(9), b"true", String::new);
            assert_eq!(verdict, Verdict::Failed(Failure::Signal(9)));
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
