//! `Idempotency-Key`, as Stripe has it: a retry with the same key and the same request gets the first response again. The same
//! key with another request gets a 409, as does a key whose request is still in flight.

mod in_flight;
mod keys;

pub use in_flight::InFlightKeys;
pub use keys::{
    Fingerprint, IdempotencyKey, KeyClaim, check_text, claim_batch_key, claim_keys, find_earlier, find_payments, is_unknown,
    read_header, reused,
};
