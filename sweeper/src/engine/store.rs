//! Outgoing transactions in Postgres: all statements about them, but those that [`history`] has.
//!
//! Whoever changes one locks its lane first, so that nobody gives out a nonce beside, and nobody writes a row that somebody else
//! has read. Several lanes are locked in their order, so that nobody waits in a circle.

use super::content::{Content, SignedBytes};
use super::history;
use super::outgoing::{Attempt, Kind, Order, Outgoing, Pace};
use super::rows::{LaneId, Stored, phase_columns, read_attempt, read_kind, read_row, told_text};
use alloy::primitives::{Address, B256, Bytes};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use topics::ChainId;
use uuid::Uuid;

/// A lane whose row is locked.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// What the chain counted at a block that was read; `None` while that is not known.
    pub counted: Option<u64>,
    /// The highest nonce that was given out, and that a stranger used in a block.
    pub given: Option<u64>,
    pub foreign: Option<u64>,
    /// The lowest nonce that waits for a block, and how many do.
    pub lowest: Option<u64>,
    pub in_flight: usize,
    /// How many blocks of the chain were read.
    pub blocks: u64,
    /// Whether nothing is signed or sent in it, or on its chain, until a person has looked.
    pub is_frozen: bool,
    /// Of the last transaction that was signed, whoever sends it. It grows, unless the database goes back.
    pub last_place: i64,
}

/// Up to where a lane's transactions are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountAt {
    /// The newest block that was read.
    pub block: B256,
    /// How often blocks had left the chain by then.
    removals: i64,
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

impl NewOutgoing {
    /// Its row, before anything has become of it.
    pub fn stored(self) -> Stored {
        let Self { id, kind, lane, content, idempotency_key, request_hash } = self;
        Stored { id, lane, content, idempotency_key, request_hash, outgoing: Outgoing::queued(kind) }
    }
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
    /// Unix seconds.
    pub signed_at: u64,
}

/// What became of a request to queue one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    New(Uuid),
    /// The same was asked for before.
    Before(Uuid),
    /// Something else was asked for with this key.
    Conflict(Uuid),
    /// No transaction can do it: it authorizes and calls nobody.
    Impossible,
}

/// Queues one, unless its key was used before.
///
/// # Errors
/// When the database fails.
pub async fn queue(db: &impl GenericClient, new: &NewOutgoing) -> Result<Queued, Failure> {
    let Content { to, value, data, gas_limit, authorizations } = &new.content;
    if !new.content.is_possible() {
        return Ok(Queued::Impossible);
    }
    // From now on it is noted what strangers do with the key.
    let statement =
        db.prepare_cached("INSERT INTO outgoing_lanes (chain_id, sender) VALUES ($1, $2) ON CONFLICT DO NOTHING").await?;
    let (chain, sender) = new.lane.parameters();
    db.execute(&statement, &[&chain, &sender]).await?;
    let statement = db
        .prepare_cached(
            "INSERT INTO outgoing (id, kind, chain_id, sender, recipient, value, data, gas_limit, authorizations,
                 idempotency_key, request_hash)
             VALUES ($1, $2, $3, $4, $5, $6::text::numeric, $7, $8, $9, $10, $11) ON CONFLICT (idempotency_key) DO NOTHING",
        )
        .await?;
    let recipient = to.as_ref().map(|to| to.as_slice());
    let list = (!authorizations.is_empty()).then(|| alloy::rlp::encode(authorizations));
    let inserted = db
        .execute(
            &statement,
            &[
                &new.id,
                &new.kind.as_str(),
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

/// Has transactions that are queued cost no more than this for a unit of gas, in wei: their senders can't pay more.
///
/// # Errors
/// When the database fails.
pub async fn limit_fee(db: &impl GenericClient, queued: &[Uuid], max_fee: u128) -> Result<(), Failure> {
    let sql = "UPDATE outgoing SET max_fee = $2::text::numeric WHERE id = ANY($1) AND state = 'queued'";
    db.execute(&db.prepare_cached(sql).await?, &[&queued, &max_fee.to_string()]).await?;
    Ok(())
}

/// The senders that have something to do at this time, but for those that are frozen. Those that were not looked at for longest
/// come first, so that those that get nowhere hold up no other.
///
/// # Errors
/// When the database fails.
pub async fn due_lanes(db: &impl GenericClient, chain: ChainId, now: u64, limit: usize) -> Result<Vec<LaneId>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT l.sender FROM (SELECT DISTINCT sender FROM outgoing
                 WHERE chain_id = $1 AND due_at <= $2 AND NOT (state = 'queued' AND withheld)) o
             JOIN outgoing_lanes l ON l.chain_id = $1 AND l.sender = o.sender
             WHERE l.next_at <= $2 AND l.frozen IS NULL
                 AND NOT EXISTS (SELECT FROM outgoing_chains WHERE chain_id = $1 AND frozen IS NOT NULL)
             ORDER BY l.next_at, l.sender LIMIT $3",
        )
        .await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&statement, &[&bigint(chain.0), &bigint(now), &limit]).await?;
    Ok(rows.iter().map(|row| LaneId { chain, sender: Address::from_slice(row.get(0)) }).collect())
}

