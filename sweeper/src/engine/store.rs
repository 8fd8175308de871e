//! Outgoing transactions in Postgres: all statements about them.
//!
//! Whoever changes one locks its lane first, and then its row, so that nobody gives out a nonce beside and nobody waits in a
//! circle.

use super::content::{Content, SignedBytes};
use super::outgoing::{Attempt, Contradiction, Kind, Order, Outgoing, Pace};
use super::rows::{LaneId, Stored, kind_text, phase_columns, read_attempt, read_kind, read_row, told_text};
use alloy::primitives::{Address, B256, Bytes};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::BTreeSet;
use tokio_postgres::Row;
use topics::{BlockRef, ChainId};
use uuid::Uuid;

/// A lane whose row is locked.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    pub born: u64,
    /// The highest nonce that was given out.
    pub highest: Option<u64>,
    /// The lowest nonce that waits for a block, and how many do.
    pub lowest: Option<u64>,
    pub in_flight: usize,
}

/// One to queue.
#[derive(Clone, Debug)]
pub struct NewOutgoing {
    pub id: Uuid,
    pub kind: Kind,
    pub lane: LaneId,
    pub content: Content,
    /// The same key gives the same transaction.
    pub idempotency_key: String,
    /// Of all that was asked for: the same key with another is refused.
    pub request_hash: B256,
}

/// An attempt as Kafka keeps it, before any node has it: enough to know after a loss of the database what may be on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: Uuid,
    pub kind: Kind,
    pub lane: LaneId,
    pub nonce: u64,
    pub hash: B256,
    pub raw: Bytes,
    /// It does nothing but take the nonce.
    pub cancels: bool,
    pub idempotency_key: String,
    pub request_hash: B256,
}

/// What became of a request to queue one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    New(Uuid),
    /// The same was asked for before.
    Before(Uuid),
    /// Something else was asked for with this key.
    Conflict(Uuid),
}

/// Queues one, unless its key was used before.
///
/// # Errors
/// When the database fails.
pub async fn queue(db: &impl GenericClient, new: &NewOutgoing) -> Result<Queued, Failure> {
    let Content { to, value, data, gas_limit, authorizations } = &new.content;
    let statement = db
        .prepare_cached(
            "INSERT INTO outgoing (id, kind, chain_id, sender, recipient, value, data, gas_limit, authorizations,
                 idempotency_key, request_hash)
             VALUES ($1, $2, $3, $4, $5, $6::text::numeric, $7, $8, $9, $10, $11) ON CONFLICT (idempotency_key) DO NOTHING",
        )
        .await?;
    let (chain, sender) = parameters(&new.lane);
    let recipient = to.as_ref().map(|to| to.as_slice());
    let list = (!authorizations.is_empty()).then(|| alloy::rlp::encode(authorizations));
    let inserted = db
        .execute(
            &statement,
            &[
                &new.id,
                &kind_text(new.kind),
                &chain,
                &sender,
                &recipient,
                &value.to_string(),
                &&data[..],
                &bigint(*gas_limit),
                &list,
                &new.idempotency_key,
                &new.request_hash.as_slice(),
            ],
        )
        .await?;
    if inserted == 1 {
        return Ok(Queued::New(new.id));
    }
    let statement = db.prepare_cached("SELECT id, request_hash FROM outgoing WHERE idempotency_key = $1").await?;
    let row = db.query_one(&statement, &[&new.idempotency_key]).await?;
    let is_same = row.get::<_, &[u8]>(1) == new.request_hash.as_slice();
    Ok(if is_same { Queued::Before(row.get(0)) } else { Queued::Conflict(row.get(0)) })
}

/// The senders that have something to do at this time, the longest waiting first.
///
/// # Errors
/// When the database fails.
pub async fn due_lanes(db: &impl GenericClient, chain: ChainId, now: u64, limit: usize) -> Result<Vec<LaneId>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT sender FROM outgoing WHERE chain_id = $1 AND due_at <= $2
             GROUP BY sender ORDER BY min(due_at), sender LIMIT $3",
        )
        .await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&statement, &[&bigint(chain.0), &bigint(now), &limit]).await?;
    Ok(rows.iter().map(|row| LaneId { chain, sender: Address::from_slice(row.get(0)) }).collect())
}

/// Whether the lane has begun.
///
/// # Errors
/// When the database fails.
pub async fn has_begun(db: &impl GenericClient, lane: &LaneId) -> Result<bool, Failure> {
    let statement = db.prepare_cached("SELECT FROM outgoing_lanes WHERE chain_id = $1 AND sender = $2").await?;
    let (chain, sender) = parameters(lane);
    Ok(db.query_opt(&statement, &[&chain, &sender]).await?.is_some())
}

