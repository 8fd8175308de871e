//! Reorgs are published as they happened: each published block that was lost is removed once, from the tip down.

use anyhow::{Context as _, Result, ensure};
use e2e::{Extent, Fault, History, Lacks, Rig};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;

/// The last is the deepest that anvil allows: its fork is at the block that it calls finalized, 64 below the head.
const DEPTHS: [u64; 4] = [1, 5, 12, 64];
const KILLS: usize = 10;

// Every block that a reorg will remove has a payment: an empty one may be replaced by itself, since anvil would mine it again
// with the same timestamp.

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_of_any_depth_removes_each_lost_block_once_and_adds_the_new_ones() -> Result<()> {
    let mut rig = Rig::start(&[Lacks::default()]).await?;
    rig.pay_blocks(70).await?;
    let mut before = rig.arrive().await?;
    for depth in DEPTHS {
        rig.pay_blocks(depth).await?;
        before = rig.arrive().await.with_context(|| format!("before depth {depth}"))?;
        rig.lab.node.reorg(depth).await?;
        let after = rig.arrive().await.with_context(|| format!("after depth {depth}"))?;
        check_removed(&before, &after, depth)?;
        before = after;
    }
    // Back to back: ingest sees some of them, and the last one for certain.
    for depth in DEPTHS {
        rig.lab.node.reorg(depth).await?;
    }
    rig.pay_blocks(2).await?;
    let after = rig.arrive().await.context("after all of them at once")?;
    let (removed, deepest): (usize, usize) = (after.removed - before.removed, 64);
    ensure!((deepest..=1 + 5 + 12 + 64).contains(&removed), "{removed} removed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_below_the_tip_of_an_ingest_that_catches_up_removes_what_it_had_published() -> Result<()> {
    let mut rig = Rig::start(&[Lacks::default()]).await?;
    rig.traffic().await?;
    let mut before = rig.arrive().await?;
    for depth in DEPTHS {
        rig.ingest.kill()?;
        rig.lab.node.mine(200).await?;
        rig.pay_blocks(depth).await?;
        let head = rig.lab.node.head().await?;
        // Half of the blocks to be removed are published, and the rest is not fetched yet.
        let published = head - depth / 2;
        rig.endpoint().make(Fault::HoldAbove(published), Extent::Always);
        rig.ingest = rig.lab.spawn("ingest")?;
        let last = |history: &History| history.stack.last().map(|step| step.block.number);
        let there = |history: &History| last(history) == Some(published);
        let half = e2e::eventually("half of the blocks", || async { Ok(Some(rig.history().await?).filter(there)) }).await;
        if let Err(late) = half {
            return Err(late.context(format!("it has {:?} of {published} of {head}", last(&rig.history().await?))));
        }
        // From here on ingest sees the new head, and gets no block until the chain has grown by a hundred.
        rig.endpoint().make(Fault::HoldAbove(0), Extent::Always);
        rig.lab.node.reorg(depth).await?;
        rig.lab.node.mine(100).await?;
        rig.endpoint().heal();
        let after = rig.arrive().await.with_context(|| format!("after depth {depth}"))?;
        check_removed(&before, &after, depth - depth / 2)?;
        // It was behind when it wrote the removals: more than a hundred blocks came afterwards.
        let last = after.steps.iter().rposition(|step| step.logs.kind() == topics::wire::logs_record::Kind::Removed);
        let later = after.steps.len() - last.context("a removal")?;
        ensure!(later > 100, "only {later} steps after the removal");
        before = after;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_in_the_midst_of_reorganisations_loses_and_doubles_nothing() -> Result<()> {
    let seed = std::env::var("CTRIP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("CTRIP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut rig = Rig::start(&[Lacks::default()]).await?;
    rig.pay_blocks(70).await?;
    let mut before = rig.arrive().await?;
    for round in 0..KILLS {
        let depth = DEPTHS.get(round).copied().unwrap_or_else(|| random.random_range(1..32));
        rig.pay_blocks(depth).await?;
        before = rig.arrive().await.with_context(|| format!("before round {round}"))?;
        let wait = Duration::from_millis(random.random_range(0..250));
        let Rig { lab, ingest, .. } = &mut rig;
        let killing = async {
            tokio::time::sleep(wait).await;
            ingest.kill()?;
            *ingest = lab.spawn("ingest")?;
            Ok(())
        };
        tokio::try_join!(lab.node.reorg(depth), killing)?;
        let after = rig.arrive().await.with_context(|| format!("round {round}, depth {depth}, killed after {wait:?}"))?;
        check_removed(&before, &after, depth)?;
        before = after;
    }
    println!("{} added, {} removed, {} logs", before.added, before.removed, before.logs);
    Ok(())
}

fn check_removed(before: &History, after: &History, expected: u64) -> Result<()> {
    let removed = after.removed - before.removed;
    ensure!(u64::try_from(removed)? == expected, "{removed} blocks were removed; expected {expected}");
    Ok(())
}
