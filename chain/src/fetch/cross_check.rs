//! What no root covers, a second endpoint must confirm: parts that a chain hashes in its own way, and call traces, which
//! nothing hashes.

use super::block_id::BlockId;
use super::error::FetchError;
use super::fetched::{FetchedBlock, PlacedLog};
use super::from_endpoint::fetch_from_endpoint;
use super::options::FetchOptions;
use super::traces;
use crate::block::{Block, ReceiptStatus, Transaction};
use crate::proof::{PartProof, Proof, ProofError, Verify};
use crate::rpc::{Endpoint, Rpc};
use alloy::primitives::{Address, B256, U256};
use std::sync::Arc;

/// Compares what is not proven with another endpoint's answer. Endpoints with an open circuit are asked too: one that has just
/// failed is better than none. An endpoint that does not answer, or does not have the block yet, is skipped; if none is left,
/// `asked` is trusted alone.
///
/// # Errors
/// If another endpoint contradicts. Then neither is trusted.
pub(super) async fn confirm_elsewhere(rpc: &Rpc, asked: &Arc<Endpoint>, fetched: &FetchedBlock) -> Result<(), FetchError> {
    let Proof { header, transactions, receipts, withdrawals: _ } = &fetched.proof;
    let unproven = [header, transactions, receipts].into_iter().any(|part| *part != PartProof::Root);
    let mut traced = fetched.internal.as_ref().filter(|_| !fetched.block.transactions.is_empty());
    let mut unproven = unproven.then_some(fetched);
    for other in rpc.by_preference().into_iter().filter(|other| !Arc::ptr_eq(other, asked)) {
        if unproven.is_none() && traced.is_none() {
            break;
        }
        if other.check_chain_id().await.is_err() {
            continue;
        }
        if let Some(ours) = unproven
            && let Some(theirs) = fetch_unproven(&other, ours.block.hash).await
        {
            difference(ours, &theirs).map_or(Ok(()), |what| Err(contradiction(fetched, what, asked, &other)))?;
            unproven = None;
        }
        if let Some(ours) = traced
            && let Ok(theirs) = traces::fetch_internal_transfers(&other, fetched).await
        {
            if *ours != theirs {
                return Err(contradiction(fetched, "what contracts sent", asked, &other));
            }
            traced = None;
        }
    }
    Ok(())
}

async fn fetch_unproven(other: &Endpoint, hash: B256) -> Option<FetchedBlock> {
    // Without a proof: only the comparison counts.
    let options = FetchOptions { verify: Verify::Off, traces: false };
    Box::pin(fetch_from_endpoint(other, options, BlockId::Hash(hash))).await.ok()?
}

/// Next time the other endpoint is asked first. If it can prove its answer, the contradiction is settled.
fn contradiction(fetched: &FetchedBlock, what: &str, asked: &Endpoint, other: &Endpoint) -> FetchError {
    asked.record_lie();
    let (one, two) = (asked.host(), other.host());
    FetchError::Unproven {
        endpoint: format!("{one} or {two}"),
        source: ProofError::new(fetched.block.number, what, format!("what {two} says"), format!("something else from {one}")),
    }
}

/// The first part that differs.
fn difference(ours: &FetchedBlock, theirs: &FetchedBlock) -> Option<&'static str> {
    let roots =
        |block: &Block| (block.number, block.parent_hash, block.timestamp, block.transactions_root, block.receipts_root);
    if roots(&ours.block) != roots(&theirs.block) {
        Some("the header")
    } else if !ours.block.transactions.iter().map(payment_fields).eq(theirs.block.transactions.iter().map(payment_fields)) {
        Some("the transactions")
    } else if !ours.logs.iter().map(PlacedLog::content).eq(theirs.logs.iter().map(PlacedLog::content)) {
        Some("the logs")
    } else if !statuses_agree(&ours.statuses, &theirs.statuses) {
        Some("the outcome of the transactions")
    } else {
        None
    }
}

/// The fields of a transaction that a payment depends on.
fn payment_fields(transaction: &Transaction) -> (B256, Option<Address>, U256, u64) {
    (transaction.hash, transaction.to, transaction.value, transaction.kind)
}

/// Whether the statuses agree wherever both are known.
fn statuses_agree(ours: &[ReceiptStatus], theirs: &[ReceiptStatus]) -> bool {
    let both =
        ours.iter().zip(theirs).filter(|(ours, theirs)| **ours != ReceiptStatus::Unknown && **theirs != ReceiptStatus::Unknown);
    ours.len() == theirs.len() && both.into_iter().all(|(ours, theirs)| ours == theirs)
}
