//! What `sweep.events` has and Postgres lacks: the database went back, and what it has lost was sent. It is put into the rows
//! as it was, so that its nonce is given out to nothing else and nothing is sent in its place.

use super::content::{Content, ReadBack};
use super::outgoing::{Attempt, Kind, Outgoing, Pace, Phase};
use super::rows::{LaneId, Stored, phase_columns};
use super::store::{self, NewOutgoing};
use alloy::primitives::{B256, Bytes};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::bigint;
use std::collections::BTreeMap;
use topics::ChainId;
use uuid::Uuid;

/// A signed transaction of a record, whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub id: Uuid,
    pub kind: Kind,
    pub cancels: bool,
    pub idempotency_key: String,
    pub request_hash: B256,
    pub raw: Bytes,
    pub read: ReadBack,
    /// Unix seconds.
    pub signed_at: u64,
}

impl Signed {
    pub const fn lane(&self) -> LaneId {
        LaneId { chain: self.read.chain, sender: self.read.sender }
    }
}

/// What came of one that Postgres lacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its row is there, and has it now.
    Attempt,
    /// Its row is new.
    Row,
    /// It contradicts the row of this transaction.
    Contradicts(Uuid, String),
}

impl Outgoing {
    /// Takes in an attempt that it does not know. Another nonce is taken only where the former was given up here too: else both
    /// might be mined.
    ///
    /// # Errors
    /// If no former state of a database can have led there.
    pub fn take_back(&mut self, attempt: Attempt) -> Result<(), String> {
        let Attempt { nonce, cancels, .. } = attempt;
        if let Some(known) = self.nonce.filter(|known| nonce < *known) {
            return Err(format!("it has nonce {known} here, and lacks what was signed before with {nonce}"));
        }
        let is_other = self.nonce != Some(nonce);
        match self.phase {
            // Of a nonce that a stranger has used in a final block.
            Phase::Queued if self.attempts.iter().any(|known| known.nonce >= nonce) => {
                self.attempts.push(attempt);
                return Ok(());
            }
            Phase::Queued => self.phase = Phase::Broadcast,
            _ if is_other => {
                let known = self.nonce.map_or_else(|| "none".to_owned(), |known| known.to_string());
                return Err(format!("its nonce here is {known}, and it was signed with {nonce} elsewhere: both may be mined"));
            }
            Phase::Signed => self.phase = Phase::Broadcast,
            _ => {}
        }
        self.nonce = Some(nonce);
        self.attempts.push(attempt);
        self.dropping |= cancels && self.kind != Kind::Gap;
        (self.told, self.tried, self.underpriced) = (None, None, false);
        Ok(())
    }

    /// Takes in what became of it: a final block had it, so nothing is sent or asked any more.
    ///
    /// # Errors
    /// If it is over in another way here, or lacks the attempt.
    pub fn take_outcome(&mut self, outcome: Phase) -> Result<(), String> {
        let what = |phase: &Phase| {
            let (state, mined, _) = phase_columns(phase);
            (state, mined.map(|mined| (mined.hash, mined.block)))
        };
        let (state, told) = what(&outcome);
        if self.phase.is_over() {
            let (here, known) = what(&self.phase);
            let is_same = (here, known) == (state, told);
            return is_same
                .then_some(())
                .ok_or_else(|| format!("it is {here} here ({known:?}), and was told as {state} ({told:?})"));
        }
        let nonce = match told {
            None => match (self.phase, self.nonce) {
                (Phase::Replaced(_), _) | (_, None) => None,
                (_, Some(nonce)) => {
                    return Err(format!("it was told as {state} without a block, and is signed with {nonce} here"));
                }
            },
            Some((hash, _)) => {
                let attempt = self.attempts.iter().find(|attempt| attempt.hash == hash);
                let attempt = attempt.ok_or_else(|| format!("it was told as {state} by {hash}, which no record has"))?;
                if attempt.cancels != matches!(outcome, Phase::Dropped(_)) {
                    return Err(format!("it was told as {state} by {hash}, which is for something else"));
                }
                if self.nonce != Some(attempt.nonce) {
                    return Err(format!("it was told as {state} by {hash}, whose nonce is not the one that may be mined here"));
                }
                self.nonce
            }
        };
        (self.phase, self.nonce) = (outcome, nonce);
        (self.told, self.tried, self.underpriced) = (None, None, false);
        Ok(())
    }
}

