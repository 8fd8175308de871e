//! The relay after a crash: which batches Kafka has.

use crate::groups::{leave_published, until_published};
use anyhow::{Context as _, Result, ensure};
use e2e::{KafkaAdmin, Lab, Plan, events};
use serde_json::json;
use topics::Topic;

/// As where a topic was copied, or a group was reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_behind_its_topic_makes_the_relay_tell_nothing_twice() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_server, api) = lab.serve("api", "shop").await?;
    let publish = async || {
        let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
        until_published(&lab, &[payment.id().to_owned()]).await?;
        anyhow::Ok(payment.id().to_owned())
    };
    let mut confirmer = lab.spawn("confirmer")?;
    publish().await?;
    let id = publish().await?;
    confirmer.kill()?;
    let event = events(&lab).await?.into_iter().find(|event| event.payment_id == id).context("its event")?;
    leave_published(&lab, &event).await?;
    // The number is the offset of the first partition.
    let key = (0..100).map(|key: u32| key.to_string()).find(|key| Topic::Events.partition_of(key) == 0);
    KafkaAdmin::of(&lab)?.commit("outbox", Topic::Events, &key.context("a key")?, 1)?;

    let mut confirmer = lab.spawn("confirmer")?;
    publish().await?;
    // What it would tell twice it has told when it has ended.
    ensure!(confirmer.terminate()?.success(), "{}", confirmer.tail());
    let told = events(&lab).await?;
    ensure!(told.iter().filter(|event| event.payment_id == id).count() == 1 && told.len() == 3, "{told:?}");
    Ok(())
}