/// Says that a lane is not to be looked at before this time.
///
/// # Errors
/// When the database fails.
pub async fn set_next_at(db: &impl GenericClient, lane: &LaneId, time: u64) -> Result<(), Failure> {
    let statement = db.prepare_cached("UPDATE outgoing_lanes SET next_at = $3 WHERE chain_id = $1 AND sender = $2").await?;
    let (chain, sender) = lane.parameters();
    db.execute(&statement, &[&chain, &sender, &bigint(time)]).await?;
    Ok(())
}

/// Up to where it is to be asked what the chain counts, if the lane waits for that.
///
/// # Errors
/// When the database fails.
pub async fn block_to_count(db: &impl GenericClient, lane: &LaneId) -> Result<Option<CountAt>, Failure> {
    // A record that is being applied is waited for: it may not have seen that the lane is ours. All later ones note what
    // strangers use above this block.
    let statement = db
        .prepare_cached(
            "SELECT c.head_hash, c.removals FROM outgoing_lanes l JOIN outgoing_chains c USING (chain_id)
             WHERE l.chain_id = $1 AND l.sender = $2 AND l.counted IS NULL AND c.head_hash IS NOT NULL FOR SHARE OF c",
        )
        .await?;
    let (chain, sender) = lane.parameters();
    let row = db.query_opt(&statement, &[&chain, &sender]).await?;
    Ok(row.map(|row| CountAt { block: B256::from_slice(row.get(0)), removals: row.get(1) }))
}

