//! Deserializing what a hard fork may have changed: objects with unknown fields, or with fields that can't be read.
//!
//! A hard fork brings fields, types and shapes of its own. None of them may stop a chain, yet none may pass for proven: the
//! names of fields that were not understood are kept, and [`prove`](crate::prove) decides whether they matter.

use serde::de::value::{MapAccessDeserializer, UnitDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// An object that keeps the names of its unknown fields.
pub(super) trait KeepsUnknownFields<'de>: Sized {
    /// Names the object in errors.
    const WHAT: &'static str;
    /// The fields that it reads, and those that nodes send beside them and no hash covers.
    const KNOWN: &'static [&'static str];
    /// Deserializes it without its unknown fields.
    fn deserialize_known<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    /// Collects their names.
    fn unknown_fields(&mut self) -> &mut Vec<String>;
}

/// Deserializes an object together with the names of its unknown fields. A field that is null says nothing and is left out.
pub(super) fn deserialize_keeping_unknown<'de, T: KeepsUnknownFields<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Whole<T>(PhantomData<T>);
    impl<'de, T: KeepsUnknownFields<'de>> Visitor<'de> for Whole<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::WHAT)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            let mut unknown = Vec::new();
            let mut read = T::deserialize_known(MapAccessDeserializer::new(UnknownFieldRecorder {
                map,
                known: T::KNOWN,
                unknown: &mut unknown,
                pending: None,
            }))?;
            read.unknown_fields().append(&mut unknown);
            Ok(read)
        }
    }
    deserializer.deserialize_map(Whole(PhantomData))
}

/// A map that records the names of unknown fields as they are read.
struct UnknownFieldRecorder<'a, A> {
    map: A,
    known: &'static [&'static str],
    unknown: &'a mut Vec<String>,
    pending: Option<String>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for UnknownFieldRecorder<'_, A> {
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
        // The seed ignores an unknown field.
        seed.deserialize(UnitDeserializer::new())
    }
}

/// Deserializes an object that does not read as a whole without the fields that can't be read, and returns their names. The
/// fields of `needed` are required.
///
/// # Errors
/// When one of `needed` is missing or can't be read.
pub(super) fn deserialize_partly<T: DeserializeOwned>(
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
