//! Payments in Postgres: rows to [`Payment`]s and back, events into the outbox, all for a transaction of the caller's.
//!
//! Rows are locked in the order of their ids, so that two writers never wait for each other.

mod deposits;
mod transfers;

use crate::events::{event_record, intent_record, state_record};
use crate::history;
use crate::lifecycle::Event;
use crate::payment::{Asset, Payment, Policy, Terms, Token};
use deadpool_postgres::GenericClient;
pub use deposits::{deposit_addresses, insert_addresses, insert_deposits};
use prost::Message as _;
use runtime::{Failure, db};
use std::collections::HashMap;
use tokio_postgres::Row;
use topics::{Amount, ChainId, PaymentId};
pub use transfers::{Owner, TransferRow, remove_unlisted, save_transfers};
use uuid::Uuid;

/// A number that Postgres keeps as bigint. Block numbers, times and sequences are far below 2^63 on every chain.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Writes new payments with their first event, and their intents as not acknowledged yet.
///
/// # Errors
/// When the database refuses.
pub async fn insert(db: &impl GenericClient, new: &[(Payment, Event)]) -> Result<(), Failure> {
    insert_asked(db, new, &[]).await
}

/// [`insert`], with the ids of the API keys that asked for them, in the same order.
///
/// # Errors
/// When the database refuses.
pub async fn insert_asked(db: &impl GenericClient, new: &[(Payment, Event)], keys: &[String]) -> Result<(), Failure> {
    let payments = || new.iter().map(|(payment, _)| payment);
    insert_rows(db, &payments().collect::<Vec<_>>()).await?;
    let statement = db
        .prepare_cached("INSERT INTO unacknowledged_intents (payment_id, intent) SELECT * FROM unnest($1::uuid[], $2::bytea[])")
        .await
        .map_err(db::failure)?;
    let ids: Vec<Uuid> = payments().map(|p| p.id.0).collect();
    let intents: Vec<Vec<u8>> = payments().map(|p| intent_record(p).encode_to_vec()).collect();
    db.execute(&statement, &[&ids, &intents]).await.map_err(db::failure)?;
    let keys = keys.iter().map(|key| Some(key.as_str())).chain(std::iter::repeat(None));
    announce_asked(db, new.iter().zip(keys).map(|((payment, event), key)| (payment, event, key))).await
}

/// Rows of payments as they are made, with nothing paid.
async fn insert_rows(db: &impl GenericClient, new: &[&Payment]) -> Result<(), Failure> {
    let payments = || new.iter();
    let statement = db
        .prepare_cached(
            "INSERT INTO payments (id, merchant_id, external_id, metadata, chain_id, chain, token, token_address, decimals, address,
                 xpub, address_index, amount, underpaid_tolerance, overpaid_tolerance, accept_late, status, exception,
                 confirmations_required, finality, sequence, created_at, expires_at, updated_at, deposit_address)
             SELECT id, merchant_id, external_id, metadata::json, chain_id, chain, token, token_address, decimals, address,
                 xpub, address_index, amount::numeric, underpaid_tolerance::numeric, overpaid_tolerance::numeric, accept_late,
                 'pending', NULL, confirmations_required, finality, sequence, created_at, expires_at, created_at, deposit_address
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::bytea[],
                 $9::smallint[], $10::bytea[], $11::text[], $12::bigint[], $13::text[], $14::integer[], $15::text[],
                 $16::bigint[], $17::bigint[], $18::bigint[], $19::text[], $20::text[], $21::boolean[], $22::uuid[])
               AS t (id, merchant_id, external_id, metadata, chain_id, chain, token, token_address, decimals, address, xpub,
                 address_index, amount, confirmations_required, finality, sequence, created_at, expires_at,
                 underpaid_tolerance, overpaid_tolerance, accept_late, deposit_address)",
        )
        .await
        .map_err(db::failure)?;
    db.execute(
        &statement,
        &[
            &payments().map(|p| p.id.0).collect::<Vec<_>>(),
            &payments().map(|p| p.merchant).collect::<Vec<_>>(),
            &payments().map(|p| p.external_id.as_deref()).collect::<Vec<_>>(),
            &payments().map(|p| p.metadata.as_deref()).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.chain.0)).collect::<Vec<_>>(),
            &payments().map(|p| p.chain_name.as_str()).collect::<Vec<_>>(),
            &payments().map(|p| p.asset.token.as_ref().map(|t| t.symbol.as_str())).collect::<Vec<_>>(),
            &payments().map(|p| p.asset.token.as_ref().map(|t| t.address.as_slice())).collect::<Vec<_>>(),
            &payments().map(|p| i16::from(p.asset.decimals)).collect::<Vec<_>>(),
            &payments().map(|p| p.address.as_slice()).collect::<Vec<_>>(),
            &payments().map(|p| p.xpub.as_str()).collect::<Vec<_>>(),
            &payments().map(|p| i64::from(p.address_index)).collect::<Vec<_>>(),
            &payments().map(|p| p.amount.to_string()).collect::<Vec<_>>(),
            &payments().map(|p| i32::try_from(p.policy.confirmations()).unwrap_or(i32::MAX)).collect::<Vec<_>>(),
            &payments().map(|p| p.policy.finality()).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.sequence)).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.created_at)).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.expires_at)).collect::<Vec<_>>(),
            &payments().map(|p| p.terms.underpaid_tolerance.to_string()).collect::<Vec<_>>(),
            &payments().map(|p| p.terms.overpaid_tolerance.to_string()).collect::<Vec<_>>(),
            &payments().map(|p| p.terms.accept_late).collect::<Vec<_>>(),
            &payments().map(|p| p.deposit_address).collect::<Vec<_>>(),
        ],
    )
    .await
    .map_err(db::failure)?;
    Ok(())
}

