//! The names of the chains in a `chains.yaml` with a mistake, for the message about it: serde counts the entries of a list.

use base::text::excerpt;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// A chain's name, whatever else is wrong with it.
struct Name(Option<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    OnTop(Vec<Name>),
    Under { chains: Vec<Name> },
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a chain")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Name, A::Error> {
                let mut name = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "name" && name.is_none() {
                        name = map.next_value()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Name(name))
            }
        }
        deserializer.deserialize_map(Entry)
    }
}

/// Puts the chain's name where a message about `text` counts the chains.
pub(super) fn name_chain(message: &str, text: &str) -> String {
    let counted = message.strip_prefix("chains").unwrap_or(message).strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let Some((place, rest)) = counted.and_then(|(place, rest)| Some((place.parse::<usize>().ok()?, rest))) else {
        return message.to_owned();
    };
    let names = match serde_norway::from_str(text) {
        Ok(Listed::OnTop(names) | Listed::Under { chains: names }) => names,
        Err(_) => Vec::new(),
    };
    let name = names.into_iter().nth(place).and_then(|Name(name)| name);
    let chain = name.map_or_else(|| format!("number {}", place + 1), |name| excerpt(&name));
    match rest.strip_prefix('.') {
        Some(key) => format!("chain {chain}: {key}"),
        None => format!("chain {chain}{rest}"),
    }
}
