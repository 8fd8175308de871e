//! Where a chain begins of which nothing was published, or nothing is left: so deep below its head that no reorg can bring back,
//! below it, money that was above.

use crate::depth::{last_final_block, reached_head};
use chain::{BlockId, Chain, Endpoint, Head, Rpc, fetch_below_hole, fetch_head, fetch_standings, look_at};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The first block to publish lies at most this deep below the head, however slowly a chain finalises: it bounds the first start.
const MAX_FIRST_DEPTH: u64 = 4096;

/// Numbers below a first one without a block at which another is looked for. It is likelier that nodes hold none as old.
const MAX_LOOKED_AT: u64 = 16;

/// The blocks to publish first: to reach `start`, or the head if there is none. An endpoint has shown its head; it counts as far as
/// enough others have reached it, or one could let a chain begin on blocks of its own, above all others. `None` while too few say
/// where theirs is, and it is patient.
pub async fn find_beginning(
    rpc: &Rpc,
    chain: &Chain,
    shown: (&Arc<Endpoint>, Head),
    start: Option<u64>,
    is_patient: bool,
) -> Option<RangeInclusive<u64>> {
    let head = shown.1.number;
    let standings = fetch_standings(rpc, Some(shown)).await;
    // Not all have to answer for ever: this is about how much is published, and not about what is believed.
    let asked = standings.iter().filter(|standing| is_patient || standing.head.is_some());
    let providers = asked.map(|standing| standing.provider.as_str()).collect::<HashSet<_>>().len();
    let needed = chain.witnesses.min(providers).max(1);
    let reached = reached_head(&standings, needed)?;
    let last = head.min(reached);
    let start = start.unwrap_or(reached);
    if start > reached {
        return Some(start..=last);
    }
    let last_final = last_final_block(&standings, needed).unwrap_or(reached);
    let mut first = start.min(last_final.max(reached.saturating_sub(MAX_FIRST_DEPTH)));
    loop {
        // The chain may skip the number. Nothing is lost if it begins with a block below.
        if let Some(number) = find_at_or_below(rpc, first).await {
            return Some(number..=last);
        }
        if first >= start {
            return Some(start..=last);
        }
        // A node may hold no blocks as old as that.
        first = start - (start - first) / 2;
    }
}

/// The highest block at a height or somewhat below.
async fn find_at_or_below(rpc: &Rpc, number: u64) -> Option<u64> {
    for number in (number.saturating_sub(MAX_LOOKED_AT)..=number).rev() {
        if fetch_head(rpc, Some(BlockId::Number(number))).await.ok()?.is_some() {
            return Some(number);
        }
    }
    below_wide_hole(rpc, number).await
}

/// The block below a hole that is wider than that, as far as an endpoint tells by the parent of the block above.
async fn below_wide_hole(rpc: &Rpc, number: u64) -> Option<u64> {
    for endpoint in rpc.endpoints() {
        if let Ok(Some(above)) = look_at(endpoint, number).await
            && let Some(below) = fetch_below_hole(endpoint, above, number).await
        {
            return Some(below.number);
        }
    }
    None
}
