//! A recorded session of Polygon's nodes, with a reorg of one block, becomes the history that it was.

use anyhow::{Context as _, Result, ensure};
use e2e::{HistoryReader, Lab, Plan, Session};
use std::sync::Arc;

const POLYGON: u64 = 137;

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_session_with_an_orphan_is_published_with_it_and_with_its_removal() -> Result<()> {
    let session = Arc::new(Session::read(POLYGON, "polygon-session.ethmonitor_watch1", "polygon-13522175-13522230.blocks")?);
    ensure!(session.nulls() > 250, "only {} polls without a block: is the session all there?", session.nulls());
    let reorg = testdata::json("polygon-reorg.index.json")?;
    let orphan = reorg[0]["orphan"].as_str().context("an orphan")?;

    let lab = Lab::start(Plan::default()).await?;
    let url = session.clone().serve().await?;
    let yaml = format!(
        "- {{ name: polygon, chain_id: {POLYGON}, rpc_url: \"{url}\", start_block: 13522175, poll_interval_ms: 10 }}\n"
    );
    lab.write_chains(&yaml)?;
    let mut ingest = lab.spawn("ingest")?;
    let reader = HistoryReader::new(POLYGON);
    e2e::eventually("the end of the session", || async { Ok(session.is_over().then_some(())) }).await?;
    let whole = e2e::eventually("all blocks of the session", || async {
        Ok(Some(reader.read(&lab).await?).filter(|history| history.added >= session.len()))
    });
    let history = whole.await?;
    ingest.check()?;

    ensure!(history.removed == 1, "{} removed", history.removed);
    ensure!(history.added == session.len() && session.len() == 57, "{} added of {}", history.added, session.len());
    let hash = |step: &e2e::Step| format!("0x{}", hex::encode(&step.block.hash));
    let mut added = Vec::new();
    for step in &history.steps {
        let hash = hash(step);
        if step.block.kind() == topics::wire::block_record::Kind::Removed {
            ensure!(hash == orphan, "{hash} was removed; expected {orphan}");
            continue;
        }
        if step.block.kind() == topics::wire::block_record::Kind::Tags {
            continue;
        }
        let (block, logs) = session.block(&hash).with_context(|| format!("{hash} is none of the session"))?;
        step.check(block, &logs.iter().collect::<Vec<_>>())?;
        added.push((step.block.number, hash));
    }
    // In order: each number once, and that of the orphan twice, with the canonical block after it.
    let numbers: Vec<u64> = (13_522_175..=13_522_194).chain(13_522_194..=13_522_230).collect();
    ensure!(added.iter().map(|(number, _)| *number).eq(numbers), "added in another order: {added:?}");
    let twins: Vec<&str> = added.iter().filter(|(number, _)| *number == 13_522_194).map(|(_, hash)| hash.as_str()).collect();
    ensure!(twins == [orphan, reorg[0]["canonical"].as_str().unwrap_or_default()], "{twins:?}");
    println!("{} added, {} removed, {} logs", history.added, history.removed, history.logs);
    Ok(())
}
