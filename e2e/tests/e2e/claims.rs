//! Webhook deliveries that two have in hand, or that others than their merchant could get.

use crate::deliveries::{KEY, due, ended, limits, three_events};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;
use uuid::Uuid;
use webhooks::attempt::Verdict;
use webhooks::deliveries::{self, RedeliverCursor, RedeliverFilter};
use webhooks::endpoints;
use webhooks::lane::Lane;
use webhooks::queue::{self, ClaimLimits};
use webhooks::subscriptions::Subscriptions;

#[tokio::test]
async fn what_one_instance_claims_another_that_claims_at_the_same_time_does_not_get() -> Result<()> {
    let (_lab, pool, db, ..) = three_events().await?;
    let mut other = pool.get().await?;
    let fronts = queue::pending(&db).await?;
    let limits = || ClaimLimits { fronts: &fronts, ..limits() };
    let holds = other.transaction().await?;
    let first = queue::claim_due(&holds, limits()).await?;
    ensure!(first.len() == 1 && first[0].event_id == "1", "{first:?}");
    let second = tokio::time::timeout(Duration::from_secs(10), queue::claim_due(&db, limits()));
    let second = second.await.context("it waits for the other")??;
    ensure!(second.is_empty(), "{second:?}");
    holds.commit().await?;
    ensure!(queue::claim_due(&db, limits()).await?.is_empty(), "sent twice, or before what it has to wait for");
    Ok(())
}

/// Its lease ran out, and the next attempt is on its way.
#[tokio::test]
async fn a_failure_that_comes_late_does_not_end_the_next_attempt() -> Result<()> {
    let (_lab, _pool, mut db, ..) = three_events().await?;
    let first = due(&db, Lane::Healthy).await?.remove(0);
    queue::release_claims(&db, "lab").await?;
    let again = due(&db, Lane::Healthy).await?.remove(0);
    ensure!(again.delivery_id == first.delivery_id && again.attempt_number == 2, "{again:?}");
    let failed = ended(first, Verdict::Failed);
    queue::settle(&mut db, &mut vec![failed]).await?;
    let sql = "SELECT state, tries, claimed_by FROM webhook_deliveries WHERE event_id = '1'";
    let row = db.query_one(sql, &[]).await?;
    let now: (String, i32, Option<String>) = (row.get(0), row.get(1), row.get(2));
    ensure!(now == ("pending".to_owned(), 0, Some("lab".to_owned())), "{now:?}");
    Ok(())
}

/// It would come twice, and out of order.
#[tokio::test]
async fn a_redelivery_leaves_what_is_being_sent() -> Result<()> {
    let (_lab, pool, db, merchant, endpoint) = three_events().await?;
    ensure!(due(&db, Lane::Healthy).await?.len() == 1);
    let event = RedeliverFilter::Event("1".to_owned());
    let again = deliveries::redeliver(&pool, merchant, endpoint, &event, RedeliverCursor::START).await?;
    ensure!(again == Some((0, None)), "{again:?}");
    let twice = due(&db, Lane::Healthy).await?;
    ensure!(twice.is_empty(), "{twice:?}");
    Ok(())
}

#[tokio::test]
async fn of_a_webhook_that_is_disabled_its_own_merchant_is_told_and_no_other() -> Result<()> {
    let (lab, _pool, mut db, ..) = three_events().await?;
    lab.merchant("other")?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, name || ' is told', 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants",
    )
    .await?;
    let delivery = due(&db, Lane::Healthy).await?.remove(0);
    let gone = ended(delivery, Verdict::Gone);
    ensure!(queue::settle(&mut db, &mut vec![gone]).await?.disabled == 1);
    let sql = "SELECT array_agg(e.url) FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
               WHERE d.type = 'webhook.disabled'";
    let told: Vec<String> = db.query_one(sql, &[]).await?.get(0);
    ensure!(told == ["shop is told"], "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_endpoint_and_those_of_others_get_no_new_events() -> Result<()> {
    let (_lab, _pool, db, merchant, endpoint) = three_events().await?;
    let count = async |of: Uuid| anyhow::Ok(Subscriptions::of(&db, &[of]).await?.count(merchant));
    ensure!(count(merchant).await? == 1 && count(Uuid::nil()).await? == 0);
    ensure!(endpoints::delete(&db, merchant, endpoint, KEY).await?, "it was there");
    ensure!(count(merchant).await? == 0, "a deleted endpoint is sent what is new");
    Ok(())
}
