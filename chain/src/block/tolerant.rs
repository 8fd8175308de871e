//! Reading what a fork may have changed: which fields of an object we do not know, and an object of which some can't be read.
//!
//! A fork brings fields, types and shapes of its own. None of them may stop a chain, yet none may pass for proven: what was not
//! understood is kept by name, and [`prove`](crate::prove) looks whether it matters.

use serde::de::value::{MapAccessDeserializer, UnitDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// An object that keeps the names of its unknown fields.
pub(super) trait Keeps<'de>: Sized {
    /// What it is, for errors.
    const WHAT: &'static str;
    /// All fields that it reads, and those that nodes send beside them and no hash covers.
    const KNOWN: &'static [&'static str];
    /// Reads it without them.
    fn plain<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    /// Where their names go.
    fn unknown_fields(&mut self) -> &mut Vec<String>;
}

/// Reads an object together with the names of its unknown fields. One that is null says nothing, and is not named.
pub(super) fn keeping<'de, T: Keeps<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Whole<T>(PhantomData<T>);
    impl<'de, T: Keeps<'de>> Visitor<'de> for Whole<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::WHAT)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            let mut unknown = Vec::new();
            let mut read =
                T::plain(MapAccessDeserializer::new(Watched { map, known: T::KNOWN, unknown: &mut unknown, pending: None }))?;
            read.unknown_fields().append(&mut unknown);
            Ok(read)
        }
    }
    deserializer.deserialize_map(Whole(PhantomData))
}

/// A map that notes the names of unknown fields as they are read.
struct Watched<'a, A> {
    map: A,
    known: &'static [&'static str],
    unknown: &'a mut Vec<String>,
    pending: Option<String>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(Name(name)) = self.map.next_key::<Name<'de>>()? else { return Ok(None) };
        self.pending = (!self.known.contains(&name.as_ref())).then(|| name.clone().into_owned());
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        let Some(name) = self.pending.take() else { return self.map.next_value_seed(seed) };
        if self.map.next_value::<Option<IgnoredAny>>()?.is_some() {
            self.unknown.push(name);
        }
        // Whoever asked ignores it.
        seed.deserialize(UnitDeserializer::new())
    }
}

/// Reads what can be read of an object that does not read as a whole, and the names of the fields that can't. Those of `needed`
/// have to be there.
///
/// # Errors
/// When one of `needed` is missing or can't be read.
pub(super) fn partly<T: DeserializeOwned>(
    object: Map<String, Value>,
    needed: &[&str],
) -> Result<(T, Vec<String>), serde_json::Error> {
    let (mut readable, rest): (Map<_, _>, Map<_, _>) =
        object.into_iter().partition(|(name, _)| needed.contains(&name.as_str()));
    let mut read = T::deserialize(&readable)?;
    let mut odd = Vec::new();
    for (name, value) in rest {
        readable.insert(name.clone(), value);
        match T::deserialize(&readable) {
            Ok(more) => read = more,
            Err(_) => {
                readable.remove(&name);
                odd.push(name);
            }
        }
    }
    Ok((read, odd))
}
