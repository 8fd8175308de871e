//! What became of transactions, told in `sweep.events` once each is over: its block is final and witnessed, so nothing is taken
//! back.
//!
//! The row says whether Kafka has the record. A record that Kafka has and the row does not know of is written once more, under
//! the same id. Each is told by itself: a partition without a leader holds up what is for it alone.

use crate::engine::outgoing::Kind;
use crate::engine::restored::set_announced;
use crate::engine::rows::read_kind;
use crate::plan;
use crate::records::{SweepEvents, sweep_of, write_each};
use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{GenericClient as _, Pool};
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::time::Duration;
use tokio_postgres::Row;
use topics::wire::SweepEvent;
use topics::wire::sweep_event::{Block, Moved};
use topics::{Amount, ChainId, U256};
use uuid::Uuid;

/// Outcomes that are told together.
const MAX_OUTCOMES: i64 = 100;
/// Longer than any chain takes to call a block final that goes on as it should: rollups wait for their proofs.
const LONGEST_UNTIL_FINAL: Duration = Duration::from_secs(24 * 3600);

/// Tells what is not told yet. Of what is frozen nothing is told: a final block has left the chain. A lane is told in the
/// order of its nonces, so that what has moved in all is the same whenever it is asked. What was tried in vain comes last.
///
/// # Errors
/// When Kafka or the database fails; what Kafka took is told.
pub async fn tell(pool: &Pool, events: &SweepEvents, chain: ChainId, now: u64) -> Result<(), Failure> {
    let db = pool.get().await?;
    let statement = db
        .prepare_cached(
            "SELECT o.id, o.kind, o.idempotency_key, o.sender, o.nonce, o.state, o.mined_hash, o.block_number, o.block_hash,
                 b.time, o.gas_used, o.gas_price::text, extract(epoch FROM coalesce(a.created_at, o.created_at))::bigint
             FROM outgoing o LEFT JOIN outgoing_blocks b ON b.hash = o.block_hash
                 LEFT JOIN outgoing_attempts a ON a.hash = o.mined_hash
             WHERE o.chain_id = $1 AND o.state IN ('final', 'failed', 'dropped') AND o.announced IS NULL AND o.frozen IS NULL
                 AND NOT EXISTS (SELECT FROM outgoing p WHERE p.chain_id = $1 AND p.sender = o.sender AND p.nonce < o.nonce
                     AND p.state IN ('signed', 'broadcast', 'lost', 'mined', 'replaced'))
             ORDER BY o.announce_tried, o.nonce LIMIT $2",
        )
        .await?;
    let rows = db.query(&statement, &[&bigint(chain.0), &MAX_OUTCOMES]).await?;
    let mut outcomes = Vec::new();
    for row in &rows {
        let mut event = outcome(row, chain, &events.chain_name)?;
        event.moved = plan::moved(&db, row.get(0)).await?.iter().map(moved).collect();
        outcomes.push(event);
    }
    if rows.is_empty() {
        return Ok(());
    }
    // The connection is for others while Kafka is waited for.
    drop(db);
    let written = write_each(&events.kafka, &events.publisher, &outcomes).await;
    let db = pool.get().await?;
    let in_vain = db.prepare_cached("UPDATE outgoing SET announce_tried = $2 WHERE id = $1").await?;
    let mut told = Ok(());
    for (row, outcome) in rows.iter().zip(written) {
        let id: Uuid = row.get(0);
        match outcome {
            Ok(()) => {
                set_announced(&db, id, row.get(5)).await?;
                if let (Kind::Sweep, "final", Some(gas)) = (read_kind(row.get(1)), row.get(5), row.get::<_, Option<i64>>(10)) {
                    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                    metrics::SWEEP_GAS.gauge(&[("chain", &events.chain_name)]).set(gas as f64);
                }
            }
            Err(failure) => {
                db.execute(&in_vain, &[&id, &bigint(now)]).await?;
                told = told.and(Err(failure));
            }
        }
    }
    told
}

