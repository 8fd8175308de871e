//! `sweep.events` read whole, and what Postgres lacks of it put back, before anything is signed or sent: at the start, and
//! whenever a connection reaches another database than before.
//!
//! - Nothing is believed that a signature does not say: each transaction is decoded, and who signed it recovered.
//! - A record that contradicts a row freezes its lane, and one that can't be read its chain; both are set aside by name. All
//!   others go on. What is set aside already freezes nothing anew, so that a person who has looked is not asked again.
//! - A partition that has no leader, or in which somebody has left a transaction open, is waited for: what is in it may have
//!   been sent.

use crate::engine::content::{Content, ReadBack};
use crate::engine::outgoing::Pace;
use crate::engine::restored::{self, Signed, Taken};
use crate::engine::rows::LaneId;
use crate::engine::store;
use crate::records::{SIGNED, Told};
use alloy::primitives::{Address, B256, Bytes};
use deadpool_postgres::{Client, GenericClient};
use runtime::kafka::Record;
use runtime::{Failure, Kafka, set_aside};
use std::collections::BTreeSet;
use tokio::runtime::Handle;
use topics::wire::SweepEvent;
use topics::{ChainId, Topic, frame};
use uuid::Uuid;

/// Under which records are set aside.
pub const STAGE: &str = "sweeper-restore";
/// Records that are compared in one transaction of Postgres.
const MAX_RECORDS: usize = 500;

/// A record that says what was signed, or what can't be believed of it.
#[derive(Debug)]
struct Item {
    partition: i32,
    offset: i64,
    /// The transaction's id, or its place.
    name: String,
    said: Said,
}

#[derive(Debug)]
enum Said {
    Signed(Box<Signed>),
    /// Kafka has what became of this one.
    Outcome(Uuid),
    /// What is told of this lane can't be believed.
    WrongOfLane(LaneId, String),
    /// It can't be read; its key names a chain, if it does.
    Unreadable(Option<ChainId>, String),
}

/// What was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Transactions, and signed bytes of those that Postgres knew.
    pub rows: usize,
    pub attempts: usize,
    /// Records that were set aside, now or before.
    pub aside: usize,
}

/// Reads all, and puts back what is lacking. Blocks.
///
/// # Errors
/// When Kafka or the database fails, or a partition can't be read to its end.
pub fn restore(kafka: &Kafka, handle: &Handle, db: &mut Client, pace: &Pace) -> Result<Restored, Failure> {
    let (mut restored, mut chunk, mut failed) = (Restored::default(), Vec::new(), None);
    let name = kafka.name(Topic::Sweeps);
    kafka.read_all(Topic::Sweeps, |record| {
        if failed.is_some() {
            return;
        }
        chunk.extend(read(record));
        if chunk.len() >= MAX_RECORDS {
            failed = handle.block_on(take(db, &name, std::mem::take(&mut chunk), pace, &mut restored)).err();
        }
    })?;
    match failed {
        Some(failure) => return Err(failure),
        None => handle.block_on(take(db, &name, chunk, pace, &mut restored))?,
    }
    Ok(restored)
}

fn read(record: &Record<'_>) -> Option<Item> {
    let (partition, offset) = (record.partition(), record.offset());
    let place = format!("{partition}/{offset}");
    let (name, said) = match frame::decode::<SweepEvent>(record.payload()) {
        Ok(event) if event.r#type == SIGNED => (event.transaction_id.clone(), signed(&event)),
        // Of an outcome, the id is all that is needed; what else may come is passed over.
        Ok(event) => (event.transaction_id.clone(), Said::Outcome(event.transaction_id.parse().ok()?)),
        Err(error) => {
            let key = std::str::from_utf8(record.key()).ok();
            let chain = key.and_then(|key| key.split('/').next()?.parse().ok()).map(ChainId);
            (place.clone(), Said::Unreadable(chain, error.to_string()))
        }
    };
    let name = if name.is_empty() { place } else { name };
    Some(Item { partition, offset, name, said })
}

