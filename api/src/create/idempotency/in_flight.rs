//! Idempotency keys in flight: while a request with a key is being handled, a second one with it gets a 409 and `Retry-After`.
//!
//! Only this process knows its keys in flight. At another instance the second request waits in the database for the first
//! one's transaction, and then gets the same payment. That is as safe, and the client can't tell the difference.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use base::locked;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

/// A merchant, and the text of a key of its own.
type MerchantKey = (Uuid, String);

/// The keys in flight. Cheap to clone.
#[derive(Clone, Default)]
pub struct InFlightKeys(Arc<Mutex<HashSet<MerchantKey>>>);

/// Holds a key in flight. It is dropped with its request, also when the client disconnects.
pub struct InFlightKey {
    keys: InFlightKeys,
    key: MerchantKey,
}

impl InFlightKeys {
    /// Puts a key in flight.
    ///
    /// # Errors
    /// A 409 when a request of this merchant with this key is in flight.
    pub fn begin(&self, merchant: Uuid, key: &str) -> Result<InFlightKey, Problem> {
        let key = (merchant, key.to_owned());
        if !self.all().insert(key.clone()) {
            let detail = "A request with this Idempotency-Key is still being handled; retry when it is answered";
            let problem =
                Problem::new(StatusCode::CONFLICT, "idempotency-key-in-flight", "The idempotency key is in flight", detail);
            return Err(problem.retry_after(1));
        }
        Ok(InFlightKey { keys: self.clone(), key })
    }

    fn all(&self) -> MutexGuard<'_, HashSet<MerchantKey>> {
        locked(&self.0)
    }
}

impl Drop for InFlightKey {
    fn drop(&mut self) {
        self.keys.all().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_free_again_after_its_request_and_belongs_to_one_merchant() {
        let (keys, one, other) = (InFlightKeys::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let first = keys.begin(one, "k");
        assert!(first.is_ok() && keys.begin(one, "k").is_err());
        assert!(keys.begin(other, "k").is_ok() && keys.begin(one, "l").is_ok());
        drop(first);
        assert!(keys.begin(one, "k").is_ok());
    }
}
