//! The short names that a WAMP v1 client may define for prefixes of topics.

use std::borrow::Cow;

use crate::engine::limits::{MAX_PREFIX, MAX_PREFIXES, MAX_TOPIC};

/// A client's prefixes. EspoCRM's own client defines none, for which nothing is allocated.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "a session without prefixes pays 8 bytes, not 24")]
pub(super) struct Prefixes(Option<Box<Vec<Prefix>>>);

/// The short name and the URI that it stands for.
type Prefix = (Box<str>, Box<str>);

/// Bytes of a prefix besides its names: its entry, and two allocations.
const PREFIX: usize = 64;

impl Prefixes {
    /// Defines that `prefix:rest` stands for `uri#rest`. Definitions above the limits are ignored.
    pub(super) fn define(&mut self, prefix: &str, uri: &str) {
        if prefix.len() > MAX_PREFIX || uri.len() > MAX_TOPIC {
            return;
        }
        let all = self.0.get_or_insert_default();
        if let Some((_, old)) = all.iter_mut().find(|(name, _)| **name == *prefix) {
            *old = uri.into();
        } else if all.len() < MAX_PREFIXES {
            all.push((prefix.into(), uri.into()));
        }
    }

    /// Bytes of memory.
    pub(super) fn buffered(&self) -> usize {
        let all = self
            .0
            .as_ref()
            .map(|all| all.iter().map(|(name, uri)| PREFIX + name.len() + uri.len()));
        all.map_or(0, Iterator::sum)
    }

    /// Expands a name with its prefix, if it has one.
    pub(super) fn expand<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let expanded = || {
            let (prefix, rest) = name.split_once(':')?;
            let (_, uri) = self.0.as_ref()?.iter().find(|(name, _)| **name == *prefix)?;
            Some(format!("{uri}#{rest}"))
        };
        expanded().map_or(Cow::Borrowed(name), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stands_for_its_uri() {
        let mut prefixes = Prefixes::default();
        assert_eq!(prefixes.expand("e:a"), "e:a");
        prefixes.define("e", "myTopic.x");
        assert_eq!(prefixes.expand("e:a:b"), "myTopic.x#a:b");
        assert_eq!(prefixes.expand("e"), "e");
        assert_eq!(prefixes.expand("f:a"), "f:a");
        prefixes.define("e", "other");
        assert_eq!(prefixes.expand("e:"), "other#");
    }

    #[test]
    fn prefixes_are_bounded() {
        let mut prefixes = Prefixes::default();
        prefixes.define(&"p".repeat(MAX_PREFIX + 1), "u");
        prefixes.define("long", &"u".repeat(MAX_TOPIC + 1));
        for number in 0..2 * MAX_PREFIXES {
            prefixes.define(&format!("p{number}"), "u");
        }
        assert_eq!(prefixes.0.as_ref().map(|all| all.len()), Some(MAX_PREFIXES));
        assert!((MAX_PREFIXES * PREFIX..2 * MAX_PREFIXES * PREFIX).contains(&prefixes.buffered()));
        assert_eq!(prefixes.expand("long:a"), "long:a");
        assert_eq!(prefixes.expand("p0:a"), "u#a");
        assert_eq!(prefixes.expand(&format!("p{MAX_PREFIXES}:a")), format!("p{MAX_PREFIXES}:a"));
    }
}
