//! The place in a list where the next page begins. Opaque to clients: they pass back what they got.

use topics::PaymentId;
use uuid::Uuid;

const VERSION: u8 = 1;

/// After this payment, whose id is the smallest of its page.
pub fn encode(last: PaymentId) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(last.0.as_bytes());
    hex::encode(bytes)
}

/// The reverse; `None` if it is none of ours.
pub fn decode(text: &str) -> Option<PaymentId> {
    match hex::decode(text).ok()?.as_slice() {
        [VERSION, id @ ..] => Uuid::from_slice(id).ok().map(PaymentId),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let id = PaymentId::generate();
        assert_eq!(decode(&encode(id)), Some(id));
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let id = PaymentId::generate();
        for text in ["", "01", "zz", &id.to_string(), &encode(id)[2..], &format!("{}00", encode(id))] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
