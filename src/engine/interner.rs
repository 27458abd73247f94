//! Names that are stored once, with a value for each, and counted references.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use slab::Slab;

/// Maps names to small keys. A name is removed when it was released as often as it was interned.
#[derive(Debug)]
pub struct Interner<T> {
    entries: Slab<Entry<T>>,
    /// The keys by the hashes of their names, so that names are not stored twice.
    index: HashTable<Key>,
    /// Names come from clients, so the hash is keyed.
    hasher: RandomState,
}

/// Identifies a name. Must not be used after its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u32);

#[derive(Debug)]
struct Entry<T> {
    name: Box<str>,
    refs: u32,
    value: T,
}

impl<T: Default> Interner<T> {
    /// Adds a reference to a name.
    pub fn intern(&mut self, name: &str) -> Key {
        if let Some(key) = self.find(name) {
            if let Some(entry) = self.entry_mut(key) {
                entry.refs += 1;
            }
            return key;
        }
        let entry = Entry { name: name.into(), refs: 1, value: T::default() };
        #[expect(clippy::cast_possible_truncation, reason = "4 billion names need 200 GB")]
        let key = Key(self.entries.insert(entry) as u32);
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash =
            |key: &Key| hasher.hash_one(entries.get(key.0 as usize).map(|entry| &*entry.name));
        self.index.insert_unique(hash(&key), key, hash);
        key
    }

    /// Removes a reference; with the last one, the name and its value are removed.
    pub fn release(&mut self, key: Key) {
        let Some(entry) = self.entry_mut(key) else { return };
        debug_assert!(entry.refs > 0, "a name is released more often than it was interned");
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        let hash = self.hash(self.name(key));
        if let Ok(found) = self.index.find_entry(hash, |other| *other == key) {
            found.remove();
        }
        self.entries.remove(key.0 as usize);
        if self.entries.is_empty() {
            *self = Self::default();
        }
    }

    /// The key of a name, if it is present.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Key> {
        self.index.find(self.hash(name), |key| self.name(*key) == name).copied()
    }

    /// The name of a key.
    #[must_use]
    pub fn name(&self, key: Key) -> &str {
        self.entries.get(key.0 as usize).map_or("", |entry| &entry.name)
    }

    /// The value of a name.
    #[must_use]
    pub fn value(&self, key: Key) -> Option<&T> {
        self.entries.get(key.0 as usize).map(|entry| &entry.value)
    }

    /// The value of a name, mutable.
    pub fn value_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entry_mut(key).map(|entry| &mut entry.value)
    }

    /// Number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names and their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(_, entry)| (&*entry.name, &entry.value))
    }

    /// Checks that there are exactly these names with these numbers of references. For tests.
    ///
    /// # Panics
    /// If they differ.
    pub(crate) fn check_refs(&self, refs: &BTreeMap<Key, u32>) {
        assert_eq!(self.entries.len(), refs.len());
        assert_eq!(self.index.len(), refs.len());
        for (key, count) in refs {
            let entry = self.entries.get(key.0 as usize);
            assert_eq!(entry.map(|entry| entry.refs), Some(*count), "{}", self.name(*key));
            assert_eq!(self.find(self.name(*key)), Some(*key));
        }
    }

    fn entry_mut(&mut self, key: Key) -> Option<&mut Entry<T>> {
        self.entries.get_mut(key.0 as usize)
    }

    fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(Some(name))
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { entries: Slab::new(), index: HashTable::new(), hasher: RandomState::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_removed_with_its_last_reference() {
        let mut names = Interner::<u8>::default();
        let a = names.intern("a");
        let b = names.intern("b");
        assert_eq!(names.intern("a"), a);
        *names.value_mut(a).unwrap() = 7;
        names.release(a);
        assert_eq!((names.find("a"), names.name(a)), (Some(a), "a"));
        assert_eq!((names.value(a), names.value(b)), (Some(&7), Some(&0)));
        names.release(a);
        assert_eq!(names.find("a"), None);
        assert_eq!(names.find("b"), Some(b));
        names.release(b);
        assert!(names.is_empty());
    }

    #[test]
    fn many_names_are_found_again() {
        let mut names = Interner::<()>::default();
        let keys: Vec<Key> = (0..5_000).map(|i| names.intern(&format!("name{i}"))).collect();
        for key in keys.iter().step_by(2) {
            names.release(*key);
        }
        for (i, key) in keys.iter().enumerate() {
            let expected = (i % 2 == 1).then_some(*key);
            assert_eq!(names.find(&format!("name{i}")), expected);
        }
        assert_eq!(names.len(), 2_500);
    }
}
