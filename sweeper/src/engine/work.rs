//! The engine at work: it signs what is queued, brings each attempt to Kafka, sends it, and raises what is stuck.
//!
//! All that it does follows from rows. It may be killed anywhere, and two of it may run: a nonce is given out under the lane's
//! lock, and to send the same bytes twice does no harm.
//!
//! A turn's market and time are of its beginning, a lane sends one after the other, and a signer is waited for under its lane's
//! lock: with thousands of lanes, dead endpoints or a slow signer a turn is long. A clock that was ahead once makes what was
//! done then wait until it gets there.

use super::answers::Answer;
use super::content::{Content, SignedBytes};
use super::fees::Market;
use super::fold::{self, Stepped};
use super::history;
use super::lane::{gaps, next_nonce};
use super::node::Nodes;
use super::outgoing::{Action, Input, Kind, Mined, Moment, Notice, Order, Pace};
use super::rows::{LaneId, Stored};
use super::store::{self, Lane, NewOutgoing, Record};
use crate::keys::Signer;
use alloy::primitives::{Address, B256, keccak256};
use anyhow::anyhow;
use deadpool_postgres::{Pool, Transaction};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use runtime::Failure;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
    /// `None` if nobody does, or it can't be found out now.
    fn signer(&self, sender: Address) -> BoxFuture<'_, Option<Arc<dyn Signer>>>;
}

/// Says what may be signed: whoever can write a row can ask for anything.
pub trait Rule: Send + Sync + fmt::Debug {
    /// # Errors
    /// With why this is not signed.
    fn check(&self, kind: Kind, content: &Content) -> Result<(), &'static str>;
}

/// Where attempts are recorded before they are sent.
pub trait Records: Send + Sync + fmt::Debug {
    /// Returns when Kafka has acknowledged each of them, or has not: in their order.
    fn publish<'r>(&'r self, records: &'r [Record]) -> BoxFuture<'r, Vec<Result<(), Failure>>>;
}

/// The engine of a chain.
#[derive(Debug)]
pub struct Engine {
    pub chain: ChainId,
    pub pool: Pool,
    pub nodes: Nodes,
    pub keys: Arc<dyn Keys>,
    pub rule: Arc<dyn Rule>,
    pub records: Arc<dyn Records>,
    pub pace: Pace,
    /// Transactions of a lane that wait for a block at the same time. Pools keep 16 of an account (geth's `accountslots`), and
    /// one of a delegated account.
    pub max_in_flight: usize,
    /// The place of the last transaction that this process knows to be signed. A database that knows fewer went back: what it has as
    /// queued may have been sent.
    pub last_place: Arc<AtomicI64>,
}

/// What Kafka and nodes have said.
#[derive(Default)]
struct Heard {
    inputs: Vec<(Uuid, Input)>,
    /// When receipts were asked for, if any were.
    receipts_at: Option<history::FinalAt>,
}

/// What a turn depends on.
#[derive(Clone, Copy)]
struct Now {
    seconds: u64,
    market: Option<Market>,
}

