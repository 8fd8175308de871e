//! What every handler can reach.

use crate::account::Accounts;
use crate::batch::Request;
use crate::catalog::Catalog;
use crate::feed::Feed;
use crate::flight::Flights;
use crate::heads::Heads;
use crate::health::Health;
use crate::intents::Intents;
use crate::keys::Keys;
use crate::problem::Problem;
use deadpool_postgres::{Client, Pool};
use runtime::db;
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::mpsc;
use webhooks::Guard;

/// Cheap to clone. The sender in it keeps the batcher alive, so the batcher ends after the last request.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// Its parts.
pub struct Parts {
    /// Postgres.
    pub pool: Pool,
    /// The chains and tokens.
    pub catalog: Catalog,
    /// The API keys known lately.
    pub keys: Arc<Keys>,
    /// Where addresses come from.
    pub accounts: Accounts,
    /// Where addresses get shown.
    pub intents: Intents,
    /// Where payments get made.
    pub requests: mpsc::Sender<Request>,
    /// How the parts are.
    pub health: Health,
    /// The chains that can be paid on.
    pub heads: Heads,
    /// Which payments had an event just now.
    pub feed: Feed,
    /// The idempotency keys that are being answered.
    pub flights: Flights,
    /// Where webhooks may go.
    pub guard: Guard,
}

impl App {
    /// Wires it.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// A connection.
    ///
    /// # Errors
    /// A 503 when there is none.
    pub async fn db(&self) -> Result<Client, Problem> {
        Ok(self.pool.get().await.map_err(db::unavailable)?)
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
