//! The transaction engine on a real Postgres and a real node: transfers that are paid once each, whatever dies.

mod asked;
mod beside;
mod books;
mod replans;
mod rig;
mod sweeps;
mod unpaid;
mod withheld;

use alloy::primitives::U256;
use anyhow::{Result, bail, ensure};
use e2e::{Extent, Fault};
use rig::{CHAIN, DEPTH, HIGH_BASE_FEE, PACE, Rig, ensure_all, recipient};
use serde_json::json;
use std::sync::atomic::Ordering;
use sweeper::engine::fold::drop_outgoing;
use sweeper::engine::store::{Queued, due_lanes};
use sweeper::keys::Signer as _;

const TRANSFERS: u64 = 50;

#[tokio::test]
async fn each_transfer_is_paid_once_wherever_the_engine_is_killed() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (mut polls, mut finished, mut killed) = (1, 0, 0);
    for round in 0..400_u64 {
        if round.is_multiple_of(6) && round / 6 < TRANSFERS {
            rig.queue(round / 6).await?;
        }
        // Killed at its first wait, at its second, and so on in longer steps, until a turn comes to its end before.
        match rig.turn(polls).await? {
            Some(()) => (polls, finished) = (1, finished + 1),
            None => (polls, killed) = (polls + 1 + polls / 8, killed + 1),
        }
        match round % 16 {
            2 => drop(rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?),
            // It takes the transaction, and cuts the connection.
            5 => rig.proxy.make(Fault::BreaksOff, Extent::Times(2)),
            9 => rig.proxy.make(Fault::ServerError, Extent::Times(2)),
            11 if rig.lab.node.head().await? > 3 * DEPTH => rig.lab.node.reorg(DEPTH - 1).await?,
            _ => {}
        }
        if round.is_multiple_of(2) {
            rig.lab.node.mine(1).await?;
        }
        if !round.is_multiple_of(5) {
            rig.follow().await?;
        }
    }
    ensure!(finished > 8 && killed > 200, "{finished} turns finished, {killed} were killed");
    for place in 0..TRANSFERS {
        // Whoever asks again gets the same one.
        let again = rig.queue(place).await?;
        ensure!(matches!(again, Queued::Before(_)), "transfer {place}: {again:?}");
    }
    rig.settle().await?;
    ensure!(rig.states().await?.contains(&("final".to_owned(), i64::try_from(TRANSFERS)?)), "{:?}", rig.states().await?);
    rig.check(TRANSFERS).await
}

/// The base fee rises twentyfold: what is in the pool is not mined until it is raised.
#[tokio::test]
async fn what_a_rise_of_the_base_fee_leaves_in_the_pool_is_raised_and_paid_once() -> Result<()> {
    let mut rig = Rig::with_sent(3).await?;
    for _ in 0..12 {
        rig.turn_at(HIGH_BASE_FEE).await?;
    }
    rig.settle().await?;
    let db = rig.pool.get().await?;
    let attempts: i64 = db.query_one("SELECT count(*) FROM outgoing_attempts", &[]).await?.get(0);
    ensure!(attempts > 3, "nothing was raised: {attempts} attempts");
    rig.check(3).await
}

/// Somebody uses a nonce of ours with the same key; a reorg takes it back, and it comes again.
#[tokio::test]
async fn a_nonce_that_a_stranger_used_is_signed_anew_once_that_is_final() -> Result<()> {
    let mut rig = Rig::with_sent(4).await?;
    // The pool forgets them, and a stranger comes first.
    rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?;
    rig.send_by_stranger(1).await?;
    rig.follow().await?;
    let replaced = rig.states().await?;
    ensure!(replaced.contains(&("replaced".to_owned(), 1)), "{replaced:?}");
    rig.lab.node.reorg(1).await?;
    rig.follow().await?;
    let again = rig.states().await?;
    ensure!(!again.iter().any(|(state, _)| state == "replaced"), "its block has left the chain: {again:?}");
    rig.send_by_stranger(1).await?;
    rig.settle().await?;
    rig.check(4).await?;
    // One nonce is the stranger's.
    let count = rig.lab.node.sent(rig.key.address()).await?;
    ensure!(count == 5, "{count} transactions");
    Ok(())
}

/// A deployment that is rolled over has two for a while.
#[tokio::test]
async fn two_engines_at_once_pay_each_transfer_once() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (transfers, mut finished) = (24, 0);
    for round in 0..160_u64 {
        if round.is_multiple_of(6) && round / 6 < transfers {
            rig.queue(round / 6).await?;
        }
        let polls = [7, 11].map(|step| usize::try_from(round % 16 * step).map(|polls| polls + 1));
        finished += rig.turn_of_two([polls[0]?, polls[1]?]).await?;
        match round % 16 {
            2 => drop(rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?),
            9 => rig.proxy.make(Fault::BreaksOff, Extent::Times(2)),
            _ => {}
        }
        if round.is_multiple_of(3) {
            rig.lab.node.mine(1).await?;
            rig.follow().await?;
        }
    }
    ensure!(finished > 10, "{finished} turns finished");
    rig.settle().await?;
    rig.check(transfers).await?;
    let nonces: Vec<i64> = rig.nonces().await?.into_iter().map(|(_, nonce)| nonce).collect();
    ensure!(nonces == (0..i64::try_from(transfers)?).collect::<Vec<_>>(), "{nonces:?}");
    Ok(())
}

