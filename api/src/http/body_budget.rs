//! The memory that large bodies may take while they are read and answered, in all and for one merchant. A body counts by its
//! `Content-Length` before it is read.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Room for dozens of the largest batches.
const MAX_BYTES: usize = 256 * 1024 * 1024;
const MAX_BYTES_OF_MERCHANT: usize = MAX_BYTES / 4;

/// The bytes of the bodies in hand, by merchant. Cheap to clone.
#[derive(Clone, Default)]
pub struct BodyBudget(Arc<Mutex<HashMap<Uuid, usize>>>);

/// What one body takes of the budget; dropping it gives it back.
pub struct BodyShare {
    budget: BodyBudget,
    merchant: Uuid,
    bytes: usize,
}

impl BodyBudget {
    /// Takes room for a body.
    ///
    /// # Errors
    /// A 429 when the merchant's bodies in hand leave none, a 503 when all together do.
    pub fn take(&self, merchant: Uuid, bytes: usize) -> Result<BodyShare, Problem> {
        let mut taken = self.taken();
        let (of_merchant, all) = (taken.get(&merchant).copied().unwrap_or_default(), taken.values().sum::<usize>());
        if of_merchant + bytes > MAX_BYTES_OF_MERCHANT {
            let detail = "Batches of yours that are being answered take as much memory as they may; retry when one is answered";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-batches", "Too many large batches", detail);
            return Err(problem.retry_after(1));
        }
        if all + bytes > MAX_BYTES {
            return Err(Problem::unavailable(1, "Batches that are being answered take as much memory as they may; retry"));
        }
        *taken.entry(merchant).or_default() += bytes;
        Ok(BodyShare { budget: self.clone(), merchant, bytes })
    }

    /// Nobody panics while holding the lock.
    fn taken(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        if let Some(bytes) = taken.get_mut(&self.merchant) {
            *bytes -= self.bytes;
            if *bytes == 0 {
                taken.remove(&self.merchant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merchants_bodies_and_all_together_take_so_much_memory_and_give_it_back() {
        let (budget, bytes) = (BodyBudget::default(), MAX_BYTES_OF_MERCHANT / 8);
        let take = |merchant: u128| {
            let shares: Vec<_> = (0..20).map_while(|_| budget.take(Uuid::from_u128(merchant), bytes).ok()).collect();
            (shares.len(), budget.take(Uuid::from_u128(merchant), bytes).err().map(|problem| problem.status()), shares)
        };
        let all: Vec<_> = (1..=4).map(take).collect();
        for (shares, refused, _) in &all {
            assert_eq!((*shares, *refused), (8, Some(StatusCode::TOO_MANY_REQUESTS)));
        }
        let (shares, refused, _) = take(5);
        assert_eq!((shares, refused), (0, Some(StatusCode::SERVICE_UNAVAILABLE)));
        drop(all);
        assert!(budget.taken().is_empty() && take(5).0 == 8);
    }
}
