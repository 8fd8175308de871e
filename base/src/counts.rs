//! How many of each: what is open or taken, by whose it is.

use std::collections::HashMap;
use std::hash::Hash;

/// A number for each key. A key of which there is none takes no memory.
#[derive(Clone, Debug)]
pub struct Counts<K>(HashMap<K, usize>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    pub fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }

    pub fn add(&mut self, key: K, number: usize) {
        *self.0.entry(key).or_default() += number;
    }

    /// Takes off what was added.
    pub fn take_off(&mut self, key: &K, number: usize) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= number;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, usize)> {
        self.0.iter().map(|(key, count)| (key, *count))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_taken_off_leaves_nothing() {
        let mut counts = Counts::default();
        counts.add("a", 2);
        counts.add("a", 1);
        counts.take_off(&"b", 1);
        counts.take_off(&"a", 1);
        assert_eq!((counts.of(&"a"), counts.of(&"b")), (2, 0));
        counts.take_off(&"a", 2);
        assert!(counts.is_empty());
    }
}
