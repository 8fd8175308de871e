//! Webhook deliveries in Postgres: which ones may be sent when, after whatever outcomes.

use anyhow::{Context as _, Result, ensure};
use deadpool_postgres::{Client, Pool};
use e2e::Lab;
use runtime::{FoldStage, Span};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use time::OffsetDateTime;
use topics::Topic;
use uuid::Uuid;
use webhooks::attempt::{ClaimedDelivery, FinishedAttempt, ResponseHead, SendOutcome, Verdict};
use webhooks::deliveries::{self, RedeliverCursor, RedeliverFilter};
use webhooks::endpoints;
use webhooks::lane::Lane;
use webhooks::queue::{self, ClaimLimits, MerchantLoad};
use webhooks::retry_schedule;

/// The id of the API key that asks for changes.
pub const KEY: &str = "0123456789abcdef";

pub async fn endpoint(db: &Client, url: &str) -> Result<Uuid> {
    Ok(db.query_one("SELECT id FROM webhook_endpoints WHERE url = $1", &[&url]).await?.get(0))
}

pub fn limits() -> ClaimLimits<'static> {
    ClaimLimits {
        instance: "lab",
        lane: Lane::Healthy,
        fronts: &[],
        slow: &[],
        max_deliveries: 100,
        max_bytes: 1_000_000,
        max_per_endpoint: 8,
        in_flight: &[],
        max_per_merchant: 1000,
        max_bytes_per_merchant: 1_000_000,
        in_flight_of_merchants: &[],
    }
}

/// Claims what is due of all that is pending.
pub async fn claim(db: &Client, limits: ClaimLimits<'_>) -> Result<Vec<ClaimedDelivery>> {
    let fronts = queue::pending(db).await?;
    queue::claim_due(db, ClaimLimits { fronts: &fronts, ..limits }).await.map_err(Into::into)
}

/// However many endpoints it has, and has deleted with messages on their way.
#[tokio::test]
async fn a_merchant_with_many_endpoints_leaves_room_for_the_others() -> Result<()> {
    let lab = Lab::without_topics().await?;
    lab.merchant("greedy")?;
    lab.merchant("shop")?;
    let mut db = runtime::db::pool(&lab.env["DATABASE_URL"], 2)?.get().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), m.id, name || i, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
         FROM merchants m, generate_series(1, CASE name WHEN 'greedy' THEN 20 ELSE 1 END) AS i;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
         SELECT id, i::text, 'webhook.ping', 'pending' FROM webhook_endpoints, generate_series(1, 30) AS i",
    )
    .await?;
    let greedy: Uuid = db.query_one("SELECT id FROM merchants WHERE name = 'greedy'", &[]).await?.get(0);
    let mut claimed: Vec<ClaimedDelivery> = Vec::new();
    let load = |messages| MerchantLoad { merchant: greedy, messages, bytes: 0 };
    for (busy, expected) in [(&[][..], 50), (&[load(50)], 50), (&[load(39)], 61)] {
        let limits = ClaimLimits { max_per_merchant: 50, in_flight_of_merchants: busy, max_deliveries: 400, ..limits() };
        let mut in_flight: HashMap<Uuid, i32> = HashMap::new();
        claimed.iter().for_each(|due| *in_flight.entry(due.endpoint_id).or_default() += 1);
        let in_flight: Vec<(Uuid, i32)> = in_flight.into_iter().collect();
        claimed.extend(claim(&db, ClaimLimits { in_flight: &in_flight, ..limits }).await?);
        let of_greedy = claimed.iter().filter(|due| due.merchant == greedy).count();
        ensure!(of_greedy == expected && claimed.len() == expected + 8, "{of_greedy} of {}", claimed.len());
    }
    // Each new endpoint would have messages of its own on their way.
    for made in 21.. {
        let id = endpoints::list(&db, greedy).await?.first().map(|endpoint| endpoint.id).context("none")?;
        ensure!(endpoints::delete(&db, greedy, id, KEY).await?, "it was there");
        let new = endpoints::EndpointChanges::default();
        let url = format!("https://example.com/{made}");
        if endpoints::create(&mut db, greedy, &url, new, KEY).await?.is_err() {
            ensure!(made == 101, "the endpoint {made} of an hour is refused");
            break;
        }
    }
    Ok(())
}