/// Tells of a chain that calls blocks final no more, as when endpoints no longer know that tag: what was mined waits then.
///
/// # Errors
/// When a block with a transaction of ours is not final after [`LONGEST_UNTIL_FINAL`]; or when the database fails.
pub async fn refuse_late(pool: &Pool, chain: ChainId, now: u64) -> Result<(), Failure> {
    let db = pool.get().await?;
    let statement = db
        .prepare_cached(
            "SELECT b.time, o.block_number, c.final_number, c.finalized, c.witnessed
             FROM outgoing o JOIN outgoing_blocks b ON b.hash = o.block_hash JOIN outgoing_chains c USING (chain_id)
             WHERE o.chain_id = $1 AND o.state = 'mined' ORDER BY o.block_number LIMIT 1",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&bigint(chain.0)]).await? else { return Ok(()) };
    let number = |column| row.get::<_, Option<i64>>(column).map_or_else(|| "none".to_owned(), |number| number.to_string());
    let age = now.saturating_sub(unsigned(row.get(0)));
    if !is_late(age, row.get(1), row.get(2)) {
        return Ok(());
    }
    Err(Failure::Retry(anyhow!(
        "block {} has a transaction of ours for {} h, and is not final: the chain's finalized block is {}, and {} is witnessed; do \
         its endpoints know the tag still?",
        number(1),
        age / 3600,
        number(3),
        number(4)
    )))
}

/// Whether a block of this age, in seconds, should be final.
fn is_late(age: u64, number: Option<i64>, final_number: Option<i64>) -> bool {
    age >= LONGEST_UNTIL_FINAL.as_secs() && final_number < number
}

fn moved(moved: &plan::Moved) -> Moved {
    let wire = |units: U256| Amount::new(units).to_wire().into();
    Moved {
        address: moved.address.to_vec().into(),
        token_address: moved.token.map(|token| token.to_vec()).unwrap_or_default().into(),
        amount: wire(moved.amount),
        total: wire(moved.total),
    }
}

fn outcome(row: &Row, chain: ChainId, chain_name: &str) -> Result<SweepEvent, Failure> {
    let (id, state): (Uuid, &str) = (row.get(0), row.get(5));
    let number = |column| row.get::<_, Option<i64>>(column).map(unsigned);
    let time = number(9);
    let hash = row.get::<_, Option<&[u8]>>(8);
    let block = number(7).zip(hash).map(|(number, hash)| Block {
        number,
        hash: hash.to_vec().into(),
        timestamp: time.unwrap_or_default(),
    });
    let gas_used = number(10);
    let price = row.get::<_, Option<&str>>(11).map(str::parse::<U256>).transpose().map_err(Failure::halt)?;
    let wire = |wei: U256| Amount::new(wei).to_wire().into();
    let fee = gas_used.zip(price).map(|(gas, price)| price.saturating_mul(U256::from(gas)));
    Ok(SweepEvent {
        id: format!("swe_{}_{state}", id.simple()),
        r#type: format!("sweep.{state}"),
        sweep_id: sweep_of(id, row.get(2)).to_string(),
        transaction_id: id.to_string(),
        chain_id: chain.0,
        chain: chain_name.to_owned(),
        kind: row.get(1),
        sender: row.get::<_, &[u8]>(3).to_vec().into(),
        nonce: number(4).unwrap_or_default(),
        transaction_hash: row.get::<_, Option<&[u8]>>(6).unwrap_or_default().to_vec().into(),
        block,
        gas_used,
        gas_price: price.map(wire),
        fee: fee.map(wire),
        // Of a block that only a receipt tells of, or that never was, no record has the time: when it was signed is the same
        // whenever it is told.
        occurred_at: time.or_else(|| number(12)).unwrap_or_default(),
        ..SweepEvent::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_not_final_after_a_day_is_late() {
        let day = LONGEST_UNTIL_FINAL.as_secs();
        assert!(is_late(day, Some(7), Some(6)) && is_late(day, Some(7), None));
        assert!(!is_late(day - 1, Some(7), None), "it may become so");
        assert!(!is_late(day, Some(7), Some(7)), "it is");
    }
}