/// Begins a lane at what the chain counts, unless it has begun.
///
/// # Errors
/// When the database fails.
pub async fn begin(db: &impl GenericClient, lane: &LaneId, count: u64) -> Result<(), Failure> {
    let statement = db
        .prepare_cached("INSERT INTO outgoing_lanes (chain_id, sender, born) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .await?;
    let (chain, sender) = parameters(lane);
    db.execute(&statement, &[&chain, &sender, &bigint(count)]).await?;
    Ok(())
}

/// Locks a lane until the transaction ends. `None` if it has not begun.
///
/// # Errors
/// When the database fails.
pub async fn lock(tx: &impl GenericClient, lane: &LaneId) -> Result<Option<Lane>, Failure> {
    let statement = tx.prepare_cached("SELECT born FROM outgoing_lanes WHERE chain_id = $1 AND sender = $2 FOR UPDATE").await?;
    let (chain, sender) = parameters(lane);
    let Some(row) = tx.query_opt(&statement, &[&chain, &sender]).await? else { return Ok(None) };
    let born = unsigned(row.get(0));
    // Read when the lock is held: by the statement that took it they might be from before.
    let statement = tx
        .prepare_cached(
            "SELECT (SELECT max(nonce) FROM outgoing_nonces WHERE chain_id = $1 AND sender = $2), min(nonce), count(*)
             FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state IN ('signed', 'broadcast')",
        )
        .await?;
    let row = tx.query_one(&statement, &[&chain, &sender]).await?;
    let number = |column| row.get::<_, Option<i64>>(column).map(unsigned);
    let in_flight = usize::try_from(row.get::<_, i64>(2)).unwrap_or_default();
    Ok(Some(Lane { born, highest: number(0), lowest: number(1), in_flight }))
}

/// The nonces of a lane from `count` on: those that were given out, and those that wait for a block.
///
/// # Errors
/// When the database fails.
pub async fn nonces(tx: &impl GenericClient, lane: &LaneId, count: u64) -> Result<(BTreeSet<u64>, BTreeSet<u64>), Failure> {
    let statement = tx
        .prepare_cached(
            "SELECT n.nonce, o.nonce = n.nonce AND o.state IN ('signed', 'broadcast') FROM outgoing_nonces n
             JOIN outgoing o ON o.id = n.outgoing WHERE n.chain_id = $1 AND n.sender = $2 AND n.nonce >= $3",
        )
        .await?;
    let (chain, sender) = parameters(lane);
    let (mut given, mut waiting) = (BTreeSet::new(), BTreeSet::new());
    for row in tx.query(&statement, &[&chain, &sender, &bigint(count)]).await? {
        let nonce = unsigned(row.get(0));
        given.insert(nonce);
        if row.get::<_, Option<bool>>(1) == Some(true) {
            waiting.insert(nonce);
        }
    }
    Ok((given, waiting))
}

/// Which of a lane's transactions have something to do at this time, in the order in which they are signed and sent: those that
/// wait for a block, at most `limit`, and as many of the queue as there is room for.
///
/// # Errors
/// When the database fails.
pub async fn due(tx: &impl GenericClient, lane: &LaneId, now: u64, limit: usize, room: usize) -> Result<Vec<Uuid>, Failure> {
    let statement = tx
        .prepare_cached(
            "(SELECT id FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state IN ('signed', 'broadcast') AND due_at <= $3
              ORDER BY nonce LIMIT $4)
             UNION ALL
             (SELECT id FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state = 'queued' ORDER BY place LIMIT $5)",
        )
        .await?;
    let (chain, sender) = parameters(lane);
    let [limit, room] = [limit, room].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
    let rows = tx.query(&statement, &[&chain, &sender, &bigint(now), &limit, &room]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Loads rows and locks them, in the order of the ids.
///
/// # Errors
/// When the database fails, or a row holds what no row can.
pub async fn load(tx: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Stored>, Failure> {
    let statement = tx
        .prepare_cached(
            "SELECT id, kind, chain_id, sender, recipient, value::text, data, gas_limit, authorizations, idempotency_key,
                 request_hash, state, nonce, dropping, underpriced, told, mined_hash, block_hash, block_number, succeeded,
                 gas_used, gas_price::text, replaced_in
             FROM outgoing WHERE id = ANY($1) ORDER BY id FOR UPDATE",
        )
        .await?;
    let mut rows = tx.query(&statement, &[&ids]).await?.iter().map(read_row).collect::<Result<Vec<_>, _>>()?;
    let statement = tx
        .prepare_cached(
            "SELECT outgoing, hash, nonce, tip::text, cap::text, cancels, acknowledged, first_sent, last_sent
             FROM outgoing_attempts WHERE outgoing = ANY($1) ORDER BY place",
        )
        .await?;
    for row in tx.query(&statement, &[&ids]).await? {
        let outgoing: Uuid = row.get(0);
        let attempt = read_attempt(&row)?;
        if let Ok(place) = rows.binary_search_by_key(&outgoing, |stored| stored.id) {
            rows[place].outgoing.attempts.push(attempt);
        }
    }
    // In the order that was asked for.
    let place = |id: &Uuid| ids.iter().position(|asked| asked == id);
    rows.sort_by_key(|stored| place(&stored.id));
    Ok(rows)
}

/// Gives out a nonce and stores the first bytes that are signed with it; or others with the same one. The same transaction
/// saves the row.
///
/// # Errors
/// When the database fails.
pub async fn store_attempt(
    tx: &impl GenericClient,
    stored: &Stored,
    nonce: u64,
    order: &Order,
    signed: &SignedBytes,
) -> Result<Attempt, Failure> {
    let (chain, sender) = parameters(&stored.lane);
    if stored.outgoing.nonce.is_none() {
        let statement = tx
            .prepare_cached("INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing) VALUES ($1, $2, $3, $4)")
            .await?;
        tx.execute(&statement, &[&chain, &sender, &bigint(nonce), &stored.id]).await?;
    }
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_attempts (hash, outgoing, chain_id, sender, nonce, raw, tip, cap, cancels)
             VALUES ($1, $2, $3, $4, $5, $6, $7::text::numeric, $8::text::numeric, $9)",
        )
        .await?;
    let Order { fees, cancels, .. } = *order;
    let (tip, cap) = (fees.tip.to_string(), fees.cap.to_string());
    let raw = &signed.raw[..];
    tx.execute(&statement, &[&signed.hash.as_slice(), &stored.id, &chain, &sender, &bigint(nonce), &raw, &tip, &cap, &cancels])
        .await?;
    Ok(Attempt { hash: signed.hash, nonce, fees, cancels, acknowledged: false, first_sent: None, last_sent: None })
}

/// Writes what a step changed of a row and its attempts.
///
/// # Errors
/// When the database fails.
pub async fn save(tx: &impl GenericClient, id: Uuid, before: &Outgoing, after: &Outgoing, pace: &Pace) -> Result<(), Failure> {
    if before == after {
        return Ok(());
    }
    let statement = tx
        .prepare_cached(
            "UPDATE outgoing SET state = $2, nonce = $3, dropping = $4, underpriced = $5, told = $6, due_at = $7,
                 mined_hash = $8, block_hash = $9, block_number = $10, succeeded = $11, gas_used = $12,
                 gas_price = $13::text::numeric, replaced_in = $14
             WHERE id = $1",
        )
        .await?;
    let (state, mined, replaced) = phase_columns(&after.phase);
    let hash = mined.as_ref().map(|mined| mined.hash.as_slice());
    let block = mined.as_ref().map(|mined| mined.block.hash.as_slice());
    let number = mined.map(|mined| bigint(mined.block.number));
    let succeeded = mined.map(|mined| mined.succeeded);
    let gas_used = mined.map(|mined| bigint(mined.gas_used));
    let gas_price = mined.map(|mined| mined.gas_price.to_string());
    let told = after.told.as_ref().map(told_text);
    let (nonce, due_at) = (after.nonce.map(bigint), after.due_at(pace).map(bigint));
    tx.execute(
        &statement,
        &[
            &id,
            &state,
            &nonce,
            &after.dropping,
            &after.underpriced,
            &told,
            &due_at,
            &hash,
            &block,
            &number,
            &succeeded,
            &gas_used,
            &gas_price,
            &replaced.map(bigint),
        ],
    )
    .await?;
    let statement = tx
        .prepare_cached("UPDATE outgoing_attempts SET acknowledged = $2, first_sent = $3, last_sent = $4 WHERE hash = $1")
        .await?;
    for attempt in after.attempts.iter().filter(|attempt| !before.attempts.contains(attempt)) {
        let (first, last) = (attempt.first_sent.map(bigint), attempt.last_sent.map(bigint));
        tx.execute(&statement, &[&attempt.hash.as_slice(), &attempt.acknowledged, &first, &last]).await?;
    }
    Ok(())
}

/// Notes what contradicted all that is known of one.
///
/// # Errors
/// When the database fails.
pub async fn note_contradiction(tx: &impl GenericClient, id: Uuid, contradiction: &Contradiction) -> Result<(), Failure> {
    let statement = tx.prepare_cached("UPDATE outgoing SET contradiction = $2 WHERE id = $1").await?;
    tx.execute(&statement, &[&id, &contradiction.to_string()]).await?;
    Ok(())
}

/// What of these attempts goes to Kafka, and to nodes, in the order of their nonces; `acknowledged` alone, if so asked.
///
/// # Errors
/// When the database fails.
pub async fn records(db: &impl GenericClient, hashes: &[B256], acknowledged: bool) -> Result<Vec<Record>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT o.id, o.kind, a.chain_id, a.sender, a.nonce, a.hash, a.raw, a.cancels, o.idempotency_key, o.request_hash
             FROM outgoing_attempts a JOIN outgoing o ON o.id = a.outgoing
             WHERE a.hash = ANY($1) AND (a.acknowledged OR NOT $2) ORDER BY a.sender, a.nonce, a.place",
        )
        .await?;
    let hashes: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_slice()).collect();
    let read = |row: &Row| Record {
        id: row.get(0),
        kind: read_kind(row.get(1)),
        lane: LaneId { chain: ChainId(unsigned(row.get(2))), sender: Address::from_slice(row.get(3)) },
        nonce: unsigned(row.get(4)),
        hash: B256::from_slice(row.get(5)),
        raw: Bytes::copy_from_slice(row.get(6)),
        cancels: row.get(7),
        idempotency_key: row.get(8),
        request_hash: B256::from_slice(row.get(9)),
    };
    Ok(db.query(&statement, &[&hashes, &acknowledged]).await?.iter().map(read).collect())
}