/// The bounds of a claim: a number of deliveries per healthy endpoint, one per failing endpoint, only the first event of a
/// payment unless it has failed too often, and nothing twice.
#[tokio::test]
async fn a_claim_keeps_to_its_bounds_and_to_the_order_of_a_payment() -> Result<()> {
    let lab = Lab::without_topics().await?;
    lab.merchant("shop")?;
    let db = runtime::db::pool(&lab.env["DATABASE_URL"], 2)?.get().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret, failing_since, enabled, disabled_at, disabled_reason, paused_until)
         SELECT gen_random_uuid(), m.id, url, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', failing, url <> 'disabled',
             CASE WHEN url = 'disabled' THEN now() END, CASE WHEN url = 'disabled' THEN 'asked' END,
             CASE WHEN url = 'paused' THEN now() + interval '1 hour' END
         FROM merchants m, (VALUES ('one', NULL), ('two', NULL), ('failing', now()), ('disabled', NULL), ('paused', NULL))
             AS e (url, failing);
         -- Ten payments of three events each at every endpoint; the first event of one has failed three times and waits.
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state)
         SELECT e.id, format('%s_%s', p.number, sequence), 'payment.created', p.id, sequence, 'pending'
         FROM webhook_endpoints e, (SELECT number, gen_random_uuid() AS id FROM generate_series(1, 10) AS number) p,
             generate_series(1, 3) AS sequence ORDER BY sequence;
         UPDATE webhook_deliveries SET tries = 3, next_attempt = now() + interval '1 hour' WHERE event_id = '1_1'",
    )
    .await?;
    let claim = async |lane: Lane, slow: &[uuid::Uuid], max_deliveries: i64, in_flight: &[(uuid::Uuid, i32)]| {
        let max_per_endpoint = if lane == Lane::Failing { 1 } else { 8 };
        claim(&db, ClaimLimits { lane, slow, max_deliveries, max_per_endpoint, in_flight, ..limits() }).await
    };
    let first = claim(Lane::Healthy, &[], 100, &[]).await?;
    for endpoint in ["one", "two"] {
        let ids: Vec<&str> = first.iter().filter(|due| due.url == endpoint).map(|due| due.event_id.as_str()).collect();
        ensure!(ids.len() == 8 && !ids.contains(&"1_1"), "{endpoint}: {ids:?}");
        // A delivery that has failed too often blocks only itself, and nothing else overtakes.
        ensure!(ids.iter().all(|id| id.ends_with("_1") || *id == "1_2"), "{endpoint}: {ids:?}");
    }
    ensure!(first.len() == 16, "of endpoints that fail, are paused or disabled: {first:?}");
    // Two more per endpoint, and not the same ones again.
    let busy: Vec<(uuid::Uuid, i32)> =
        first.iter().map(|due| (due.endpoint_id, 6)).collect::<HashMap<_, _>>().into_iter().collect();
    let second = claim(Lane::Healthy, &[], 3, &busy).await?;
    let ids: HashSet<i64> = first.iter().chain(&second).map(|due| due.delivery_id).collect();
    ensure!(second.len() == 3 && ids.len() == 19, "{second:?}");
    ensure!(second.iter().all(|due| due.event_id.ends_with("_1") || due.event_id == "1_2"), "{second:?}");
    let sick = claim(Lane::Failing, &[], 100, &[]).await?;
    ensure!(sick.len() == 1 && sick[0].url == "failing" && sick[0].attempt_number == 1, "{sick:?}");

    // Another instance releases none of them; the instance that claimed them releases them when it restarts.
    ensure!(queue::release_claims(&db, "other").await? == 0, "another instance's claims");
    ensure!(queue::release_claims(&db, "lab").await? == 20, "its own claims");
    // Slow endpoints have a claim of their own.
    let slow = [endpoint(&db, "two").await?];
    let well = claim(Lane::Healthy, &slow, 100, &[]).await?;
    ensure!(well.len() == 8 && well.iter().all(|due| due.url == "one"), "{well:?}");
    let slow = claim(Lane::Slow, &slow, 100, &[]).await?;
    ensure!(slow.len() == 8 && slow.iter().all(|due| due.url == "two"), "{slow:?}");
    let repeated = well.iter().chain(&slow).filter(|due| due.attempt_number == 2).count();
    ensure!(repeated > 0, "none was claimed a second time: {well:?}, {slow:?}");
    Ok(())
}

