//! The memory that bodies may take, in all and for one merchant: those of batches while they are read and answered, by their
//! `Content-Length` before they are read, and replies until their client has taken them.

use crate::http::problem::Problem;
use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use base::counts::Counts;
use base::locked;
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

/// Room for dozens of the largest batches.
const MAX_BYTES: usize = 256 * 1024 * 1024;
const MAX_BYTES_OF_MERCHANT: usize = MAX_BYTES / 4;
/// Room that a merchant has whatever others take.
const MIN_BYTES_OF_MERCHANT: usize = 256 * 1024;

/// The bytes of the bodies in hand. Cheap to clone.
#[derive(Clone, Default)]
pub struct BodyBudget(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    all: usize,
    of_merchant: Counts<Uuid>,
}

/// Why there is no room.
enum Full {
    Merchant,
    All,
}

/// What one body takes of the budget; dropping it gives it back.
pub struct BodyShare {
    budget: BodyBudget,
    merchant: Uuid,
    bytes: usize,
}

/// A reply, and the room that it takes.
struct Held {
    reply: Bytes,
    _share: BodyShare,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

impl BodyBudget {
    /// Takes room for a batch's body.
    ///
    /// # Errors
    /// A 429 when the merchant's bodies in hand leave none, a 503 when all together do.
    pub fn take(&self, merchant: Uuid, bytes: usize) -> Result<BodyShare, Problem> {
        self.check(merchant, bytes).map_err(|full| {
            let detail = "Batches and replies of yours take as much memory as they may; retry when one is answered";
            full.problem("too-many-batches", "Too many large batches", detail)
        })?;
        Ok(self.count(merchant, bytes))
    }

    /// A reply that takes room until its client has taken it, or leaves. One to a change is never refused, since that is made.
    ///
    /// # Errors
    /// A 429 when the merchant's bodies leave no room for what was read, a 503 when all together do.
    pub async fn hold(&self, merchant: Uuid, method: &Method, response: Response) -> Result<Response, Problem> {
        let length = response.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
        // The others are live streams, which have a limit of their own.
        let Some(bytes) = length.filter(|bytes| *bytes > 0) else { return Ok(response) };
        if matches!(*method, Method::GET | Method::HEAD) {
            self.check(merchant, bytes).map_err(|full| {
                let detail = "Replies that your clients do not take, and batches, have as much memory as they may; retry when one is taken";
                full.problem("too-many-replies", "Too many replies that nobody takes", detail)
            })?;
        }
        let share = self.count(merchant, bytes);
        let (head, body) = response.into_parts();
        let reply = to_bytes(body, bytes).await.map_err(|_| Problem::internal())?;
        Ok(Response::from_parts(head, Body::from(Bytes::from_owner(Held { reply, _share: share }))))
    }

    fn check(&self, merchant: Uuid, bytes: usize) -> Result<(), Full> {
        let taken = self.taken();
        let of_merchant = taken.of_merchant.of(&merchant) + bytes;
        if of_merchant > MAX_BYTES_OF_MERCHANT {
            return Err(Full::Merchant);
        }
        if taken.all + bytes > MAX_BYTES && of_merchant > MIN_BYTES_OF_MERCHANT {
            return Err(Full::All);
        }
        Ok(())
    }

    fn count(&self, merchant: Uuid, bytes: usize) -> BodyShare {
        let mut taken = self.taken();
        taken.all += bytes;
        taken.of_merchant.add(merchant, bytes);
        BodyShare { budget: self.clone(), merchant, bytes }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        locked(&self.0)
    }
}

impl Full {
    fn problem(self, slug: &'static str, title: &'static str, detail: &str) -> Problem {
        match self {
            Self::Merchant => Problem::new(StatusCode::TOO_MANY_REQUESTS, slug, title, detail).retry_after(1),
            Self::All => Problem::unavailable(1, "Batches and replies take as much memory as they may; retry"),
        }
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        taken.all -= self.bytes;
        taken.of_merchant.take_off(&self.merchant, self.bytes);
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
        assert!(budget.take(Uuid::from_u128(6), MIN_BYTES_OF_MERCHANT).is_ok(), "a small one has room whatever others take");
        drop(all);
        assert!(budget.taken().of_merchant.is_empty() && budget.taken().all == 0 && take(5).0 == 8);
    }

    #[tokio::test]
    async fn replies_that_nobody_takes_leave_a_merchant_no_room_for_more_and_refuse_no_change() {
        let (budget, merchant) = (BodyBudget::default(), Uuid::from_u128(1));
        let reply = || Response::new(Body::from(vec![0; MAX_BYTES_OF_MERCHANT / 8]));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(budget.hold(merchant, &Method::GET, reply()).await.unwrap());
        }
        let refused = budget.hold(merchant, &Method::GET, reply()).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(budget.hold(Uuid::from_u128(2), &Method::GET, reply()).await.is_ok(), "another merchant's");
        held.push(budget.hold(merchant, &Method::POST, reply()).await.unwrap());
        assert!(budget.take(merchant, 1).is_err(), "no batch begins meanwhile");
        // What is still being sent counts.
        let last = to_bytes(held.pop().unwrap().into_body(), usize::MAX).await.unwrap().slice(..1);
        drop(held);
        assert_eq!(budget.taken().all, MAX_BYTES_OF_MERCHANT / 8);
        drop(last);
        assert!(budget.taken().all == 0 && budget.hold(merchant, &Method::GET, reply()).await.is_ok());
    }
}
