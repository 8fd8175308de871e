//! Lanes: what fails takes no socket of what is well, also where both are one merchant's, which has its share of each lane.

use crate::api::batch;
use crate::webhooks::{hook, running};
use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use serde_json::json;
use std::time::Duration;

/// So many would fill their merchant's share of one lane for all, for the 15 s in which they say nothing.
const SILENT: usize = 16;
const PAYMENTS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_fail_take_no_socket_of_those_that_are_well() -> Result<()> {
    let running = running(&["up"]).await?;
    for number in 0..SILENT {
        hook(&running, &format!("silent/{number}"), &[]).await?;
    }
    let well = ["well/1", "well/2", "well/3"];
    for path in well {
        hook(&running, path, &[]).await?;
    }
    let failing = "UPDATE webhook_endpoints SET failing_since = now(), last_failed_at = now() WHERE url LIKE '%/silent/%'";
    running.lab.database().await?.execute(failing, &[]).await?;
    let orders = vec![json!({ "chain": "anvil", "amount": "7" }); PAYMENTS];
    let (status, answer) = batch(&running.api, &orders, &[]).await?;
    ensure!(status.is_success(), "{status} {answer}");
    let mut all = Vec::new();
    for path in well {
        all.extend(running.receiver.until(path, PAYMENTS).await?);
    }
    let (first, last) = (all.iter().map(|message| message.at).min(), all.iter().map(|message| message.at).max());
    let took = last.zip(first).map(|(last, first)| last - first).context("no messages")?;
    ensure!(took < Duration::from_secs(12), "{took:?} beside endpoints that fail");
    let silent = || (0..SILENT).map(|number| running.receiver.at(&format!("silent/{number}")).len());
    // They may have rested until now.
    eventually("one that fails to be asked", async || Ok((silent().sum::<usize>() > 0).then_some(()))).await?;
    ensure!(silent().max() <= Some(2), "one that fails is asked for one at a time: {:?}", silent().collect::<Vec<_>>());
    Ok(())
}