/// A lab with one endpoint, and three events of one payment for it.
pub async fn three_events() -> Result<(Lab, Pool, Client, Uuid, Uuid)> {
    let lab = Lab::without_topics().await?;
    lab.merchant("shop")?;
    let pool = runtime::db::pool(&lab.env["DATABASE_URL"], 2)?;
    let db = pool.get().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, 'shop', 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state)
         SELECT e.id, sequence::text, 'payment.created', merchant_id, sequence, 'pending'
         FROM webhook_endpoints e, generate_series(1, 3) AS sequence",
    )
    .await?;
    let merchant = db.query_one("SELECT id FROM merchants", &[]).await?.get(0);
    let endpoint = endpoint(&db, "shop").await?;
    Ok((lab, pool, db, merchant, endpoint))
}

/// Claims what is due in this lane.
pub async fn due(db: &Client, lane: Lane) -> Result<Vec<ClaimedDelivery>> {
    claim(db, ClaimLimits { lane, ..limits() }).await
}

/// An attempt that ended so.
pub fn ended(delivery: ClaimedDelivery, verdict: Verdict) -> FinishedAttempt {
    FinishedAttempt { delivery, outcome: SendOutcome::default(), verdict }
}

/// Settles one attempt.
async fn attempt(db: &mut Client, delivery: ClaimedDelivery, head: ResponseHead, verdict: Verdict) -> Result<()> {
    let outcome = SendOutcome { head, ..SendOutcome::default() };
    queue::settle(db, &mut vec![FinishedAttempt { delivery, outcome, verdict }]).await?;
    Ok(())
}

/// [`attempt`] whose endpoint does not rest after it.
async fn settle(db: &mut Client, due: ClaimedDelivery, status: u16, verdict: Verdict) -> Result<()> {
    attempt(db, due, ResponseHead { status: Some(status), retry_after: None }, verdict).await?;
    db.execute("UPDATE webhook_endpoints SET resting_until = NULL", &[]).await?;
    Ok(())
}

/// Seconds until each of the events may be sent, up to the next whole minute: the machine may be slow.
async fn waits(db: &Client) -> Result<Vec<i32>> {
    let sql = "SELECT array_agg(ceil(extract(epoch FROM next_attempt - now()) / 60)::integer * 60 ORDER BY sequence)
               FROM webhook_deliveries WHERE state = 'pending'";
    let waits: Option<Vec<i32>> = db.query_one(sql, &[]).await?.get(0);
    Ok(waits.unwrap_or_default().into_iter().map(|wait| wait.max(0)).collect())
}

