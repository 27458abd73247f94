//! Unpredictable identifiers.

use std::io;

/// 128 random bits in hexadecimal.
///
/// # Errors
/// Those of `getrandom(2)`.
pub(crate) fn hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
