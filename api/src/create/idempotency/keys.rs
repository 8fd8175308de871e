//! Idempotency keys in the database, each with a hash of its request and the payment that it created. `housekeeping` removes
//! them after 24 hours.
//!
//! No response is stored: the first response follows from facts of the payment that never change. Only created payments are
//! repeated. A request that failed has created nothing that a client knows of, so its key may be retried.

use crate::create::intents::Intents;
use crate::http::problem::Problem;
use crate::http::share;
use axum::http::{HeaderMap, StatusCode};
use deadpool_postgres::{GenericClient, Pool};
use futures::{Stream, StreamExt as _};
use payments::Payment;
use payments::store::{self, Page};
use runtime::Failure;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use tokio_postgres::Row;
use topics::PaymentId;
use uuid::Uuid;

const HEADER: &str = "Idempotency-Key";
const MAX_LENGTH: usize = 255;
const NOT_VISIBLE: &str = "expected visible ASCII characters";

/// The key of a request.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// As the client sent it.
    pub text: String,
    pub fingerprint: Fingerprint,
}

/// A request, to be recognised when it comes again: by what it means, or by its text, since what it means may be another by then, or
/// nothing, as after a change of chains.yaml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 64]);

impl Fingerprint {
    /// `meaning` is a hash; a request that is refused means its text.
    pub fn new(meaning: Option<[u8; 32]>, text: &[u8]) -> Self {
        let text: [u8; 32] = Sha256::digest(text).into();
        let mut both = [0; 64];
        both[..32].copy_from_slice(&meaning.unwrap_or(text));
        both[32..].copy_from_slice(&text);
        Self(both)
    }

    pub const fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub fn meaning(&self) -> &[u8] {
        &self.0[..32]
    }

    /// Whether a stored one is of the same request.
    fn is(&self, stored: &[u8]) -> bool {
        stored.len() == self.0.len() && (stored[..32] == self.0[..32] || stored[32..] == self.0[32..])
    }
}

/// A key to be claimed for a new payment; without a key there is nothing to claim.
pub struct KeyClaim<'a> {
    pub merchant: Uuid,
    pub key: Option<&'a IdempotencyKey>,
    /// The payment that the key would stand for.
    pub payment: PaymentId,
}

/// Reads the header `Idempotency-Key`, if there is one.
///
/// # Errors
/// A 422 when it is empty, too long, or not visible ASCII.
pub fn read_header(headers: &HeaderMap, fingerprint: Fingerprint) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| NOT_VISIBLE.to_owned()).and_then(|text| check_text(text).map(|()| text));
    match text {
        Ok(text) => Ok(Some(IdempotencyKey { text: text.to_owned(), fingerprint })),
        Err(message) => Err(Problem::field(HEADER, message)),
    }
}

/// Checks the text of a key, in a header or in an order of a batch.
///
/// # Errors
/// A text that says what was expected.
pub fn check_text(text: &str) -> Result<(), String> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(NOT_VISIBLE.to_owned());
    }
    if (1..=MAX_LENGTH).contains(&text.len()) {
        Ok(())
    } else {
        Err(format!("expected 1 to {MAX_LENGTH} characters, got {}", text.len()))
    }
}

/// Claims the key of a whole batch. A retry with the same orders succeeds as well.
///
/// # Errors
/// A 409 when the key was used for another request.
pub async fn claim_batch_key(pool: &Pool, merchant: Uuid, key: &IdempotencyKey) -> Result<(), Problem> {
    let client = share::connection(pool).await?;
    let statement = client
        .prepare_cached(
            "INSERT INTO idempotency_keys (merchant_id, key, request_hash) VALUES ($1, $2, $3)
             ON CONFLICT (merchant_id, key) DO NOTHING",
        )
        .await?;
    let hash = key.fingerprint.as_slice();
    if client.execute(&statement, &[&merchant, &key.text, &hash]).await? == 1 {
        return Ok(());
    }
    let statement =
        client.prepare_cached("SELECT request_hash FROM idempotency_keys WHERE merchant_id = $1 AND key = $2").await?;
    match client.query_opt(&statement, &[&merchant, &key.text]).await? {
        Some(row) if key.fingerprint.is(row.get(0)) => Ok(()),
        Some(_) => Err(reused()),
        None => Err(expired()),
    }
}

/// A 409 and not a 422: the request itself is valid, but an earlier one has its key.
pub fn reused() -> Problem {
    let detail = format!("The {HEADER} was used for another request; use a new key for a new request");
    Problem::new(StatusCode::CONFLICT, "idempotency-key-reused", "The idempotency key was used before", detail)
}

/// Whether nothing was found under a key.
pub fn is_unknown(problem: &Problem) -> bool {
    *problem == expired()
}

/// Housekeeping has removed the key in between: a retry creates a new payment.
fn expired() -> Problem {
    Problem::unavailable(1, "The Idempotency-Key expired during the request; retry")
}