#[tokio::test]
async fn later_events_wait_as_long_as_the_one_that_failed_and_no_longer() -> Result<()> {
    let (_lab, pool, mut db, merchant, endpoint) = three_events().await?;
    let hour = Verdict::Retry(Duration::from_secs(3600));
    let mut first = due(&db, Lane::Healthy).await?;
    ensure!(first.len() == 1 && first[0].event_id == "1", "{first:?}");
    settle(&mut db, first.remove(0), 500, hour).await?;
    ensure!(waits(&db).await? == [3600, 3600, 3600], "{:?}", waits(&db).await?);
    let until: i64 = db.query_one("SELECT count(DISTINCT next_attempt) FROM webhook_deliveries", &[]).await?.get(0);
    ensure!(until == 1, "they wait for one moment, whatever minute that is in");
    ensure!(due(&db, Lane::Healthy).await?.is_empty() && due(&db, Lane::Failing).await?.is_empty(), "before the hour is over");

    // Redelivery of failed events includes those that are still retried.
    let again = deliveries::redeliver(&pool, merchant, endpoint, &RedeliverFilter::Failed, RedeliverCursor::START).await?;
    ensure!(again == Some((1, None)) && waits(&db).await? == [0, 0, 0], "{again:?} {:?}", waits(&db).await?);

    // Redelivery of any event takes the others of the payment with it, still in order.
    for event in ["2", "1"] {
        db.execute("UPDATE webhook_deliveries SET next_attempt = now() + interval '1 hour'", &[]).await?;
        let event = RedeliverFilter::Event(event.to_owned());
        let again = deliveries::redeliver(&pool, merchant, endpoint, &event, RedeliverCursor::START).await?;
        ensure!(again == Some((1, None)) && waits(&db).await? == [0, 0, 0], "{again:?} {:?}", waits(&db).await?);
    }
    for tries in 0..retry_schedule::MAX_BLOCKING_FAILURES {
        let mut again = due(&db, Lane::Failing).await?;
        ensure!(again.len() == 1 && again[0].event_id == "1" && again[0].failures == tries, "{again:?}");
        settle(&mut db, again.remove(0), 500, hour).await?;
        let last = tries + 1 == retry_schedule::MAX_BLOCKING_FAILURES;
        let expected = if last { [3600, 0, 0] } else { [3600, 3600, 3600] };
        ensure!(waits(&db).await? == expected, "after {tries}: {:?}", waits(&db).await?);
        if !last {
            // The hour is over.
            db.execute("UPDATE webhook_deliveries SET next_attempt = now()", &[]).await?;
        }
    }

    // It has failed often enough: the others go without it, and what arrives makes the endpoint well.
    let mut second = due(&db, Lane::Failing).await?;
    ensure!(second.len() == 1 && second[0].event_id == "2", "{second:?}");
    settle(&mut db, second.remove(0), 204, Verdict::Delivered).await?;
    let third = due(&db, Lane::Healthy).await?;
    ensure!(third.len() == 1 && third[0].event_id == "3", "{third:?}");
    Ok(())
}

