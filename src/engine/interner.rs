//! Names stored once, with something kept for each, for as long as somebody holds them.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use slab::Slab;

/// Maps names to small keys. A name lives until it has been released as often as it was interned.
#[derive(Debug)]
pub struct Interner<T> {
    entries: Slab<Entry<T>>,
    /// The keys by their names' hashes, so that a name is not stored a second time.
    index: HashTable<Key>,
    /// Names come from clients: the hash has a secret.
    hasher: RandomState,
}

/// Stands for a name that is held. It must not be used after its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u32);

#[derive(Debug)]
struct Entry<T> {
    name: Box<str>,
    holders: u32,
    value: T,
}

impl<T: Default> Interner<T> {
    /// Takes hold of a name.
    pub fn intern(&mut self, name: &str) -> Key {
        if let Some(key) = self.find(name) {
            if let Some(entry) = self.entry_mut(key) {
                entry.holders += 1;
            }
            return key;
        }
        let entry = Entry { name: name.into(), holders: 1, value: T::default() };
        #[expect(clippy::cast_possible_truncation, reason = "4 billion names need 200 GB")]
        let key = Key(self.entries.insert(entry) as u32);
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash =
            |key: &Key| hasher.hash_one(entries.get(key.0 as usize).map(|entry| &*entry.name));
        self.index.insert_unique(hash(&key), key, hash);
        key
    }

    /// Gives up a hold; the last one removes the name and its value.
    pub fn release(&mut self, key: Key) {
        let Some(entry) = self.entry_mut(key) else { return };
        debug_assert!(entry.holders > 0, "a name is released more often than it was interned");
        entry.holders -= 1;
        if entry.holders > 0 {
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

    /// The key of a name that somebody holds.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Key> {
        self.index.find(self.hash(name), |key| self.name(*key) == name).copied()
    }

    /// The name behind a key.
    #[must_use]
    pub fn name(&self, key: Key) -> &str {
        self.entries.get(key.0 as usize).map_or("", |entry| &entry.name)
    }

    /// What is kept for a name.
    #[must_use]
    pub fn value(&self, key: Key) -> Option<&T> {
        self.entries.get(key.0 as usize).map(|entry| &entry.value)
    }

    /// What is kept for a name, to be changed.
    pub fn value_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entry_mut(key).map(|entry| &mut entry.value)
    }

    /// How many names are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no name is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names that are held, in no particular order, with what is kept for each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(_, entry)| (&*entry.name, &entry.value))
    }

    /// Checks that exactly these names are stored, each used so often. For tests.
    ///
    /// # Panics
    /// If not.
    pub(crate) fn check_uses(&self, uses: &BTreeMap<Key, u32>) {
        assert_eq!(self.entries.len(), uses.len());
        assert_eq!(self.index.len(), uses.len());
        for (key, count) in uses {
            let entry = self.entries.get(key.0 as usize);
            assert_eq!(entry.map(|entry| entry.holders), Some(*count), "{}", self.name(*key));
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
    fn a_name_lives_as_long_as_it_is_held() {
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
