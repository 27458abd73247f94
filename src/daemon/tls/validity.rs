//! Reads the expiry date of a certificate (X.509, RFC 5280, section 4.1), and nothing else of it.

use crate::engine::time::Date;

/// When a certificate expires (`notAfter`).
#[must_use]
pub(super) fn end(certificate: &[u8]) -> Option<Date> {
    let (certificate, _) = sequence(certificate)?;
    let (mut fields, _) = sequence(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (validity, _) = sequence(fields)?;
    let (_, _, end) = element(validity)?;
    let (tag, text, _) = element(end)?;
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let (year, rest) = text.split_at_checked(if tag == SHORT { 2 } else { 4 })?;
    let year = year.parse::<u64>().ok()?;
    let year = match tag {
        SHORT if year < 50 => 2_000 + year,
        SHORT => 1_900 + year,
        LONG => year,
        _ => return None,
    };
    moment(year, rest)
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
/// `UTCTime`, with a year of two digits, and `GeneralizedTime`, with four.
const SHORT: u8 = 0x17;
const LONG: u8 = 0x18;

/// The content of a sequence, and the bytes after it.
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == SEQUENCE).then_some((content, rest))
}

/// The first element (DER): its tag, its content, and the bytes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = bytes else { return None };
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// Parses `MMDDHHMMSSZ` of a year since 1970.
fn moment(year: u64, rest: &str) -> Option<Date> {
    let mut pairs = [0; 5];
    for (pair, digits) in pairs.iter_mut().zip(rest.strip_suffix('Z')?.as_bytes().chunks(2)) {
        *pair = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
    }
    let [month @ 1..=12, day @ 1..=31, hour, minute, second] = pairs else { return None };
    if rest.len() != "MMDDHHMMSSZ".len() || year < 1970 {
        return None;
    }
    // As in `Date`, years begin in March.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = ((days.checked_sub(719_468)? * 24 + hour) * 60 + minute) * 60 + second;
    Some(Date(seconds * 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element of less than 128 bytes.
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [&[tag, u8::try_from(content.len()).unwrap()], &*content].concat()
    }

    fn certificate(has_version: bool, tag: u8, end: &str) -> Vec<u8> {
        let version = if has_version { der(VERSION, &[&[2, 1, 2]]) } else { Vec::new() };
        let (serial, algorithm, issuer) = (der(2, &[&[7]]), der(0x30, &[]), der(0x30, &[]));
        let validity =
            der(SEQUENCE, &[&der(SHORT, &[b"200101000000Z"]), &der(tag, &[end.as_bytes()])]);
        let fields = der(SEQUENCE, &[&version, &serial, &algorithm, &issuer, &validity]);
        // With a length of two bytes, as in real certificates.
        [&[SEQUENCE, 0x82, 0, u8::try_from(fields.len()).unwrap()], &*fields].concat()
    }

    fn expiry(bytes: &[u8]) -> Option<String> {
        end(bytes).map(|date| date.to_string())
    }

    #[test]
    fn the_expiry_date_is_read() {
        for (tag, end, date) in [
            (SHORT, "270301235959Z", "2027-03-01T23:59:59.000Z"),
            (SHORT, "491231000000Z", "2049-12-31T00:00:00.000Z"),
            (SHORT, "700101000000Z", "1970-01-01T00:00:00.000Z"),
            (LONG, "20280229120001Z", "2028-02-29T12:00:01.000Z"),
            (LONG, "99991231235959Z", "9999-12-31T23:59:59.000Z"),
        ] {
            for has_version in [true, false] {
                assert_eq!(expiry(&certificate(has_version, tag, end)).as_deref(), Some(date));
            }
        }
    }

    #[test]
    fn invalid_certificates_have_no_expiry_date() {
        for end in
            ["", "Z", "270301235959", "2703012359Z", "271301235959Z", "270300235959Z", "27é1"]
        {
            assert_eq!(expiry(&certificate(true, SHORT, end)), None, "{end}");
        }
        assert_eq!(expiry(&certificate(true, LONG, "19600101000000Z")), None);
        assert_eq!(expiry(&certificate(true, 2, "270301235959Z")), None);
        let whole = certificate(true, SHORT, "270301235959Z");
        for length in 0..whole.len() {
            assert_eq!(expiry(&whole[..length]), None, "{length}");
        }
        for position in 0..whole.len() {
            for byte in [0, 0x7f, 0x80, 0x84, 0x85, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = byte;
                let _ = end(&damaged);
            }
        }
    }
}
