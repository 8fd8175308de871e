//! Reads payments in [batches]: those that are asked for together, by whichever merchants, take one statement of each kind.
//!
//! A payment is answered here only if it is found and may be shown, each to its own merchant. Any other answer is given when the
//! payment is read alone, in its merchant's share: nothing that is wrong with one, or takes long, is the others' matter.

use crate::batches::{self, Bounds, Turn, give_way};
use crate::chains::catalog::Catalog;
use crate::http::problem::Problem;
use crate::http::share::OwnShare;
use crate::read::{Reads, Snapshot, Unread};
use crate::read_queue::{PATIENCE, ReadRequest};
use crate::routes::payment_reply;
use axum::body::Bytes;
use chain::Listing;
use payments::store::{self, Page};
use runtime::Failure;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use topics::PaymentId;
use tracing::Instrument as _;
use uuid::Uuid;

/// A batch of payments with the largest metadata is some megabytes. Those that wait for a connection, or for what nobody waits for
/// any more, are among all.
const BOUNDS: Bounds = Bounds { size: 64, in_flight: 2, all: 8 };
/// How long a batch that takes long keeps another from its turn.
const MAX_TURN: Duration = Duration::from_millis(50);

/// What batches read from.
pub struct ReadBatcher {
    pub reads: Reads,
    pub listing: Listing,
    /// Whose connections they take: none of a merchant's.
    pub share: OwnShare,
}

/// Payments that may be shown, as JSON, each with its merchant.
type Shown = HashMap<PaymentId, (Uuid, Bytes)>;

impl ReadBatcher {
    /// Handles requests until all senders are gone and the last batch is answered.
    pub async fn run(self, requests: mpsc::Receiver<ReadRequest>) {
        let batcher = Arc::new(self);
        batches::run(requests, BOUNDS, |batch, turn| Arc::clone(&batcher).serve(batch, turn)).await;
    }

    async fn serve(self: Arc<Self>, batch: Vec<ReadRequest>, turn: Turn) {
        let span = tracing::info_span!("batch of reads", payments = batch.len());
        give_way(turn, MAX_TURN, self.answer(batch).instrument(span)).await;
    }

    async fn answer(&self, batch: Vec<ReadRequest>) {
        let (reads, catalog) = (self.reads.clone(), Catalog(self.listing.chains()));
        let read = async move {
            // A request that is dropped without a reply is read alone.
            let Ok(shown) = reads.read_for_many(|db| show(&catalog, db, wanted(&batch))).await else { return };
            for request in batch {
                if let Some(reply) = own(&shown, request.merchant, request.id) {
                    // The client may have disconnected.
                    let _ = request.reply.send(reply);
                }
            }
        };
        // By then nobody waits for it. It goes on while Postgres works on it, and keeps its place in the share.
        let _ = tokio::time::timeout(PATIENCE, self.share.work(read)).await;
    }
}

/// Each payment once, or it would have its transfers twice; only while somebody still waits for it, once there is a connection.
fn wanted(batch: &[ReadRequest]) -> Vec<Uuid> {
    let ids: BTreeSet<Uuid> = batch.iter().filter(|request| !request.reply.is_closed()).map(|request| request.id.0).collect();
    ids.into_iter().collect()
}

/// The payment, if it is this merchant's.
fn own(shown: &Shown, merchant: Uuid, id: PaymentId) -> Option<Bytes> {
    shown.get(&id).filter(|(owner, _)| *owner == merchant).map(|(_, reply)| reply.clone())
}

async fn show(catalog: &Catalog, db: Snapshot, ids: Vec<Uuid>) -> Result<Shown, Unread> {
    // Pipelined: the connection sends the second query before the first has its rows.
    let (found, hidden) = tokio::join!(store::load_small_payments(&*db, &ids), store::unacknowledged_intents(&*db, &ids));
    let (mut found, Page { items, unreadable, .. }) = (found.map_err(of_batch)?, hidden.map_err(of_batch)?);
    let unreadable = unreadable.into_iter().map(|(id, _)| id);
    let hidden: HashSet<Uuid> = items.into_iter().map(|(id, _)| id).chain(unreadable).collect();
    found.retain(|payment| !hidden.contains(&payment.id.0));
    let replies = payment_reply::complete(catalog, &db, &found).await.map_err(of_batch)?;
    // Writing replies takes a while, and others need the connection.
    drop(db);
    let mut shown = Shown::with_capacity(found.len());
    for (place, (payment, reply)) in found.iter().zip(replies).enumerate() {
        // With the largest metadata these are a quarter of a megabyte.
        if place % 16 == 15 {
            tokio::task::yield_now().await;
        }
        let json = serde_json::to_vec(&reply).map_err(|_| Problem::internal())?;
        shown.insert(payment.id, (payment.merchant, json.into()));
    }
    Ok(shown)
}

/// It is no request's failure: what is wrong with a payment is logged when that is read alone.
fn of_batch(failure: Failure) -> Unread {
    tracing::debug!("payments that were read together are read alone: {failure}");
    Problem::internal().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_that_was_read_together_with_others_is_its_merchants_alone() {
        let [one, other] = [1, 2].map(Uuid::from_u128);
        let [first, second, none] = [11, 12, 13].map(|id| PaymentId(Uuid::from_u128(id)));
        let reply = |text: &'static str| Bytes::from_static(text.as_bytes());
        let shown = Shown::from([(first, (one, reply("first"))), (second, (other, reply("second")))]);
        assert_eq!((own(&shown, one, first), own(&shown, other, second)), (Some(reply("first")), Some(reply("second"))));
        assert_eq!([own(&shown, other, first), own(&shown, one, second), own(&shown, one, none)], [None, None, None]);
    }
}
