//! Making payments, many at a time. A flush to the disk and a round trip to Kafka cost the same for one as for hundreds, so
//! requests that come in while a batch is on its way make the next one; nobody waits for a batch to fill.

use crate::account::{self, Account};
use crate::intents::Intents;
use crate::keys::KeyId;
use crate::order::Order;
use crate::problem::Problem;
use crate::replay::{self, Claim, Key};
use confirmer::lifecycle::Event;
use confirmer::{Payment, events, store};
use deadpool_postgres::{Pool, Transaction};
use runtime::{Failure, db};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use topics::PaymentId;
use uuid::Uuid;

/// More would make the first of a batch wait long for the last.
const LARGEST_BATCH: usize = 500;
/// Batches on their way at once: one waits for Postgres' disk while another waits for Kafka's.
const IN_FLIGHT: usize = 4;
/// Requests that wait; past it there is a 503 rather than a longer queue.
pub const QUEUE: usize = 8192;

/// A payment to be made.
pub struct Request {
    /// Whose.
    pub merchant: Uuid,
    /// Where its address comes from.
    pub account: Account,
    /// What.
    pub order: Order,
    /// The id of the API key that asks.
    pub asked_by: KeyId,
    /// The request's Idempotency-Key.
    pub key: Option<Key>,
    /// The answer. A request that is gone before its batch begins makes no payment.
    pub answer: oneshot::Sender<Result<Made, Problem>>,
}

/// A payment whose intent Kafka has acknowledged.
#[derive(Debug)]
pub struct Made {
    /// The payment.
    pub payment: Payment,
    /// It was made by an earlier request with the same key.
    pub replayed: bool,
}

/// What a batch needs.
pub struct Maker {
    /// Postgres.
    pub pool: Pool,
    /// Kafka.
    pub intents: Intents,
}

/// Serves requests until all senders are gone and the last batch is answered.
pub async fn run(maker: Maker, mut requests: mpsc::Receiver<Request>) {
    let maker = Arc::new(maker);
    let mut batches = JoinSet::new();
    loop {
        // A free slot comes first: what arrives while there is none is in the next batch.
        if batches.len() >= IN_FLIGHT {
            finished(batches.join_next().await);
        }
        let mut batch = Vec::new();
        if requests.recv_many(&mut batch, LARGEST_BATCH).await == 0 {
            break;
        }
        // Who hung up or was told to come back while waiting gets no payment.
        batch.retain(|request| !request.answer.is_closed());
        if !batch.is_empty() {
            let maker = Arc::clone(&maker);
            batches.spawn(async move { maker.make(batch).await });
        }
    }
    while !batches.is_empty() {
        finished(batches.join_next().await);
    }
}

/// The requests of a batch that panicked are answered with 500, as their senders are dropped.
fn finished(batch: Option<Result<(), JoinError>>) {
    if let Some(Err(panic)) = batch {
        tracing::error!("a batch of payments: {panic}");
    }
}