/// Which rows these transactions of a block are about, and the hash: those of ours by their hash, and those of ours whose nonce
/// another one has used. `uses` are sender, nonce and hash.
///
/// # Errors
/// When the database fails.
pub async fn of_block(
    db: &impl GenericClient,
    chain: ChainId,
    uses: &[(Address, u64, B256)],
) -> Result<Vec<(LaneId, Uuid, B256, bool)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT n.sender, n.outgoing, t.hash, EXISTS (SELECT FROM outgoing_attempts a WHERE a.hash = t.hash)
             FROM unnest($2::bytea[], $3::bigint[], $4::bytea[]) AS t (sender, nonce, hash)
             JOIN outgoing_nonces n ON n.chain_id = $1 AND n.sender = t.sender AND n.nonce = t.nonce",
        )
        .await?;
    let senders: Vec<&[u8]> = uses.iter().map(|(sender, _, _)| sender.as_slice()).collect();
    let nonces: Vec<i64> = uses.iter().map(|(_, nonce, _)| bigint(*nonce)).collect();
    let hashes: Vec<&[u8]> = uses.iter().map(|(_, _, hash)| hash.as_slice()).collect();
    let rows = db.query(&statement, &[&bigint(chain.0), &senders, &nonces, &hashes]).await?;
    let read = |row: &Row| {
        let lane = LaneId { chain, sender: Address::from_slice(row.get(0)) };
        (lane, row.get(1), B256::from_slice(row.get(2)), row.get(3))
    };
    Ok(rows.iter().map(read).collect())
}

