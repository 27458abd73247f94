//! What nobody can guess.

use std::io;

/// 128 random bits in hexadecimal.
///
/// # Errors
/// If the kernel has no random numbers.
pub(crate) fn hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
