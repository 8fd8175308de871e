//! A websocket brings a block long before the next poll; without it polls still find every block.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Lacks, Plan, Rig, Tunnel, eventually};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);
const BLOCKS: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_published_when_a_websocket_tells_of_it_and_with_the_next_poll_when_none_does() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut tunnel = Tunnel::start(lab.node.url.trim_start_matches("http://")).await?;
    let mut rig = Rig::on(lab, &[Lacks::default()], "").await?;
    let chains = std::fs::read_to_string(&rig.lab.env["CHAINS_FILE"])?;
    let websocket = format!("poll_interval_ms: {}\n  ws_urls: [\"ws://{}\"]", INTERVAL.as_millis(), tunnel.address);
    rig.lab.write_chains(&chains.replace("poll_interval_ms: 20", &websocket))?;
    rig.restart()?;
    rig.arrive().await?;

    until_connected(&rig, true).await?;
    publish(&mut rig).await.context("with a websocket")?;

    tunnel.cut();
    until_connected(&rig, false).await?;
    let (polls, mined) = (rig.endpoint().asked("eth_getBlockByNumber"), Instant::now());
    rig.pay_blocks(3).await?;
    rig.arrive().await.context("without a websocket")?;
    ensure!(mined.elapsed() < INTERVAL * 2, "polling took {:.1?}", mined.elapsed());
    ensure!(rig.endpoint().asked("eth_getBlockByNumber") > polls, "nobody polled");

    tunnel.open().await?;
    until_connected(&rig, true).await?;
    publish(&mut rig).await.context("with the websocket back")
}

/// Mines blocks one after the other and waits for each: all are published before a second poll is due, however the first fell.
async fn publish(rig: &mut Rig) -> Result<()> {
    let told = rig.ingest.metric("ws_heads_total", &[("chain", "anvil")]).await?;
    let mut took = Duration::ZERO;
    for _ in 0..BLOCKS {
        rig.pay_blocks(1).await?;
        let (mined, head) = (Instant::now(), rig.lab.node.head().await?);
        #[expect(clippy::cast_precision_loss, reason = "it is a metric of a short chain")]
        let head = head as f64;
        eventually("the block to be published", || async {
            Ok((rig.ingest.metric("chain_head_block", &[("chain", "anvil")]).await? >= head).then_some(()))
        })
        .await?;
        took += mined.elapsed();
    }
    ensure!(took < INTERVAL, "{BLOCKS} blocks took {took:.1?}; one poll is due in {INTERVAL:?}");
    println!("published on average {:.0?} after it was mined", took / BLOCKS);
    rig.arrive().await?;
    let heads = rig.ingest.metric("ws_heads_total", &[("chain", "anvil")]).await? - told;
    ensure!(heads >= f64::from(BLOCKS), "{heads} heads were told");
    Ok(())
}

async fn until_connected(rig: &Rig, connected: bool) -> Result<()> {
    let expected = f64::from(u8::from(connected));
    eventually("the metric of the websocket", || async {
        // A new process does not serve metrics yet.
        let shown = rig.ingest.metric("ws_endpoint_connected", &[("chain", "anvil")]).await.ok();
        Ok(shown.filter(|shown| (shown - expected).abs() < 0.5).map(drop))
    })
    .await
}
