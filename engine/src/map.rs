//! A hash map that cannot be iterated, so that no result can depend on its order.

use std::fmt;
use std::hash::Hash;

/// Lookup by key in constant time; has no iterator on purpose. Where order matters use `BTreeMap`.
#[derive(Clone)]
pub struct Map<K, V>(rustc_hash::FxHashMap<K, V>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(Default::default())
    }
}

/// In the order of the keys.
impl<K: fmt::Debug + Ord, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<(&K, &V)> = self.0.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        f.debug_map().entries(all).finish()
    }
}

impl<K: Eq + Hash, V> Map<K, V> {
    /// The value at `key`.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }
    /// The value at `key`, to change.
    #[inline]
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.get_mut(key)
    }
    /// Puts `value` at `key`; what was there before is returned.
    #[inline]
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }
    /// Takes the value at `key` out.
    #[inline]
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key)
    }
    /// Whether there is a value at `key`.
    #[inline]
    pub fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }
    /// The value at `key`, made by `make` if there is none.
    pub fn or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.0.entry(key).or_insert_with(make)
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
