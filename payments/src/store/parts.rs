//! Rows of `payment_parts`: what one block of the canonical chain has brought one payment.

use super::touched::{BatchScope, parts_of_blocks};
use crate::payment::{Part, Payment};
use crate::total::Total;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashMap;
use tokio_postgres::Row;
use topics::{Amount, BlockRef, ChainId, PaymentId};
use uuid::Uuid;

/// The parts that a batch can change, by payment: those that it may confirm, those of blocks that it adds to or removes, and those
/// that a removed block had confirmed.
///
/// # Errors
/// When the database fails, or a row holds no valid part.
pub async fn touched_parts(db: &impl GenericClient, scope: &BatchScope<'_>) -> Result<HashMap<Uuid, Vec<Part>>, Failure> {
    let columns = "payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited::text, confirmed::text";
    let select = format!("SELECT {columns} FROM payment_parts WHERE chain_id = $1");
    let due = "due IS NOT NULL AND confirmed <> credited";
    // Not by payment: one of them may have a part in every block of a year.
    let sql = format!(
        "{select} AND {due} AND finality IS NULL AND due <= $2
         UNION {select} AND {due} AND finality = 'safe' AND due <= $3
         UNION {select} AND {due} AND finality = 'finalized' AND due <= $4
         UNION SELECT {columns} FROM {of_blocks}
         UNION {select} AND confirmed > 0 AND finality IS NULL AND due = ANY($6)
         ORDER BY block_number",
        of_blocks = parts_of_blocks(1, 5)
    );
    let statement = db.prepare_cached(&sql).await?;
    let blocks: Vec<&[u8]> = scope.paying_blocks.iter().chain(&scope.removed_blocks).copied().collect();
    let rows = db
        .query(&statement, &[&scope.chain, &scope.number, &scope.safe, &scope.finalized, &blocks, &scope.removed_numbers])
        .await?;
    let mut parts: HashMap<Uuid, Vec<Part>> = HashMap::new();
    for row in &rows {
        parts.entry(row.get(0)).or_default().push(read_part(row)?);
    }
    Ok(parts)
}

/// A row to write: a part and its payment.
pub type PartRow<'a> = (&'a Payment, Part);

/// Inserts new parts and updates known ones.
///
/// # Errors
/// When the database fails.
pub async fn save_parts(db: &impl GenericClient, rows: &[PartRow<'_>]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due,
                 finality, confirmed)
             SELECT payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited::numeric, due, finality,
                 confirmed::numeric
             FROM unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[],
                 $9::text[], $10::text[])
               AS t (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due, finality, confirmed)
             ON CONFLICT (payment_id, chain_id, block_hash) DO UPDATE SET block_number = EXCLUDED.block_number,
                 block_timestamp = EXCLUDED.block_timestamp, transfers = EXCLUDED.transfers, credited = EXCLUDED.credited,
                 due = EXCLUDED.due, finality = EXCLUDED.finality, confirmed = EXCLUDED.confirmed",
        )
        .await?;
    let due =
        |payment: &Payment, part: &Part| (!part.credited.is_zero()).then(|| bigint(payment.policy.due(part.block.number)));
    db.execute(
        &statement,
        &[
            &rows.iter().map(|(payment, _)| payment.id.0).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| bigint(part.chain.0)).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| part.block.hash.as_slice()).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| bigint(part.block.number)).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| bigint(part.timestamp)).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| bigint(part.transfers)).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| part.credited.to_string()).collect::<Vec<_>>(),
            &rows.iter().map(|(payment, part)| due(payment, part)).collect::<Vec<_>>(),
            &rows.iter().map(|(payment, _)| payment.policy.finality()).collect::<Vec<_>>(),
            &rows.iter().map(|(_, part)| part.confirmed.to_string()).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// Deletes the parts of removed blocks.
///
/// # Errors
/// When the database fails.
pub async fn delete_parts(db: &impl GenericClient, rows: &[PartRow<'_>]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "DELETE FROM payment_parts p USING unnest($1::bigint[], $2::bytea[], $3::uuid[]) AS t (chain_id, block_hash, payment_id)
             WHERE (p.chain_id, p.block_hash, p.payment_id) = (t.chain_id, t.block_hash, t.payment_id)",
        )
        .await?;
    let chains: Vec<i64> = rows.iter().map(|(_, part)| bigint(part.chain.0)).collect();
    let blocks: Vec<&[u8]> = rows.iter().map(|(_, part)| part.block.hash.as_slice()).collect();
    let payments: Vec<Uuid> = rows.iter().map(|(payment, _)| payment.id.0).collect();
    db.execute(&statement, &[&chains, &blocks, &payments]).await?;
    Ok(())
}

/// Numbers of the blocks from which the confirmations of payments count: of the one that reached the amount, or else the first that
/// brought a part of it. Payments without any are left out.
///
/// # Errors
/// When the database fails.
pub async fn counted_from(db: &impl GenericClient, payments: &[Payment]) -> Result<HashMap<PaymentId, u64>, Failure> {
    let paid: Vec<&Payment> = payments.iter().filter(|payment| !payment.sums.received.is_zero()).collect();
    if paid.is_empty() {
        return Ok(HashMap::new());
    }
    let statement = db
        .prepare_cached(
            // Stops at the part that reaches the amount, along the index of those that bring some of it.
            "SELECT o.id, CASE WHEN o.reached
                 THEN (SELECT block_number FROM (
                     SELECT block_number, sum(credited) OVER (ORDER BY block_number) AS sum FROM payment_parts
                         WHERE payment_id = o.id AND credited > 0) AS parts
                     WHERE sum >= o.needed::numeric ORDER BY block_number LIMIT 1)
                 ELSE (SELECT block_number FROM payment_parts WHERE payment_id = o.id AND credited > 0
                     ORDER BY block_number LIMIT 1)
                 END
             FROM unnest($1::uuid[], $2::text[], $3::boolean[]) AS o (id, needed, reached)",
        )
        .await?;
    let needed: Vec<Amount> = paid.iter().map(|payment| payment.needed()).collect();
    let reached: Vec<bool> =
        paid.iter().zip(&needed).map(|(payment, needed)| payment.sums.received >= Total::from(*needed)).collect();
    let ids: Vec<Uuid> = paid.iter().map(|payment| payment.id.0).collect();
    let needed: Vec<String> = needed.iter().map(Amount::to_string).collect();
    let rows = db.query(&statement, &[&ids, &needed, &reached]).await?;
    let number = |row: &Row| Some((PaymentId(row.get(0)), unsigned(row.get::<_, Option<i64>>(1)?)));
    Ok(rows.iter().filter_map(number).collect())
}

fn read_part(row: &Row) -> Result<Part, Failure> {
    let total = |column: usize| row.get::<_, &str>(column).parse::<Total>().map_err(Failure::halt);
    Ok(Part {
        chain: ChainId(unsigned(row.get(1))),
        block: BlockRef { number: unsigned(row.get(3)), hash: topics::hash("block_hash", row.get(2)).map_err(Failure::halt)? },
        timestamp: unsigned(row.get(4)),
        transfers: unsigned(row.get(5)),
        credited: total(6)?,
        confirmed: total(7)?,
    })
}
