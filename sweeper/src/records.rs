//! Records of `sweep.events`, and how they come to Kafka: idempotent, acknowledged by all replicas, and waited for.

use crate::engine::outgoing::Kind;
use crate::engine::rows::read_kind;
use crate::engine::store::Record;
use crate::engine::work::Records;
use alloy::primitives::{Address, B256};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka};
use std::fmt;
use topics::wire::SweepEvent;
use topics::{Message as _, Topic};
use uuid::Uuid;

pub const SIGNED: &str = "sweep.signed";
/// What becomes of one, as the types say behind `sweep.`, and as rows do.
pub const OUTCOMES: [&str; 3] = ["final", "failed", "dropped"];

/// The key of a transaction that a sweep asked for begins so; the sweep's id follows.
pub const SWEEP_KEY: &str = "sweep:";

/// The sweep that a transaction is for; one that fills a nonce is for itself.
pub fn sweep_of(transaction: Uuid, idempotency_key: &str) -> Uuid {
    let named = idempotency_key.strip_prefix(SWEEP_KEY).and_then(|rest| rest.split(':').next());
    named.and_then(|id| id.parse().ok()).unwrap_or(transaction)
}

/// The record of a signed transaction.
pub fn signed_event(chain_name: &str, record: &Record) -> SweepEvent {
    SweepEvent {
        id: format!("swe_{}_signed_{}", record.id.simple(), alloy::hex::encode(record.hash)),
        r#type: SIGNED.to_owned(),
        sweep_id: sweep_of(record.id, &record.idempotency_key).to_string(),
        transaction_id: record.id.to_string(),
        chain_id: record.lane.chain.0,
        chain: chain_name.to_owned(),
        kind: record.kind.as_str().to_owned(),
        sender: record.lane.sender.to_vec().into(),
        nonce: record.nonce,
        transaction_hash: record.hash.to_vec().into(),
        raw: record.raw.to_vec().into(),
        cancels: record.cancels,
        idempotency_key: record.idempotency_key.clone(),
        request_hash: record.request_hash.to_vec().into(),
        occurred_at: record.signed_at,
        ..SweepEvent::default()
    }
}

/// What a record of a signed transaction says, beside the transaction itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub id: Uuid,
    pub kind: Kind,
    pub sender: Address,
    pub nonce: u64,
    pub hash: B256,
    pub cancels: bool,
    pub idempotency_key: String,
    pub request_hash: B256,
}

impl Told {
    /// # Errors
    /// With the field that can't be read.
    pub fn of(event: &SweepEvent) -> Result<Self, String> {
        let kind = read_kind(&event.kind);
        if kind.as_str() != event.kind {
            return Err(format!("kind: {:?} is not known", event.kind));
        }
        Ok(Self {
            id: event.transaction_id.parse().map_err(|error| format!("transaction_id: {error}"))?,
            kind,
            sender: topics::address("sender", &event.sender).map_err(|error| format!("sender: {error}"))?,
            nonce: event.nonce,
            hash: B256::try_from(&event.transaction_hash[..]).map_err(|error| format!("transaction_hash: {error}"))?,
            cancels: event.cancels,
            idempotency_key: event.idempotency_key.clone(),
            request_hash: B256::try_from(&event.request_hash[..]).map_err(|error| format!("request_hash: {error}"))?,
        })
    }
}

/// `sweep.events`, as the engine of a chain writes it.
#[derive(Clone)]
pub struct SweepEvents {
    pub kafka: Kafka,
    pub publisher: Publisher,
    pub chain_name: String,
}

impl fmt::Debug for SweepEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SweepEvents({})", self.chain_name)
    }
}

/// Writes records, and returns the outcome of each, in their order, when Kafka has acknowledged or refused all. One that was
/// not acknowledged may be there all the same; a partition without a leader keeps no other from being acknowledged.
pub async fn write_each(kafka: &Kafka, publisher: &Publisher, events: &[SweepEvent]) -> Vec<Result<(), Failure>> {
    let records: Vec<_> = events.iter().map(|event| (event.key(), kafka.encode(event))).collect();
    let mut outcomes: Vec<_> = publisher.publish_each(Topic::Sweeps, &records).collect().await;
    outcomes.sort_by_key(|(place, _)| *place);
    let name = kafka.name(Topic::Sweeps);
    let refused = |error: anyhow::Error| Failure::Retry(error.context(format!("{name} did not take a record")));
    outcomes.into_iter().map(|(_, outcome)| outcome.map_err(refused)).collect()
}

impl Records for SweepEvents {
    fn publish<'r>(&'r self, records: &'r [Record]) -> BoxFuture<'r, Vec<Result<(), Failure>>> {
        async move {
            let events: Vec<SweepEvent> = records.iter().map(|record| signed_event(&self.chain_name, record)).collect();
            write_each(&self.kafka, &self.publisher, &events).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rows::LaneId;
    use alloy::primitives::Bytes;
    use topics::ChainId;

    #[test]
    fn a_record_says_all_that_the_engine_knew() {
        let (id, sweep) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let record = Record {
            id,
            kind: Kind::Sweep,
            lane: LaneId { chain: ChainId(5), sender: Address::repeat_byte(1) },
            nonce: 3,
            hash: B256::repeat_byte(2),
            raw: Bytes::from_static(b"raw"),
            cancels: true,
            idempotency_key: format!("sweep:{sweep}"),
            request_hash: B256::repeat_byte(4),
            signed_at: 9,
        };
        let event = signed_event("anvil", &record);
        assert_eq!(event.key(), format!("5/{sweep}"));
        let Record { kind, nonce, hash, cancels, ref idempotency_key, request_hash, .. } = record;
        let (sender, idempotency_key) = (record.lane.sender, idempotency_key.clone());
        assert_eq!(Told::of(&event), Ok(Told { id, kind, sender, nonce, hash, cancels, idempotency_key, request_hash }));
        for (field, wrong) in [
            ("transaction_id", SweepEvent { transaction_id: "x".into(), ..event.clone() }),
            ("kind", SweepEvent { kind: "gift".into(), ..event.clone() }),
            ("sender", SweepEvent { sender: vec![1].into(), ..event.clone() }),
            ("transaction_hash", SweepEvent { transaction_hash: vec![1].into(), ..event.clone() }),
            ("request_hash", SweepEvent { request_hash: vec![1].into(), ..event.clone() }),
        ] {
            assert!(Told::of(&wrong).unwrap_err().starts_with(field), "{field}");
        }
    }

    #[test]
    fn a_sweep_is_named_by_the_key() {
        let (id, sweep) = (Uuid::from_u128(7), Uuid::from_u128(8));
        assert_eq!(sweep_of(id, &format!("sweep:{sweep}")), sweep);
        assert_eq!(sweep_of(id, &format!("sweep:{sweep}:funding")), sweep);
        assert_eq!(sweep_of(id, "gap:1"), id);
    }
}
