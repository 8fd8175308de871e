//! Idempotency keys in flight: while a request with a key is being answered, another one with it is told to come back.
//!
//! What is in flight is known to this process alone. A second request at another instance waits in the database for the first
//! one's transaction, and then gets the same payment: just as safe, and the client can't tell.

use crate::problem::Problem;
use axum::http::StatusCode;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

type Key = (Uuid, String);

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Flights(Arc<Mutex<HashSet<Key>>>);

/// Ends when it is dropped, and with it a request that the client gave up.
pub struct Flight {
    flights: Flights,
    key: Key,
}

impl Flights {
    /// # Errors
    /// A 409 when a request of this merchant with this key is in flight.
    pub fn begin(&self, merchant: Uuid, key: &str) -> Result<Flight, Problem> {
        let key = (merchant, key.to_owned());
        if !self.all().insert(key.clone()) {
            let detail = "A request with this Idempotency-Key is being answered; try again when it is";
            let problem = Problem::new(StatusCode::CONFLICT, "idempotency-key-in-flight", "The key is in flight", detail);
            return Err(problem.retry_after(1));
        }
        Ok(Flight { flights: self.clone(), key })
    }

    /// Nobody panics while holding the lock.
    fn all(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.all().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_free_again_when_its_request_has_ended_and_is_one_merchants_own() {
        let (flights, one, other) = (Flights::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let first = flights.begin(one, "k");
        assert!(first.is_ok() && flights.begin(one, "k").is_err());
        assert!(flights.begin(other, "k").is_ok() && flights.begin(one, "l").is_ok());
        drop(first);
        assert!(flights.begin(one, "k").is_ok());
    }
}