/// Which rows the removal of a block is about.
///
/// # Errors
/// When the database fails.
pub async fn of_removed(db: &impl GenericClient, chain: ChainId, block: &BlockRef) -> Result<Vec<(LaneId, Uuid)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT sender, id FROM outgoing WHERE chain_id = $1 AND block_hash = $2
             UNION SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'replaced' AND replaced_in >= $3",
        )
        .await?;
    let rows = db.query(&statement, &[&bigint(chain.0), &block.hash.as_slice(), &bigint(block.number)]).await?;
    Ok(rows.iter().map(|row| (LaneId { chain, sender: Address::from_slice(row.get(0)) }, row.get(1))).collect())
}

/// Which rows become final with a block, which is noted.
///
/// # Errors
/// When the database fails.
pub async fn of_final(db: &impl GenericClient, chain: ChainId, number: u64) -> Result<Vec<(LaneId, Uuid)>, Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO outgoing_chains AS c (chain_id, final_number) VALUES ($1, $2)
             ON CONFLICT (chain_id) DO UPDATE SET final_number = greatest(c.final_number, excluded.final_number)",
        )
        .await?;
    db.execute(&statement, &[&bigint(chain.0), &bigint(number)]).await?;
    let statement = db
        .prepare_cached(
            "SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'mined' AND block_number <= $2
             UNION ALL SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'replaced' AND replaced_in <= $2",
        )
        .await?;
    let rows = db.query(&statement, &[&bigint(chain.0), &bigint(number)]).await?;
    Ok(rows.iter().map(|row| (LaneId { chain, sender: Address::from_slice(row.get(0)) }, row.get(1))).collect())
}

/// Up to which block the chain is final, and its blocks were read.
///
/// # Errors
/// When the database fails.
pub async fn final_number(db: &impl GenericClient, chain: ChainId) -> Result<Option<u64>, Failure> {
    let statement = db.prepare_cached("SELECT final_number FROM outgoing_chains WHERE chain_id = $1").await?;
    Ok(db.query_opt(&statement, &[&bigint(chain.0)]).await?.map(|row| unsigned(row.get(0))))
}

fn parameters(lane: &LaneId) -> (i64, &[u8]) {
    (bigint(lane.chain.0), lane.sender.as_slice())
}