/// The transactions that have these attempts already.
///
/// # Errors
/// When the database fails.
pub async fn known(db: &impl GenericClient, hashes: &[B256]) -> Result<BTreeMap<B256, Uuid>, Failure> {
    let statement = db.prepare_cached("SELECT hash, outgoing FROM outgoing_attempts WHERE hash = ANY($1)").await?;
    let hashes: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_slice()).collect();
    Ok(db.query(&statement, &[&hashes]).await?.iter().map(|row| (B256::from_slice(row.get(0)), row.get(1))).collect())
}

/// Makes the lanes that are missing, and locks them all, in their order.
///
/// # Errors
/// When the database fails.
pub async fn lock_lanes(tx: &impl GenericClient, mut lanes: Vec<LaneId>) -> Result<(), Failure> {
    lanes.sort();
    lanes.dedup();
    if lanes.is_empty() {
        return Ok(());
    }
    // What changes nothing of a row locks it, as `store::lock` does.
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_lanes AS l (chain_id, sender)
             SELECT chain_id, sender FROM unnest($1::bigint[], $2::bytea[]) WITH ORDINALITY AS asked (chain_id, sender, place)
             ORDER BY place ON CONFLICT (chain_id, sender) DO UPDATE SET next_at = l.next_at",
        )
        .await?;
    let (chains, senders): (Vec<i64>, Vec<&[u8]>) = lanes.iter().map(LaneId::parameters).unzip();
    tx.execute(&statement, &[&chains, &senders]).await?;
    Ok(())
}

/// Puts in what Postgres lacks. Its lane is locked.
///
/// # Errors
/// When the database fails.
pub async fn take(tx: &impl GenericClient, signed: &Signed, pace: &Pace) -> Result<Taken, Failure> {
    let Signed { id, kind, cancels, read, .. } = signed;
    let lane = signed.lane();
    let (chain, sender) = lane.parameters();
    let statement = tx
        .prepare_cached(
            "SELECT outgoing FROM outgoing_nonces WHERE chain_id = $1 AND sender = $2 AND nonce = $3 AND outgoing <> $4
             UNION ALL SELECT id FROM outgoing WHERE idempotency_key = $5 AND id <> $4",
        )
        .await?;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&chain, &sender, &bigint(read.nonce), id, &signed.idempotency_key];
    if let Some(row) = tx.query(&statement, &parameters).await?.first() {
        let other: Uuid = row.get(0);
        return Ok(Taken::Contradicts(other, format!("its nonce {} or its key is that of {other} here", read.nonce)));
    }
    let known = store::load(tx, &[*id]).await?.pop();
    let is_new = known.is_none();
    let stored = match known {
        Some(stored) => stored,
        None => queued(tx, signed).await?,
    };
    let is_same = (stored.lane, stored.outgoing.kind, stored.request_hash) == (lane, *kind, signed.request_hash)
        && stored.idempotency_key == signed.idempotency_key
        && (*cancels || stored.content == read.content);
    if !is_same {
        return Ok(Taken::Contradicts(*id, "it is something else here".to_owned()));
    }
    let mut after = stored.outgoing.clone();
    let attempt = Attempt { acknowledged: true, ..Attempt::signed(read.hash, read.nonce, read.fees, *cancels) };
    if let Err(contradiction) = after.take_back(attempt.clone()) {
        return Ok(Taken::Contradicts(*id, contradiction));
    }
    if is_new && *kind == Kind::Sweep && !cancels {
        // It has as much for its gas as the plan has left there: twice of what the first attempt offers, at the price of then.
        store::limit_fee(tx, &[*id], read.fees.cap.saturating_mul(2)).await?;
    }
    // Unless it was given out to this one before.
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .await?;
    tx.execute(&statement, &[&chain, &sender, &bigint(read.nonce), id]).await?;
    store::insert_attempt(tx, *id, &lane, &attempt, &signed.raw, Some(signed.signed_at)).await?;
    store::save(tx, *id, &stored.outgoing, &after, pace).await?;
    Ok(if is_new { Taken::Row } else { Taken::Attempt })
}

