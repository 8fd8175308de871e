//! Rows of `swept`, what final transactions have moved, and of `to_settle`, the addresses of which payments may be covered by that.
//!
//! What has moved in a block counts once the chain's head has come to it, and it is known to stand: `sweep.events` may be read
//! far ahead of `chain.matches`, of which the next record may take back what seems to be confirmed. No row goes: a sweep is
//! told once it is final, and stands where the chain begins anew below it. Then it counts again once the head is back at its
//! block.

use crate::payment::Payment;
use crate::status::Status;
use crate::swept::{Swept, SweptAsset};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashSet;
use tokio_postgres::Row;
use topics::{Address, ChainId};

/// Columns of lists of assets: addresses, and contracts that are empty for the coin.
pub(super) fn columns<'a>(assets: impl Iterator<Item = &'a SweptAsset>) -> (Vec<i64>, Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let (mut chains, mut addresses, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for SweptAsset { chain, address, token } in assets {
        chains.push(bigint(chain.0));
        addresses.push(address.as_slice());
        tokens.push(contract(token.as_ref()));
    }
    (chains, addresses, tokens)
}

/// What stands for an asset's contract in the tables: nothing is a value that a key can have.
pub(super) fn contract(token: Option<&Address>) -> &[u8] {
    token.map(|token| token.as_slice()).unwrap_or_default()
}

/// Writes down what final transactions have moved, and that payments may be covered by it. What is known changes nothing.
///
/// # Errors
/// When the database fails.
pub async fn save_swept(db: &impl GenericClient, rows: &[(SweptAsset, Swept)]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO swept (chain_id, address, token_address, total, transaction_hash, block_hash, block_number, block_timestamp, fee)
             SELECT chain_id, address, token_address, total::numeric, transaction_hash, block_hash, block_number, block_timestamp,
                 fee::numeric
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::bytea[], $6::bytea[], $7::bigint[], $8::bigint[],
                 $9::text[])
               AS t (chain_id, address, token_address, total, transaction_hash, block_hash, block_number, block_timestamp, fee)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    // Another instance may write some of them too.
    let mut rows = rows.to_vec();
    rows.sort_by_key(|(asset, swept)| (*asset, swept.total, swept.settlement.transaction));
    let (chains, addresses, tokens) = columns(rows.iter().map(|(asset, _)| asset));
    let settlements = || rows.iter().map(|(_, swept)| &swept.settlement);
    db.execute(
        &statement,
        &[
            &chains,
            &addresses,
            &tokens,
            &rows.iter().map(|(_, swept)| swept.total.to_string()).collect::<Vec<_>>(),
            &settlements().map(|s| s.transaction.as_slice()).collect::<Vec<_>>(),
            &settlements().map(|s| s.block.hash.as_slice()).collect::<Vec<_>>(),
            &settlements().map(|s| bigint(s.block.number)).collect::<Vec<_>>(),
            &settlements().map(|s| bigint(s.timestamp)).collect::<Vec<_>>(),
            &settlements().map(|s| s.fee.map(|fee| fee.to_string())).collect::<Vec<_>>(),
        ],
    )
    .await?;
    put_to_settle(db, rows.iter().map(|(asset, swept)| (asset, swept.settlement.block.number))).await
}

/// Notes that payments at these addresses may be covered, each once this block is known to stand. Those of one block have their
/// turn in this order, behind those that are noted already.
///
/// # Errors
/// When the database fails.
pub async fn put_to_settle<'a>(
    db: &impl GenericClient,
    assets: impl Iterator<Item = (&'a SweptAsset, u64)>,
) -> Result<(), Failure> {
    let (assets, due): (Vec<&SweptAsset>, Vec<u64>) = assets.unzip();
    if assets.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO to_settle (chain_id, address, token_address, due)
             SELECT chain_id, address, token_address, due
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[]) WITH ORDINALITY
               AS t (chain_id, address, token_address, due, number)
             GROUP BY chain_id, address, token_address, due ORDER BY min(number)",
        )
        .await?;
    let (chains, addresses, tokens) = columns(assets.into_iter());
    db.execute(&statement, &[&chains, &addresses, &tokens, &due.into_iter().map(bigint).collect::<Vec<_>>()]).await?;
    Ok(())
}

/// Notes that these addresses of a chain are to be looked at again that something has left above this block, unless that is noted.
///
/// # Errors
/// When the database fails.
pub async fn put_later(db: &impl GenericClient, chain: ChainId, assets: &[SweptAsset], above: u64) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO to_settle (chain_id, address, token_address, due)
             SELECT $1::bigint, address, token, due FROM (
                 SELECT address, token, (SELECT min(block_number) FROM swept s
                     WHERE s.chain_id = $1 AND s.address = a.address AND s.token_address = a.token AND s.block_number > $4) AS due
                 FROM unnest($2::bytea[], $3::bytea[]) AS a (address, token)) AS later
             WHERE due IS NOT NULL AND NOT EXISTS (SELECT FROM to_settle t WHERE t.chain_id = $1 AND t.address = later.address
                 AND t.token_address = later.token AND t.due > $4 AND t.due <= later.due)",
        )
        .await?;
    let (_, addresses, tokens) = columns(assets.iter());
    db.execute(&statement, &[&bigint(chain.0), &addresses, &tokens, &bigint(above)]).await?;
    Ok(())
}

