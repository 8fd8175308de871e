//! The caller of an authenticated request, as an argument of its handler.

use crate::auth::rate_limit::rate_limited;
use crate::http::problem::Problem;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use merchants::Grant;
use merchants::Merchant;
use std::ops::Deref;
use std::sync::Arc;
use uuid::Uuid;

/// A merchant and the key that it uses. Handlers that show data filter by [`merchant`](Self::merchant).
#[derive(Debug, Clone)]
pub struct Caller {
    /// The id of the key's merchant.
    pub merchant: Uuid,
    grant: Arc<Grant>,
}

impl Deref for Caller {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

impl Caller {
    /// The caller that a key stands for.
    pub fn new(grant: Arc<Grant>) -> Self {
        Self { merchant: grant.merchant.id, grant }
    }

    /// The merchant's settings: terms and account of its payments.
    pub fn settings(&self) -> &Merchant {
        &self.grant.merchant
    }

    /// Counts a request against the key's rate limit.
    ///
    /// # Errors
    /// A 429 with `Retry-After`.
    pub fn spend(&self) -> Result<(), Problem> {
        self.grant.spend().map_err(rate_limited)
    }

    /// Counts the orders of a batch, for one of which its request was counted.
    ///
    /// # Errors
    /// A 429 with `Retry-After`.
    pub fn spend_orders(&self, orders: usize) -> Result<(), Problem> {
        self.grant.spend_orders(orders).map_err(rate_limited)
    }

    /// Counts the deliveries of payments that are being made, and takes back those of the ones that it was asked for in vain, or had
    /// made before. A caller that hangs up meanwhile owes for all.
    pub async fn counting_deliveries<T>(&self, asked: usize, making: impl Future<Output = T>, made: impl Fn(&T) -> usize) -> T {
        self.grant.owe_deliveries(asked);
        let outcome = making.await;
        self.grant.forgive_deliveries(asked.saturating_sub(made(&outcome)));
        outcome
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!("{} needs a caller, but its route is not behind the authentication", parts.uri.path());
            Problem::internal()
        })
    }
}