#[tokio::test]
async fn what_arrives_after_failures_lets_the_later_events_go() -> Result<()> {
    let (_lab, pool, mut db, merchant, endpoint) = three_events().await?;
    let mut first = due(&db, Lane::Healthy).await?;
    settle(&mut db, first.remove(0), 500, Verdict::Retry(Duration::from_secs(3600))).await?;
    // By hand, while the others were being put off for the hour.
    let event = RedeliverFilter::Event("1".to_owned());
    deliveries::redeliver(&pool, merchant, endpoint, &event, RedeliverCursor::START).await?;
    db.execute("UPDATE webhook_deliveries SET next_attempt = now() + interval '1 hour' WHERE event_id <> '1'", &[]).await?;
    let mut again = due(&db, Lane::Failing).await?;
    settle(&mut db, again.remove(0), 204, Verdict::Delivered).await?;
    ensure!(waits(&db).await? == [0, 0], "{:?}", waits(&db).await?);
    let second = due(&db, Lane::Healthy).await?;
    ensure!(second.len() == 1 && second[0].event_id == "2", "{second:?}");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_rests_a_tenth_of_the_time_that_it_fails_at_most_a_minute_and_no_longer_than_it_fails() -> Result<()> {
    let (_lab, _pool, mut db, merchant, endpoint) = three_events().await?;
    let rest = async |db: &Client| -> Result<Option<i32>> {
        let sql = "SELECT round(extract(epoch FROM resting_until - now()))::integer FROM webhook_endpoints";
        Ok(db.query_one(sql, &[]).await?.get(0))
    };
    let mut claimed = due(&db, Lane::Healthy).await?;
    for (failing, expected) in [(None, 0), (Some(100.0), 10), (Some(7200.0), 60)] {
        let sql = "UPDATE webhook_endpoints SET failing_since = now() - make_interval(secs => $1)";
        db.execute(sql, &[&failing]).await?;
        let bad = ResponseHead { status: Some(500), retry_after: None };
        attempt(&mut db, claimed.remove(0), bad, Verdict::Retry(Duration::ZERO)).await?;
        let rests = rest(&db).await?.unwrap_or(-1);
        ensure!((expected - 1..=expected).contains(&rests), "{rests} s after failing for {failing:?} s");
        if expected > 0 {
            ensure!(due(&db, Lane::Failing).await?.is_empty(), "it rests");
            // A ping is sent at once, even to a resting endpoint.
            endpoints::ping(&db, merchant, endpoint).await?;
        }
        claimed = due(&db, Lane::Failing).await?;
    }
    // `Retry-After` holds even after a successful delivery; the rest is over then.
    let hour = ResponseHead { status: Some(503), retry_after: Some(Duration::from_secs(3600)) };
    let ping = claimed.remove(1);
    attempt(&mut db, claimed.remove(0), hour, Verdict::Retry(Duration::ZERO)).await?;
    attempt(&mut db, ping, ResponseHead { status: Some(204), retry_after: None }, Verdict::Delivered).await?;
    let paused: bool =
        db.query_one("SELECT paused_until > now() + interval '59 minutes' FROM webhook_endpoints", &[]).await?.get(0);
    ensure!(paused && rest(&db).await?.is_none(), "it rests {:?}", rest(&db).await?);
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_somebody_keeps_locked_delays_no_other() -> Result<()> {
    let (_lab, pool, mut db, _, locked) = three_events().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, 'other', 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
         SELECT id, 'ping', 'webhook.ping', 'pending' FROM webhook_endpoints WHERE url = 'other'",
    )
    .await?;
    let failed = |delivery| ended(delivery, Verdict::Retry(Duration::from_secs(3600)));
    let mut done: Vec<FinishedAttempt> = due(&db, Lane::Healthy).await?.into_iter().map(failed).collect();
    ensure!(done.len() == 2, "{done:?}");
    let mut other = pool.get().await?;
    let holder = other.transaction().await?;
    holder.execute("SELECT FROM webhook_endpoints WHERE id = $1 FOR UPDATE", &[&locked]).await?;
    let settling = tokio::time::timeout(Duration::from_secs(10), queue::settle(&mut db, &mut done));
    let settled = settling.await.context("it waits for the lock")??;
    ensure!(settled.attempts.len() == 1 && settled.attempts[0].delivery.url == "other", "{done:?}");
    ensure!(done.len() == 1 && done[0].delivery.endpoint_id == locked, "{done:?}");
    // Neither are new events kept from all, nor is it sent again.
    let event =
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state) VALUES ($1, 'new', 'webhook.ping', 'failed')";
    let added = async { db.execute(event, &[&locked]).await };
    tokio::time::timeout(Duration::from_secs(10), added).await.context("the fan-out waits for the lock")??;
    let sent = done[0].delivery.delivery_id;
    db.execute("UPDATE webhook_deliveries SET next_attempt = now() WHERE id = $1", &[&sent]).await?;
    queue::settle(&mut db, &mut done).await?;
    let again = due(&db, Lane::Healthy).await?;
    ensure!(done.len() == 1 && again.iter().all(|due| due.delivery_id != sent), "{again:?}");
    holder.rollback().await?;
    let settled = queue::settle(&mut db, &mut done).await?;
    ensure!(settled.attempts.len() == 1 && done.is_empty(), "{done:?}");
    let sql = "SELECT count(*) FROM webhook_deliveries WHERE tries = 1 AND claimed_by IS NULL";
    ensure!(db.query_one(sql, &[]).await?.get::<_, i64>(0) == 2, "an attempt was not written down");
    Ok(())
}

