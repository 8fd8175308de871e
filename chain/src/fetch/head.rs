//! Heads: the newest one, a given one, tagged ones; and what single endpoints have.

use super::block_id::{BlockId, BlockTag, block_call};
use crate::block::{Head, MAX_SKIPPED};
use crate::rpc::{Answer, Endpoint, MAX_DEADLINE, Rpc, RpcError};
use alloy::primitives::B256;
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;

const BY_NUMBER: &str = "eth_getBlockByNumber";
/// Of the highest numbers that are looked at above a hole so many, and one, show whether an endpoint has blocks there at all.
const FAR_NUMBERS: u64 = 3;

/// Fetches a block's place in the chain; without an id, the newest head of the preferred endpoint.
///
/// # Errors
/// If no endpoint answered.
pub async fn fetch_head(rpc: &Rpc, id: Option<BlockId>) -> Result<Option<Head>, RpcError> {
    let Some(id) = id else { return Ok(fetch_newest(rpc).await?.map(|(_, head)| head)) };
    rpc.with_failover(|endpoint| async move { fetch_head_from(&endpoint, id).await }).await
}

/// Fetches the header of a block from this endpoint, and asks no other: another one's answer would be taken for its word.
///
/// # Errors
/// If it does not answer.
pub async fn fetch_head_from(endpoint: &Arc<Endpoint>, id: BlockId) -> Result<Option<Head>, RpcError> {
    let (method, params) = block_call(id, false);
    let answer = endpoint.request(method, params).await;
    if let BlockId::Number(number) = id { at_height(answer, number) } else { answer }
}

/// An endpoint's block at a height. That it has none there it says by null, by an error, or by the block below.
fn at_height(answer: Result<Option<Head>, RpcError>, number: u64) -> Result<Option<Head>, RpcError> {
    match answer {
        Err(error) if error.is_null_round() => Ok(None),
        answer => Ok(answer?.filter(|block| block.number == number)),
    }
}

/// Fetches the newest head, with the endpoint that answered it.
///
/// # Errors
/// If no endpoint answered.
pub async fn fetch_newest(rpc: &Rpc) -> Result<Option<(Arc<Endpoint>, Head)>, RpcError> {
    rpc.with_failover(|endpoint| async move {
        let head: Option<Head> = endpoint.request("eth_getBlockByNumber", json!(["latest", false])).await?;
        if let Some(head) = &head {
            endpoint.record_head(head.number);
        }
        rpc.refresh_heads(&endpoint);
        Ok(head.map(|head| (endpoint, head)))
    })
    .await
}

/// The `safe` and `finalized` blocks of an endpoint, as far as it has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub safe: Option<Head>,
    pub finalized: Option<Head>,
}

/// Fetches the tags of one endpoint. A tag that it lacks or does not answer is none: other endpoints have theirs.
pub async fn fetch_tags(endpoint: &Endpoint) -> Tags {
    if endpoint.check_chain_id().await.is_err() {
        return Tags::default();
    }
    let fetch = |tag: BlockTag| async move {
        let head: Result<Option<Head>, RpcError> = endpoint.request("eth_getBlockByNumber", json!([tag.as_str(), false])).await;
        head.inspect_err(|error| tracing::trace!(tag = tag.as_str(), "no tagged block: {error}")).ok().flatten()
    };
    let (safe, finalized) = tokio::join!(fetch(BlockTag::Safe), fetch(BlockTag::Finalized));
    Tags { safe, finalized }
}

/// Where an endpoint's chain stands, as far as it answers.
#[derive(Clone, Debug)]
pub struct Standing {
    /// [`Endpoint::provider`].
    pub provider: String,
    pub head: Option<Head>,
    pub tags: Tags,
}

/// Asks every endpoint where its chain stands. The head of one may be known already.
pub async fn fetch_standings(rpc: &Rpc, known: Option<(&Arc<Endpoint>, Head)>) -> Vec<Standing> {
    futures::future::join_all(rpc.endpoints().iter().map(|endpoint| async move {
        let head = async {
            if let Some((_, head)) = known.filter(|(known, _)| Arc::ptr_eq(known, endpoint)) {
                return Ok(Some(head));
            }
            endpoint.check_chain_id().await?;
            endpoint.request("eth_getBlockByNumber", json!(["latest", false])).await
        };
        let (head, tags): (Result<Option<Head>, RpcError>, Tags) = tokio::join!(head, fetch_tags(endpoint));
        Standing { provider: endpoint.provider().to_owned(), head: head.ok().flatten(), tags }
    }))
    .await
}

/// Looks at one endpoint: its block at a height; its head, if that is below; or, where its chain skips the height, the block
/// that comes next.
///
/// # Errors
/// If it does not answer in time, or is of another chain.
pub async fn look_at(endpoint: &Endpoint, number: u64) -> Result<Option<Head>, RpcError> {
    let late = |_| RpcError::Late { method: BY_NUMBER, endpoint: endpoint.host().to_owned(), after: MAX_DEADLINE };
    tokio::time::timeout(MAX_DEADLINE, look(endpoint, number)).await.map_err(late)?
}