impl Maker {
    async fn make(&self, batch: Vec<Request>) {
        // The same key twice in a batch: the second finds the first's payment once that is committed.
        let mut keys = HashSet::new();
        let (first, twins): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|r| r.key.as_ref().is_none_or(|key| keys.insert((r.merchant, key.text.clone()))));
        match self.write(&first).await {
            Ok(made) => {
                let (mut new, mut known) = (Vec::new(), twins);
                for (request, payment) in first.into_iter().zip(made) {
                    match payment {
                        Some(payment) => new.push((request, payment)),
                        None => known.push(request),
                    }
                }
                tokio::join!(self.announce(new), self.replay(known));
            }
            Err(failure) => {
                let problem = Problem::from(failure);
                for request in first.into_iter().chain(twins) {
                    answer(request, Err(problem.clone()));
                }
            }
        }
    }

    /// One transaction: keys, addresses, payments. `None` for a request whose key was there already.
    async fn write(&self, requests: &[Request]) -> Result<Vec<Option<Payment>>, Failure> {
        let mut client = self.pool.get().await.map_err(db::unavailable)?;
        let transaction = client.transaction().await.map_err(db::failure)?;
        let made = self.write_in(&transaction, requests).await?;
        transaction.commit().await.map_err(db::failure)?;
        Ok(made)
    }

    async fn write_in(&self, transaction: &Transaction<'_>, requests: &[Request]) -> Result<Vec<Option<Payment>>, Failure> {
        // Before the ids are made, so that the order of ids is that of creation times as far as clocks allow.
        let now = now()?;
        let claims: Vec<Claim<'_>> = requests
            .iter()
            .map(|r| Claim { merchant: r.merchant, key: r.key.as_ref(), payment: PaymentId::generate() })
            .collect();
        let known = replay::claim(transaction, &claims).await?;
        let fresh = requests.iter().zip(&claims).filter(|(_, claim)| !known.contains(&claim.payment));
        let mut addresses = account::take(transaction, wanted(fresh.map(|(request, _)| &request.account))).await?;

        let mut new: Vec<(Payment, Event)> = Vec::with_capacity(requests.len());
        let mut asked_by = Vec::with_capacity(requests.len());
        let mut places = Vec::with_capacity(requests.len());
        for (request, claim) in requests.iter().zip(&claims) {
            if known.contains(&claim.payment) {
                places.push(None);
                continue;
            }
            let fingerprint = request.account.fingerprint();
            let Some((address_index, address)) = addresses.get_mut(fingerprint).and_then(VecDeque::pop_front) else {
                return Err(Failure::Halt(anyhow::anyhow!("the sequence of {fingerprint} gave fewer indices than asked for")));
            };
            let Order { chain, chain_name, asset, amount, terms, policy, expires_in, external_id, metadata, fingerprint: _ } =
                request.order.clone();
            let payment = Payment {
                id: claim.payment,
                merchant: request.merchant,
                external_id,
                metadata,
                chain,
                chain_name,
                asset,
                address,
                xpub: fingerprint.to_owned(),
                address_index,
                amount,
                terms,
                policy,
                created_at: now,
                expires_at: now + expires_in,
                cancelled: false,
                expired_by: None,
                deposit_address: None,
                transfers: Vec::new(),
                // Of its creation.
                sequence: 1,
                updated_at: now,
            };
            let created = events::created(&payment);
            places.push(Some(new.len()));
            asked_by.push(request.asked_by.to_string());
            new.push((payment, created));
        }
        if !new.is_empty() {
            store::insert_asked(transaction, &new, &asked_by).await?;
        }
        let mut payments: Vec<Option<Payment>> = new.into_iter().map(|(payment, _)| Some(payment)).collect();
        Ok(places.into_iter().map(|place| place.and_then(|at| payments.get_mut(at)).and_then(Option::take)).collect())
    }

    /// Brings new payments' intents to Kafka and answers each request when its own is acknowledged.
    async fn announce(&self, new: Vec<(Request, Payment)>) {
        if new.is_empty() {
            return;
        }
        let intents: Vec<_> = new.iter().map(|(_, payment)| events::intent_record(payment)).collect();
        let outcomes = self.intents.publish(&intents).await;
        let mut acknowledged = Vec::with_capacity(new.len());
        for ((request, payment), outcome) in new.into_iter().zip(outcomes) {
            if outcome {
                acknowledged.push(payment.id.0);
                answer(request, Ok(Made { payment, replayed: false }));
            } else {
                answer(request, Err(Problem::unacknowledged()));
            }
        }
        self.intents.acknowledged(acknowledged);
    }

    /// Answers requests whose keys have a payment.
    async fn replay(&self, known: Vec<Request>) {
        if known.is_empty() {
            return;
        }
        match replay::find(&self.pool, &self.intents, &known).await {
            Ok(answers) => {
                for (request, outcome) in known.into_iter().zip(answers) {
                    answer(request, outcome.map(|payment| Made { payment, replayed: true }));
                }
            }
            Err(problem) => {
                for request in known {
                    answer(request, Err(problem.clone()));
                }
            }
        }
    }
}

/// How many addresses are wanted of each account.
fn wanted<'a>(accounts: impl Iterator<Item = &'a Account>) -> Vec<(Account, usize)> {
    let mut counts: HashMap<&str, (&Account, usize)> = HashMap::new();
    for account in accounts {
        counts.entry(account.fingerprint()).or_insert((account, 0)).1 += 1;
    }
    counts.into_values().map(|(account, count)| (account.clone(), count)).collect()
}

fn answer(request: Request, outcome: Result<Made, Problem>) {
    // The client may have hung up.
    let _ = request.answer.send(outcome);
}

/// Unix seconds.
pub fn now() -> Result<u64, Failure> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).map_err(Failure::halt)
}
