//! The place in a list where the next page begins. Opaque to clients: they pass back what they got.

use topics::PaymentId;
use uuid::Uuid;

const VERSION: u8 = 2;

/// A payment's place among all, which are ordered by creation time and then by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Unix seconds.
    pub created_at: i64,
    /// Tells those of one second apart.
    pub id: PaymentId,
}

/// After this payment, the last of its page.
pub fn encode(last: Place) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&last.created_at.to_be_bytes());
    bytes.extend_from_slice(last.id.0.as_bytes());
    hex::encode(bytes)
}

/// The reverse; `None` if it is none of ours.
pub fn decode(text: &str) -> Option<Place> {
    let bytes = hex::decode(text).ok()?;
    let (version, rest) = bytes.split_first()?;
    let (created_at, id) = rest.split_at_checked(8)?;
    let created_at = i64::from_be_bytes(created_at.try_into().ok()?);
    (*version == VERSION).then_some(Place { created_at, id: PaymentId(Uuid::from_slice(id).ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let place = Place { created_at: 1_700_000_000, id: PaymentId::generate() };
        assert_eq!(decode(&encode(place)), Some(place));
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let place = Place { created_at: 1, id: PaymentId::generate() };
        let whole = encode(place);
        for text in ["", "02", "zz", &place.id.to_string(), &whole[2..], &format!("{whole}00"), &format!("01{}", &whole[2..])] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
