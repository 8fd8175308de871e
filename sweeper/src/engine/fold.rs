//! Inputs applied to the rows of a lane, in a transaction of Postgres: the lane is locked, each row is stepped and saved.

use super::outgoing::{Action, Input, Mined, Moment, Pace};
use super::rows::{LaneId, Stored};
use super::step::step;
use super::store::{self, Lane};
use alloy::primitives::{Address, B256};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::BTreeMap;
use topics::{BlockRef, ChainId};
use uuid::Uuid;

/// What a row is after its input, and what is to be done.
#[derive(Debug)]
pub struct Stepped {
    pub stored: Stored,
    pub actions: Vec<Action>,
}

/// One record of a chain's history, as `chain.blocks` has it, in the order in which it has them.
#[derive(Clone, Debug)]
pub enum ChainEvent {
    Added {
        block: BlockRef,
        transactions: Vec<SeenTransaction>,
    },
    Removed(BlockRef),
    /// This block and all below it are final, and were given before.
    Final(u64),
}

/// A transaction of a block.
#[derive(Clone, Copy, Debug)]
pub struct SeenTransaction {
    pub hash: B256,
    pub from: Address,
    pub nonce: u64,
    pub succeeded: bool,
    pub gas_used: u64,
    /// What each unit of gas cost, in wei.
    pub gas_price: u128,
}

/// Applies what happened on a chain. The caller's transaction has its place in `chain.blocks` too, so that each record is
/// applied once; twice does no harm.
///
/// # Errors
/// When the database fails.
pub async fn apply_chain_event(
    tx: &impl GenericClient,
    chain: ChainId,
    event: &ChainEvent,
    pace: &Pace,
) -> Result<(), Failure> {
    let mut inputs: BTreeMap<LaneId, Vec<(Uuid, Input)>> = BTreeMap::new();
    let mut add = |lane: LaneId, id: Uuid, input: Input| inputs.entry(lane).or_default().push((id, input));
    match event {
        ChainEvent::Added { block, transactions } => {
            let uses: Vec<_> = transactions.iter().map(|seen| (seen.from, seen.nonce, seen.hash)).collect();
            for (lane, id, hash, is_ours) in store::of_block(tx, chain, &uses).await? {
                let Some(seen) = transactions.iter().find(|seen| seen.hash == hash) else { continue };
                let SeenTransaction { nonce, succeeded, gas_used, gas_price, .. } = *seen;
                add(
                    lane,
                    id,
                    if is_ours {
                        Input::SeenInBlock(Mined { hash, block: *block, succeeded, gas_used, gas_price })
                    } else {
                        Input::ForeignNonce { nonce, number: block.number }
                    },
                );
            }
        }
        ChainEvent::Removed(block) => {
            store::of_removed(tx, chain, block).await?.into_iter().for_each(|(lane, id)| add(lane, id, Input::Removed(*block)));
        }
        ChainEvent::Final(number) => {
            store::of_final(tx, chain, *number).await?.into_iter().for_each(|(lane, id)| add(lane, id, Input::Final(*number)));
        }
    }
    // What is to be done follows from the state: the engine finds it at its next turn. Here gas costs nothing and nobody is
    // lowest.
    let moment = Moment { time: 0, market: None, is_lowest: false, pace: *pace };
    // In the order of the lanes, so that nobody waits in a circle.
    for (lane, inputs) in inputs {
        if store::lock(tx, &lane).await?.is_some() {
            for Stepped { stored, actions } in apply(tx, None, &inputs, &moment).await? {
                tell(&stored, &actions);
            }
        }
    }
    Ok(())
}

/// Applies inputs to rows of a lane that is locked, and saves them. What contradicts all that is known is noted, and changes
/// nothing. Each row is returned once, as it is after its last input.
pub(super) async fn apply(
    tx: &impl GenericClient,
    lane: Option<&Lane>,
    inputs: &[(Uuid, Input)],
    moment: &Moment,
) -> Result<Vec<Stepped>, Failure> {
    let mut ids: Vec<Uuid> = inputs.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    let rows = store::load(tx, &ids).await?;
    let mut rows: Vec<Stepped> = rows.into_iter().map(|stored| Stepped { stored, actions: Vec::new() }).collect();
    for (id, input) in inputs {
        let Some(Stepped { stored, actions }) = rows.iter_mut().find(|row| row.stored.id == *id) else { continue };
        let is_lowest = lane.is_some_and(|lane| lane.lowest.is_some() && lane.lowest == stored.outgoing.nonce);
        match step(&stored.outgoing, input, &Moment { is_lowest, ..*moment }) {
            Ok(step) => {
                store::save(tx, *id, &stored.outgoing, &step.next, &moment.pace).await?;
                stored.outgoing = step.next;
                // What the state asks for is said anew by each step; what an input alone asked for is kept.
                actions.retain(|action| matches!(action, Action::Tell(_) | Action::AskNonce | Action::FillGaps));
                actions.extend(step.actions);
            }
            Err(contradiction) => {
                tracing::error!(outgoing = %id, ?input, "set aside, since it contradicts what is known: {contradiction}");
                store::note_contradiction(tx, *id, &contradiction).await?;
            }
        }
    }
    Ok(rows)
}

/// Tells what holds one up.
pub(super) fn tell(stored: &Stored, actions: &[Action]) {
    for action in actions {
        if let Action::Tell(notice) = action {
            let (chain, sender) = (stored.lane.chain, stored.lane.sender);
            tracing::warn!(outgoing = %stored.id, %chain, %sender, nonce = ?stored.outgoing.nonce, "{notice}");
        }
    }
}