/// Notes that these payments, which are confirmed, may be covered, if something has left their addresses already, in a block
/// that may cover them. A deposit that is confirmed again, below where its address is settled, has that address looked through
/// anew. Each is due with its block, so that it does not come before those that have waited for longer.
///
/// # Errors
/// When the database fails.
pub async fn put_confirmed(db: &impl GenericClient, payments: &[&Payment]) -> Result<(), Failure> {
    let confirmed = payments.iter().filter(|payment| payment.status() == Status::Confirmed);
    let confirmed: Vec<(SweptAsset, &Payment)> = confirmed.map(|payment| (payment.swept_asset(), *payment)).collect();
    if confirmed.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH confirmed AS (
                 SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::uuid[], $5::bigint[], $6::bigint[], $7::uuid[])
                   AS t (chain_id, address, token_address, deposit_address, created_at, number, id)
             ), anew AS (
                 DELETE FROM settled_up_to s USING confirmed c
                 WHERE s.deposit_address = c.deposit_address AND s.chain_id = c.chain_id AND s.token_address = c.token_address
                     AND (s.created_at, s.place_number, s.id) >= (c.created_at, c.number, c.id)
             )
             INSERT INTO to_settle (chain_id, address, token_address, due)
             SELECT chain_id, address, token_address, min(number) FROM confirmed c
             WHERE EXISTS (SELECT FROM swept s WHERE s.chain_id = c.chain_id AND s.address = c.address
                 AND s.token_address = c.token_address AND s.block_number >= c.number)
             GROUP BY chain_id, address, token_address ORDER BY min(number)",
        )
        .await?;
    let (chains, addresses, tokens) = columns(confirmed.iter().map(|(asset, _)| asset));
    let payments = || confirmed.iter().map(|(_, payment)| payment);
    // A deposit has one block. Of a payment not all are at hand.
    let number =
        |payment: &Payment| payment.parts.first().filter(|_| payment.deposit_address.is_some()).map(|p| p.block.number);
    db.execute(
        &statement,
        &[
            &chains,
            &addresses,
            &tokens,
            &payments().map(|p| p.deposit_address).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.created_at)).collect::<Vec<_>>(),
            &payments().map(|p| bigint(number(p).unwrap_or_default())).collect::<Vec<_>>(),
            &payments().map(|p| p.id.0).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// The chains on which payments may be covered by now.
///
/// # Errors
/// When the database fails.
pub async fn chains_to_settle(db: &impl GenericClient) -> Result<Vec<ChainId>, Failure> {
    let statement = db
        .prepare_cached(
            // As in `ChainHead::known_to_stand`.
            "SELECT chain_id FROM chain_heads h WHERE hash IS NOT NULL AND witnessed_number IS NOT NULL
                 AND EXISTS (SELECT FROM to_settle t
                     WHERE t.chain_id = h.chain_id AND t.due <= least(h.witnessed_number, h.number, h.finalized_number))
             ORDER BY chain_id",
        )
        .await?;
    Ok(db.query(&statement, &[]).await?.iter().map(|row| ChainId(unsigned(row.get(0)))).collect())
}

/// Takes those addresses of a chain out of `to_settle` that have waited longest of those that are due up to a block: at most `limit`, each
/// once, in the order in which they have waited.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn take_to_settle(
    db: &impl GenericClient,
    chain: ChainId,
    up_to: u64,
    limit: usize,
) -> Result<Vec<SweptAsset>, Failure> {
    let statement = db
        .prepare_cached(
            "DELETE FROM to_settle WHERE chain_id = $1 AND place IN (
                 SELECT place FROM to_settle WHERE chain_id = $1 AND due <= $2 ORDER BY due, place LIMIT $3)
             RETURNING address, token_address, due, place",
        )
        .await?;
    let read = |row: &Row| {
        let address = topics::address("address", row.get(0)).map_err(Failure::halt)?;
        let token = topics::contract("token_address", row.get(1)).map_err(Failure::halt)?;
        Ok::<_, Failure>(SweptAsset { chain, address, token })
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = db.query(&statement, &[&bigint(chain.0), &bigint(up_to), &limit]).await?;
    rows.sort_by_key(|row| (row.get::<_, i64>(2), row.get::<_, i64>(3)));
    let (mut assets, mut seen) = (Vec::new(), HashSet::new());
    for row in &rows {
        let asset = read(row)?;
        if seen.insert(asset) {
            assets.push(asset);
        }
    }
    Ok(assets)
}