/// What a record of a signed transaction says, as far as the transaction itself says it.
fn signed(event: &SweepEvent) -> Said {
    let chain = ChainId(event.chain_id);
    let told = match Told::of(event) {
        Ok(told) => told,
        Err(fault) => {
            let sender = Address::try_from(&event.sender[..]).ok();
            return match sender {
                Some(sender) => Said::WrongOfLane(LaneId { chain, sender }, fault),
                None => Said::Unreadable(Some(chain), fault),
            };
        }
    };
    let Told { id, kind, sender, nonce, hash, cancels, idempotency_key, request_hash } = told;
    let wrong = |fault: &str| Said::WrongOfLane(LaneId { chain, sender }, fault.to_owned());
    let Some(read) = ReadBack::of(&event.raw) else { return wrong("raw: no signed transaction of a type that is signed here") };
    if (read.chain, read.sender, read.nonce, read.hash) != (chain, sender, nonce, hash) {
        return wrong("raw: it is of another chain, sender, nonce or hash than the record says");
    }
    if cancels && read.content != (Content { gas_limit: read.content.gas_limit, ..Content::nothing(sender) }) {
        return wrong("raw: it does something, and is said to do nothing");
    }
    let raw = Bytes::copy_from_slice(&event.raw);
    let signed_at = event.occurred_at;
    Said::Signed(Box::new(Signed { id, kind, cancels, idempotency_key, request_hash, raw, read, signed_at }))
}

/// Compares records, in their order, with the rows.
async fn take(db: &mut Client, topic: &str, items: Vec<Item>, pace: &Pace, restored: &mut Restored) -> Result<(), Failure> {
    let hashes: Vec<B256> = items.iter().filter_map(|item| item.signed().map(|signed| signed.read.hash)).collect();
    let known = restored::known(db, &hashes).await?;
    let lacks = |item: &&Item| item.signed().is_some_and(|signed| known.get(&signed.read.hash) != Some(&signed.id));
    let tx = db.transaction().await?;
    let of_lane = |item: &Item| match &item.said {
        Said::Signed(signed) => Some(signed.lane()),
        Said::WrongOfLane(lane, _) => Some(*lane),
        Said::Outcome(_) | Said::Unreadable(..) => None,
    };
    let lanes = items.iter().filter(|item| lacks(item) || item.signed().is_none()).filter_map(of_lane);
    restored::lock_lanes(&tx, lanes.collect()).await?;
    // A record may be there twice.
    let (mut outcomes, mut put_back) = (Vec::new(), BTreeSet::new());
    for item in &items {
        match &item.said {
            Said::Signed(signed) if lacks(&item) && put_back.insert((signed.id, signed.read.hash)) => {
                // Another transaction of ours has these very bytes.
                let other = known.get(&signed.read.hash);
                let taken = match other {
                    Some(other) => Taken::Contradicts(*other, format!("the same was signed for {other} here")),
                    None => restored::take(&tx, signed, pace).await?,
                };
                match taken {
                    Taken::Attempt => restored.attempts += 1,
                    Taken::Row => restored.rows += 1,
                    Taken::Contradicts(other, why) => {
                        let others = store::lane_of(&tx, other).await?.filter(|other| *other != signed.lane());
                        let lanes: Vec<LaneId> = others.into_iter().chain([signed.lane()]).collect();
                        aside(&tx, topic, item, Frozen::Lanes(&lanes), &why, restored).await?;
                    }
                }
            }
            Said::Signed(_) => {}
            Said::Outcome(id) => outcomes.push(*id),
            Said::WrongOfLane(lane, why) => aside(&tx, topic, item, Frozen::Lanes(&[*lane]), why, restored).await?,
            Said::Unreadable(chain, why) => aside(&tx, topic, item, Frozen::Chain(*chain), why, restored).await?,
        }
    }
    let statement = tx.prepare_cached("UPDATE outgoing SET announced = true WHERE id = ANY($1) AND NOT announced").await?;
    tx.execute(&statement, &[&outcomes]).await?;
    Ok(tx.commit().await?)
}

impl Item {
    fn signed(&self) -> Option<&Signed> {
        if let Said::Signed(signed) = &self.said { Some(signed) } else { None }
    }
}

/// What sends nothing until a person has looked.
#[derive(Clone, Copy)]
enum Frozen<'a> {
    Lanes(&'a [LaneId]),
    /// None, where the record names none.
    Chain(Option<ChainId>),
}

