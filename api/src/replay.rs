//! `Idempotency-Key`, as Stripe has it: the same key and the same request give the first answer again, the same key and another
//! request a 409, as does a key whose request is in flight (`flight`). Keys are kept for 24 hours (`housekeeping`).
//!
//! No answer is stored. Only a payment that was made is answered again, and what its request got follows from the payment's
//! facts that never change. A request that failed has made nothing that anyone was told of, and may be tried again.

use crate::batch::Request;
use crate::intents::Intents;
use crate::problem::Problem;
use axum::http::{HeaderMap, StatusCode};
use confirmer::{Payment, store};
use deadpool_postgres::{GenericClient, Pool};
use runtime::{Failure, db};
use std::collections::{HashMap, HashSet};
use tokio_postgres::Row;
use topics::PaymentId;
use uuid::Uuid;

/// The header's name.
pub const HEADER: &str = "Idempotency-Key";
const LONGEST: usize = 255;
const NOT_VISIBLE: &str = "expected visible ASCII characters";

/// A request's key.
#[derive(Debug, Clone)]
pub struct Key {
    /// As the client sent it.
    pub text: String,
    /// Of what was asked for with it.
    pub fingerprint: [u8; 32],
}

/// A key that a new payment wants to have; without a key there is nothing to claim.
pub struct Claim<'a> {
    /// Whose key.
    pub merchant: Uuid,
    /// The key.
    pub key: Option<&'a Key>,
    /// The payment it would name.
    pub payment: PaymentId,
}

/// The key of a request, if it has one.
///
/// # Errors
/// A 422 when it is empty, too long, or not visible ASCII.
pub fn key(headers: &HeaderMap, fingerprint: [u8; 32]) -> Result<Option<Key>, Problem> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| NOT_VISIBLE.to_owned()).and_then(|text| check(text).map(|()| text));
    match text {
        Ok(text) => Ok(Some(Key { text: text.to_owned(), fingerprint })),
        Err(message) => Err(Problem::field(HEADER, message)),
    }
}

/// Whether a text can be a key, in a header or in an order of a batch.
///
/// # Errors
/// What was expected.
pub fn check(text: &str) -> Result<(), String> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(NOT_VISIBLE.to_owned());
    }
    if (1..=LONGEST).contains(&text.len()) {
        Ok(())
    } else {
        Err(format!("expected 1 to {LONGEST} characters, got {}", text.len()))
    }
}

/// Takes the key of a batch as a whole, or finds that it was taken for the same orders.
///
/// # Errors
/// A 409 when it was taken for something else.
pub async fn claim_whole(pool: &Pool, merchant: Uuid, key: &Key) -> Result<(), Problem> {
    let client = pool.get().await.map_err(db::unavailable)?;
    let statement = client
        .prepare_cached(
            "INSERT INTO idempotency_keys (merchant_id, key, request_hash) VALUES ($1, $2, $3)
             ON CONFLICT (merchant_id, key) DO NOTHING",
        )
        .await
        .map_err(db::failure)?;
    let hash = key.fingerprint.as_slice();
    if client.execute(&statement, &[&merchant, &key.text, &hash]).await.map_err(db::failure)? == 1 {
        return Ok(());
    }
    let statement = client
        .prepare_cached("SELECT request_hash FROM idempotency_keys WHERE merchant_id = $1 AND key = $2")
        .await
        .map_err(db::failure)?;
    match client.query_opt(&statement, &[&merchant, &key.text]).await.map_err(db::failure)? {
        Some(row) if row.get::<_, &[u8]>(0) == hash => Ok(()),
        Some(_) => Err(reused()),
        None => Err(gone()),
    }
}

/// Nothing is wrong with the request but that an earlier one has its key.
fn reused() -> Problem {
    let detail = format!("The {HEADER} was used for another request; expected a new key for a new one");
    Problem::new(StatusCode::CONFLICT, "idempotency-key-reused", "The idempotency key is taken", detail)
}

/// Cleaned up in between: the client's retry makes a new payment.
fn gone() -> Problem {
    Problem::unavailable(1, "the payment of this Idempotency-Key could not be read; try again")
}