/// What became of a transaction, as a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub id: Uuid,
    pub lane: LaneId,
    /// One that is over.
    pub phase: Phase,
}

/// What an outcome has ended that Postgres lacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Row,
    /// It was dropped before it was signed, and Postgres has no row of it.
    Nothing,
}

/// The transactions of which it is known already that Kafka has what became of them.
///
/// # Errors
/// When the database fails.
pub async fn told(db: &impl GenericClient, ids: &[Uuid]) -> Result<BTreeMap<Uuid, String>, Failure> {
    let sql = "SELECT id, announced FROM outgoing WHERE id = ANY($1) AND announced IS NOT NULL";
    let statement = db.prepare_cached(sql).await?;
    Ok(db.query(&statement, &[&ids]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Ends the row as the record says, or returns why it can't be so. Its lane is locked. Of one that was dropped before it was
/// signed there may be no row.
///
/// # Errors
/// When the database fails.
pub async fn take_outcome(tx: &impl GenericClient, outcome: &Outcome, pace: &Pace) -> Result<Result<Ended, String>, Failure> {
    let Outcome { id, lane, phase } = outcome;
    let Some(stored) = store::load(tx, &[*id]).await?.pop() else {
        return Ok(match phase {
            Phase::Dropped(None) => Ok(Ended::Nothing),
            _ => Err("no record has its signed transaction".to_owned()),
        });
    };
    if stored.lane != *lane {
        let LaneId { sender, chain } = stored.lane;
        return Ok(Err(format!("its sender is {sender} on chain {chain} here")));
    }
    let mut after = stored.outgoing.clone();
    if let Err(contradiction) = after.take_outcome(*phase) {
        return Ok(Err(contradiction));
    }
    store::save(tx, *id, &stored.outgoing, &after, pace).await?;
    set_announced(tx, *id, phase_columns(phase).0).await?;
    Ok(Ok(Ended::Row))
}

/// Notes that Kafka has what became of one.
///
/// # Errors
/// When the database fails.
pub async fn set_announced(db: &impl GenericClient, id: Uuid, state: &str) -> Result<(), Failure> {
    let statement = db.prepare_cached("UPDATE outgoing SET announced = $2 WHERE id = $1").await?;
    db.execute(&statement, &[&id, &state]).await?;
    Ok(())
}

/// Keeps the nonce of a record that is set aside from being given out: what it signed may have been sent.
///
/// # Errors
/// When the database fails.
pub async fn keep_nonce(tx: &impl GenericClient, signed: &Signed, other: Uuid) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing)
             SELECT $1, $2, $3, id FROM outgoing WHERE id = ANY($4) ORDER BY id <> $5 LIMIT 1 ON CONFLICT DO NOTHING",
        )
        .await?;
    let lane = signed.lane();
    let (chain, sender) = lane.parameters();
    let ids = [other, signed.id];
    tx.execute(&statement, &[&chain, &sender, &bigint(signed.read.nonce), &&ids[..], &signed.id]).await?;
    Ok(())
}

