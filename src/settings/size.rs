//! Sizes in the configuration.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `16MiB`, `64KiB`, `1GB`; a number without a unit is in bytes. `K`, `M` and `G`
/// are binary units, as in systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(usize);

/// The text is not a number of bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct NoSize;

const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Size {
    /// This number of bytes.
    #[must_use]
    pub fn bytes(bytes: usize) -> Self {
        Self(bytes)
    }
}

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(NoSize)?;
        let number: usize = number.parse().map_err(|_| NoSize)?;
        let bytes = match unit.trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            _ => return Err(NoSize),
        };
        number.checked_mul(bytes).map(Self).ok_or(NoSize)
    }
}

impl From<Size> for usize {
    fn from(size: Size) -> Self {
        size.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &(&str, usize)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match UNITS.into_iter().find(fits) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for NoSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes is expected, such as \"64MiB\", \"512KiB\" or \"100MB\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_parsed() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1_000),
            ("7B", 7),
            ("64KiB", 65_536),
            ("64 K", 65_536),
            ("1kB", 1_000),
            ("16MiB", 16 << 20),
            ("16MB", 16_000_000),
            ("1G", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "1mb",
            "1TB",
            "é",
            "99999999999999999999",
            "18446744073709551615KiB",
        ] {
            assert_eq!(text.parse::<Size>(), Err(NoSize), "{text}");
        }
    }

    #[test]
    fn shown_values_are_valid_values() {
        for text in ["0", "1000", "64KiB", "16MiB", "2GiB", "1025KiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
