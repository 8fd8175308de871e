//! Inputs applied to the rows of a lane, in a transaction of Postgres: the lane is locked, each row is stepped and saved.

use super::history::{self, SeenTransaction};
use super::outgoing::{Action, Contradiction, Input, Mined, Moment, Notice, Pace};
use super::rows::{LaneId, Stored};
use super::step::step;
use super::store;
use alloy::primitives::Address;
use deadpool_postgres::{GenericClient, Pool};
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

/// One record of a chain's history, as `chain.blocks` has it, in the order in which it has them. Of REPLAYED records, those
/// with a sequence are [`Restarted`](Self::Restarted), and others, a backfill's, are none.
///
/// Whoever reads them looks whether a sequence is missing, since what is in a block that was not read is not known.
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// With those of the block's transactions that its reader believes.
    Added {
        block: BlockRef,
        transactions: Vec<SeenTransaction>,
    },
    Removed(BlockRef),
    /// History stands up to this number. All above is taken back, and blocks may be missing below the next one that is added:
    /// the chain begins anew (`ctrip chain restart`), or records were lost before they were read. What stands is then what was
    /// final.
    Restarted(u64),
    /// This block and all below it are final and witnessed, and were given before.
    Final(u64),
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
    let mut add = |rows: Vec<(LaneId, Uuid)>, input: Input| {
        rows.into_iter().for_each(|(lane, id)| inputs.entry(lane).or_default().push((id, input.clone())));
    };
    match event {
        ChainEvent::Added { block, transactions } => {
            history::note_added(tx, chain, block).await?;
            let senders: Vec<Address> = transactions.iter().map(|seen| seen.from).collect();
            let lanes = history::lanes_of(tx, chain, &senders).await?;
            // Locked before it is read which nonces are given out: one that is given out later follows the strangers' below.
            for lane in &lanes {
                store::lock(tx, lane).await?;
            }
            let of_lanes: Vec<_> =
                transactions.iter().filter(|seen| lanes.iter().any(|lane| lane.sender == seen.from)).copied().collect();
            for used in history::of_block(tx, chain, &of_lanes).await? {
                let SeenTransaction { hash, nonce, succeeded, gas_used, gas_price, .. } = used.seen;
                if !used.is_ours {
                    history::note_foreign(tx, &used.lane, nonce, block).await?;
                }
                let Some(id) = used.outgoing.filter(|_| !used.is_told) else { continue };
                let input = if used.is_ours {
                    Input::SeenInBlock(Mined { hash, block: *block, succeeded, gas_used, gas_price })
                } else {
                    Input::ForeignNonce { nonce, number: block.number }
                };
                add(vec![(used.lane, id)], input);
            }
        }
        ChainEvent::Removed(block) => {
            history::note_removal(tx, chain).await?;
            add(history::of_removed(tx, chain, block).await?, Input::Removed(*block));
        }
        ChainEvent::Restarted(above) => {
            history::note_removal(tx, chain).await?;
            add(history::of_restarted(tx, chain, *above).await?, Input::Restarted(*above));
        }
        ChainEvent::Final(number) => add(history::of_final(tx, chain, *number).await?, Input::Final(*number)),
    }
    // In the order of the lanes, so that nobody waits in a circle.
    for (lane, inputs) in inputs {
        apply_alone(tx, &lane, &inputs, pace).await?;
    }
    Ok(())
}

/// Says that one is not wanted any more. What pays is not sent from then on, and a transaction that does nothing takes its
/// nonce; if what pays is mined first, it stays paid.
///
/// # Errors
/// When the database fails.
pub async fn drop_outgoing(pool: &Pool, id: Uuid, pace: &Pace) -> Result<(), Failure> {
    let mut db = pool.get().await?;
    let tx = db.transaction().await?;
    if let Some(lane) = store::lane_of(&tx, id).await? {
        apply_alone(&tx, &lane, &[(id, Input::Drop)], pace).await?;
    }
    Ok(tx.commit().await?)
}

/// Applies inputs of a lane. What is to be done then follows from the state: the engine finds it at its next turn. Here
/// nothing is signed, since the price of gas is not known, and nobody is lowest.
pub(super) async fn apply_alone(
    tx: &impl GenericClient,
    lane: &LaneId,
    inputs: &[(Uuid, Input)],
    pace: &Pace,
) -> Result<(), Failure> {
    let moment = Moment { time: 0, market: None, is_lowest: false, blocks: 0, pace: *pace };
    if store::lock(tx, lane).await?.is_some() {
        for Stepped { stored, actions } in apply(tx, None, inputs, &moment).await? {
            tell(&stored, &actions);
        }
    }
    Ok(())
}

/// Applies inputs to rows of a lane that is locked, and saves them. What can't be changes nothing. Each row is returned once,
/// as it is after its last input.
pub(super) async fn apply(
    tx: &impl GenericClient,
    lowest: Option<u64>,
    inputs: &[(Uuid, Input)],
    moment: &Moment,
) -> Result<Vec<Stepped>, Failure> {
    let ids: Vec<Uuid> = inputs.iter().map(|(id, _)| *id).collect();
    let rows = store::load(tx, &ids).await?;
    let mut rows: Vec<Stepped> = rows.into_iter().map(|stored| Stepped { stored, actions: Vec::new() }).collect();
    for (id, input) in inputs {
        let Some(Stepped { stored, actions }) = rows.iter_mut().find(|row| row.stored.id == *id) else { continue };
        let is_lowest = lowest.is_some() && lowest == stored.outgoing.nonce;
        match advance(tx, stored, input, &Moment { is_lowest, ..*moment }).await? {
            Ok(asked) => {
                // What the state asks for is said anew by each step; what is told, once.
                actions.retain(|action| matches!(action, Action::Tell(_)));
                actions.extend(asked);
            }
            Err(contradiction) => tracing::error!(outgoing = %id, ?input, "it changes nothing, since {contradiction}"),
        }
    }
    Ok(rows)
}

/// Applies an input to a row of a lane that is locked, saves it, and returns what is to be done. What can't be changes nothing.
pub(super) async fn advance(
    tx: &impl GenericClient,
    stored: &mut Stored,
    input: &Input,
    moment: &Moment,
) -> Result<Result<Vec<Action>, Contradiction>, Failure> {
    let next = match step(&stored.outgoing, input, moment) {
        Ok(next) => next,
        Err(contradiction) => return Ok(Err(contradiction)),
    };
    store::save(tx, stored.id, &stored.outgoing, &next.next, &moment.pace).await?;
    stored.outgoing = next.next;
    Ok(Ok(next.actions))
}

/// Tells what holds one up.
pub(super) fn tell(stored: &Stored, actions: &[Action]) {
    for action in actions {
        let Action::Tell(notice) = action else { continue };
        let (chain, sender, nonce) = (stored.lane.chain, stored.lane.sender, stored.outgoing.nonce);
        match (notice, &stored.outgoing.frozen) {
            (Notice::Frozen, Some(reason)) => {
                tracing::error!(outgoing = %stored.id, %chain, %sender, nonce, "{notice}: {reason}");
            }
            (Notice::NotAllowed(_), _) => tracing::error!(outgoing = %stored.id, %chain, %sender, nonce, "{notice}"),
            _ => tracing::warn!(outgoing = %stored.id, %chain, %sender, nonce, "{notice}"),
        }
    }
}
