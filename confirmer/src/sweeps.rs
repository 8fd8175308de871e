//! What sweeps have moved, from `sweep.events` into Postgres: a batch is one transaction with the offset that it ends at. `settle` makes
//! events of it.
//!
//! Only `sweep.final` says that something has left for good; all others are passed over. A record is known by its transaction and the total
//! that it says, so one that comes again, late or out of order changes nothing. One that can't be read is set aside, and the others go on.

use anyhow::{anyhow, ensure};
use base::error_chain;
use deadpool_postgres::Pool;
use payments::Settlement;
use payments::store;
use payments::swept::{Swept, SweptAsset};
use runtime::kafka::Record;
use runtime::{Failure, FoldStage, Kafka, Span};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::{SweepEvent, sweep_event};
use topics::{Amount, BlockRef, ChainId, Topic, frame};

pub const FOLDING: FoldStage =
    FoldStage { stage: "settling", topic: Topic::Sweeps, max_records: 256, max_bytes: 4 * 1024 * 1024, on_return: None };
/// The type of the records that say what has left.
const FINAL: &str = "sweep.final";

/// Consumes until `stop`.
///
/// # Errors
/// `Retry` when Kafka or the database fails.
pub fn follow(kafka: &Kafka, pool: &Pool, handle: &Handle, stop: &CancellationToken) -> Result<(), Failure> {
    handle.block_on(FOLDING.report_set_aside(kafka, pool, "sweep_event"))?;
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        for (span, records) in spans {
            if handle.block_on(apply(pool, span, records))? {
                handle.block_on(FOLDING.report_set_aside(kafka, pool, "sweep_event"))?;
            }
        }
        Ok(())
    })
}

/// Returns whether something was set aside.
async fn apply(pool: &Pool, span: &Span, records: &[&Record<'_>]) -> Result<bool, Failure> {
    let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
    for record in records {
        match read(record) {
            Ok(moved) => rows.extend(moved),
            Err(cause) => {
                let (offset, partition) = (record.offset(), span.partition);
                let cause = format!(
                    "{cause}; what it has moved settles nothing, before a later sweep of the same address: `ctrip tail {0} --from \
                     {offset}` shows it in {0}/{partition}",
                    FOLDING.topic
                );
                unreadable.push((offset, cause));
            }
        }
    }
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    FOLDING.claim(&tx, span).await?;
    store::save_swept(&tx, &rows).await?;
    let partition = span.partition;
    for (offset, cause) in &unreadable {
        FOLDING.set_aside(&tx, (&span.topic, partition), &format!("{partition}/{offset}"), *offset, cause).await?;
    }
    tx.commit().await?;
    for (_, cause) in &unreadable {
        tracing::error!("a record is set aside, the others go on: {cause}");
    }
    Ok(!unreadable.is_empty())
}

/// What a record says to have left for good.
fn read(record: &Record<'_>) -> Result<Vec<(SweptAsset, Swept)>, String> {
    let event: SweepEvent = frame::decode(record.payload()).map_err(|error| error_chain(&error))?;
    if event.r#type != FINAL {
        return Ok(Vec::new());
    }
    moved(&event).map_err(|error| format!("sweep {}: {error:#}", event.sweep_id))
}

fn moved(event: &SweepEvent) -> anyhow::Result<Vec<(SweptAsset, Swept)>> {
    ensure!(i64::try_from(event.chain_id).is_ok(), "chain_id: no chain has the id {}", event.chain_id);
    let block = event.block.as_ref().ok_or_else(|| anyhow!("block: a final transaction is in one"))?;
    let settlement = Settlement {
        transaction: topics::hash("transaction_hash", &event.transaction_hash)?,
        block: BlockRef { number: block.number, hash: topics::hash("block.hash", &block.hash)? },
        // A receipt does not tell it.
        timestamp: topics::check_timestamp(if block.timestamp == 0 { event.occurred_at } else { block.timestamp })?,
        fee: event.fee.as_ref().map(|fee| Amount::from_wire(fee)).transpose()?,
    };
    let row = |moved: &sweep_event::Moved| {
        let asset = SweptAsset {
            chain: ChainId(event.chain_id),
            address: topics::address("moved.address", &moved.address)?,
            token: topics::contract("moved.token_address", &moved.token_address)?,
        };
        let (amount, total) = (Amount::from_wire(&moved.amount)?, Amount::from_wire(&moved.total)?);
        // With what has moved nothing nothing has left.
        let is_something = amount != Amount::ZERO && total != Amount::ZERO;
        Ok::<_, anyhow::Error>(is_something.then_some((asset, Swept { total, settlement })))
    };
    event.moved.iter().filter_map(|moved| row(moved).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> SweepEvent {
        let moved = |token: &[u8], amount: &[u8], total: &[u8]| sweep_event::Moved {
            address: vec![7; 20].into(),
            token_address: token.to_vec().into(),
            amount: amount.to_vec().into(),
            total: total.to_vec().into(),
        };
        SweepEvent {
            r#type: FINAL.to_owned(),
            chain_id: 5,
            transaction_hash: vec![1; 32].into(),
            block: Some(sweep_event::Block { number: 9, hash: vec![2; 32].into(), timestamp: 70 }),
            fee: Some(vec![3].into()),
            moved: vec![
                moved(&[], &[1], &[100]),
                moved(&[8; 20], &[1], &[1, 0]),
                moved(&[9; 20], &[], &[]),
                moved(&[10; 20], &[], &[100]),
            ],
            occurred_at: 71,
            ..SweepEvent::default()
        }
    }

    #[test]
    fn what_has_left_is_told_by_asset_with_its_transaction_and_block() {
        let moved = moved(&event()).unwrap();
        let told: Vec<_> = moved.iter().map(|(asset, swept)| (asset.token.is_some(), swept.total.to_string())).collect();
        assert_eq!(
            told,
            [(false, "100".to_owned()), (true, "256".to_owned())],
            "what has moved nothing covers nothing, whatever had left before"
        );
        let (asset, Swept { settlement, .. }) = moved[0];
        assert_eq!((asset.chain, settlement.block.number, settlement.timestamp), (ChainId(5), 9, 70));
        assert_eq!(settlement.fee, Some(Amount::from(3)));
    }

    #[test]
    fn a_block_that_only_a_receipt_tells_of_has_the_time_of_the_record() {
        let block = event().block.map(|block| sweep_event::Block { timestamp: 0, ..block });
        assert_eq!(moved(&SweepEvent { block, fee: None, ..event() }).unwrap()[0].1.settlement.timestamp, 71);
    }

    #[test]
    fn what_can_t_be_of_a_final_transaction_is_refused() {
        let refused = [
            SweepEvent { chain_id: u64::MAX, ..event() },
            SweepEvent { block: None, ..event() },
            SweepEvent { transaction_hash: vec![1; 31].into(), ..event() },
            SweepEvent { fee: Some(vec![1; 33].into()), ..event() },
            SweepEvent { moved: vec![sweep_event::Moved::default()], ..event() },
        ];
        for event in refused {
            assert!(moved(&event).is_err(), "{event:?}");
        }
    }
}
