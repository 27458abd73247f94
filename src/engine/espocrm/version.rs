//! EspoCRM's version, which determines how the outcome of an access check is interpreted.

use std::fmt;

use crate::engine::printable::Printable;

/// The version in EspoCRM's configuration, such as `9.2.7` or `10.0.0-beta1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    text: String,
    number: Option<(u32, u32)>,
}

impl Version {
    /// Parses the version; any text is accepted.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), number: number(text) }
    }

    /// How the commands of this version report their verdict.
    #[must_use]
    pub fn convention(&self) -> Convention {
        match self.number {
            Some(number) if number >= (9, 2) => Convention::ExitStatus,
            Some(_) => Convention::Output,
            None => Convention::Both,
        }
    }

    /// Whether the version is known and at least this one (major and minor).
    #[must_use]
    pub fn is_at_least(&self, number: (u32, u32)) -> bool {
        self.number.is_some_and(|own| own >= number)
    }

    /// Whether the major and minor version are known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.number.is_some()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.text {
            "" => f.write_str("unknown"),
            text => Printable(text).fmt(f),
        }
    }
}

/// How a command reports whether access is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// EspoCRM 9.2 and later: exit status 0 with the expected output grants, 1 without output
    /// denies. An extension's command grants by exit status 0 alone.
    ExitStatus,
    /// Before 9.2: the exit status is always 0; no output denies.
    Output,
    /// The version is unknown: access that every version grants is granted, access that any version
    /// denies is denied.
    Both,
    /// EspoCRM's files are changing: access that every version grants is granted, access that every
    /// version denies is denied.
    InDoubt,
}

fn number(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_convention_changes_with_9_2() {
        for (text, convention) in [
            ("5.6.0", Convention::Output),
            ("5.6", Convention::Output),
            ("7.0.10", Convention::Output),
            ("9.1.9", Convention::Output),
            ("9.2.0", Convention::ExitStatus),
            ("9.2", Convention::ExitStatus),
            ("9.2-alpha", Convention::ExitStatus),
            ("9.2.0-beta1", Convention::ExitStatus),
            ("9.10.0", Convention::ExitStatus),
            ("10.0.0", Convention::ExitStatus),
            (" 10.0.0\n", Convention::ExitStatus),
            ("@@version", Convention::Both),
            ("dev", Convention::Both),
            ("9", Convention::Both),
            ("9.", Convention::Both),
            ("", Convention::Both),
            ("99999999999.1", Convention::Both),
        ] {
            assert_eq!(Version::new(text).convention(), convention, "{text}");
        }
    }
}
