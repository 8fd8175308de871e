//! What no root proves, held against a second endpoint: parts that a chain hashes in a way of its own, and call traces, which
//! nothing hashes.

use super::{BlockId, FetchError, FetchedBlock, PlacedLog, Reading, Status, fetch_from, traced};
use crate::block::{Block, Transaction};
use crate::config::Verify;
use crate::proof::{Part, Proof, Unproven};
use crate::rpc::{Endpoint, Rpc};
use alloy::primitives::{Address, B256, U256};
use std::sync::Arc;

/// Asks others for what is not proven of a block. Whatever their circuits say, since one that has just failed is better than
/// none. Those that do not answer, or do not know the block yet, hinder nothing.
///
/// # Errors
/// When another says something else. Then neither is believed.
pub(super) async fn cross_check(rpc: &Rpc, asked: &Arc<Endpoint>, fetched: &FetchedBlock) -> Result<(), FetchError> {
    let Proof { header, transactions, receipts, withdrawals: _ } = &fetched.proof;
    let unproven = [header, transactions, receipts].into_iter().any(|part| *part != Part::Root);
    let mut traced = fetched.internal.as_ref().filter(|_| !fetched.block.transactions.is_empty());
    let mut unproven = unproven.then_some(fetched);
    for other in rpc.by_preference().into_iter().filter(|other| !Arc::ptr_eq(other, asked)) {
        if unproven.is_none() && traced.is_none() {
            break;
        }
        if other.check_chain().await.is_err() {
            continue;
        }
        if let Some(ours) = unproven
            && let Some(theirs) = ask(&other, ours.block.hash).await
        {
            difference(ours, &theirs).map_or(Ok(()), |what| Err(contradiction(fetched, what, asked, &other)))?;
            unproven = None;
        }
        if let Some(ours) = traced
            && let Ok(theirs) = traced::get_internal(&other, fetched).await
        {
            if *ours != theirs {
                return Err(contradiction(fetched, "what contracts sent", asked, &other));
            }
            traced = None;
        }
    }
    Ok(())
}

async fn ask(other: &Endpoint, hash: B256) -> Option<FetchedBlock> {
    // Not proven again: it is the comparison that counts.
    let reading = Reading { verify: Verify::Off, traces: false };
    Box::pin(fetch_from(other, reading, BlockId::Hash(hash))).await.ok()?
}

/// The other is asked first next time: if it can prove its answer, that settles it.
fn contradiction(fetched: &FetchedBlock, what: &str, asked: &Endpoint, other: &Endpoint) -> FetchError {
    asked.lied();
    let (one, two) = (asked.host(), other.host());
    FetchError::Unproven {
        endpoint: format!("{one} or {two}"),
        source: Unproven::new(fetched.block.number, what, format!("what {two} says"), format!("something else from {one}")),
    }
}

fn difference(ours: &FetchedBlock, theirs: &FetchedBlock) -> Option<&'static str> {
    let roots =
        |block: &Block| (block.number, block.parent_hash, block.timestamp, block.transactions_root, block.receipts_root);
    if roots(&ours.block) != roots(&theirs.block) {
        Some("the header")
    } else if !ours.block.transactions.iter().map(paying).eq(theirs.block.transactions.iter().map(paying)) {
        Some("the transactions")
    } else if !ours.logs.iter().map(PlacedLog::content).eq(theirs.logs.iter().map(PlacedLog::content)) {
        Some("the logs")
    } else if !agree(&ours.statuses, &theirs.statuses) {
        Some("the outcome of the transactions")
    } else {
        None
    }
}

/// What of a transaction a payment depends on.
fn paying(transaction: &Transaction) -> (B256, Option<Address>, U256, u64) {
    (transaction.hash, transaction.to, transaction.value, transaction.kind)
}

/// Where both know how a transaction ended, they say the same.
fn agree(ours: &[Status], theirs: &[Status]) -> bool {
    let both = ours.iter().zip(theirs).filter(|(ours, theirs)| **ours != Status::Unknown && **theirs != Status::Unknown);
    ours.len() == theirs.len() && both.into_iter().all(|(ours, theirs)| ours == theirs)
}
