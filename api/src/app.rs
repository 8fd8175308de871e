//! The shared state of all handlers.

use crate::chains::availability::Availability;
use crate::chains::catalog::Catalog;
use crate::create::idempotency::InFlightKeys;
use crate::create::intents::Intents;
use crate::create::order::Order;
use crate::create::queue::CreateRequest;
use crate::event_feed::EventFeed;
use crate::health_checks::HealthChecks;
use crate::heavy_work::HeavyWork;
use crate::http::body_budget::BodyBudget;
use crate::http::problem::Problem;
use crate::http::share::{self, HeldConnection, Shares};
use crate::read::Reads;
use crate::read_queue::ReadRequest;
use chain::Listing;
use deadpool_postgres::Pool;
use merchants::accounts::{Account, Accounts};
use merchants::{KeyCache, Merchant};
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::mpsc;
use uuid::Uuid;
use webhooks::Guard;

/// Cheap to clone. Its senders of requests keep the batchers alive, so those end after the last request.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
pub struct Parts {
    pub pool: Pool,
    pub reads: Reads,
    /// The chains and tokens, as they are listed now.
    pub listing: Listing,
    /// Looks up API keys, with a cache.
    pub keys: Arc<KeyCache>,
    /// The accounts that addresses are derived from.
    pub accounts: Accounts,
    /// The installation that the database belongs to.
    pub installation: Uuid,
    /// Publishes intents and keeps unacknowledged addresses hidden.
    pub intents: Intents,
    /// To the batchers.
    pub create_requests: mpsc::Sender<CreateRequest>,
    pub read_requests: mpsc::Sender<ReadRequest>,
    pub health: HealthChecks,
    /// Whether a chain takes new payments.
    pub availability: Availability,
    /// Wakes live streams.
    pub event_feed: EventFeed,
    /// Idempotency keys whose request is being handled.
    pub in_flight_keys: InFlightKeys,
    /// Where webhooks may be sent to.
    pub guard: Guard,
    /// Of requests, orders and connections, for each merchant.
    pub shares: Shares,
    /// For the bodies of batches, and for replies.
    pub body_budget: BodyBudget,
    /// For what takes a processor for long.
    pub heavy_work: HeavyWork,
}

impl App {
    /// Wires the parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The chains and tokens that are listed now.
    pub fn catalog(&self) -> Catalog {
        Catalog(self.listing.chains())
    }

    /// A connection from the pool.
    ///
    /// # Errors
    /// A 503 when none is to be had.
    pub async fn db(&self) -> Result<HeldConnection, Problem> {
        share::connection(&self.pool).await
    }

    /// The account that a merchant's new addresses are derived from.
    ///
    /// # Errors
    /// A 503 when the database fails, or was restored to before the merchant got the account of its newest address.
    pub async fn account_of(&self, merchant: &Merchant) -> Result<Account, Problem> {
        let account = match self.accounts.known(merchant.xpub.as_deref()) {
            Ok(account) => account,
            Err(unread) => self.accounts.read(&*self.db().await?, unread).await?,
        };
        if account.is_replaced() {
            return Err(Problem::replaced());
        }
        if merchant.restored_account.as_deref().is_some_and(|restored| restored != account.fingerprint()) {
            tracing::warn!(merchant = %merchant.id, "it gets no address: a restore has taken back which account is its own");
            return Err(Problem::unavailable(
                60,
                "The database was restored, and with it your account of before; the operator has to say which one is right. Retry later",
            ));
        }
        Ok(account)
    }

    /// Checks that the order's chain takes new payments in its token, as the order was read by `catalog`: what is listed meanwhile may
    /// have other decimals. `now` is Unix seconds.
    ///
    /// # Errors
    /// A 503 that names the chain or token and the reason.
    pub fn check_available(&self, catalog: &Catalog, order: &Order, now: u64) -> Result<(), Problem> {
        let chain = catalog.by_id(order.chain).map_err(|_| Problem::internal())?;
        self.availability.check(chain, order.asset.token.as_ref(), now)
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
