//! Creates payments in [batches].
//!
//! A payment, its `payment.created` event, its idempotency key and its intent (as not acknowledged) are one transaction; the
//! request is answered after Kafka has acknowledged the intent.

use crate::batches::{self, Bounds, Turn, give_way, log_panic};
use crate::clock;
use crate::create::idempotency::{self, IdempotencyKey, KeyClaim};
use crate::create::intents::Intents;
use crate::create::order::Order;
use crate::create::queue::{CreateRequest, CreatedPayment};
use crate::http::problem::Problem;
use deadpool_postgres::{Client, Pool, Transaction};
use futures::StreamExt as _;
use merchants::accounts::{self, Account};
use payments::intents::{IdempotencyClaim, Origin, intent_record};
use payments::lifecycle::Event;
use payments::{Payment, Sums, events, store};
use runtime::{Failure, db};
use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use topics::{Address, PaymentId};
use uuid::Uuid;

/// One batch waits for Postgres' disk while another waits for Kafka's. Of those that have given way none takes longer than some
/// seconds.
const BOUNDS: Bounds = Bounds { size: 500, in_flight: 4, all: 64 };
/// How long a batch in Kafka's hands keeps another from its turn: what a partition without a leader keeps waiting is a part of
/// each batch.
const MAX_KAFKA_TURN: Duration = Duration::from_millis(500);

/// Where the batches go.
pub struct Batcher {
    pub pool: Pool,
    pub intents: Intents,
    /// The installation that the database belongs to.
    pub installation: Uuid,
}

impl Batcher {
    /// Handles requests until all senders are gone and the last batch is answered.
    pub async fn run(self, requests: mpsc::Receiver<CreateRequest>) {
        let batcher = Arc::new(self);
        batches::run(requests, BOUNDS, |batch, turn| Arc::clone(&batcher).create(batch, turn)).await;
    }

    async fn create(self: Arc<Self>, batch: Vec<CreateRequest>, turn: Turn) {
        // The same key twice in a batch: the second request finds the first one's payment once that is committed. An account that
        // has no address left has earlier payments alone.
        let mut keys = HashSet::new();
        let (first, mut repeated): (Vec<_>, Vec<_>) = batch.into_iter().partition(|r| {
            !r.account.is_exhausted()
                && r.idempotency_key.as_ref().is_none_or(|key| keys.insert((r.merchant, key.text.clone())))
        });
        let (mut slices, mut answers) = (vec![first], JoinSet::new());
        while let Some(mut slice) = slices.pop() {
            match self.write(&mut slice).await {
                Ok((written, began)) => {
                    let mut new = Vec::new();
                    for (request, payment) in slice.into_iter().zip(written) {
                        match payment {
                            Some(payment) => new.push((request, payment)),
                            None => repeated.push(request),
                        }
                    }
                    // What is still to be written does not wait for Kafka.
                    answers.spawn(Arc::clone(&self).publish(new, began));
                }
                // It costs nobody else a payment.
                Err(_) if slice.iter().any(|request| request.account.is_exhausted()) => {
                    let (exhausted, others) = slice.into_iter().partition(|request| request.account.is_exhausted());
                    repeated.extend::<Vec<_>>(exhausted);
                    slices.push(others);
                }
                // One that contradicts the database, say by an address that is given out, keeps none of the others from theirs.
                Err(Failure::Halt(_)) if slice.len() > 1 => {
                    let second = slice.split_off(slice.len() / 2);
                    slices.extend([second, slice]);
                }
                Err(failure) => refuse(slice, &failure.into()),
            }
        }
        answers.spawn(self.answer_repeated(repeated));
        let answered = async {
            while let Some(ended) = answers.join_next().await {
                log_panic(Some(ended));
            }
        };
        give_way(turn, MAX_KAFKA_TURN, answered).await;
    }

    /// One transaction: keys, addresses, payments. `None` for a request whose key was taken already. With the time before its
    /// connection was taken. A client that has left meanwhile would never learn its address, whose index would burn: it is left out.
    async fn write(&self, requests: &mut Vec<CreateRequest>) -> Result<(Vec<Option<Payment>>, Instant), Failure> {
        let began = Instant::now();
        let client = self.pool.get().await?;
        requests.retain(|request| !request.reply.is_closed());
        // It may have been found while they were in the queue.
        refuse(requests.extract_if(.., |request| request.account.is_replaced()), &Problem::replaced());
        let write = async |client: &mut Client| {
            let transaction = client.transaction().await?;
            let written = write_in(&transaction, requests, self.installation).await?;
            transaction.commit().await?;
            Ok(written)
        };
        let written = db::in_time(client, db::WRITE_TIMEOUT, write).await?;
        Ok((written, began))
    }

    /// Publishes the intents of new payments and answers each request when Kafka has acknowledged its own.
    async fn publish(self: Arc<Self>, new: Vec<(CreateRequest, Payment)>, began: Instant) {
        if new.is_empty() {
            return;
        }
        let intents: Vec<_> =
            new.iter().map(|(request, payment)| intent_record(payment, &origin(request, self.installation))).collect();
        let mut acknowledged = Vec::with_capacity(new.len());
        let mut waiting: Vec<_> = new.into_iter().map(Some).collect();
        let mut outcomes = pin!(self.intents.publish(intents, began));
        while let Some((place, is_acknowledged)) = outcomes.next().await {
            match waiting.get_mut(place).and_then(Option::take) {
                Some((request, payment)) if is_acknowledged => {
                    acknowledged.push(payment.id.0);
                    reply(request, Ok(CreatedPayment { payment, repeated: false }));
                }
                Some((request, _)) => reply(request, Err(Problem::unacknowledged())),
                None => {}
            }
        }
        self.intents.forget_acknowledged(acknowledged);
    }

