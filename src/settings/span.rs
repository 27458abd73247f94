//! Lengths of time in the configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time other than zero: `20s`, `500ms`, `2m`, `1h`, `1d`; a number without a unit is in
/// seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(Duration);

/// A length of time, or `0`, which disables the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanOrZero(Duration);

/// The text is not a length of time.
#[derive(Debug, PartialEq, Eq)]
pub struct NoSpan;

impl FromStr for Span {
    type Err = NoSpan;

    fn from_str(text: &str) -> Result<Self, NoSpan> {
        let SpanOrZero(duration) = text.parse()?;
        if duration.is_zero() { Err(NoSpan) } else { Ok(Self(duration)) }
    }
}

impl FromStr for SpanOrZero {
    type Err = NoSpan;

    fn from_str(text: &str) -> Result<Self, NoSpan> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(NoSpan)?;
        let number: u64 = number.parse().map_err(|_| NoSpan)?;
        let millis = match unit.trim() {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(NoSpan),
        };
        let millis = number.checked_mul(millis).ok_or(NoSpan)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl From<Duration> for SpanOrZero {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<SpanOrZero> for Duration {
    fn from(span: SpanOrZero) -> Self {
        span.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1_000 != 0 => write!(f, "{millis}ms"),
            millis => write!(f, "{}s", millis / 1_000),
        }
    }
}

impl fmt::Display for NoSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a length of time is expected, such as \"20s\", \"500ms\", \"2m\", \"1h\" or \"1d\"",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_parsed() {
        for (text, millis) in [
            ("25", 25_000),
            ("25s", 25_000),
            ("25 s", 25_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in [
            "",
            "s",
            "0",
            "0ms",
            "-1s",
            "1.5s",
            "1w",
            "é",
            "99999999999999999999",
            "9999999999999999h",
        ] {
            assert_eq!(text.parse::<Span>(), Err(NoSpan), "{text}");
        }
    }

    #[test]
    fn zero_disables_a_setting() {
        for (text, millis) in [("0", 0), ("0s", 0), ("0ms", 0), ("5m", 300_000)] {
            assert_eq!(text.parse(), Ok(SpanOrZero(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "s", "-1", "off"] {
            assert_eq!(text.parse::<SpanOrZero>(), Err(NoSpan), "{text}");
        }
    }

    #[test]
    fn shown_values_are_valid_values() {
        for text in ["25s", "500ms", "120s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