/// Notes what the chain counts up to a block, if none has left the chain since it was asked: up to that one nothing of ours is
/// then unseen, unless blocks are missing, and what was read since is noted beside. Returns which rows wait for a block although
/// their nonce is below the count, or were lost although it is not.
///
/// # Errors
/// When the database fails.
pub async fn set_counted(tx: &impl GenericClient, lane: &LaneId, at: &CountAt, count: u64) -> Result<Vec<Uuid>, Failure> {
    // Whoever reads the chain's next record waits.
    if !history::stands(tx, lane.chain, at.removals).await? {
        return Ok(Vec::new());
    }
    let (chain, sender) = lane.parameters();
    let statement = tx
        .prepare_cached(
            "UPDATE outgoing_lanes SET counted = $3, counted_in = $4 WHERE chain_id = $1 AND sender = $2 AND counted IS NULL",
        )
        .await?;
    // Somebody else has counted meanwhile, and at a later block perhaps.
    if tx.execute(&statement, &[&chain, &sender, &bigint(count), &at.block.as_slice()]).await? == 0 {
        return Ok(Vec::new());
    }
    let statement = tx
        .prepare_cached(
            "SELECT id FROM outgoing WHERE chain_id = $1 AND sender = $2
                 AND (state IN ('signed', 'broadcast') AND nonce < $3 OR state = 'lost' AND nonce >= $3)",
        )
        .await?;
    let rows = tx.query(&statement, &[&chain, &sender, &bigint(count)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The place of the transaction that was signed last: the first has 1.
///
/// # Errors
/// When the database fails.
pub async fn last_place(db: &impl GenericClient) -> Result<i64, Failure> {
    let statement = db.prepare_cached("SELECT coalesce(max(place), 0) FROM outgoing_attempts").await?;
    Ok(db.query_one(&statement, &[]).await?.get(0))
}

/// Locks a lane until the transaction ends. `None` if nothing was ever queued in it.
///
/// # Errors
/// When the database fails.
pub async fn lock(tx: &impl GenericClient, lane: &LaneId) -> Result<Option<Lane>, Failure> {
    let statement =
        tx.prepare_cached("SELECT counted FROM outgoing_lanes WHERE chain_id = $1 AND sender = $2 FOR NO KEY UPDATE").await?;
    let (chain, sender) = lane.parameters();
    let Some(row) = tx.query_opt(&statement, &[&chain, &sender]).await? else { return Ok(None) };
    let counted = row.get::<_, Option<i64>>(0).map(unsigned);
    // Read when the lock is held: by the statement that took it they might be from before.
    let statement = tx
        .prepare_cached(
            "SELECT (SELECT max(nonce) FROM outgoing_nonces WHERE chain_id = $1 AND sender = $2),
                 (SELECT max(nonce) FROM outgoing_foreign WHERE chain_id = $1 AND sender = $2), min(nonce), count(*),
                 (SELECT blocks FROM outgoing_chains WHERE chain_id = $1),
                 EXISTS (SELECT FROM outgoing_lanes WHERE chain_id = $1 AND sender = $2 AND frozen IS NOT NULL)
                     OR EXISTS (SELECT FROM outgoing_chains WHERE chain_id = $1 AND frozen IS NOT NULL),
                 (SELECT coalesce(max(place), 0) FROM outgoing_attempts)
             FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state IN ('signed', 'broadcast')",
        )
        .await?;
    let row = tx.query_one(&statement, &[&chain, &sender]).await?;
    let number = |column| row.get::<_, Option<i64>>(column).map(unsigned);
    let in_flight = usize::try_from(row.get::<_, i64>(3)).unwrap_or_default();
    let (blocks, is_frozen, last_place) = (number(4).unwrap_or_default(), row.get(5), row.get(6));
    Ok(Some(Lane {
        counted,
        given: number(0),
        foreign: number(1),
        lowest: number(2),
        in_flight,
        blocks,
        is_frozen,
        last_place,
    }))
}

/// The nonces of a lane that wait for a block, and the next lower one of each that was given out or that a stranger used.
///
/// # Errors
/// When the database fails.
pub async fn waiting(tx: &impl GenericClient, lane: &LaneId) -> Result<Vec<(u64, Option<u64>)>, Failure> {
    let statement = tx
        .prepare_cached(
            "SELECT o.nonce, greatest(
                 (SELECT max(n.nonce) FROM outgoing_nonces n WHERE n.chain_id = $1 AND n.sender = $2 AND n.nonce < o.nonce),
                 (SELECT max(f.nonce) FROM outgoing_foreign f WHERE f.chain_id = $1 AND f.sender = $2 AND f.nonce < o.nonce))
             FROM outgoing o WHERE o.chain_id = $1 AND o.sender = $2 AND o.state IN ('signed', 'broadcast') ORDER BY o.nonce",
        )
        .await?;
    let (chain, sender) = lane.parameters();
    let rows = tx.query(&statement, &[&chain, &sender]).await?;
    Ok(rows.iter().map(|row| (unsigned(row.get(0)), row.get::<_, Option<i64>>(1).map(unsigned))).collect())
}

/// Which of a lane's transactions have something to do at this time: those that have a nonce, at most `limit`, and first those
/// that wait for a block; then as many of the queue as there is room for, in the order in which they are signed. What was tried
/// in vain comes last.
///
/// # Errors
/// When the database fails.
pub async fn due(tx: &impl GenericClient, lane: &LaneId, now: u64, limit: usize, room: usize) -> Result<Vec<Uuid>, Failure> {
    let statement = tx
        .prepare_cached(
            "(SELECT id FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state <> 'queued' AND due_at <= $3
              ORDER BY state IN ('signed', 'broadcast') DESC, due_at, nonce LIMIT $4)
             UNION ALL
             (SELECT id FROM outgoing WHERE chain_id = $1 AND sender = $2 AND state = 'queued' AND due_at <= $3
                  AND NOT withheld ORDER BY due_at, place LIMIT $5)",
        )
        .await?;
    let (chain, sender) = lane.parameters();
    let [limit, room] = [limit, room].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
    let rows = tx.query(&statement, &[&chain, &sender, &bigint(now), &limit, &room]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether one is still to be signed. Whoever withholds it meanwhile waits until it is.
///
/// # Errors
/// When the database fails.
pub async fn may_sign(tx: &impl GenericClient, id: Uuid) -> Result<bool, Failure> {
    let sql = "SELECT FROM outgoing WHERE id = $1 AND NOT withheld FOR NO KEY UPDATE";
    Ok(tx.query_opt(&tx.prepare_cached(sql).await?, &[&id]).await?.is_some())
}

/// The lane of a transaction; `None` if there is none with this id.
///
/// # Errors
/// When the database fails.
pub async fn lane_of(db: &impl GenericClient, id: Uuid) -> Result<Option<LaneId>, Failure> {
    let statement = db.prepare_cached("SELECT chain_id, sender FROM outgoing WHERE id = $1").await?;
    let row = db.query_opt(&statement, &[&id]).await?;
    Ok(row.map(|row| LaneId { chain: ChainId(unsigned(row.get(0))), sender: Address::from_slice(row.get(1)) }))
}

/// Loads rows, whose lane is locked.
///
/// # Errors
/// When the database fails, or a row holds what no row can.
pub async fn load(tx: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Stored>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let statement = tx
        .prepare_cached(
            "SELECT id, kind, chain_id, sender, recipient, value::text, data, gas_limit, authorizations, state, nonce,
                 dropping, underpriced, told, mined_hash, block_hash, block_number, succeeded, gas_used, gas_price::text,
                 replaced_in, frozen, tried, max_fee::text, idempotency_key, request_hash
             FROM outgoing WHERE id = ANY($1) ORDER BY id",
        )
        .await?;
    let mut rows = tx.query(&statement, &[&ids]).await?.iter().map(read_row).collect::<Result<Vec<_>, _>>()?;
    let statement = tx
        .prepare_cached(
            "SELECT outgoing, hash, nonce, tip::text, cap::text, cancels, acknowledged, first_sent, last_sent, accepted
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
/// saves the row. Returns the place too.
///
/// # Errors
/// When the database fails.
pub async fn store_attempt(
    tx: &impl GenericClient,
    stored: &Stored,
    nonce: u64,
    order: &Order,
    signed: &SignedBytes,
) -> Result<(Attempt, i64), Failure> {
    if stored.outgoing.nonce.is_none() {
        // One that was given out before is refused.
        let statement = tx
            .prepare_cached("INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing) VALUES ($1, $2, $3, $4)")
            .await?;
        let (chain, sender) = stored.lane.parameters();
        tx.execute(&statement, &[&chain, &sender, &bigint(nonce), &stored.id]).await?;
    }
    let attempt = Attempt::signed(signed.hash, nonce, order.fees, order.cancels);
    let place = insert_attempt(tx, stored.id, &stored.lane, &attempt, &signed.raw, None).await?;
    Ok((attempt, place))
}

/// Stores an attempt, which is signed now if it is not said when it was. Returns its place.
pub(super) async fn insert_attempt(
    tx: &impl GenericClient,
    id: Uuid,
    lane: &LaneId,
    attempt: &Attempt,
    raw: &[u8],
    signed_at: Option<u64>,
) -> Result<i64, Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_attempts
                 (hash, outgoing, chain_id, sender, nonce, raw, tip, cap, cancels, acknowledged, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7::text::numeric, $8::text::numeric, $9, $10,
                 coalesce(to_timestamp($11::bigint), now()))
             RETURNING place",
        )
        .await?;
    let Attempt { hash, nonce, fees, cancels, acknowledged, .. } = attempt;
    let ((chain, sender), hash, nonce) = (lane.parameters(), hash.as_slice(), bigint(*nonce));
    let (tip, cap, signed_at) = (fees.tip.to_string(), fees.cap.to_string(), signed_at.map(bigint));
    let values: [&(dyn ToSql + Sync); 11] =
        [&hash, &id, &chain, &sender, &nonce, &raw, &tip, &cap, cancels, acknowledged, &signed_at];
    Ok(tx.query_one(&statement, &values).await?.get(0))
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
                 gas_price = $13::text::numeric, replaced_in = $14, frozen = $15, tried = $16
             WHERE id = $1",
        )
        .await?;
    let (state, mined, replaced) = phase_columns(&after.phase);
    let hash = mined.as_ref().map(|mined| mined.hash.as_slice());
    let block = mined.as_ref().map(|mined| mined.block.hash.as_slice());
    let number = mined.map(|mined| bigint(mined.block.number));
    let succeeded = mined.and_then(|mined| mined.succeeded);
    let gas_used = mined.and_then(|mined| mined.gas_used).map(bigint);
    let gas_price = mined.and_then(|mined| mined.gas_price).map(|price| price.to_string());
    let told = after.told.as_ref().map(told_text);
    let (nonce, due_at) = (after.nonce.map(bigint), after.due_at(pace).map(bigint));
    let (replaced, tried) = (replaced.map(bigint), after.tried.map(bigint));
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
            &replaced,
            &after.frozen,
            &tried,
        ],
    )
    .await?;
    let statement = tx
        .prepare_cached(
            "UPDATE outgoing_attempts SET acknowledged = $2, first_sent = $3, last_sent = $4, accepted = $5 WHERE hash = $1",
        )
        .await?;
    for attempt in after.attempts.iter().filter(|attempt| !before.attempts.contains(attempt)) {
        let (first, last) = (attempt.first_sent.map(bigint), attempt.last_sent.map(bigint));
        let Attempt { hash, acknowledged, accepted, .. } = attempt;
        let accepted = accepted.map(bigint);
        tx.execute(&statement, &[&hash.as_slice(), acknowledged, &first, &last, &accepted]).await?;
    }
    Ok(())
}

