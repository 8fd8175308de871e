//! What became of transactions, told in `sweep.events` once each is over: its block is final and witnessed, so nothing is taken
//! back.
//!
//! The row says whether Kafka has the record. A record that Kafka has and the row does not know of is written once more, under
//! the same id.

use crate::plan;
use crate::records::{SweepEvents, sweep_of};
use deadpool_postgres::{GenericClient, Pool};
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use topics::wire::SweepEvent;
use topics::wire::sweep_event::{Block, Moved};
use topics::{Amount, ChainId, U256};
use uuid::Uuid;

/// Outcomes that are told together.
const MAX_OUTCOMES: i64 = 100;

/// Tells what is not told yet. Of what is frozen nothing is told: a final block has left the chain.
///
/// # Errors
/// When Kafka or the database fails.
pub async fn tell(pool: &Pool, events: &SweepEvents, chain: ChainId) -> Result<(), Failure> {
    let db = pool.get().await?;
    let statement = db
        .prepare_cached(
            "SELECT o.id, o.kind, o.idempotency_key, o.sender, o.nonce, o.state, o.mined_hash, o.block_number, o.block_hash,
                 b.time, o.gas_used, o.gas_price::text, extract(epoch FROM coalesce(a.created_at, o.created_at))::bigint
             FROM outgoing o LEFT JOIN outgoing_blocks b ON b.hash = o.block_hash
                 LEFT JOIN outgoing_attempts a ON a.hash = o.mined_hash
             WHERE o.chain_id = $1 AND o.state IN ('final', 'failed', 'dropped') AND NOT o.announced AND o.frozen IS NULL
             ORDER BY o.nonce LIMIT $2",
        )
        .await?;
    let rows = db.query(&statement, &[&bigint(chain.0), &MAX_OUTCOMES]).await?;
    let (mut ids, mut outcomes) = (Vec::<Uuid>::new(), Vec::new());
    for row in &rows {
        let mut event = outcome(row, chain, &events.chain_name)?;
        let id = row.get(0);
        event.moved = plan::moved(&db, id).await?.iter().map(moved).collect();
        outcomes.push(event);
        ids.push(id);
    }
    if ids.is_empty() {
        return Ok(());
    }
    // The connection is for others while Kafka is waited for.
    drop(db);
    events.write(&outcomes).await?;
    let db = pool.get().await?;
    let statement = db.prepare_cached("UPDATE outgoing SET announced = true WHERE id = ANY($1)").await?;
    db.execute(&statement, &[&ids]).await?;
    Ok(())
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