/// Puts events into the outbox and the history, in this order, each with the payment as it is right after it.
///
/// # Errors
/// When the database refuses.
pub async fn announce<'a>(
    db: &impl GenericClient,
    events: impl Iterator<Item = (&'a Payment, &'a Event)>,
) -> Result<(), Failure> {
    announce_asked(db, events.map(|(payment, event)| (payment, event, None))).await
}

/// [`announce`], with the ids of the API keys that asked for what happened.
///
/// # Errors
/// When the database refuses.
pub async fn announce_asked<'a>(
    db: &impl GenericClient,
    events: impl Iterator<Item = (&'a Payment, &'a Event, Option<&'a str>)>,
) -> Result<(), Failure> {
    let (mut ids, mut records, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sequences, mut keys, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (payment, event, key) in events {
        let record = event_record(payment, event);
        ids.push(payment.id.0);
        records.push(record.encode_to_vec());
        states.push(state_record(payment).encode_to_vec());
        sequences.push(bigint(event.sequence));
        keys.push(key);
        entries.push(history::entry(record).encode_to_vec());
        runtime::metrics::PAYMENT_EVENTS.counter(&[("type", event.kind.name(payment))]).increment(1);
    }
    if ids.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            // One statement, so one round trip: a batch of new payments waits for it.
            "WITH told AS (
                 SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bigint[], $5::text[], $6::bytea[])
                     WITH ORDINALITY AS t (payment_id, event, state, sequence, asked_by, entry, place)
             ), history AS (
                 INSERT INTO payment_events (payment_id, sequence, asked_by, record)
                 SELECT payment_id, sequence, asked_by, entry FROM told
             )
             INSERT INTO outbox (payment_id, event, state) SELECT payment_id, event, state FROM told ORDER BY place",
        )
        .await
        .map_err(db::failure)?;
    db.execute(&statement, &[&ids, &records, &states, &sequences, &keys, &entries]).await.map_err(db::failure)?;
    Ok(())
}

const COLUMNS: &str =
    "id, merchant_id, external_id, metadata::text, chain_id, chain, token, token_address, decimals, address, xpub,
    address_index, amount::text, confirmations_required, finality, sequence, created_at, expires_at, updated_at, cancelled,
    expired_by, underpaid_tolerance::text, overpaid_tolerance::text, accept_late, deposit_address";

/// Payments by id, ordered by it; unknown ids are left out. To be shown: with transfers of unlisted tokens, of each payment
/// a hundred at most.
///
/// # Errors
/// When the database fails, or holds what is no payment.
pub async fn load(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    select(db, ids, "", 100).await
}

/// The same as [`step`](crate::lifecycle::step) knows them, without unlisted tokens; and nobody else changes them until the
/// transaction ends.
///
/// # Errors
/// When the database fails, or holds what is no payment.
pub async fn lock(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    select(db, ids, "FOR UPDATE", 0).await
}