    /// Answers requests whose idempotency keys were taken already with the payments of those keys, each as soon as it is known.
    async fn answer_repeated(self: Arc<Self>, mut requests: Vec<CreateRequest>) {
        if requests.is_empty() {
            return;
        }
        let keys: Vec<_> = requests.iter_mut().map(|request| (request.merchant, request.idempotency_key.take())).collect();
        let mut waiting: Vec<_> = requests.into_iter().map(Some).collect();
        let answer = |place: usize, found: Result<Payment, Problem>| {
            let Some(request) = waiting.get_mut(place).and_then(Option::take) else { return };
            let has_none = request.account.is_exhausted() && found.as_ref().is_err_and(idempotency::is_unknown);
            let outcome = if has_none { Err(Problem::exhausted()) } else { found };
            reply(request, outcome.map(|payment| CreatedPayment { payment, repeated: true }));
        };
        let keys: Vec<_> = keys.iter().map(|(merchant, key)| (*merchant, key.as_ref())).collect();
        if let Err(problem) = idempotency::find_payments(&self.pool, &self.intents, &keys, answer).await {
            refuse(waiting.into_iter().flatten(), &problem);
        }
    }
}

async fn write_in(
    transaction: &Transaction<'_>,
    requests: &[CreateRequest],
    installation: Uuid,
) -> Result<Vec<Option<Payment>>, Failure> {
    // Before the ids are made, so that the order of ids is that of creation times as far as clocks allow.
    let now = clock::now()?;
    let claims: Vec<KeyClaim<'_>> = requests
        .iter()
        .map(|r| KeyClaim { merchant: r.merchant, key: r.idempotency_key.as_ref(), payment: PaymentId::generate() })
        .collect();
    let refused = idempotency::claim_keys(transaction, &claims).await?;
    let accepted = requests.iter().zip(&claims).filter(|(_, claim)| !refused.contains(&claim.payment));
    let mut addresses = accounts::take_addresses(transaction, addresses_per_account(accepted.map(|(r, _)| &r.account))).await?;

    let mut new: Vec<(Payment, Event)> = Vec::with_capacity(requests.len());
    let mut origins = Vec::with_capacity(requests.len());
    let mut places = Vec::with_capacity(requests.len());
    for (request, claim) in requests.iter().zip(&claims) {
        if refused.contains(&claim.payment) {
            places.push(None);
            continue;
        }
        let fingerprint = request.account.fingerprint();
        let Some(address) = addresses.get_mut(fingerprint).and_then(VecDeque::pop_front) else {
            return Err(Failure::Halt(anyhow::anyhow!("the sequence of {fingerprint} gave fewer indices than requested")));
        };
        let payment = new_payment(request, claim.payment, address, now);
        let created = events::created_event(&payment);
        places.push(Some(new.len()));
        origins.push(origin(request, installation));
        new.push((payment, created));
    }
    if !new.is_empty() {
        store::insert_requested_payments(transaction, &new, &origins).await?;
    }
    let mut payments: Vec<Option<Payment>> = new.into_iter().map(|(payment, _)| Some(payment)).collect();
    Ok(places.into_iter().map(|place| place.and_then(|at| payments.get_mut(at)).and_then(Option::take)).collect())
}

/// The request as a payment's intent tells it.
fn origin(request: &CreateRequest, installation: Uuid) -> Origin {
    let claim =
        |key: &IdempotencyKey| IdempotencyClaim { key: key.text.clone(), request_hash: key.fingerprint.as_slice().to_vec() };
    Origin { installation, asked_by: request.api_key.to_string(), idempotency: request.idempotency_key.as_ref().map(claim) }
}

fn new_payment(request: &CreateRequest, id: PaymentId, (address_index, address): (u32, Address), now: u64) -> Payment {
    let Order { chain, chain_name, asset, amount, terms, policy, expires_in, external_id, metadata, fingerprint: _ } =
        request.order.clone();
    Payment {
        id,
        merchant: request.merchant,
        external_id,
        metadata: metadata.map(Into::into),
        chain,
        chain_name,
        asset,
        address,
        xpub: request.account.fingerprint().to_owned(),
        address_index,
        amount,
        terms,
        policy,
        created_at: now,
        expires_at: now + expires_in,
        cancelled: false,
        expired_by: None,
        settlement: None,
        deposit_address: None,
        sums: Sums::default(),
        parts: Vec::new(),
        transfers: Vec::new(),
        // The event of its creation.
        sequence: 1,
        updated_at: now,
    }
}

/// How many addresses to take from each account.
fn addresses_per_account<'a>(accounts: impl Iterator<Item = &'a Account>) -> Vec<(Account, usize)> {
    let mut counts: HashMap<&str, (&Account, usize)> = HashMap::new();
    for account in accounts {
        counts.entry(account.fingerprint()).or_insert((account, 0)).1 += 1;
    }
    counts.into_values().map(|(account, count)| (account.clone(), count)).collect()
}

fn reply(request: CreateRequest, outcome: Result<CreatedPayment, Problem>) {
    // The client may have disconnected.
    let _ = request.reply.send(outcome);
}

fn refuse(requests: impl IntoIterator<Item = CreateRequest>, problem: &Problem) {
    for request in requests {
        reply(request, Err(problem.clone()));
    }
}