/// Takes the keys; says which payments are not to be made, since an earlier one has their key. Waits for another
/// transaction that is taking one of them.
///
/// # Errors
/// When the database fails.
pub async fn claim(db: &impl GenericClient, claims: &[Claim<'_>]) -> Result<HashSet<PaymentId>, Failure> {
    let keyed: Vec<(&Claim<'_>, &Key)> = claims.iter().filter_map(|claim| Some((claim, claim.key?))).collect();
    if keyed.is_empty() {
        return Ok(HashSet::new());
    }
    // In order, so that two transactions with the same keys never wait for each other.
    let statement = db
        .prepare_cached(
            "INSERT INTO idempotency_keys (merchant_id, key, request_hash, payment_id)
             SELECT merchant_id, key, request_hash, payment_id
             FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[]) AS t (merchant_id, key, request_hash, payment_id)
             ORDER BY merchant_id, key
             ON CONFLICT (merchant_id, key) DO NOTHING
             RETURNING payment_id",
        )
        .await
        .map_err(db::failure)?;
    let merchants: Vec<Uuid> = keyed.iter().map(|(claim, _)| claim.merchant).collect();
    let texts: Vec<&str> = keyed.iter().map(|(_, key)| key.text.as_str()).collect();
    let hashes: Vec<&[u8]> = keyed.iter().map(|(_, key)| key.fingerprint.as_slice()).collect();
    let payments: Vec<Uuid> = keyed.iter().map(|(claim, _)| claim.payment.0).collect();
    let rows = db.query(&statement, &[&merchants, &texts, &hashes, &payments]).await.map_err(db::failure)?;
    let mut known: HashSet<PaymentId> = payments.into_iter().map(PaymentId).collect();
    for row in rows {
        known.remove(&PaymentId(row.get(0)));
    }
    Ok(known)
}

/// The payments that the requests' keys name, each with its intent in Kafka, or why there is none for that request.
///
/// # Errors
/// When the database fails, for all of them.
pub async fn find(pool: &Pool, intents: &Intents, requests: &[Request]) -> Result<Vec<Result<Payment, Problem>>, Problem> {
    let client = pool.get().await.map_err(db::unavailable)?;
    let statement = client
        .prepare_cached(
            "SELECT k.merchant_id, k.key, k.request_hash, k.payment_id
             FROM unnest($1::uuid[], $2::text[]) AS t (merchant_id, key) JOIN idempotency_keys k USING (merchant_id, key)",
        )
        .await
        .map_err(db::failure)?;
    let merchants: Vec<Uuid> = requests.iter().map(|r| r.merchant).collect();
    let texts: Vec<&str> = requests.iter().map(|r| r.key.as_ref().map_or("", |key| key.text.as_str())).collect();
    let rows = client.query(&statement, &[&merchants, &texts]).await.map_err(db::failure)?;
    // Rows in place of their values: a hash, and a payment unless it is the key of a whole batch.
    let named: HashMap<(Uuid, &str), &Row> = rows.iter().map(|row| ((row.get(0), row.get(1)), row)).collect();

    let matching: Vec<Result<Uuid, Problem>> = requests
        .iter()
        .map(|request| {
            let key = request.key.as_ref();
            let entry = key.and_then(|key| named.get(&(request.merchant, key.text.as_str())));
            match (key, entry) {
                (Some(key), Some(row)) if row.get::<_, &[u8]>(2) == key.fingerprint => {
                    row.get::<_, Option<Uuid>>(3).ok_or_else(reused)
                }
                (_, Some(_)) => Err(reused()),
                (_, None) => Err(gone()),
            }
        })
        .collect();
    let ids: Vec<Uuid> = matching.iter().filter_map(|outcome| outcome.as_ref().ok().copied()).collect();
    let hidden = intents.hidden(&client, &ids).await?;
    let payments: HashMap<Uuid, Payment> = store::load(&client, &ids).await?.into_iter().map(|p| (p.id.0, p)).collect();
    let load = |id: Uuid| match payments.get(&id) {
        _ if hidden.contains(&id) => Err(Problem::unacknowledged()),
        Some(payment) => Ok(payment.clone()),
        None => Err(Problem::internal()),
    };
    Ok(matching.into_iter().map(|outcome| outcome.and_then(load)).collect())
}
