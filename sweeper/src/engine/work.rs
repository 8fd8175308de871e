//! The engine at work: it signs what is queued, brings each attempt to Kafka, sends it, and raises what is stuck.
//!
//! All that it does follows from rows. It may be killed anywhere, and two of it may run: a nonce is given out under the lane's
//! lock, and to send the same bytes twice does no harm.

use super::answers::Answer;
use super::content::{Content, SignedBytes};
use super::fees::Market;
use super::fold::{self, Stepped};
use super::lane::{gaps, next_nonce};
use super::node::Nodes;
use super::outgoing::{Action, Input, Kind, Moment, Order, Outgoing, Pace};
use super::rows::{LaneId, Stored};
use super::step::step;
use super::store::{self, Lane, NewOutgoing, Record};
use crate::keys::Signer;
use alloy::primitives::{Address, B256, keccak256};
use chain::Rpc;
use deadpool_postgres::{Pool, Transaction};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use runtime::Failure;
use std::fmt;
use std::sync::Arc;
use topics::ChainId;
use uuid::Uuid;

/// Lanes of a turn, and those that are worked on at the same time.
const MAX_LANES: usize = 1000;
const MAX_CONCURRENT: usize = 4;
/// Transactions of a lane that are looked at in one transaction of Postgres.
const MAX_ROWS: usize = 100;
/// From one transaction of a lane to the next, in a turn: to sign, to acknowledge, to note answers, and to do what they ask
/// for.
const MAX_ROUNDS: usize = 6;

/// Who signs for an address.
pub trait Keys: Send + Sync + fmt::Debug {
    fn signer(&self, sender: Address) -> Option<Arc<dyn Signer>>;
}

/// Where attempts are recorded before they are sent.
pub trait Records: Send + Sync + fmt::Debug {
    /// Returns when Kafka has acknowledged all of them.
    fn publish<'r>(&'r self, records: &'r [Record]) -> BoxFuture<'r, Result<(), Failure>>;
}

/// The engine of a chain.
#[derive(Debug)]
pub struct Engine {
    pub chain: ChainId,
    pub pool: Pool,
    pub nodes: Nodes,
    pub keys: Arc<dyn Keys>,
    pub records: Arc<dyn Records>,
    pub pace: Pace,
    /// Transactions of a lane that wait for a block at the same time. Pools keep 16 of an account (geth's `accountslots`), and
    /// one of a delegated account.
    pub max_in_flight: usize,
}

/// What a turn depends on.
#[derive(Clone, Copy)]
struct Now {
    seconds: u64,
    market: Option<Market>,
}

impl Engine {
    pub fn new(chain: ChainId, pool: Pool, rpc: Rpc, keys: Arc<dyn Keys>, records: Arc<dyn Records>, pace: Pace) -> Self {
        Self { chain, pool, nodes: Nodes::new(rpc), keys, records, pace, max_in_flight: 16 }
    }