async fn look(endpoint: &Endpoint, number: u64) -> Result<Option<Head>, RpcError> {
    endpoint.check_chain_id().await?;
    let (method, params) = block_call(BlockId::Number(number), false);
    let block = at_height(endpoint.request(method, params).await, number)?;
    if block.is_some() {
        return Ok(block);
    }
    let head: Option<Head> = endpoint.request(method, json!(["latest", false])).await?;
    match head {
        Some(head) if head.number > number => look_above(endpoint, number, head).await,
        head => Ok(head),
    }
}

/// The first block from a height on, if nothing of the endpoint's chain lies between: that it has no block there may come of
/// its lag, but the parent of the one above tells. That parent may be the block of the height, not yet given by its number.
async fn look_above(endpoint: &Endpoint, number: u64, head: Head) -> Result<Option<Head>, RpcError> {
    let last = head.number.min(number.saturating_add(MAX_SKIPPED));
    // One that has pruned its blocks has none at the far end either.
    let far = last.saturating_sub(FAR_NUMBERS).max(number + 1)..=last;
    let near = at_numbers(endpoint, [number].into_iter().chain(far)).await?;
    if let Some(at) = near.iter().flatten().find(|at| at.number == number) {
        return Ok(Some(*at));
    }
    if near.iter().all(Option::is_none) {
        return Ok(None);
    }
    let (mut next, mut count) = (number + 1, 1);
    while next <= last {
        let end = last.min(next.saturating_add(count - 1));
        if let Some(above) = at_numbers(endpoint, next..=end).await?.into_iter().flatten().next() {
            let (method, params) = block_call(BlockId::Hash(above.parent_hash), false);
            let parent: Option<Head> = endpoint.request(method, params).await?;
            let parent = parent.filter(|parent| parent.number <= number && above.stands_on(parent));
            return Ok(parent.map(|parent| if parent.number == number { parent } else { above }));
        }
        (next, count) = (end + 1, count * 2);
    }
    Ok(None)
}

/// The block that an endpoint has below a height which its chain skips: the parent of the one above, as [`look_at`] gave it.
pub async fn fetch_below_hole(endpoint: &Arc<Endpoint>, above: Head, number: u64) -> Option<Head> {
    let below = fetch_head_from(endpoint, BlockId::Hash(above.parent_hash)).await.ok()??;
    (below.number < number && number < above.number && above.stands_on(&below)).then_some(below)
}

/// The blocks of an endpoint at these heights, in few requests.
async fn at_numbers(endpoint: &Endpoint, numbers: impl Iterator<Item = u64>) -> Result<Vec<Option<Head>>, RpcError> {
    let numbers: Vec<u64> = numbers.collect();
    let calls: Vec<_> = numbers.iter().map(|number| block_call(BlockId::Number(*number), false)).collect();
    let answers = endpoint.batch(&calls).await?;
    let read = |(answer, number): (Result<Answer, RpcError>, &u64)| {
        at_height(answer.and_then(|answer| endpoint.read(BY_NUMBER, &answer)), *number)
    };
    answers.into_iter().zip(&numbers).map(read).collect()
}

/// Which endpoints have a block on their chain, and which have another.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    /// Endpoints that have the block.
    pub with: Vec<Arc<Endpoint>>,
    /// Endpoints that have another block at its height, or none there and others above.
    pub against: Vec<Arc<Endpoint>>,
    /// Endpoints whose head is below it. They have left it, or lag.
    pub below: Vec<Arc<Endpoint>>,
}

impl Witnesses {
    /// The number of providers that have the block.
    pub fn count_with(&self) -> usize {
        count_providers(&self.with)
    }

    /// The number of providers that have another block.
    pub fn count_against(&self) -> usize {
        count_providers(&self.against)
    }

    /// Whether `needed` providers have another block, and more than have this one.
    pub fn refute(&self, needed: usize) -> bool {
        self.count_against() >= needed && self.outvote()
    }

    /// The number of providers that answer and do not have the block.
    pub fn count_without(&self) -> usize {
        count_providers(self.against.iter().chain(&self.below))
    }

    /// Whether `needed` providers have the block, and are not outvoted.
    pub fn confirm(&self, needed: usize) -> bool {
        self.count_with() >= needed && !self.outvote()
    }

    /// Whether more providers have another block than have this one. A provider that has both counts for it.
    pub fn outvote(&self) -> bool {
        let others = self.against.iter().filter(|other| self.with.iter().all(|with| with.provider() != other.provider()));
        count_providers(others) > self.count_with()
    }
}

/// The number of distinct providers.
pub(super) fn count_providers<'a>(endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) -> usize {
    endpoints.into_iter().map(|endpoint| endpoint.provider()).collect::<HashSet<_>>().len()
}

/// Asks every endpoint for its block at a height. One whose chain skips the height has another above it. An endpoint that does
/// not answer is nowhere.
pub async fn find_witnesses(rpc: &Rpc, number: u64, hash: B256) -> Witnesses {
    let answers = futures::future::join_all(rpc.endpoints().iter().map(|endpoint| async move {
        let head = look_at(endpoint, number).await?;
        Ok((endpoint.clone(), head))
    }))
    .await;
    let mut witnesses = Witnesses::default();
    for (endpoint, head) in answers.into_iter().filter_map(Result::<_, RpcError>::ok) {
        match head {
            Some(head) if head.hash == hash => witnesses.with.push(endpoint),
            Some(head) if head.number < number => witnesses.below.push(endpoint),
            Some(_) => witnesses.against.push(endpoint),
            None => {}
        }
    }
    witnesses
}