/// A lease that ran out makes two attempts of one.
#[tokio::test]
async fn of_two_attempts_that_are_settled_together_a_success_counts() -> Result<()> {
    for first in [0, 1] {
        let (_lab, _pool, mut db, _, _) = three_events().await?;
        let claimed = due(&db, Lane::Healthy).await?.remove(0);
        queue::release_claims(&db, "lab").await?;
        let again = due(&db, Lane::Healthy).await?.remove(0);
        ensure!(again.delivery_id == claimed.delivery_id, "{again:?}");
        let mut both = vec![ended(claimed, Verdict::Delivered), ended(again, Verdict::Failed)];
        both.rotate_left(first);
        queue::settle(&mut db, &mut both).await?;
        let state: String = db.query_one("SELECT state FROM webhook_deliveries WHERE event_id = '1'", &[]).await?.get(0);
        ensure!(state == "delivered", "{state}");
    }
    Ok(())
}

/// It was asked nothing for six days, so nobody knows that it failed. One that fails whenever it is asked, for five days, is disabled.
#[tokio::test]
async fn an_endpoint_that_was_quiet_for_days_is_not_disabled_by_one_failure() -> Result<()> {
    let (_lab, _pool, mut db, merchant, endpoint) = three_events().await?;
    let fail = async |db: &mut Client, lane: Lane, verdict: Verdict| {
        let due = due(db, lane).await?.into_iter().next().context("nothing is due")?;
        settle(db, due, 502, verdict).await
    };
    let back = async |db: &Client, hours: i32| {
        let sql = "UPDATE webhook_endpoints SET failing_since = failing_since - make_interval(hours => $1),
                   last_failed_at = last_failed_at - make_interval(hours => $1)";
        db.execute(sql, &[&hours]).await
    };
    let state = async |db: &Client| -> Result<(bool, i64, i64)> {
        let sql = "SELECT enabled, extract(epoch FROM now() - failing_since)::bigint / 3600,
                   (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending') FROM webhook_endpoints";
        let row = db.query_one(sql, &[]).await?;
        Ok((row.get(0), row.get(1), row.get(2)))
    };
    fail(&mut db, Lane::Healthy, Verdict::Failed).await?;
    back(&db, 6 * 24).await?;
    fail(&mut db, Lane::Failing, Verdict::Retry(Duration::ZERO)).await?;
    ensure!(state(&db).await? == (true, 0, 2), "{:?}", state(&db).await?);
    for hours in (11..=121).step_by(11) {
        ensure!(state(&db).await?.0, "disabled before {hours} h");
        back(&db, 11).await?;
        endpoints::ping(&db, merchant, endpoint).await?;
        fail(&mut db, Lane::Failing, Verdict::Retry(Duration::ZERO)).await?;
    }
    ensure!(!state(&db).await?.0, "it fails for five days");
    Ok(())
}

/// Pending deliveries of a disabled endpoint are not sent and end, whenever they were added; redelivery sends them again.
#[tokio::test]
async fn what_is_pending_for_a_disabled_endpoint_ends() -> Result<()> {
    let (_lab, pool, mut db, merchant, endpoint) = three_events().await?;
    let enable = |enabled| endpoints::EndpointChanges { enabled: Some(enabled), ..endpoints::EndpointChanges::default() };
    let in_flight = due(&db, Lane::Healthy).await?.remove(0);
    endpoints::ping(&db, merchant, endpoint).await?;
    endpoints::update(&mut db, merchant, endpoint, enable(false), KEY).await?.ok().context("no endpoint")?;
    ensure!(due(&db, Lane::Healthy).await?.is_empty(), "something is sent to a disabled endpoint");
    ensure!(queue::fail_pending(&db).await? == 4 && waits(&db).await?.is_empty(), "{:?} are pending", waits(&db).await?);
    ensure!(endpoints::ping(&db, merchant, endpoint).await?.is_none(), "sent a ping");
    let late =
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state) VALUES ($1, 'late', 'webhook.ping', 'pending')";
    db.execute(late, &[&endpoint]).await?;
    ensure!(queue::fail_pending(&db).await? == 1, "what was added meanwhile is pending");
    // A delivery in flight arrives all the same.
    settle(&mut db, in_flight, 204, Verdict::Delivered).await?;
    let filter = RedeliverFilter::Failed;
    ensure!(
        deliveries::redeliver(&pool, merchant, endpoint, &filter, RedeliverCursor::START).await?.is_none(),
        "it is disabled"
    );
    endpoints::update(&mut db, merchant, endpoint, enable(true), KEY).await?.ok().context("no endpoint")?;
    let again = deliveries::redeliver(&pool, merchant, endpoint, &filter, RedeliverCursor::START).await?;
    ensure!(again == Some((4, None)) && queue::fail_pending(&db).await? == 0, "{again:?}");
    Ok(())
}

