//! A role is started with another `TOPIC_PREFIX`, another cluster or another database than the rest of its installation.

use crate::webhooks::Receiver;
use anyhow::{Result, ensure};
use e2e::{Lab, Plan, eventually};
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

/// Events of topics that nobody has compared with the database may be another installation's, and so may its deliveries.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_sends_nothing_before_the_topics_that_it_reaches_were_compared() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let allowed = [("WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8"), ("WEBHOOK_ALLOW_HTTP", "true")];
    lab.env.extend(allowed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let mut confirmer = lab.spawn("confirmer")?;
    let (mut server, api) = lab.serve("api", "shop").await?;
    let receiver = Receiver::start().await?;
    let hook = json!({ "url": format!("{}/well/all", receiver.url) });
    let (status, made) = api.request(Method::POST, "/api/v1/webhooks", Some(hook), &[]).await?;
    ensure!(status.is_success(), "{status} {made}");
    api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
    let webhooks = lab.spawn("webhooks")?;
    let sent = async |count: usize| {
        eventually(&format!("{count} messages"), async || Ok((receiver.at("well/all").len() >= count).then_some(()))).await
    };
    sent(1).await?;
    drop(webhooks);
    ensure!(confirmer.terminate()?.success() && server.terminate()?.success());

    // As a database is that was copied to an installation of its own, with what it had still to send.
    let db = lab.database().await?;
    let copied = "UPDATE installation SET compared_cluster = 'another'";
    ensure!(db.execute(copied, &[]).await? == 1);
    ensure!(db.execute("UPDATE webhook_deliveries SET state = 'pending', next_attempt = now(), tries = 0", &[]).await? == 1);
    ensure!(db.execute("DELETE FROM stage_offsets WHERE stage = 'webhooks'", &[]).await? >= 1);
    let mut webhooks = lab.spawn("webhooks")?;
    eventually("the wait to be told", async || {
        let stages = webhooks.metric("set_aside_items", &[("kind", "stage")]).await.unwrap_or_default();
        Ok((stages >= 1.0 && webhooks.log().contains("in the cluster another last")).then_some(()))
    })
    .await?;
    ensure!(receiver.at("well/all").len() == 1, "sent before anybody has compared");
    let begun: i64 = db.query_one("SELECT count(*) FROM stage_offsets WHERE stage = 'webhooks'", &[]).await?.get(0);
    ensure!(begun == 0, "written before anybody has compared");
    let mut confirmer = lab.spawn("confirmer")?;
    sent(2).await?;
    tokio::time::timeout(Duration::from_secs(30), async {
        while webhooks.metric("set_aside_items", &[("kind", "stage")]).await? > 0.0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    webhooks.check()?;
    confirmer.check()
}