/// Sets a record aside, and freezes what it is about, unless that was done before.
async fn aside(
    tx: &impl GenericClient,
    topic: &str,
    item: &Item,
    frozen: Frozen<'_>,
    why: &str,
    restored: &mut Restored,
) -> Result<(), Failure> {
    restored.aside += 1;
    let Item { partition, offset, name, .. } = item;
    let statement =
        tx.prepare_cached("SELECT FROM set_aside WHERE topic = $1 AND stage = $2 AND partition = $3 AND item = $4").await?;
    if tx.query_opt(&statement, &[&topic, &STAGE, partition, name]).await?.is_some() {
        return Ok(());
    }
    let cause = format!("{why}; `ctrip tail {} --from {offset}` shows it in partition {partition}", Topic::Sweeps);
    set_aside::set_aside(tx, STAGE, (topic, *partition), name, *offset, &cause).await?;
    match frozen {
        Frozen::Lanes(lanes) => {
            for lane in lanes {
                let LaneId { chain, sender } = lane;
                tracing::error!(%chain, %sender, "the record of {name} is set aside, and its sender sends nothing: {cause}");
                restored::freeze_lane(tx, lane, &cause).await?;
            }
        }
        Frozen::Chain(Some(chain)) => {
            tracing::error!(%chain, "the record {name} is set aside, and nothing is sent on its chain: {cause}");
            restored::freeze_chain(tx, chain, &cause).await?;
        }
        Frozen::Chain(None) => tracing::error!("the record {name} is set aside; its key names no chain: {cause}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::content::SignedBytes;
    use crate::engine::fees::Fees;
    use crate::engine::outgoing::Kind;
    use crate::engine::store::Record as Recorded;
    use crate::keys::{LocalKey, Signer as _};
    use crate::records::signed_event;
    use alloy::primitives::{U256, keccak256};

    async fn recorded(content: &Content, cancels: bool) -> SweepEvent {
        let key = LocalKey::new(&keccak256(b"cow").0).unwrap();
        let (chain, sender, nonce) = (ChainId(5), key.address(), 7);
        let transaction = content.unsigned(chain, nonce, Fees { tip: 2, cap: 9 }).unwrap();
        let signature = key.sign_transaction(&transaction).await.unwrap();
        let SignedBytes { hash, raw } = SignedBytes::new(transaction, signature, sender).unwrap();
        let (id, request_hash) = (Uuid::from_u128(1), B256::ZERO);
        let (kind, lane, idempotency_key) = (Kind::Sweep, LaneId { chain, sender }, "sweep:1".to_owned());
        let record = Recorded { id, kind, lane, nonce, hash, raw, cancels, idempotency_key, request_hash, signed_at: 3 };
        signed_event("anvil", &record)
    }

    /// Whoever writes to the topic may say anything; only what is signed counts.
    #[tokio::test]
    async fn a_record_is_believed_as_far_as_its_signature_goes() {
        let pays = Content {
            to: Some(Address::repeat_byte(9)),
            value: U256::from(3),
            data: Bytes::new(),
            gas_limit: 21_000,
            authorizations: Vec::new(),
        };
        let event = recorded(&pays, false).await;
        let Said::Signed(believed) = signed(&event) else { panic!("{event:?}") };
        assert_eq!((believed.read.content.clone(), believed.read.nonce, believed.id), (pays.clone(), 7, Uuid::from_u128(1)));
        let nothing = Content::nothing(believed.read.sender);
        assert!(matches!(signed(&recorded(&nothing, true).await), Said::Signed(_)));
        let lane = believed.lane();
        for (name, wrong, of) in [
            ("another nonce", SweepEvent { nonce: 8, ..event.clone() }, lane),
            ("another chain", SweepEvent { chain_id: 6, ..event.clone() }, LaneId { chain: ChainId(6), ..lane }),
            (
                "another sender",
                SweepEvent { sender: vec![1; 20].into(), ..event.clone() },
                LaneId { sender: Address::repeat_byte(1), ..lane },
            ),
            ("another hash", SweepEvent { transaction_hash: vec![1; 32].into(), ..event.clone() }, lane),
            ("cut bytes", SweepEvent { raw: event.raw.slice(1..), ..event.clone() }, lane),
            ("no id", SweepEvent { transaction_id: String::new(), ..event.clone() }, lane),
            ("it pays", SweepEvent { cancels: true, ..event.clone() }, lane),
        ] {
            assert!(matches!(signed(&wrong), Said::WrongOfLane(found, _) if found == of), "{name}: {:?}", signed(&wrong));
        }
        let nobody = SweepEvent { sender: vec![1].into(), ..event };
        assert!(matches!(signed(&nobody), Said::Unreadable(Some(ChainId(5)), _)), "{:?}", signed(&nobody));
    }
}