/// Somebody uses nonces that were not given out yet. What comes later follows theirs; a reorg that takes those back leaves a
/// gap, which is filled.
#[tokio::test]
async fn nonces_of_a_stranger_are_passed_over_and_filled_when_they_leave_the_chain() -> Result<()> {
    let mut rig = Rig::with_sent(1).await?;
    rig.lab.node.mine(1).await?;
    rig.send_by_stranger(2).await?;
    rig.follow().await?;
    rig.queue(1).await?;
    rig.turn(usize::MAX).await?;
    ensure_all(&rig.nonces().await?, &[("mined", 0), ("broadcast", 3)])?;
    rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?;
    rig.lab.node.reorg(2).await?;
    rig.settle().await?;
    let nonces: Vec<i64> = rig.nonces().await?.into_iter().map(|(_, nonce)| nonce).collect();
    ensure!(nonces == [0, 1, 2, 3], "{nonces:?}");
    rig.check(2).await
}

/// Records were lost before they were read, and a transfer is in one of them. Every node counts one more.
#[tokio::test]
async fn what_is_in_a_block_that_was_not_read_is_found_by_its_receipt() -> Result<()> {
    let mut rig = Rig::with_sent(3).await?;
    rig.lab.node.mine(2).await?;
    rig.lose_records().await?;
    rig.lab.node.mine(1).await?;
    rig.follow().await?;
    rig.now += PACE.resend_after;
    rig.turn(usize::MAX).await?;
    ensure_all(&rig.states().await?, &[("lost", 3)])?;
    rig.queue(3).await?;
    rig.settle().await?;
    ensure_all(&rig.states().await?, &[("final", 4)])?;
    rig.check(4).await
}

/// Nobody signs for most senders, say since a mnemonic is missing.
#[tokio::test]
async fn lanes_that_get_nowhere_hold_up_no_other() -> Result<()> {
    let mut rig = Rig::start().await?;
    for place in 0..3 {
        rig.queue_of(recipient(place), place).await?;
    }
    rig.turn(usize::MAX).await?;
    rig.queue(0).await?;
    let db = rig.pool.get().await?;
    ensure!(due_lanes(&db, CHAIN, rig.now + 5, 1000).await? == [rig.lane()], "what can't be signed is tried after a pause");
    let later = due_lanes(&db, CHAIN, rig.now + 10, 2).await?;
    ensure!(later.len() == 2 && later[0] == rig.lane(), "those that wait for longest come first: {later:?}");
    rig.now += 5;
    rig.turn(usize::MAX).await?;
    ensure_all(&rig.nonces().await?, &[("broadcast", 0)])
}

/// What was sent would be sent again at each turn, and never be raised, if nobody noted that; what waits for Kafka is not sent.
#[tokio::test]
async fn what_waits_for_kafka_holds_up_nothing_that_has_its_record() -> Result<()> {
    let mut rig = Rig::with_sent(1).await?;
    rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?;
    rig.topic.is_down.store(true, Ordering::Relaxed);
    rig.queue(1).await?;
    rig.now += PACE.resend_after;
    rig.turn(usize::MAX).await?;
    let db = rig.pool.get().await?;
    let rows = db.query("SELECT nonce, acknowledged, last_sent FROM outgoing_attempts ORDER BY nonce", &[]).await?;
    let sent: Vec<(i64, bool, Option<i64>)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    ensure!(sent == [(0, true, Some(i64::try_from(rig.now)?)), (1, false, None)], "{sent:?}");
    rig.topic.is_down.store(false, Ordering::Relaxed);
    rig.settle().await?;
    rig.check(2).await
}

/// It is in a pool, with the nonce that the next one waits for.
#[tokio::test]
async fn what_is_dropped_pays_nobody_and_holds_up_no_other() -> Result<()> {
    let mut rig = Rig::with_sent(2).await?;
    let Queued::Before(id) = rig.queue(0).await? else { bail!("it was queued before") };
    drop_outgoing(&rig.pool, id, &PACE).await?;
    rig.settle().await?;
    ensure_all(&rig.states().await?, &[("dropped", 1), ("final", 1)])?;
    let balances = [rig.balance(recipient(0)).await?, rig.balance(recipient(1)).await?];
    ensure!(balances == [U256::ZERO, U256::from(1_001)], "{balances:?}");
    Ok(())
}
