//! A JSON object whose values stay as they were written, so that no number goes through a float on its way.

use crate::problem::{FieldError, Problem};
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Deeper metadata is refused: it is for labels, and whoever reads it recurses.
const DEEPEST: usize = 32;
/// Fields in the order of the text, taken out one by one; what is left at the end is unknown.
pub struct Fields<'a> {
    rest: Vec<(String, &'a RawValue)>,
    errors: Vec<FieldError>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut rest: Vec<(String, &'de RawValue)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if rest.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format_args!("field {name:?} is there twice")));
                    }
                    rest.push((name, value));
                }
                Ok(Fields { rest, errors: Vec::new() })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'a> Fields<'a> {
    /// From a request's body.
    ///
    /// # Errors
    /// A 400 when it is no JSON object.
    pub fn read(body: &'a [u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body)
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "malformed-json", "The body is no JSON object", error))
    }

    /// Whether the field is there and not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.rest.iter().any(|(known, value)| known == name && value.get() != "null")
    }

    /// The field as it was written. `null` is the same as leaving it out.
    pub fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        let place = self.rest.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.rest.swap_remove(place);
        (value.get() != "null").then_some(value)
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        self.check(name, serde_json::from_str(raw.get()).map_err(|_| format!("expected a string, got {}", shown(raw.get()))))
    }

    /// A whole number.
    pub fn number(&mut self, name: &str) -> Option<u64> {
        let raw = self.raw(name)?;
        self.check(name, whole(raw.get()).parse().map_err(|_| format!("expected a whole number, got {}", shown(raw.get()))))
    }

    /// True or false.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let raw = self.raw(name)?;
        self.check(
            name,
            serde_json::from_str(raw.get()).map_err(|_| format!("expected true or false, got {}", shown(raw.get()))),
        )
    }

    /// Keeps the error, if it is one.
    pub fn check<T, E: fmt::Display>(&mut self, name: &str, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|message| self.refuse(name, message)).ok()
    }

    /// Keeps an error.
    pub fn refuse(&mut self, name: &str, message: impl fmt::Display) {
        self.errors.push(FieldError::new(name, message));
    }

    /// All errors together, so that a client sees them at once; a field that is not known is one.
    ///
    /// # Errors
    /// A 422 when there is any.
    pub fn finish(mut self, known: &[&str]) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.rest) {
            if known.contains(&name.as_str()) {
                continue;
            }
            self.refuse(&name, format_args!("unknown field; there are {}", known.join(", ")));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::invalid(self.errors)) }
    }
}

/// The digits of a whole number: `2.0` is the integer 2 to JSON Schema, and to programs that know no other numbers.
pub fn whole(raw: &str) -> &str {
    match raw.split_once('.') {
        Some((digits, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => digits,
        _ => raw,
    }
}

/// A value in an error message, cut short.
pub fn shown(raw: &str) -> String {
    const ENOUGH: usize = 80;
    match raw.char_indices().nth(ENOUGH) {
        None => raw.to_owned(),
        Some((end, _)) => format!("{}…", &raw[..end]),
    }
}

/// Whether everyone who is shown this JSON can read it: what serde_json lets pass unread is looked into here. It is kept and
/// shown as it was written.
pub fn storable(raw: &str) -> Result<(), String> {
    storable_at(raw, 0)
}

fn storable_at(raw: &str, depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("nested more than {DEEPEST} deep"));
    }
    match raw.as_bytes().first() {
        Some(b'{') => {
            let fields: Fields<'_> = serde_json::from_str(raw).map_err(|e| e.to_string())?;
            for (_, value) in fields.rest {
                storable_at(value.get(), depth + 1)?;
            }
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(|e| e.to_string())?;
            for item in items {
                storable_at(item.get(), depth + 1)?;
            }
        }
        Some(b'"') => {
            let _: String = serde_json::from_str(raw).map_err(|e| e.to_string())?;
        }
        // RFC 7493: many readers know no other numbers than doubles.
        Some(b'0'..=b'9' | b'-') if !raw.parse().is_ok_and(f64::is_finite) => {
            return Err(format!("the number {} is out of range", shown(raw)));
        }
        _ => {}
    }
    Ok(())
}

/// Whether Postgres takes this as `text`.
pub fn storable_text(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("the character U+0000 can't be stored".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["", "[]", "1", "{", r#"{"a":1,"a":2}"#, r#"{"a":1} x"#] {
            assert!(Fields::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn null_is_nothing_and_leftovers_are_named() {
        let mut fields = Fields::read(br#"{"a":null,"b":"x","c":7,"e":1,"d":"y"}"#).unwrap();
        assert!(fields.raw("a").is_none());
        assert_eq!(fields.text("b").as_deref(), Some("x"));
        assert_eq!(fields.number("c"), Some(7));
        assert_eq!(fields.number("d"), None);
        assert_eq!(Fields::read(br#"{"a":7.00}"#).unwrap().number("a"), Some(7));
        let problem = serde_json::to_value(fields.finish(&["a", "b"]).unwrap_err()).unwrap();
        assert_eq!(problem["errors"][0]["message"], r#"expected a whole number, got "y""#);
        assert_eq!(problem["errors"][1]["field"], "e");
    }

    #[test]
    fn what_some_reader_would_stumble_over_is_refused() {
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        for bad in [r#"["\ud800"]"#, r#"{"a":{"b":1,"b":2}}"#, "[1e400]", "[-1E+9999]", "[1e99999999999999999999]", &deep] {
            assert!(storable(bad).is_err(), "{bad}");
        }
        for good in [
            r#"{"a":[1,2.5,-1e10,null,true,"é\ud83d\ude00\u0000"],"b":{"c":123456789012345678901234567890}}"#,
            "{}",
            "[1.7976931348623157e+308,5e-324]",
        ] {
            assert_eq!(storable(good), Ok(()));
        }
    }
}
