//! A request's JSON object, read field by field. Values stay as they were written, so that no number goes through a float.

use crate::http::problem::{FieldError, Problem};
use axum::http::StatusCode;
use base::json::Object;
use base::text::excerpt;
use serde_json::value::RawValue;
use std::fmt;

/// Unknown fields that are named; the others are counted.
const MAX_NAMED: usize = 10;

/// The fields in the order of the text. Reading a field takes it out; those left at [`finish`](Self::finish) are unknown.
/// Errors are collected, so that a client sees all of them at once.
pub struct Fields<'a> {
    rest: Vec<(String, &'a RawValue)>,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Parses a request's body.
    ///
    /// # Errors
    /// A 400 when it is not a JSON object.
    pub fn read(body: &'a [u8]) -> Result<Self, Problem> {
        let Object(rest) = serde_json::from_slice(body)
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "malformed-json", "The body is not a JSON object", error))?;
        Ok(Self { rest, errors: Vec::new() })
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

    /// The field as a string; anything else is an error of the field.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        self.check(name, serde_json::from_str(raw.get()).map_err(|_| format!("expected a string, got {}", excerpt(raw.get()))))
    }

    /// The field as a whole number; `7.0` is one.
    pub fn number(&mut self, name: &str) -> Option<u64> {
        let raw = self.raw(name)?;
        self.check(
            name,
            integer_digits(raw.get()).parse().map_err(|_| format!("expected a whole number, got {}", excerpt(raw.get()))),
        )
    }

    /// The field as a boolean.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let raw = self.raw(name)?;
        self.check(
            name,
            serde_json::from_str(raw.get()).map_err(|_| format!("expected true or false, got {}", excerpt(raw.get()))),
        )
    }

    /// The value of a check, or `None` after noting its error.
    pub fn check<T, E: fmt::Display>(&mut self, name: &str, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|message| self.refuse(name, message)).ok()
    }

    /// Notes an error of the field.
    pub fn refuse(&mut self, name: &str, message: impl fmt::Display) {
        self.errors.push(FieldError::new(name, message));
    }

    /// Ends reading. A field that is left and not in `known` is an error, too.
    ///
    /// # Errors
    /// A 422 when there is any.
    pub fn finish(mut self, known: &[&str]) -> Result<(), Problem> {
        let rest = std::mem::take(&mut self.rest);
        let mut unknown = rest.iter().map(|(name, _)| name.as_str()).filter(|name| !known.contains(name));
        for name in unknown.by_ref().take(MAX_NAMED) {
            self.refuse(&excerpt(name), format_args!("unknown field; expected one of {}", known.join(", ")));
        }
        let more = unknown.count();
        if more > 0 {
            self.refuse("…", format_args!("{more} more unknown fields"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::invalid(self.errors)) }
    }
}

/// The digits of a whole number. JSON Schema takes `2.0` as the integer 2, and so do programs whose numbers are all doubles.
pub fn integer_digits(raw: &str) -> &str {
    match raw.split_once('.') {
        Some((digits, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => digits,
        _ => raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_an_object_is_refused() {
        for body in ["", "[]", "1", "{", r#"{"a":1,"a":2}"#, r#"{"a":1} x"#] {
            assert!(Fields::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn null_counts_as_left_out_and_unknown_fields_are_named() {
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
    fn many_unknown_fields_are_refused_in_few_words() {
        let unknown: Vec<String> = (0..4000).map(|n| format!("\"{n}{}\":0", "x".repeat(1000))).collect();
        let problem = Fields::read(format!("{{{}}}", unknown.join(",")).as_bytes()).unwrap().finish(&["a"]).unwrap_err();
        let text = serde_json::to_string(&problem).unwrap();
        assert!(text.len() < 5000 && text.contains("3990 more unknown fields"), "{text}");
    }
}
