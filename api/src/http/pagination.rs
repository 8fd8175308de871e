//! Pages of a list: the query parameters `limit` and `cursor`, and where the next page begins.
//!
//! A cursor is opaque to clients: they pass back the `next_cursor` that they got. Most lists are of payments or addresses and
//! share [`encode_cursor`]; a list with another order brings its own.

use crate::http::problem::{FieldError, Problem};
use base::text::excerpt;
use payments::store::Place;
use topics::PaymentId;
use uuid::Uuid;

const CURSOR_VERSION: u8 = 2;
/// Parameters that are named as wrong. A URL has room for thousands.
const MAX_ERRORS: usize = 20;

/// How many rows a page of a list has.
#[derive(Debug, Clone, Copy)]
pub struct PageSize {
    /// Without the parameter `limit`.
    pub default: i64,
    /// The largest `limit`.
    pub max: i64,
}

impl PageSize {
    /// Of every list but that of a payment's events.
    pub const STANDARD: Self = Self { default: 50, max: 200 };
}

/// The parameters that all lists share.
#[derive(Debug)]
pub struct PageQuery<C> {
    /// Rows per page.
    pub limit: i64,
    /// Where the page begins; `None` for the first page.
    pub cursor: Option<C>,
}

impl<C> PageQuery<C> {
    /// Reads a query. `cursor` decodes this list's cursor; `filter` takes every other parameter and returns `false` for one
    /// that the list does not have. `names` are all parameters of the list, for the error text.
    ///
    /// # Errors
    /// A 422 that names every parameter that is wrong, up to [`MAX_ERRORS`].
    pub fn read(
        parameters: Vec<(String, String)>,
        size: PageSize,
        names: &str,
        cursor: impl Fn(&str) -> Result<C, String>,
        mut filter: impl FnMut(&str, String) -> Result<bool, String>,
    ) -> Result<Self, Problem> {
        let mut query = Self { limit: size.default, cursor: None };
        let mut set = |name: &str, value: String| -> Result<(), String> {
            match name {
                "limit" => query.limit = read_limit(&value, size.max)?,
                "cursor" => query.cursor = Some(cursor(&value)?),
                other => {
                    if !filter(other, value)? {
                        return Err(format!("unknown parameter; expected one of {names}"));
                    }
                }
            }
            Ok(())
        };
        let wrong =
            |(name, value): (String, String)| set(&name, value).err().map(|message| FieldError::new(excerpt(&name), message));
        let errors: Vec<FieldError> = parameters.into_iter().filter_map(wrong).take(MAX_ERRORS).collect();
        if errors.is_empty() { Ok(query) } else { Err(Problem::invalid(errors)) }
    }

    /// Rows to load: one more than the page has, to know whether another page follows.
    pub const fn rows_to_load(&self) -> i64 {
        self.limit + 1
    }

    /// Cuts off the row beyond the page and returns the `next_cursor`; `None` on the last page.
    pub fn cut<T>(&self, rows: &mut Vec<T>, encode: impl Fn(&T) -> String) -> Option<String> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        rows.last().filter(|_| more).map(encode)
    }
}

/// For [`PageQuery::read`] of a list without filters.
///
/// # Errors
/// Never.
pub fn no_filter(_: &str, _: String) -> Result<bool, String> {
    Ok(false)
}

fn read_limit(value: &str, max: i64) -> Result<i64, String> {
    let limit = value.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| format!("expected 1 to {max}, got {:?}", excerpt(value)))
}

/// The error text for a cursor that this list did not return.
pub fn bad_cursor(value: &str) -> String {
    format!("expected a next_cursor of this list, got {:?}", excerpt(value))
}

/// The cursor of the page after this payment or address, the last of its page.
pub fn encode_cursor(last: Place) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    bytes.extend_from_slice(&last.created_at.to_be_bytes());
    bytes.extend_from_slice(last.id.0.as_bytes());
    hex::encode(bytes)
}

/// The reverse of [`encode_cursor`].
///
/// # Errors
/// When it is no cursor of a list of payments or addresses.
pub fn decode_cursor(text: &str) -> Result<Place, String> {
    let decode = || {
        let bytes = hex::decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (created_at, id) = rest.split_at_checked(8)?;
        let created_at = i64::from_be_bytes(created_at.try_into().ok()?);
        (*version == CURSOR_VERSION).then_some(Place { created_at, id: PaymentId(Uuid::from_slice(id).ok()?) })
    };
    decode().ok_or_else(|| bad_cursor(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_decodes_to_the_place_it_was_made_from() {
        let place = Place { created_at: 1_700_000_000, id: PaymentId::generate() };
        assert_eq!(decode_cursor(&encode_cursor(place)), Ok(place));
    }

    #[test]
    fn text_that_is_no_cursor_is_refused() {
        let place = Place { created_at: 1, id: PaymentId::generate() };
        let whole = encode_cursor(place);
        for text in ["", "02", "zz", &place.id.to_string(), &whole[2..], &format!("{whole}00"), &format!("01{}", &whole[2..])] {
            assert_eq!(decode_cursor(text), Err(bad_cursor(text)), "{text}");
        }
    }

    #[test]
    fn every_wrong_parameter_is_named_and_the_row_beyond_a_page_gives_its_cursor() {
        let read = |query: &[(&str, &str)]| {
            let parameters = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let cursor = |text: &str| text.parse::<u8>().map_err(|_| bad_cursor(text));
            PageQuery::read(parameters, PageSize::STANDARD, "limit, cursor", cursor, no_filter)
        };
        let problem = serde_json::to_value(read(&[("limit", "201"), ("cursor", "x"), ("sort", "up")]).unwrap_err()).unwrap();
        let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
        assert_eq!(fields, ["limit", "cursor", "sort"]);
        let many = serde_json::to_value(read(&[("sort", "up"); 30_000]).unwrap_err()).unwrap();
        assert_eq!(many["errors"].as_array().unwrap().len(), MAX_ERRORS);
        let page = read(&[("limit", "2"), ("cursor", "7")]).unwrap();
        assert_eq!((page.rows_to_load(), page.cursor), (3, Some(7)));
        let (mut full, mut last) = (vec![1, 2, 3], vec![1, 2]);
        assert_eq!((page.cut(&mut full, i32::to_string), full), (Some("2".to_owned()), vec![1, 2]));
        assert_eq!((page.cut(&mut last, i32::to_string), last), (None, vec![1, 2]));
    }
}
