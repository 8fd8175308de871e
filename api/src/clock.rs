//! The wall clock. It decides when a payment is created and cancelled; expiry is the chain's time alone.

use runtime::Failure;
use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds.
///
/// # Errors
/// When the machine's clock is before 1970.
pub fn now() -> Result<u64, Failure> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).map_err(Failure::halt)
}