async fn select(db: &impl GenericClient, ids: &[Uuid], lock: &str, unlisted: i64) -> Result<Vec<Payment>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let query = format!("SELECT {COLUMNS} FROM payments WHERE id = ANY($1) ORDER BY id {lock}");
    let statement = db.prepare_cached(&query).await.map_err(db::failure)?;
    let rows = db.query(&statement, &[&ids]).await.map_err(db::failure)?;
    let mut payments = rows.iter().map(payment).collect::<Result<Vec<_>, _>>()?;
    let places: HashMap<Uuid, usize> = payments.iter().enumerate().map(|(place, p)| (p.id.0, place)).collect();
    for (id, paid) in transfers::load(db, ids, unlisted).await? {
        if let Some(payment) = places.get(&id).and_then(|place| payments.get_mut(*place)) {
            payment.transfers.push(paid);
        }
    }
    Ok(payments)
}

/// Writes payments as they are now. Their transfers are written apart ([`save_transfers`]).
///
/// # Errors
/// When the database refuses.
pub async fn save(db: &impl GenericClient, payments: &[&Payment]) -> Result<(), Failure> {
    if payments.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "UPDATE payments p SET status = t.status, exception = t.exception, amount_received = t.received::numeric,
                 cancelled = t.cancelled, expired_by = t.expired_by, sequence = t.sequence, updated_at = t.updated_at
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::bigint[], $7::bigint[], $8::bigint[])
                 AS t (id, status, exception, received, cancelled, expired_by, sequence, updated_at)
             WHERE p.id = t.id",
        )
        .await
        .map_err(db::failure)?;
    db.execute(
        &statement,
        &[
            &payments.iter().map(|p| p.id.0).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.status().as_str()).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.exception().map(|e| e.as_str())).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.received().unwrap_or_default().to_string()).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.cancelled).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.expired_by.map(bigint)).collect::<Vec<_>>(),
            &payments.iter().map(|p| bigint(p.sequence)).collect::<Vec<_>>(),
            &payments.iter().map(|p| bigint(p.updated_at)).collect::<Vec<_>>(),
        ],
    )
    .await
    .map_err(db::failure)?;
    Ok(())
}

fn payment(row: &Row) -> Result<Payment, Failure> {
    let token: Option<&str> = row.get(6);
    let token = match (token, row.get::<_, Option<&[u8]>>(7)) {
        (Some(symbol), Some(address)) => Some(Token {
            symbol: symbol.to_owned(),
            address: topics::address("token_address", address).map_err(Failure::halt)?,
        }),
        _ => None,
    };
    let confirmations = u32::try_from(row.get::<_, i32>(13)).unwrap_or_default();
    let policy = match row.get::<_, Option<&str>>(14) {
        None => Policy::Confirmations(confirmations),
        Some("safe") => Policy::Safe,
        Some(_) => Policy::Finalized,
    };
    Ok(Payment {
        id: PaymentId(row.get(0)),
        merchant: row.get(1),
        external_id: row.get(2),
        metadata: row.get(3),
        chain: ChainId(unsigned(row.get(4))),
        chain_name: row.get(5),
        asset: Asset { token, decimals: u8::try_from(row.get::<_, i16>(8)).unwrap_or_default() },
        address: topics::address("address", row.get(9)).map_err(Failure::halt)?,
        xpub: row.get(10),
        address_index: u32::try_from(row.get::<_, i64>(11)).unwrap_or_default(),
        amount: amount(row.get(12))?,
        terms: Terms {
            underpaid_tolerance: amount(row.get(21))?,
            overpaid_tolerance: amount(row.get(22))?,
            accept_late: row.get(23),
        },
        policy,
        sequence: unsigned(row.get(15)),
        created_at: unsigned(row.get(16)),
        expires_at: unsigned(row.get(17)),
        updated_at: unsigned(row.get(18)),
        cancelled: row.get(19),
        expired_by: row.get::<_, Option<i64>>(20).map(unsigned),
        deposit_address: row.get(24),
        transfers: Vec::new(),
    })
}

fn amount(text: &str) -> Result<Amount, Failure> {
    text.parse().map_err(Failure::halt)
}