impl Engine {
    pub fn new(
        chain: ChainId,
        pool: Pool,
        nodes: Nodes,
        keys: Arc<dyn Keys>,
        rule: Arc<dyn Rule>,
        records: Arc<dyn Records>,
        pace: Pace,
    ) -> Self {
        Self { chain, pool, nodes, keys, rule, records, pace, max_in_flight: 16, last_place: Arc::default() }
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
                tracing::warn!(chain = %lane.chain, sender = %lane.sender, "it waits: {failure}");
                let next_at = now.seconds.saturating_add(self.pace.resend_after);
                if let Err(failure) = self.set_next_at(&lane, next_at).await {
                    tracing::warn!(chain = %lane.chain, sender = %lane.sender, "{failure}");
                }
            }
        };
        futures::stream::iter(lanes).for_each_concurrent(MAX_CONCURRENT, work).await;
        Ok(())
    }

    async fn set_next_at(&self, lane: &LaneId, time: u64) -> Result<(), Failure> {
        store::set_next_at(&self.pool.get().await?, lane, time).await
    }

    async fn work(&self, lane: &LaneId, now: Now) -> Result<(), Failure> {
        // Those that were not looked at come first in the next turn, whatever comes of this look.
        self.set_next_at(lane, now.seconds).await?;
        self.count(lane).await?;
        let mut stepped = self.apply(lane, None, now).await?;
        for _ in 0..MAX_ROUNDS {
            let (heard, failed) = self.perform(&stepped).await;
            // What Kafka and nodes have said is noted, also where one of them failed.
            if !heard.inputs.is_empty() {
                stepped = self.apply(lane, Some(heard), now).await?;
            } else if failed.is_ok() {
                break;
            }
            failed?;
        }
        Ok(())
    }

    /// Asks what the chain counts, where that is not known. Those that wait for a block with a nonce below are in a block that
    /// was not read.
    async fn count(&self, lane: &LaneId) -> Result<(), Failure> {
        let Some(at) = store::block_to_count(&self.pool.get().await?, lane).await? else { return Ok(()) };
        let Some(count) = self.nodes.count_at(lane.sender, at.block).await else { return Ok(()) };
        let mut db = self.pool.get().await?;
        let tx = db.transaction().await?;
        let lost = store::set_counted(&tx, lane, &at, count).await?;
        let lost: Vec<_> = lost.into_iter().map(|id| (id, Input::Counted(count))).collect();
        fold::apply_alone(&tx, lane, &lost, &self.pace).await?;
        Ok(tx.commit().await?)
    }

    /// Applies inputs to rows, or lets time pass for those that are due, and signs what is to be signed, all in one
    /// transaction.
    async fn apply(&self, lane: &LaneId, heard: Option<Heard>, now: Now) -> Result<Vec<Stepped>, Failure> {
        let mut db = self.pool.get().await?;
        let tx = db.transaction().await?;
        let inputs = match heard {
            Some(heard) => Some(self.still_true(&tx, heard).await?),
            None => None,
        };
        // Before the lane is: others go on meanwhile.
        let last_place = self.last_place.load(Ordering::Relaxed);
        let Some(mut locked) = store::lock(&tx, lane).await? else { return Ok(Vec::new()) };
        if locked.last_place < last_place {
            return Err(Failure::Retry(anyhow!("Postgres knows fewer signed transactions than a moment ago: it was restored")));
        }
        let inputs = match inputs {
            Some(inputs) => inputs,
            // Whoever reads records back has frozen it meanwhile.
            None if locked.is_frozen => return Ok(Vec::new()),
            None => {
                let room = self.max_in_flight.saturating_sub(locked.in_flight).min(MAX_ROWS);
                let due = store::due(&tx, lane, now.seconds, MAX_ROWS, room).await?;
                due.into_iter().map(|id| (id, Input::Tick)).collect()
            }
        };
        let moment = Moment { time: now.seconds, market: now.market, is_lowest: false, blocks: locked.blocks, pace: self.pace };
        let mut stepped = fold::apply(&tx, locked.lowest, &inputs, &moment).await?;
        let mut is_held_up = false;
        for Stepped { stored, actions } in &mut stepped {
            fold::tell(stored, actions);
            // What was heard is noted, and nothing is done.
            if locked.is_frozen {
                actions.clear();
            }
            for action in std::mem::take(actions) {
                match action {
                    Action::Sign(order) => actions.extend(self.sign(&tx, &mut locked, stored, &order, &moment).await?),
                    Action::FillGaps => is_held_up = true,
                    action => actions.push(action),
                }
            }
        }
        if is_held_up {
            stepped.extend(self.fill(&tx, lane, &mut locked, &moment).await?);
        }
        tx.commit().await?;
        self.last_place.fetch_max(locked.last_place, Ordering::Relaxed);
        Ok(stepped)
    }

    /// What is true still of what nodes said: a receipt of a block that has left the chain meanwhile says nothing, though the
    /// block was final. Nothing takes it back once more.
    async fn still_true(
        &self,
        tx: &Transaction<'_>,
        Heard { mut inputs, receipts_at }: Heard,
    ) -> Result<Vec<(Uuid, Input)>, Failure> {
        if let Some(at) = receipts_at
            && !history::stands(tx, self.chain, at.removals).await?
        {
            inputs.retain(|(_, input)| !matches!(input, Input::Receipt(_)));
        }
        Ok(inputs)
    }

    /// Signs an attempt and stores it, with its nonce. Without a signature nothing is given out, and it is tried again later.
    async fn sign(
        &self,
        tx: &Transaction<'_>,
        lane: &mut Lane,
        stored: &mut Stored,
        order: &Order,
        moment: &Moment,
    ) -> Result<Vec<Action>, Failure> {
        if stored.outgoing.nonce.is_none() && lane.in_flight >= self.max_in_flight {
            return Ok(Vec::new());
        }
        if stored.outgoing.nonce.is_none() && !store::may_sign(tx, stored.id).await? {
            return Ok(Vec::new());
        }
        let next = || lane.counted.map(|counted| next_nonce(counted, lane.given, lane.foreign));
        let signed = match order.nonce.or_else(next) {
            Some(nonce) => self.signed_bytes(stored, nonce, order).await.map(|signed| (nonce, signed)),
            None => Err(Notice::NotCounted),
        };
        match signed {
            Ok((nonce, signed)) => self.store_signed(tx, lane, stored, nonce, order, &signed, moment).await,
            Err(notice) => {
                let actions = fold::advance(tx, stored, &Input::InVain(notice), moment).await?.map_err(Failure::halt)?;
                fold::tell(stored, &actions);
                Ok(Vec::new())
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that makes up a signed transaction")]
    async fn store_signed(
        &self,
        tx: &Transaction<'_>,
        lane: &mut Lane,
        stored: &mut Stored,
        nonce: u64,
        order: &Order,
        signed: &SignedBytes,
        moment: &Moment,
    ) -> Result<Vec<Action>, Failure> {
        let (attempt, place) = store::store_attempt(tx, stored, nonce, order, signed).await?;
        lane.last_place = lane.last_place.max(place);
        if stored.outgoing.nonce.is_none() {
            lane.in_flight += 1;
            lane.given = lane.given.max(Some(nonce));
        }
        fold::advance(tx, stored, &Input::Signed(attempt), moment).await?.map_err(Failure::halt)
    }

    /// Signed by the sender.
    ///
    /// # Errors
    /// Where nobody signs, or nobody may. What does nothing may always be signed.
    async fn signed_bytes(&self, stored: &Stored, nonce: u64, order: &Order) -> Result<SignedBytes, Notice> {
        let LaneId { chain, sender } = stored.lane;
        let nothing = Content::nothing(sender);
        let content = if order.cancels {
            &nothing
        } else {
            self.rule.check(stored.outgoing.kind, &stored.content).map_err(Notice::NotAllowed)?;
            &stored.content
        };
        let signer = self.keys.signer(sender).await.ok_or(Notice::NotSigned)?;
        // What is not possible is not queued.
        let transaction = content.unsigned(chain, nonce, order.fees).ok_or(Notice::NotSigned)?;
        let signature = signer.sign_transaction(&transaction).await.map_err(|error| {
            tracing::warn!(outgoing = %stored.id, "not signed: {error}");
            Notice::NotSigned
        })?;
        SignedBytes::new(transaction, signature, sender).ok_or_else(|| {
            tracing::error!(outgoing = %stored.id, %sender, "signed with another key");
            Notice::NotSigned
        })
    }

    /// Does what Kafka and nodes are needed for, and returns what came of it, and whether something failed on the way.
    async fn perform(&self, stepped: &[Stepped]) -> (Heard, Result<(), Failure>) {
        let mut heard = Heard::default();
        let published = self.publish(stepped, &mut heard.inputs).await;
        let sent = self.broadcast(stepped, &mut heard.inputs).await;
        let read = self.read_receipts(stepped, &mut heard).await;
        (heard, published.and(sent).and(read))
    }

    async fn publish(&self, stepped: &[Stepped], inputs: &mut Vec<(Uuid, Input)>) -> Result<(), Failure> {
        let hashes = hashes(stepped, |action| if let Action::Publish(hash) = action { Some(hash) } else { None });
        if hashes.is_empty() {
            return Ok(());
        }
        let records = store::records(&self.pool.get().await?, &hashes, false).await?;
        let mut published = Ok(());
        for (record, outcome) in records.iter().zip(self.records.publish(&records).await) {
            match outcome {
                Ok(()) => inputs.push((record.id, Input::Acknowledged(record.hash))),
                Err(failure) => published = published.and(Err(failure)),
            }
        }
        published
    }

    async fn broadcast(&self, stepped: &[Stepped], inputs: &mut Vec<(Uuid, Input)>) -> Result<(), Failure> {
        let hashes = hashes(stepped, |action| if let Action::Broadcast(hash) = action { Some(hash) } else { None });
        if hashes.is_empty() {
            return Ok(());
        }
        // What Kafka has is read from the row once more: nothing else is sent.
        let records = store::records(&self.pool.get().await?, &hashes, true).await?;
        for record in records {
            let answer = self.nodes.send(record.hash, &record.raw).await;
            note(&record, answer);
            inputs.push((record.id, Input::Answer(record.hash, answer)));
        }
        Ok(())
    }

    /// Reads what blocks were read without.
    async fn read_receipts(&self, stepped: &[Stepped], heard: &mut Heard) -> Result<(), Failure> {
        let mut asked = stepped.iter().filter(|stepped| stepped.actions.contains(&Action::AskReceipt)).peekable();
        if asked.peek().is_none() {
            return Ok(());
        }
        let at = history::final_at(&self.pool.get().await?, self.chain).await?;
        heard.receipts_at = Some(at);
        for Stepped { stored, .. } in asked {
            let (hashes, is_read) = stored.outgoing.asks_receipts_of();
            let is_final = |receipt: &Mined| at.number.is_some_and(|number| receipt.block.number <= number);
            let receipt = self.nodes.receipt(&hashes).await.filter(|receipt| is_read || is_final(receipt));
            heard.inputs.push((stored.id, Input::Receipt(receipt)));
        }
        Ok(())
    }

    /// Signs fillers of the nonces that hold up the lane, as far as somebody signs them.
    async fn fill(
        &self,
        tx: &Transaction<'_>,
        lane: &LaneId,
        locked: &mut Lane,
        moment: &Moment,
    ) -> Result<Vec<Stepped>, Failure> {
        let mut fillers = Vec::new();
        let fees = moment.market.and_then(|market| market.fees(self.pace.max_fee));
        let (Some(counted), Some(fees)) = (locked.counted, fees) else { return Ok(fillers) };
        let missing = gaps(counted, &store::waiting(tx, lane).await?).unwrap_or_else(|wide| {
            tracing::error!(chain = %lane.chain, sender = %lane.sender, "{wide}");
            Vec::new()
        });
        for nonce in missing {
            tracing::warn!(chain = %lane.chain, sender = %lane.sender, nonce, "no transaction has this nonce; it is filled");
            let (id, content) = (Uuid::new_v4(), Content::nothing(lane.sender));
            // Nobody asks for one again, and nobody can take its key: that a nonce is given out once is the table's.
            let idempotency_key = format!("gap:{id}");
            let request_hash = keccak256(&idempotency_key);
            let new = NewOutgoing { id, kind: Kind::Gap, lane: *lane, content, idempotency_key, request_hash };
            let mut stored = new.clone().stored();
            let order = Order { nonce: Some(nonce), fees, cancels: true };
            // Signed first: a filler in the queue would get another nonce.
            let Ok(signed) = self.signed_bytes(&stored, nonce, &order).await else { break };
            store::queue(tx, &new).await?;
            let actions = self.store_signed(tx, locked, &mut stored, nonce, &order, &signed, moment).await?;
            fillers.push(Stepped { stored, actions });
        }
        Ok(fillers)
    }
}

fn hashes(stepped: &[Stepped], of: fn(Action) -> Option<B256>) -> Vec<B256> {
    stepped.iter().flat_map(|stepped| &stepped.actions).filter_map(|action| of(*action)).collect()
}

fn note(record: &Record, answer: Answer) {
    let Record { id, hash, nonce, .. } = record;
    match answer {
        Answer::Accepted | Answer::AlreadyThere => tracing::debug!(outgoing = %id, %hash, nonce, "{answer:?}"),
        answer => tracing::info!(outgoing = %id, %hash, nonce, "{answer:?}"),
    }
}
