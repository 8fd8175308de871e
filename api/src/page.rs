//! What all lists have in common: what may be asked of a page, and where it ends.

use crate::cursor::{self, Place};
use crate::fields::shown;
use crate::problem::{FieldError, Problem};

/// Rows of a page unless somebody asks for another number …
pub const DEFAULT: i64 = 50;
/// … which is no more than this.
pub const LARGEST: i64 = 200;

/// Gives each parameter to `set`, and tells all that were wrong at once.
///
/// # Errors
/// When any was wrong.
pub fn read(parameters: Vec<(String, String)>, mut set: impl FnMut(&str, String) -> Result<(), String>) -> Result<(), Problem> {
    let wrong = |(name, value): (String, String)| set(&name, value).err().map(|message| FieldError::new(name, message));
    let errors: Vec<FieldError> = parameters.into_iter().filter_map(wrong).collect();
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(errors)) }
}

/// The parameter `limit`.
///
/// # Errors
/// When it is not from 1 to `largest`.
pub fn limit(value: &str, largest: i64) -> Result<i64, String> {
    let limit = value.parse().ok().filter(|limit| (1..=largest).contains(limit));
    limit.ok_or_else(|| format!("expected 1 to {largest}, got {:?}", shown(value)))
}

/// The parameter `cursor` of a list of payments or addresses.
///
/// # Errors
/// When it is none.
pub fn place(value: &str) -> Result<Place, String> {
    cursor::decode(value).ok_or_else(|| no_cursor(value))
}

/// What to say of a cursor that is none.
pub fn no_cursor(value: &str) -> String {
    format!("expected a next_cursor of this list, got {:?}", shown(value))
}

/// What to say of a parameter that a list does not have.
pub fn unknown<T>(names: &str) -> Result<T, String> {
    Err(format!("unknown parameter; there are {names}"))
}

/// Cuts off what was read beyond the page to know whether there is more.
pub fn cut<T>(rows: &mut Vec<T>, limit: i64) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}
