//! Splits bytes into pieces, like a network.

/// Pieces of up to `longest` bytes; the lengths are derived from `longest`.
pub fn pieces(mut bytes: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    let most = longest.max(1);
    let mut hash = longest as u32;
    std::iter::from_fn(move || {
        // Knuth's generator; its upper bits are more random.
        hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = 1 + (hash >> 16) as usize % most;
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
