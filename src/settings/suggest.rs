//! Suggestions for mistyped names.

/// The one of `known` that is most similar to `word`, if one is similar enough.
#[must_use]
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let slips = (word.len() / 3).clamp(1, 3);
    let slips_to = |name| (strsim::osa_distance(word, name), name);
    let nearest = known.into_iter().map(slips_to).min()?;
    (nearest.0 <= slips).then_some(nearest.1)
}

/// That suggestion as the end of a sentence, or nothing.
#[must_use]
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_names_are_suggested() {
        let known = ["listen", "max_connections", "max_per_user", "php"];
        for (word, name) in [
            ("max_conections", Some("max_connections")),
            ("max_conenctions", Some("max_connections")),
            ("listne", Some("listen")),
            ("pph", Some("php")),
            ("port", None),
            ("database", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), name, "{word}");
        }
        assert_eq!(nearest("php", []), None);
        assert_eq!(did_you_mean("lisden", known), "; did you mean listen?");
        assert_eq!(did_you_mean("database", known), "");
    }
}
