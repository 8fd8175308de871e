//! The content of a block: what payments depend on, and a hash does not prove where a chain hashes in its own way.

use super::block_id::BlockId;
use super::fetched::{FetchedBlock, PlacedLog};
use super::from_endpoint::fetch_from_endpoint;
use super::head::Witnesses;
use crate::block::{Block, ReceiptStatus, Transaction};
use crate::proof::Verify;
use crate::rpc::{Endpoint, Rpc};
use alloy::primitives::{Address, B256, Keccak256, U256};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::time::Duration;

/// How long each endpoint is listened to: an answer may take many requests, each of which comes just in time.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The first part that differs.
pub(super) fn difference(ours: &FetchedBlock, theirs: &FetchedBlock) -> Option<&'static str> {
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
fn payment_fields(transaction: &Transaction) -> (B256, Address, Option<Address>, U256, u64) {
    (transaction.hash, transaction.from, transaction.to, transaction.value, transaction.kind)
}

/// Whether the statuses agree wherever both are known.
fn statuses_agree(ours: &[ReceiptStatus], theirs: &[ReceiptStatus]) -> bool {
    let both =
        ours.iter().zip(theirs).filter(|(ours, theirs)| **ours != ReceiptStatus::Unknown && **theirs != ReceiptStatus::Unknown);
    ours.len() == theirs.len() && both.into_iter().all(|(ours, theirs)| ours == theirs)
}

impl FetchedBlock {
    /// A digest of the content. Endpoints that say the same of all that a payment depends on have the same.
    pub fn content_digest(&self) -> B256 {
        let mut digest = Keccak256::new();
        let Block { number, parent_hash, timestamp, transactions_root, receipts_root, .. } = &self.block;
        digest.update(number.to_be_bytes());
        digest.update(timestamp.to_be_bytes());
        [parent_hash, transactions_root, receipts_root].into_iter().for_each(|hash| digest.update(hash));
        digest.update(self.block.transactions.len().to_be_bytes());
        for (transaction, status) in self.block.transactions.iter().zip(&self.statuses) {
            let (hash, from, to, value, kind) = payment_fields(transaction);
            digest.update(hash);
            digest.update(from);
            digest.update(to.unwrap_or_default());
            digest.update([u8::from(to.is_some())]);
            digest.update(value.to_be_bytes::<32>());
            digest.update(kind.to_be_bytes());
            digest.update([match status {
                // Not every endpoint tells it, and nothing rests on it.
                _ if value.is_zero() => 0,
                ReceiptStatus::Success => 1,
                ReceiptStatus::Reverted => 2,
                ReceiptStatus::Unknown => 3,
            }]);
        }
        for (address, topics, data, transaction) in self.logs.iter().map(PlacedLog::content) {
            digest.update(address);
            digest.update(topics.len().to_be_bytes());
            topics.iter().for_each(|topic| digest.update(topic));
            digest.update(data.len().to_be_bytes());
            digest.update(data);
            digest.update(transaction);
        }
        digest.finalize()
    }

    /// Whether it tells the outcome of each transaction that carries value: all that moves the value rests on it.
    pub(super) fn tells_outcomes(&self) -> bool {
        let mut outcomes = self.block.transactions.iter().zip(&self.statuses);
        outcomes.all(|(transaction, status)| transaction.value.is_zero() || *status != ReceiptStatus::Unknown)
    }
}

/// Which endpoints give this content for a block, and which give another that is proven as `verify` asks, as far as they answer
/// before so many providers have given it.
pub async fn find_content_witnesses(rpc: &Rpc, verify: Verify, hash: B256, content: B256, needed: usize) -> Witnesses {
    let ask = |endpoint| tokio::time::timeout(MAX_WAIT, gives(endpoint, verify, hash, content));
    let questions = rpc.endpoints().iter().map(|endpoint| async move { (endpoint, ask(endpoint).await) });
    let mut answers: FuturesUnordered<_> = questions.collect();
    let mut witnesses = Witnesses::default();
    while witnesses.count_with() < needed
        && let Some(answer) = answers.next().await
    {
        match answer {
            (endpoint, Ok(Some(true))) => witnesses.with.push(endpoint.clone()),
            (endpoint, Ok(Some(false))) => witnesses.against.push(endpoint.clone()),
            (_, Ok(None) | Err(_)) => {}
        }
    }
    witnesses
}

/// Whether an endpoint gives this content, if it gives any that could take its place.
async fn gives(endpoint: &Endpoint, verify: Verify, hash: B256, content: B256) -> Option<bool> {
    endpoint.check_chain_id().await.ok()?;
    let fetch = async |verify| fetch_from_endpoint(endpoint, verify, BlockId::Hash(hash)).await.ok().flatten();
    // Without a proof: only the comparison counts.
    if fetch(Verify::Off).await?.content_digest() == content {
        return Some(true);
    }
    // An answer that could not take the block's place says nothing against it.
    let other = fetch(verify).await.filter(FetchedBlock::tells_outcomes)?;
    (other.content_digest() != content).then_some(false)
}