/// What of these attempts goes to Kafka, in the order of their nonces; or, of those, what `may_be_sent` to nodes by now.
///
/// # Errors
/// When the database fails.
pub async fn records(db: &impl GenericClient, hashes: &[B256], may_be_sent: bool) -> Result<Vec<Record>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT o.id, o.kind, a.chain_id, a.sender, a.nonce, a.hash, a.raw, a.cancels, o.idempotency_key, o.request_hash,
                 extract(epoch FROM a.created_at)::bigint
             FROM outgoing_attempts a JOIN outgoing o ON o.id = a.outgoing
             WHERE a.hash = ANY($1)
                 AND (NOT $2 OR a.acknowledged AND (a.cancels OR NOT o.dropping AND o.frozen IS NULL)
                     AND NOT EXISTS (SELECT FROM outgoing_lanes l
                         WHERE l.chain_id = a.chain_id AND l.sender = a.sender AND l.frozen IS NOT NULL)
                     AND NOT EXISTS (SELECT FROM outgoing_chains c WHERE c.chain_id = a.chain_id AND c.frozen IS NOT NULL))
             ORDER BY a.sender, a.nonce, a.place",
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
        signed_at: unsigned(row.get(10)),
    };
    Ok(db.query(&statement, &[&hashes, &may_be_sent]).await?.iter().map(read).collect())
}