/// Each event would reach that URL twice.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_endpoints_that_are_given_one_url_at_the_same_time_one_is_refused() -> Result<()> {
    let (_lab, pool, mut db, merchant, one) = three_events().await?;
    let url = |url: &str| endpoints::EndpointChanges { url: Some(url.to_owned()), ..endpoints::EndpointChanges::default() };
    let other = endpoints::create(&mut db, merchant, "https://other.example", url("https://other.example"), KEY).await;
    let (other, _) = other?.ok().context("not created")?;
    // The pool has two connections.
    drop(db);
    for round in 0..20 {
        let changes = [one, other.id].map(|id| {
            let (pool, changes) = (pool.clone(), url(&format!("https://same.example/{round}")));
            tokio::spawn(async move { endpoints::update(&mut pool.get().await?, merchant, id, changes, KEY).await })
        });
        let mut changed = 0;
        for change in changes {
            changed += usize::from(change.await??.is_ok());
        }
        ensure!(changed == 1, "{changed} of two in round {round}");
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_endpoint_is_seen_by_nobody_and_sent_nothing() -> Result<()> {
    let (_lab, pool, mut db, merchant, endpoint) = three_events().await?;
    ensure!(endpoints::delete(&db, merchant, endpoint, KEY).await?, "it was there");
    ensure!(!endpoints::delete(&db, merchant, endpoint, KEY).await?, "deleted twice");
    let enable = endpoints::EndpointChanges { enabled: Some(true), ..endpoints::EndpointChanges::default() };
    ensure!(endpoints::update(&mut db, merchant, endpoint, enable, KEY).await?.is_err(), "changed");
    ensure!(endpoints::get(&db, merchant, endpoint).await?.is_none(), "seen");
    ensure!(endpoints::list(&db, merchant).await?.is_empty(), "listed");
    ensure!(endpoints::rotate(&db, merchant, endpoint, KEY).await?.is_none(), "rotated");
    ensure!(endpoints::ping(&db, merchant, endpoint).await?.is_none(), "sent a ping");
    let again = deliveries::redeliver(&pool, merchant, endpoint, &RedeliverFilter::Failed, RedeliverCursor::START).await?;
    ensure!(again.is_none() && due(&db, Lane::Healthy).await?.is_empty(), "sent something: {again:?}");
    Ok(())
}

/// A crash of Postgres may undo the last commits, even the first commit of a partition.
#[tokio::test]
async fn an_offset_that_was_taken_back_is_noticed() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let db = runtime::db::pool(&lab.env["DATABASE_URL"], 1)?.get().await?;
    let folding = FoldStage { stage: "lab", topic: Topic::Events, max_records: 1, max_bytes: 1, on_return: None };
    let claim = async |from: i64, next: i64| folding.claim(&db, &Span { from, next, ..Span::default() }).await;
    ensure!(claim(10, 15).await.is_err(), "offset 10, and nothing tells of the ten before it");
    claim(0, 10).await?;
    ensure!(claim(0, 10).await.is_err(), "twice");
    claim(10, 15).await?;
    db.execute("DELETE FROM stage_offsets", &[]).await?;
    ensure!(claim(15, 20).await.is_err(), "taken back");
    Ok(())
}