/// Claims keys for new payments. Returns the payments that must not be created, because an earlier one has their key. Waits for
/// a concurrent transaction that claims one of the keys.
///
/// # Errors
/// When the database fails.
pub async fn claim_keys(db: &impl GenericClient, claims: &[KeyClaim<'_>]) -> Result<HashSet<PaymentId>, Failure> {
    let keyed: Vec<(&KeyClaim<'_>, &IdempotencyKey)> = claims.iter().filter_map(|claim| Some((claim, claim.key?))).collect();
    if keyed.is_empty() {
        return Ok(HashSet::new());
    }
    // Sorted, so that two transactions with the same keys never deadlock.
    let statement = db
        .prepare_cached(
            "INSERT INTO idempotency_keys (merchant_id, key, request_hash, payment_id)
             SELECT merchant_id, key, request_hash, payment_id
             FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[]) AS t (merchant_id, key, request_hash, payment_id)
             ORDER BY merchant_id, key
             ON CONFLICT (merchant_id, key) DO NOTHING
             RETURNING payment_id",
        )
        .await?;
    let merchants: Vec<Uuid> = keyed.iter().map(|(claim, _)| claim.merchant).collect();
    let texts: Vec<&str> = keyed.iter().map(|(_, key)| key.text.as_str()).collect();
    let hashes: Vec<&[u8]> = keyed.iter().map(|(_, key)| key.fingerprint.as_slice()).collect();
    let payments: Vec<Uuid> = keyed.iter().map(|(claim, _)| claim.payment.0).collect();
    let rows = db.query(&statement, &[&merchants, &texts, &hashes, &payments]).await?;
    let mut refused: HashSet<PaymentId> = payments.into_iter().map(PaymentId).collect();
    for row in rows {
        refused.remove(&PaymentId(row.get(0)));
    }
    Ok(refused)
}

/// Tells the payment of each merchant's key, by its place, once its own intent is acknowledged by Kafka, or the problem of that
/// key.
///
/// # Errors
/// When the database fails, for all keys.
pub async fn find_payments(
    pool: &Pool,
    intents: &Intents,
    keys: &[(Uuid, Option<&IdempotencyKey>)],
    mut answer: impl FnMut(usize, Result<Payment, Problem>),
) -> Result<(), Problem> {
    find(pool, intents, keys, |place, found| answer(place, found.and_then(|payment| payment))).await
}

/// The payments of requests that are refused now, and were not when they first came. `None` for one that never came.
///
/// # Errors
/// When the database fails: nobody knows which have a payment.
pub async fn find_earlier(
    pool: &Pool,
    intents: &Intents,
    merchant: Uuid,
    keys: &[&IdempotencyKey],
) -> Result<Vec<Option<Result<Payment, Problem>>>, Problem> {
    let mut earlier = vec![None; keys.len()];
    if keys.is_empty() {
        return Ok(earlier);
    }
    let keys: Vec<_> = keys.iter().map(|key| (merchant, Some(*key))).collect();
    find(pool, intents, &keys, |place, found| {
        if let Some(earlier) = earlier.get_mut(place) {
            *earlier = found.ok();
        }
    })
    .await?;
    Ok(earlier)
}

/// The outer problem is the key's, the inner one its payment's.
type Found = Result<Result<Payment, Problem>, Problem>;

async fn find(
    pool: &Pool,
    intents: &Intents,
    keys: &[(Uuid, Option<&IdempotencyKey>)],
    answer: impl FnMut(usize, Found),
) -> Result<(), Problem> {
    let client = share::connection(pool).await?;
    let statement = client
        .prepare_cached(
            "SELECT k.merchant_id, k.key, k.request_hash, k.payment_id
             FROM unnest($1::uuid[], $2::text[]) AS t (merchant_id, key) JOIN idempotency_keys k USING (merchant_id, key)",
        )
        .await?;
    let merchants: Vec<Uuid> = keys.iter().map(|(merchant, _)| *merchant).collect();
    let texts: Vec<&str> = keys.iter().map(|(_, key)| key.map_or("", |key| key.text.as_str())).collect();
    let rows = client.query(&statement, &[&merchants, &texts]).await?;
    // Each row has the request's hash, and a payment unless it is the key of a whole batch.
    let claimed: HashMap<(Uuid, &str), &Row> = rows.iter().map(|row| ((row.get(0), row.get(1)), row)).collect();

    let matching: Vec<Result<Uuid, Problem>> = keys
        .iter()
        .map(|(merchant, key)| {
            let entry = key.and_then(|key| claimed.get(&(*merchant, key.text.as_str())));
            match (key, entry) {
                (Some(key), Some(row)) if key.fingerprint.is(row.get(2)) => row.get::<_, Option<Uuid>>(3).ok_or_else(reused),
                (_, Some(_)) => Err(reused()),
                (_, None) => Err(expired()),
            }
        })
        .collect();
    let ids: Vec<Uuid> = matching.iter().filter_map(|outcome| outcome.as_ref().ok().copied()).collect();
    // What a payment was created with never changes.
    let Page { items: unacknowledged, unreadable, .. } = store::unacknowledged_intents(&*client, &ids).await?;
    let payments = store::load_created(&*client, &ids).await?.into_iter().map(|p| (p.id.0, p)).collect();
    let began = client.began;
    // Kafka may take its time, and other requests need the connection.
    drop(client);
    let hidden = unreadable.into_iter().map(|(id, _)| id).collect();
    let waiting: HashSet<Uuid> = unacknowledged.iter().map(|(id, _)| *id).collect();
    let outcomes = intents.publish_again(unacknowledged, began);
    intents.forget_acknowledged(Known { payments, hidden }.tell(matching, &waiting, outcomes, answer).await);
    Ok(())
}

/// What the database says of payments.
struct Known {
    payments: HashMap<Uuid, Payment>,
    /// Those whose addresses must not be shown.
    hidden: HashSet<Uuid>,
}

impl Known {
    /// Tells what has become of each key, by its place: at once, but for payments that are `waiting` for Kafka, of which each
    /// is told when its own outcome is there. Returns those that were acknowledged.
    async fn tell(
        mut self,
        keys: Vec<Result<Uuid, Problem>>,
        waiting: &HashSet<Uuid>,
        outcomes: impl Stream<Item = (Uuid, bool)>,
        mut answer: impl FnMut(usize, Found),
    ) -> Vec<Uuid> {
        // Two keys may stand for one payment.
        let mut places: HashMap<Uuid, Vec<usize>> = HashMap::new();
        for (place, key) in keys.into_iter().enumerate() {
            match key {
                Ok(id) if waiting.contains(&id) => places.entry(id).or_default().push(place),
                known => answer(place, known.map(|id| self.shown(id))),
            }
        }
        let (mut acknowledged, mut outcomes) = (Vec::new(), pin!(outcomes));
        while let Some((id, is_acknowledged)) = outcomes.next().await {
            if is_acknowledged {
                acknowledged.push(id);
            } else {
                self.hidden.insert(id);
            }
            for place in places.remove(&id).unwrap_or_default() {
                answer(place, Ok(self.shown(id)));
            }
        }
        acknowledged
    }

    fn shown(&self, id: Uuid) -> Result<Payment, Problem> {
        match self.payments.get(&id) {
            _ if self.hidden.contains(&id) => Err(Problem::unacknowledged()),
            Some(payment) => Ok(payment.clone()),
            None => Err(Problem::internal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use payments::intents::{Issued, issued};
    use std::cell::RefCell;
    use topics::wire;

    #[test]
    fn a_request_is_the_same_by_its_meaning_or_by_its_text() {
        let first = Fingerprint::new(Some([1; 32]), b"a");
        let is = |meaning, text: &[u8]| Fingerprint::new(meaning, text).is(first.as_slice());
        assert!(is(Some([1; 32]), b"a") && is(Some([1; 32]), b"b") && is(Some([2; 32]), b"a") && is(None, b"a"));
        assert!(!is(Some([2; 32]), b"b") && !is(None, b"b") && !first.is(&[1; 32]));
    }

    fn payment(id: Uuid) -> Payment {
        let intent = wire::PaymentIntent {
            payment_id: id.to_string(),
            merchant_id: id.to_string(),
            address: vec![7; 20].into(),
            chain_id: 1,
            amount: vec![1].into(),
            account: "0a1b".to_owned(),
            ..wire::PaymentIntent::default()
        };
        let Ok((Issued::Payment(payment), _)) = issued(&intent) else { panic!("{intent:?}") };
        *payment
    }

    /// One partition of `payment.intents` may have no leader for seconds.
    #[tokio::test]
    async fn a_retried_request_waits_for_its_own_intent_and_for_no_other() {
        let [known, first, second, unreadable, lost] = [1, 2, 3, 4, 5].map(Uuid::from_u128);
        let payments = [known, first, second, unreadable].map(|id| (id, payment(id))).into();
        let keys = vec![Ok(first), Ok(known), Err(reused()), Ok(second), Ok(unreadable), Ok(lost), Ok(second)];
        let (acknowledge, outcomes) = futures::channel::mpsc::unbounded();
        let told = RefCell::new(Vec::new());
        let answer = |place: usize, found: Found| told.borrow_mut().push((place, found.is_ok_and(|payment| payment.is_ok())));
        let waiting = HashSet::from([first, second]);
        let telling = Known { payments, hidden: HashSet::from([unreadable]) }.tell(keys, &waiting, outcomes, answer);
        let mut telling = pin!(telling);
        assert!((&mut telling).now_or_never().is_none());
        assert_eq!(told.take(), [(1, true), (2, false), (4, false), (5, false)], "they wait for nothing");
        acknowledge.unbounded_send((second, true)).unwrap();
        assert!((&mut telling).now_or_never().is_none());
        assert_eq!(told.take(), [(3, true), (6, true)], "the first waits still");
        acknowledge.unbounded_send((first, false)).unwrap();
        drop(acknowledge);
        assert_eq!(telling.await, [second]);
        assert_eq!(told.take(), [(0, false)]);
    }
}
