//! Keys of a map in `chains.yaml`: a second one of the same name is refused at its own line. A derived `Deserialize` would tell the
//! line where the map begins.

use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer as _, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// A map in which each key may be given once.
pub(super) struct UniqueKeys<A> {
    map: A,
    seen: BTreeSet<String>,
}

impl<A> UniqueKeys<A> {
    pub(super) fn new(map: A) -> Self {
        Self { map, seen: BTreeSet::new() }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for UniqueKeys<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.map.next_key_seed(Key { seed, seen: &mut self.seen })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

struct Key<'s, K> {
    seed: K,
    seen: &'s mut BTreeSet<String>,
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<'_, K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for Key<'_, K> {
    type Value = K::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<K::Value, E> {
        if !self.seen.insert(key.to_owned()) {
            return Err(E::custom(format_args!("duplicate key {key}; expected it once")));
        }
        self.seed.deserialize(key.into_deserializer())
    }
}