/// A redelivery request covers a limited number of deliveries, and the next one continues, whatever became of them meanwhile.
#[tokio::test]
async fn a_large_redelivery_goes_on_where_the_one_before_ended() -> Result<()> {
    let (_lab, pool, db, merchant, endpoint) = three_events().await?;
    db.execute(
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
         SELECT $1, 'ping ' || i, 'webhook.ping', 'delivered' FROM generate_series(1, 105003) AS i",
        &[&endpoint],
    )
    .await?;
    let (from, before) = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::now_utc() + Duration::from_secs(60));
    let filter = RedeliverFilter::CreatedBetween { from, before };
    let (mut again, mut after) = (0, RedeliverCursor::START);
    loop {
        let found = deliveries::redeliver(&pool, merchant, endpoint, &filter, after).await?;
        let (count, next) = found.context("it is enabled")?;
        again += count;
        db.execute("UPDATE webhook_deliveries SET state = 'delivered' WHERE state = 'pending'", &[]).await?;
        match next {
            // A slow machine stops earlier.
            Some(last) => ensure!((5_000..=100_000).contains(&count) && last > after, "{count} until {last:?} after {after:?}"),
            None => break,
        }
        after = next.unwrap_or(after);
    }
    ensure!(again == 105_006, "{again} were sent again");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_was_rotated_signs_for_a_day_and_no_longer() -> Result<()> {
    let (_lab, _pool, db, merchant, endpoint) = three_events().await?;
    endpoints::rotate(&db, merchant, endpoint, KEY).await?;
    let left: f64 = db
        .query_one("SELECT extract(epoch FROM old_secret_until - now())::float8 / 3600 FROM webhook_endpoints", &[])
        .await?
        .get(0);
    ensure!((23.9..=24.0).contains(&left), "{left} hours");
    let both = due(&db, Lane::Healthy).await?.remove(0);
    ensure!(both.secrets.len() == 2, "{both:?}");
    db.execute("UPDATE webhook_endpoints SET old_secret_until = now()", &[]).await?;
    queue::release_claims(&db, "lab").await?;
    let new = due(&db, Lane::Healthy).await?.remove(0);
    ensure!(new.secrets == both.secrets[..1], "{new:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_former_server_answered_is_not_held_against_the_new_one() -> Result<()> {
    let (_lab, _pool, mut db, merchant, endpoint) = three_events().await?;
    let mut sent = due(&db, Lane::Healthy).await?;
    settle(&mut db, sent.remove(0), 500, Verdict::Retry(Duration::ZERO)).await?;
    let mut sent = due(&db, Lane::Failing).await?;
    let moved = endpoints::EndpointChanges { url: Some("elsewhere".to_owned()), ..endpoints::EndpointChanges::default() };
    let moved = endpoints::update(&mut db, merchant, endpoint, moved, KEY).await?.ok().context("no endpoint")?;
    ensure!(moved.failing_since.is_none() && moved.paused_until.is_none(), "{moved:?}");
    settle(&mut db, sent.remove(0), 410, Verdict::Gone).await?;
    let now = endpoints::get(&db, merchant, endpoint).await?.context("no endpoint")?;
    ensure!(now.enabled && now.failing_since.is_none(), "{now:?}");
    // The new server gets them at once.
    ensure!(waits(&db).await? == [0, 0, 0], "{:?}", waits(&db).await?);
    Ok(())
}