/// The row as it was before it was signed. Of one that was not wanted any more, what it was to pay may not be in any record: it
/// will not be paid.
async fn queued(tx: &impl GenericClient, signed: &Signed) -> Result<Stored, Failure> {
    let Signed { id, kind, cancels, read, .. } = signed;
    let (id, lane) = (*id, signed.lane());
    let content = if *cancels { Content::nothing(lane.sender) } else { read.content.clone() };
    let (idempotency_key, request_hash) = (signed.idempotency_key.clone(), signed.request_hash);
    let new = NewOutgoing { id, kind: *kind, lane, content, idempotency_key, request_hash };
    store::queue(tx, &new).await?;
    Ok(new.stored())
}

/// Lets nothing be signed or sent in a lane until a person has looked.
///
/// # Errors
/// When the database fails.
pub async fn freeze_lane(tx: &impl GenericClient, lane: &LaneId, why: &str) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached("UPDATE outgoing_lanes SET frozen = coalesce(frozen, $3) WHERE chain_id = $1 AND sender = $2")
        .await?;
    let (chain, sender) = lane.parameters();
    tx.execute(&statement, &[&chain, &sender, &why]).await?;
    Ok(())
}

/// As [`freeze_lane`], for all lanes of a chain.
///
/// # Errors
/// When the database fails.
pub async fn freeze_chain(tx: &impl GenericClient, chain: ChainId, why: &str) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_chains AS c (chain_id, frozen) VALUES ($1, $2)
             ON CONFLICT (chain_id) DO UPDATE SET frozen = coalesce(c.frozen, excluded.frozen)",
        )
        .await?;
    tx.execute(&statement, &[&bigint(chain.0), &why]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fees::Fees;
    use crate::engine::outgoing::Mined;
    use topics::BlockRef;

    fn attempt(nonce: u64, cancels: bool) -> Attempt {
        let hash = B256::with_last_byte(u8::try_from(nonce).unwrap() + u8::from(cancels) * 100);
        let fees = Fees { tip: 1, cap: 2 };
        Attempt { acknowledged: true, ..Attempt::signed(hash, nonce, fees, cancels) }
    }

    fn in_phase(phase: Phase, nonce: Option<u64>) -> Outgoing {
        Outgoing { phase, nonce, ..Outgoing::queued(Kind::Sweep) }
    }

    #[test]
    fn an_attempt_that_a_row_lacks_is_taken_as_what_may_have_been_sent() {
        let block = BlockRef { number: 3, hash: B256::ZERO };
        let mined = Mined { hash: B256::ZERO, block, succeeded: Some(true), gas_used: None, gas_price: None };
        for (phase, known, nonce, expected) in [
            (Phase::Queued, None, 7, Some(Phase::Broadcast)),
            (Phase::Signed, Some(7), 7, Some(Phase::Broadcast)),
            (Phase::Broadcast, Some(7), 7, Some(Phase::Broadcast)),
            (Phase::Lost, Some(7), 7, Some(Phase::Lost)),
            (Phase::Replaced(3), Some(7), 7, Some(Phase::Replaced(3))),
            (Phase::Mined(mined), Some(7), 7, Some(Phase::Mined(mined))),
            (Phase::Final(mined), Some(7), 7, Some(Phase::Final(mined))),
            // Both nonces may be mined.
            (Phase::Signed, Some(7), 9, None),
            (Phase::Broadcast, Some(7), 9, None),
            (Phase::Lost, Some(7), 9, None),
            (Phase::Replaced(3), Some(7), 9, None),
            (Phase::Mined(mined), Some(7), 9, None),
            (Phase::Final(mined), Some(7), 9, None),
            (Phase::Dropped(None), None, 9, None),
            // It knows what came later.
            (Phase::Broadcast, Some(7), 6, None),
        ] {
            let mut outgoing = in_phase(phase, known);
            let taken = outgoing.take_back(attempt(nonce, false));
            assert_eq!(taken.is_ok().then_some(outgoing.phase), expected, "{phase:?} with {known:?} takes {nonce}: {taken:?}");
            assert!(taken.is_err() || outgoing.nonce == Some(nonce) && outgoing.attempts.len() == 1 && !outgoing.dropping);
        }
    }

    /// A stranger has used nonce 7 in a final block, here too.
    #[test]
    fn what_was_given_up_is_signed_anew_and_no_record_of_it_brings_it_back() {
        let mut outgoing = Outgoing { attempts: vec![attempt(7, false)], ..in_phase(Phase::Queued, None) };
        outgoing.take_back(attempt(7, true)).unwrap();
        assert_eq!((outgoing.phase, outgoing.nonce, outgoing.attempts.len()), (Phase::Queued, None, 2));
        outgoing.take_back(attempt(9, false)).unwrap();
        assert_eq!((outgoing.phase, outgoing.nonce, outgoing.dropping), (Phase::Broadcast, Some(9), false));
    }

    #[test]
    fn what_became_of_one_is_put_back_as_it_was_told() {
        let block = BlockRef { number: 3, hash: B256::ZERO };
        let by =
            |attempt: &Attempt| Mined { hash: attempt.hash, block, succeeded: Some(true), gas_used: None, gas_price: None };
        let (pays, cancels) = (attempt(7, false), attempt(7, true));
        let (paid, cancelled, other) = (by(&pays), by(&cancels), by(&attempt(8, false)));
        let elsewhere = Mined { block: BlockRef { number: 4, ..block }, ..paid };
        for (phase, told, is_taken) in [
            (Phase::Broadcast, Phase::Final(paid), true),
            (Phase::Lost, Phase::Failed(paid), true),
            (Phase::Mined(elsewhere), Phase::Final(paid), true),
            (Phase::Replaced(3), Phase::Dropped(Some(cancelled)), true),
            (Phase::Queued, Phase::Dropped(None), true),
            (Phase::Replaced(3), Phase::Dropped(None), true),
            (Phase::Final(paid), Phase::Final(paid), true),
            // What was signed may be mined.
            (Phase::Broadcast, Phase::Dropped(None), false),
            (Phase::Lost, Phase::Dropped(None), false),
            (Phase::Queued, Phase::Final(paid), false),
            (Phase::Broadcast, Phase::Final(other), false),
            (Phase::Broadcast, Phase::Final(cancelled), false),
            (Phase::Broadcast, Phase::Dropped(Some(paid)), false),
            (Phase::Final(paid), Phase::Failed(paid), false),
            (Phase::Final(paid), Phase::Final(elsewhere), false),
            (Phase::Final(paid), Phase::Dropped(None), false),
            (Phase::Dropped(None), Phase::Final(paid), false),
        ] {
            let nonce = (phase != Phase::Queued && phase != Phase::Dropped(None)).then_some(7);
            let before = Outgoing { attempts: vec![pays.clone(), cancels.clone()], ..in_phase(phase, nonce) };
            let mut after = before.clone();
            let taken = after.take_outcome(told);
            assert_eq!(taken.is_ok(), is_taken, "{phase:?} takes {told:?}: {taken:?}");
            let due = after.due_at(&crate::engine::outgoing::Pace {
                max_fee: 1,
                raise: 1,
                resend_after: 1,
                stuck_after: 1,
                raise_after: 1,
            });
            assert!(if is_taken { after.phase == told && due.is_none() } else { after == before }, "{after:?}");
        }
    }

    #[test]
    fn what_was_cancelled_is_not_wanted_any_more() {
        let mut outgoing = in_phase(Phase::Queued, None);
        outgoing.take_back(attempt(7, false)).unwrap();
        outgoing.take_back(attempt(7, true)).unwrap();
        assert!(outgoing.dropping && outgoing.phase == Phase::Broadcast);
        let mut filler = Outgoing::queued(Kind::Gap);
        filler.take_back(attempt(7, true)).unwrap();
        assert!(!filler.dropping, "it does what it is to do");
    }
}
