//! JSON whose values keep their text, so that no number passes through a float, and checks of what Postgres can store.

use crate::text::excerpt;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;

/// Readers of metadata recurse, so it is limited.
const MAX_DEPTH: usize = 32;
/// More than the largest metadata has room for.
const MAX_MEMBERS: usize = 4096;

/// The members of a JSON object, in the order of the text. A duplicate name is an error, since readers differ in which value they
/// take, and so are more than [`MAX_MEMBERS`], of which each costs more memory than text.
pub struct Object<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members: Vec<(String, &'de RawValue)> = Vec::new();
                let mut names = HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!("duplicate field {:?}", excerpt(&name))));
                    }
                    if names.len() > MAX_MEMBERS {
                        return Err(de::Error::custom(format_args!("expected at most {MAX_MEMBERS} fields in an object")));
                    }
                    members.push((name, value));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Whether every JSON reader understands this document, which is stored and returned as it was written. serde_json does not
/// check the inside of raw values, so this does.
///
/// # Errors
/// Names the part that some reader would refuse: a duplicate name, a lone surrogate, a number out of a double's range, or
/// nesting that is too deep.
pub fn check_storable(raw: &str) -> Result<(), String> {
    check_at_depth(raw, 0)
}

fn check_at_depth(raw: &str, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested more than {MAX_DEPTH} levels deep"));
    }
    match raw.as_bytes().first() {
        Some(b'{') => {
            let Object(members) = serde_json::from_str(raw).map_err(|e| e.to_string())?;
            for (_, value) in members {
                check_at_depth(value.get(), depth + 1)?;
            }
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(|e| e.to_string())?;
            for item in items {
                check_at_depth(item.get(), depth + 1)?;
            }
        }
        Some(b'"') => {
            let _: String = serde_json::from_str(raw).map_err(|e| e.to_string())?;
        }
        // RFC 7493: many readers hold every number as a double.
        Some(b'0'..=b'9' | b'-') if !raw.parse().is_ok_and(f64::is_finite) => {
            return Err(format!("the number {} is out of range", excerpt(raw)));
        }
        _ => {}
    }
    Ok(())
}

/// Whether Postgres can store this as `text`.
///
/// # Errors
/// When it contains U+0000.
pub fn check_storable_text(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("the character U+0000 can't be stored".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_reader_would_stumble_over_is_refused() {
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        for bad in [r#"["\ud800"]"#, r#"{"a":{"b":1,"b":2}}"#, "[1e400]", "[-1E+9999]", "[1e99999999999999999999]", &deep] {
            assert!(check_storable(bad).is_err(), "{bad}");
        }
        for good in [
            r#"{"a":[1,2.5,-1e10,null,true,"é\ud83d\ude00\u0000"],"b":{"c":123456789012345678901234567890}}"#,
            "{}",
            "[1.7976931348623157e+308,5e-324]",
        ] {
            assert_eq!(check_storable(good), Ok(()));
        }
    }

    #[test]
    fn an_object_has_as_many_fields_as_metadata_has_room_for_and_no_more() {
        let object = |fields: usize| {
            let fields: Vec<String> = (0..fields).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert_eq!(check_storable(&object(MAX_MEMBERS)), Ok(()));
        assert!(check_storable(&object(MAX_MEMBERS + 1)).unwrap_err().contains("at most 4096 fields"));
        // A reader that compared each name with all before it would take minutes.
        assert!(check_storable(&object(900_000)).is_err());
    }
}