    /// Does all that is to be done at this time, in Unix seconds. A lane that fails is told, and holds up no other.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn turn(&self, seconds: u64) -> Result<(), Failure> {
        let lanes = store::due_lanes(&self.pool.get().await?, self.chain, seconds, MAX_LANES).await?;
        if lanes.is_empty() {
            return Ok(());
        }
        let now = Now { seconds, market: self.nodes.market().await };
        let work = |lane: LaneId| async move {
            if let Err(failure) = self.work(&lane, now).await {
                tracing::warn!(chain = %lane.chain, sender = %lane.sender, "it waits for the next turn: {failure}");
            }
        };
        futures::stream::iter(lanes).for_each_concurrent(MAX_CONCURRENT, work).await;
        Ok(())
    }

    async fn work(&self, lane: &LaneId, now: Now) -> Result<(), Failure> {
        if !store::has_begun(&self.pool.get().await?, lane).await? {
            let count = self.nodes.count(lane).await.map_err(Failure::retry)?;
            store::begin(&self.pool.get().await?, lane, count).await?;
        }
        let mut stepped = self.apply(lane, None, now).await?;
        for _ in 0..MAX_ROUNDS {
            let inputs = self.perform(lane, &stepped, now).await?;
            if inputs.is_empty() {
                break;
            }
            stepped = self.apply(lane, Some(inputs), now).await?;
        }
        Ok(())
    }

    /// Applies inputs to rows, or lets time pass for those that are due, and signs what is to be signed, all in one
    /// transaction.
    async fn apply(&self, lane: &LaneId, inputs: Option<Vec<(Uuid, Input)>>, now: Now) -> Result<Vec<Stepped>, Failure> {
        let mut db = self.pool.get().await?;
        let tx = db.transaction().await?;
        let Some(mut locked) = store::lock(&tx, lane).await? else { return Ok(Vec::new()) };
        let inputs = match inputs {
            Some(inputs) => inputs,
            None => {
                let room = self.max_in_flight.saturating_sub(locked.in_flight).min(MAX_ROWS);
                let due = store::due(&tx, lane, now.seconds, MAX_ROWS, room).await?;
                due.into_iter().map(|id| (id, Input::Tick)).collect()
            }
        };
        let moment = Moment { time: now.seconds, market: now.market, is_lowest: false, pace: self.pace };
        let mut stepped = fold::apply(&tx, Some(&locked), &inputs, &moment).await?;
        for Stepped { stored, actions } in &mut stepped {
            fold::tell(stored, actions);
            for action in std::mem::take(actions) {
                match action {
                    Action::Sign(order) => actions.extend(self.sign(&tx, &mut locked, stored, &order, &moment).await?),
                    action => actions.push(action),
                }
            }
        }
        tx.commit().await?;
        Ok(stepped)
    }

    /// Signs an attempt and stores it, with its nonce. Without a signature nothing is given out.
    async fn sign(
        &self,
        tx: &Transaction<'_>,
        lane: &mut Lane,
        stored: &mut Stored,
        order: &Order,
        moment: &Moment,
    ) -> Result<Vec<Action>, Failure> {
        let is_first = stored.outgoing.nonce.is_none();
        if is_first && lane.in_flight >= self.max_in_flight {
            return Ok(Vec::new());
        }
        let nonce = order.nonce.unwrap_or_else(|| next_nonce(lane.born, lane.highest));
        let Some(signed) = self.signed_bytes(stored, nonce, order).await else { return Ok(Vec::new()) };
        let attempt = store::store_attempt(tx, stored, nonce, order, &signed).await?;
        let next = step(&stored.outgoing, &Input::Signed(attempt), moment).map_err(Failure::halt)?;
        store::save(tx, stored.id, &stored.outgoing, &next.next, &self.pace).await?;
        stored.outgoing = next.next;
        if is_first {
            lane.in_flight += 1;
            lane.highest = lane.highest.max(Some(nonce));
            lane.lowest = Some(lane.lowest.map_or(nonce, |lowest| lowest.min(nonce)));
        }
        // It is signed: what is left is to publish it.
        Ok(next.actions.into_iter().filter(|action| !matches!(action, Action::Sign(_))).collect())
    }

    /// `None`, and told, where nobody signs.
    async fn signed_bytes(&self, stored: &Stored, nonce: u64, order: &Order) -> Option<SignedBytes> {
        let LaneId { chain, sender } = stored.lane;
        let nothing = Content::nothing(sender);
        let content = if order.cancels { &nothing } else { &stored.content };
        let Some(signer) = self.keys.signer(sender) else {
            tracing::error!(outgoing = %stored.id, %sender, "nobody signs for the sender");
            return None;
        };
        let Some(transaction) = content.unsigned(chain, nonce, order.fees) else {
            tracing::error!(outgoing = %stored.id, "it authorizes and calls nobody, which no transaction can");
            return None;
        };
        let signature = match signer.sign_transaction(&transaction).await {
            Ok(signature) => signature,
            Err(error) => {
                tracing::warn!(outgoing = %stored.id, "not signed: {error}");
                return None;
            }
        };
        let signed = SignedBytes::new(transaction, signature, sender);
        if signed.is_none() {
            tracing::error!(outgoing = %stored.id, %sender, "signed with another key");
        }
        signed
    }

    /// Does what Kafka and nodes are needed for, and returns what comes of it.
    async fn perform(&self, lane: &LaneId, stepped: &[Stepped], now: Now) -> Result<Vec<(Uuid, Input)>, Failure> {
        let all = || stepped.iter().flat_map(|one| one.actions.iter().map(move |action| (&one.stored, *action)));
        let hashes = |of: fn(Action) -> Option<B256>| all().filter_map(|(_, action)| of(action)).collect::<Vec<_>>();
        let mut inputs = Vec::new();
        let publish = hashes(|action| if let Action::Publish(hash) = action { Some(hash) } else { None });
        if !publish.is_empty() {
            let records = store::records(&self.pool.get().await?, &publish, false).await?;
            self.records.publish(&records).await?;
            inputs.extend(records.into_iter().map(|record| (record.id, Input::Acknowledged(record.hash))));
        }
        let broadcast = hashes(|action| if let Action::Broadcast(hash) = action { Some(hash) } else { None });
        if !broadcast.is_empty() {
            // What Kafka has is read from the row once more: nothing else is sent.
            let records = store::records(&self.pool.get().await?, &broadcast, true).await?;
            for record in records {
                let answer = self.nodes.send(record.hash, &record.raw).await;
                note(&record, answer);
                inputs.push((record.id, Input::Answer(record.hash, answer)));
            }
        }
        if all().any(|(_, action)| action == Action::FillGaps) {
            let count = self.nodes.count(lane).await.map_err(Failure::retry)?;
            self.fill(lane, count, now).await?;
        }
        for (stored, _) in all().filter(|(_, action)| *action == Action::AskNonce) {
            inputs.extend(self.ask_nonce(stored).await?.map(|input| (stored.id, input)));
        }
        Ok(inputs)
    }

    /// Whether somebody else has used the nonce: by what the chain counts at the last final block, up to which no block has one
    /// of ours.
    async fn ask_nonce(&self, stored: &Stored) -> Result<Option<Input>, Failure> {
        let final_number = store::final_number(&self.pool.get().await?, self.chain).await?;
        let (Some(nonce), Some(number)) = (stored.outgoing.nonce, final_number) else { return Ok(None) };
        let count = self.nodes.count_at(&stored.lane, number).await;
        Ok(count.filter(|count| *count > nonce).map(|_| Input::ForeignNonce { nonce, number }))
    }

    /// Fills nonces that hold up the lane. What is queued and signed here is published and sent by the next turn.
    async fn fill(&self, lane: &LaneId, count: u64, now: Now) -> Result<(), Failure> {
        let Some(fees) = now.market.and_then(|market| market.fees(self.pace.max_fee)) else { return Ok(()) };
        let mut db = self.pool.get().await?;
        let tx = db.transaction().await?;
        let Some(mut locked) = store::lock(&tx, lane).await? else { return Ok(()) };
        let (given, waiting) = store::nonces(&tx, lane, count).await?;
        let moment = Moment { time: now.seconds, market: now.market, is_lowest: false, pace: self.pace };
        for nonce in gaps(count, &given, &waiting) {
            tracing::warn!(chain = %lane.chain, sender = %lane.sender, nonce, "no transaction has this nonce; it is filled");
            let idempotency_key = format!("gap:{}:{}:{nonce}", lane.chain, lane.sender);
            let request_hash = keccak256(&idempotency_key);
            let content = Content::nothing(lane.sender);
            let id = Uuid::new_v4();
            let new = NewOutgoing { id, kind: Kind::Gap, lane: *lane, content, idempotency_key, request_hash };
            store::queue(&tx, &new).await?;
            let NewOutgoing { content, idempotency_key, .. } = new;
            let outgoing = Outgoing::queued(Kind::Gap);
            let mut stored = Stored { id, lane: *lane, content, idempotency_key, request_hash, outgoing };
            let order = Order { nonce: Some(nonce), fees, cancels: true };
            // One more than the limit: the lane stands still without it.
            locked.in_flight = 0;
            self.sign(&tx, &mut locked, &mut stored, &order, &moment).await?;
            if stored.outgoing.nonce.is_none() {
                // Nobody signed: a filler in the queue would get another nonce.
                return Ok(());
            }
        }
        tx.commit().await?;
        Ok(())
    }
}

fn note(record: &Record, answer: Answer) {
    let Record { id, hash, nonce, .. } = record;
    match answer {
        Answer::Accepted | Answer::AlreadyThere => tracing::debug!(outgoing = %id, %hash, nonce, "{answer:?}"),
        answer => tracing::info!(outgoing = %id, %hash, nonce, "{answer:?}"),
    }
}
