//! Chains that are set aside: one whose records can't be applied, or that chains.yaml does not have, stops no other.
//!
//! Its records stay unread from an offset of its own on (`runtime::set_aside`), while the partition's offset moves on with its
//! neighbours. `returning` brings it back.

use crate::fold::{Batch, ChainFault, FOLDING, MAX_PAYMENTS_IN_MEMORY, fold_chains};
use anyhow::anyhow;
use base::metrics;
use chain::Chains;
use deadpool_postgres::Pool;
use runtime::kafka::Record;
use runtime::{Failure, SetAside, Span};
use std::collections::{BTreeMap, HashSet};
use topics::{ChainId, Kind, Matches, frame, wire};

/// The chains of a batch whose records can't be applied, and why.
pub type Faults = BTreeMap<ChainId, String>;

/// Reads a record. One that can't be read is a fault of its chain, which the key names.
///
/// # Errors
/// `Halt` when the key names no chain.
pub fn read(record: &Record<'_>, faults: &mut Faults) -> Result<Option<Matches>, Failure> {
    let decoded = frame::decode::<wire::MatchesRecord>(record.payload()).map_err(|e| format!("{e}"));
    let fault = match decoded.and_then(|decoded| Matches::try_from(&decoded).map_err(|e| format!("{e}"))) {
        Ok(matches) => return Ok(Some(matches)),
        Err(fault) => format!("{}: {fault}", FOLDING.place(record)),
    };
    let chain = record.chain().ok_or_else(|| Failure::Halt(anyhow!("{fault}; and its key names no chain")))?;
    faults.entry(chain).or_insert(fault);
    Ok(None)
}

/// Applies a batch, but for the chains that are set aside; `faults` are set aside as well, from the batch's beginning on. Returns
/// how many events it emitted.
///
/// # Errors
/// `Retry` when the database fails or another instance has read on.
pub async fn apply(pool: &Pool, chains: &Chains, batch: &Batch, mut faults: Faults) -> Result<usize, Failure> {
    for record in &batch.records {
        if chains.by_id(record.chain).is_none() {
            faults.entry(record.chain).or_insert_with(|| unlisted(record.chain));
        }
    }
    loop {
        match attempt(pool, chains, batch, &faults).await? {
            Err(ChainFault { chain, failure: Failure::Halt(cause) }) => {
                faults.insert(chain, format!("{cause:#}; `ctrip chain restart {chain}` begins anew"));
            }
            outcome => return outcome.map_err(|fault| fault.failure),
        }
    }
}

fn unlisted(chain: ChainId) -> String {
    format!(
        "the chains file does not have it; once it does, its records are applied, or `ctrip chain forget {chain}` drops them"
    )
}

async fn attempt(pool: &Pool, chains: &Chains, batch: &Batch, faults: &Faults) -> Result<Result<usize, ChainFault>, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let waiting = FOLDING.claim_beside_set_aside(&tx, &batch.span).await?;
    let mut skipped: HashSet<ChainId> = waiting.iter().filter_map(chain_of).collect();
    let new: Vec<(&ChainId, &String)> = faults.iter().filter(|(chain, _)| skipped.insert(**chain)).collect();
    for (chain, cause) in &new {
        let Span { topic, partition, from, .. } = &batch.span;
        FOLDING.set_aside(&tx, (topic, *partition), &chain.to_string(), *from, cause).await?;
    }
    let events = match fold_chains(&tx, chains, &batch.records, &skipped, MAX_PAYMENTS_IN_MEMORY).await {
        Ok(events) => events,
        Err(fault) => return Ok(Err(fault)),
    };
    tx.commit().await?;
    for (chain, cause) in new {
        tracing::error!("chain {chain} is set aside, the others go on: {cause}");
    }
    report(chains, batch.records.iter().filter(|record| !skipped.contains(&record.chain)));
    Ok(Ok(events))
}

/// Tells up to which time the chains of these records are applied.
fn report<'a>(chains: &Chains, records: impl Iterator<Item = &'a Matches>) {
    let heads: BTreeMap<ChainId, u64> =
        records.filter(|record| record.kind == Kind::Added).map(|record| (record.chain, record.timestamp)).collect();
    for (chain, timestamp) in heads {
        if let Some(chain) = chains.by_id(chain) {
            #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
            metrics::CHAIN_APPLIED.gauge(&[("chain", &chain.name)]).set(timestamp as f64);
        }
    }
}

pub(crate) fn chain_of(item: &SetAside) -> Option<ChainId> {
    item.item.parse().ok().map(ChainId)
}
