//! Webhooks of a merchant that has very many, or very large ones: what becomes of the others'.

use crate::deliveries::{claim, due, ended, endpoint, limits, three_events};
use crate::lists::blocks;
use anyhow::{Context as _, Result, ensure};
use deadpool_postgres::Client;
use e2e::{Lab, Plan, eventually};
use runtime::db::{self, CommitMode, lock};
use runtime::kafka::TransactionalProducer;
use std::cell::Cell;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_postgres::IsolationLevel;
use topics::{Message as _, Topic, wire};
use uuid::Uuid;
use webhooks::attempt::{ClaimedDelivery, FinishedAttempt, Verdict};
use webhooks::backlog::{self, Turns};
use webhooks::deliveries::{self, RedeliverCursor, RedeliverFilter};
use webhooks::endpoints;
use webhooks::fronts::Fronts;
use webhooks::lane::Lane;
use webhooks::queue::{self, ClaimLimits, MerchantLoad};
use webhooks::subscriptions::Event;

const ENDPOINTS: i64 = 20;
const PAYMENTS: u64 = 200;
const EVENTS_A_PAYMENT: u64 = 10;
/// Payments of the other merchant, enough for each partition to have one behind the flood.
const OTHERS: u64 = 48;

/// The endpoints of two merchants. They are paused, so that nothing is sent.
async fn two_merchants(lab: &Lab, db: &tokio_postgres::Client) -> Result<[Uuid; 2]> {
    let mut ids = [Uuid::nil(); 2];
    for (name, id) in ["greedy", "shop"].into_iter().zip(&mut ids) {
        lab.merchant(name)?;
        *id = db.query_one("SELECT id FROM merchants WHERE name = $1", &[&name]).await?.get(0);
    }
    db.execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret, paused_until)
         SELECT gen_random_uuid(), m.id, name || i, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', now() + interval '1 hour'
         FROM merchants m, generate_series(1, CASE name WHEN 'greedy' THEN $1::bigint ELSE 1 END) AS i",
        &[&ENDPOINTS],
    )
    .await?;
    Ok(ids)
}

fn record(merchant: Uuid, payment: Uuid, sequence: u64) -> wire::PaymentEvent {
    wire::PaymentEvent {
        id: format!("evt_{}_{sequence}", payment.simple()),
        r#type: "payment.underpaid".to_owned(),
        sequence,
        payment_id: payment.to_string(),
        merchant_id: merchant.to_string(),
        chain_id: 31337,
        chain: "anvil".to_owned(),
        address: vec![4; 20].into(),
        amount: vec![1, 0].into(),
        status: "pending".to_owned(),
        created_at: 1_800_000_000,
        occurred_at: 1_800_000_000,
        ..wire::PaymentEvent::default()
    }
}

async fn write(lab: &Lab, events: Vec<wire::PaymentEvent>) -> Result<()> {
    let kafka = lab.kafka().await?;
    let written = tokio::task::spawn_blocking(move || {
        let producer = TransactionalProducer::open(&kafka, "test")?;
        let transaction = producer.begin()?;
        for event in &events {
            transaction.send(Topic::Events, &event.key(), &kafka.encode(event))?;
        }
        transaction.commit()
    });
    written.await?.map_err(Into::into)
}

/// The role is killed amid the flood.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_for_twenty_endpoints_delays_no_other_merchant_and_is_told_whole_and_in_order() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let db = lab.database().await?;
    lab.note_compared(&db).await?;
    let [greedy, shop] = two_merchants(&lab, &db).await?;
    let payments: Vec<Uuid> = (0..PAYMENTS).map(|_| Uuid::now_v7()).collect();
    let of = |sequence| payments.iter().map(move |payment| record(greedy, *payment, sequence));
    write(&lab, (1..=EVENTS_A_PAYMENT).flat_map(of).collect()).await?;
    write(&lab, (0..OTHERS).map(|_| record(shop, Uuid::now_v7(), 1)).collect()).await?;

    let count = async |sql: &str| -> Result<i64> { Ok(db.query_one(sql, &[]).await?.get(0)) };
    let (all, others) = (ENDPOINTS * i64::try_from(PAYMENTS * EVENTS_A_PAYMENT)?, i64::try_from(OTHERS)?);
    let of_merchant = |merchant: Uuid| {
        format!(
            "SELECT count(*) FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id WHERE e.merchant_id = '{merchant}'"
        )
    };
    let mut process = lab.spawn("webhooks")?;
    eventually("the other merchant's deliveries", || async { Ok((count(&of_merchant(shop)).await? == others).then_some(())) })
        .await?;
    let made = count(&of_merchant(greedy)).await?;
    ensure!(made < all / 2, "{made} of {all} came before those of another merchant");
    process.kill()?;
    let mut process = lab.spawn("webhooks")?;
    eventually("the whole flood", || async { Ok((count(&of_merchant(greedy)).await? == all).then_some(())) }).await?;
    process.check()?;
    ensure!(count("SELECT count(*) FROM webhook_backlog").await? == 0, "something is left in the backlog");
    let messages = count("SELECT count(*) FROM webhook_messages").await?;
    ensure!(messages == all / ENDPOINTS + others, "{messages} messages");
    let out_of_order = "SELECT count(*) FROM (SELECT sequence,
            lag(sequence) OVER (PARTITION BY endpoint_id, payment_id ORDER BY id) AS before FROM webhook_deliveries) d
        WHERE before <> sequence - 1";
    ensure!(count(out_of_order).await? == 0, "events of a payment were put in another order");
    Ok(())
}

/// As a damaged record, or a foreign one: whoever comes first, each merchant is told what was written for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_under_the_id_of_another_merchants_is_told_with_its_own_message() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let db = lab.database().await?;
    lab.note_compared(&db).await?;
    let merchants = two_merchants(&lab, &db).await?;
    let payment = Uuid::now_v7();
    let of =
        |(merchant, amount): (Uuid, u8)| wire::PaymentEvent { amount: vec![amount].into(), ..record(merchant, payment, 1) };
    write(&lab, merchants.into_iter().zip([21, 22]).map(of).collect()).await?;
    let mut process = lab.spawn("webhooks")?;
    let sql = "SELECT count(DISTINCT endpoint_id) FROM webhook_deliveries";
    let made = || async { Ok((db.query_one(sql, &[]).await?.get::<_, i64>(0) == ENDPOINTS + 1).then_some(())) };
    eventually("the deliveries of both", made).await?;
    process.kill()?;
    db.execute("UPDATE webhook_endpoints SET paused_until = NULL", &[]).await?;
    let pool = db::generic_plan_pool(&lab.env["DATABASE_URL"], 1, CommitMode::Asynchronous, None)?;
    let claimed = due(&pool.get().await?, Lane::Healthy).await?;
    ensure!(claimed.len() == 21, "{claimed:?}");
    for due in &claimed {
        let body: serde_json::Value = serde_json::from_slice(&due.body)?;
        let amount = if due.merchant == merchants[0] { "21" } else { "22" };
        ensure!(body["data"]["amount"] == amount, "{body}");
    }
    // A message that is told again is kept for as long again.
    let age = "WITH paused AS (UPDATE webhook_endpoints SET paused_until = now() + interval '1 hour')
               UPDATE webhook_messages SET created_at = now() - interval '80 days'";
    db.execute(age, &[]).await?;
    let _process = lab.spawn("webhooks")?;
    write(&lab, merchants.into_iter().zip([21, 22]).map(of).collect()).await?;
    let young = "SELECT count(*) FROM webhook_messages WHERE created_at > now() - interval '1 hour'";
    let kept = || async { Ok((db.query_one(young, &[]).await?.get::<_, i64>(0) == 2).then_some(())) };
    eventually("both messages to be kept", kept).await
}

#[tokio::test]
async fn merchants_in_the_backlog_take_turns_whoever_of_two_instances_makes_them() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let db = lab.database().await?;
    let [greedy, shop] = two_merchants(&lab, &db).await?;
    let pool = db::generic_plan_pool(&lab.env["DATABASE_URL"], 2, CommitMode::Asynchronous, None)?;
    let (mut one, mut other) = (pool.get().await?, pool.get().await?);
    let event = |merchant: Uuid, sequence: i64| Event {
        id: format!("evt_{}_{sequence}", merchant.simple()),
        kind: "payment.underpaid".to_owned(),
        merchant,
        payment: merchant,
        sequence,
        written_ms: i64::MAX,
    };
    let another = Event { id: "evt_another".to_owned(), payment: Uuid::from_u128(1), ..event(shop, 1) };
    let events: Vec<Event> = (1..=60).map(|i| event(greedy, i)).chain((1..=700).map(|i| event(shop, i))).collect();
    // A replay brings them again.
    for _ in 0..2 {
        backlog::put(&one, &events.iter().collect::<Vec<_>>()).await?;
    }
    let waiting = backlog::waiting(&one, &[greedy, shop, Uuid::nil()]).await?;
    ensure!(waiting.len() == 2 && !waiting.contains(&Uuid::nil()), "{waiting:?}");

    let (mut turns, mut others) = (Turns::default(), Turns::default());
    let held = other.transaction().await?;
    held.execute("SELECT pg_advisory_xact_lock($1)", &[&lock::WEBHOOK_BACKLOG]).await?;
    ensure!(turns.take(&mut one).await?.is_none(), "two instances would break the order");
    held.rollback().await?;
    let left = async || -> Result<(i64, i64)> {
        let sql =
            "SELECT count(*) FILTER (WHERE merchant_id = $1), count(*) FILTER (WHERE merchant_id = $2) FROM webhook_backlog";
        let row = db.query_one(sql, &[&greedy, &shop]).await?;
        Ok((row.get(0), row.get(1)))
    };
    // 25 events for 20 endpoints, and 512 for one: each in turn, those that wait behind the flood as well.
    let expected = if greedy < shop {
        [(35, 700), (35, 188), (10, 188), (10, 0), (0, 0)]
    } else {
        [(60, 188), (35, 188), (35, 0), (10, 0), (0, 0)]
    };
    for expected in expected {
        ensure!(turns.take(&mut one).await?.is_some() && left().await? == expected, "{:?}", left().await?);
    }
    ensure!(others.take(&mut other).await?.is_none() && turns.take(&mut one).await?.is_none());
    // One whose transaction began first and ends last has an id below those that are taken out. The next of its payment is behind.
    let late = other.transaction().await?;
    late.execute("SELECT pg_current_xact_id()", &[]).await?;
    backlog::put(&late, &[&event(shop, 701)]).await?;
    backlog::put(&one, &[&event(greedy, 61), &another]).await?;
    for _ in 0..2 {
        ensure!(turns.take(&mut one).await?.is_some());
    }
    ensure!(left().await? == (0, 0), "{:?}", left().await?);
    late.commit().await?;
    backlog::put(&one, &[&event(shop, 702)]).await?;
    ensure!(turns.take(&mut one).await?.is_some_and(|made| made.len() == 1), "one for one endpoint");
    ensure!(turns.take(&mut one).await?.is_none() && left().await? == (0, 0), "{:?}", left().await?);
    // Of one that somebody keeps locked, the next ones are not told before.
    backlog::put(&one, &[&event(shop, 703), &event(shop, 704), &event(shop, 705), &event(greedy, 62)]).await?;
    let holder = other.transaction().await?;
    holder.execute("SELECT FROM webhook_backlog WHERE sequence = 704 FOR UPDATE", &[]).await?;
    for _ in 0..4 {
        let turn = tokio::time::timeout(Duration::from_secs(10), turns.take(&mut one));
        turn.await.context("it waits for whoever keeps it locked")??;
    }
    ensure!(left().await? == (0, 2), "{:?}", left().await?);
    ensure!(turns.take(&mut one).await?.is_none() && left().await? == (0, 2), "{:?}", left().await?);
    holder.rollback().await?;
    ensure!(turns.take(&mut one).await?.is_some() && left().await? == (0, 0), "{:?}", left().await?);
    // As after a failover that lost ids.
    let low = "INSERT INTO webhook_backlog (merchant_id, id, event_id, type, payment_id, sequence, written_ms) OVERRIDING SYSTEM VALUE
               VALUES ($1, 1, 'evt_low', 'payment.underpaid', $1, 706, 9000000000000)";
    db.execute(low, &[&shop]).await?;
    for _ in 0..4 {
        turns.take(&mut one).await?;
    }
    ensure!(left().await? == (0, 0), "{:?}", left().await?);
    let order =
        "SELECT array_agg(sequence ORDER BY d.id) FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = endpoint_id
                 WHERE merchant_id = $1 AND payment_id = $1";
    let told: Vec<i64> = db.query_one(order, &[&shop]).await?.get(0);
    ensure!(told.iter().copied().eq(1..=706), "{told:?}");
    let deliveries: i64 = db.query_one("SELECT count(*) FROM webhook_deliveries", &[]).await?.get(0);
    ensure!(deliveries == 62 * ENDPOINTS + 707, "{deliveries} deliveries");
    Ok(())
}

/// A dump keeps what was sent in the index of what is pending.
#[tokio::test]
async fn no_claim_passes_over_what_was_sent_since_a_dump_began() -> Result<()> {
    let (lab, _pool, db, merchant, busy) = three_events().await?;
    let pool = db::generic_plan_pool(&lab.env["DATABASE_URL"], 2, CommitMode::Asynchronous, None)?;
    let (mut client, mut dump) = (pool.get().await?, pool.get().await?);
    let dump = dump.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await?;
    dump.execute("SELECT FROM webhook_deliveries", &[]).await?;
    db.batch_execute(
        "UPDATE webhook_deliveries SET next_attempt = now() - interval '1 minute';
         INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, 'idle', 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state, next_attempt)
         SELECT id, 'sent ' || i, 'webhook.ping', 'pending', now() - interval '1 hour' FROM webhook_endpoints, generate_series(1, 30000) AS i",
    )
    .await?;
    let idle = endpoint(&db, "idle").await?;
    let fronts = Fronts::default();
    fronts.look(&client).await?;
    ensure!(fronts.list().len() == 2, "{:?}", fronts.list());
    db.execute("UPDATE webhook_deliveries SET state = 'delivered' WHERE event_id LIKE 'sent %'", &[]).await?;
    fronts.move_on(&client).await?;
    ensure!(fronts.list().len() == 1 && fronts.list()[0].0 == busy, "{:?}", fronts.list());

    let tx = client.transaction().await?;
    let before = blocks(&tx, "webhook_deliveries").await?;
    let look = queue::pending(&tx).await?;
    let looked = blocks(&tx, "webhook_deliveries").await? - before;
    ensure!(look.len() == 1 && looked > 1000, "{looked} blocks: what was sent is gone, and this test tests nothing");
    // What is new is found by whoever makes it, and at the next look by the others.
    endpoints::ping(&tx, merchant, idle).await?;
    let now: OffsetDateTime = tx.query_one("SELECT now()", &[]).await?.get(0);
    for (new, expected) in [(vec![], 1), (vec![(idle, now)], 2)] {
        fronts.tell(new);
        let before = blocks(&tx, "webhook_deliveries").await?;
        let list = fronts.list();
        let claimed = queue::claim_due(&tx, ClaimLimits { fronts: &list, ..limits() }).await?;
        fronts.move_on(&tx).await?;
        let read = blocks(&tx, "webhook_deliveries").await? - before;
        ensure!(claimed.len() == 1 && read < 300, "{read} blocks for {claimed:?}");
        ensure!(fronts.list().len() == expected, "{:?}", fronts.list());
    }
    let other = Fronts::default();
    other.look(&tx).await?;
    ensure!(other.list().len() == 2, "{:?}", other.list());
    Ok(())
}

/// As after a redelivery, or an outage of a payment that gets dust in each block.
#[tokio::test]
async fn a_payment_with_thousands_of_events_that_are_due_is_not_looked_through_by_each_claim() -> Result<()> {
    let (lab, _pool, db, ..) = three_events().await?;
    let pool = db::generic_plan_pool(&lab.env["DATABASE_URL"], 1, CommitMode::Asynchronous, None)?;
    db.batch_execute(
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state)
         SELECT endpoint_id, 'more ' || i, type, payment_id, 3 + i, 'pending' FROM webhook_deliveries, generate_series(1, 5000) AS i
         WHERE event_id = '1'",
    )
    .await?;
    let mut client = pool.get().await?;
    let fronts = queue::pending(&client).await?;
    for event in ["1", "2", "3", "more 1"] {
        let tx = client.transaction().await?;
        let limits = || ClaimLimits { fronts: &fronts, ..limits() };
        let mut claimed = queue::claim_due(&tx, limits()).await?;
        ensure!(claimed.len() == 1 && claimed[0].event_id == event, "{event}: {claimed:?}");
        let before = blocks(&tx, "webhook_deliveries").await?;
        ensure!(queue::claim_due(&tx, limits()).await?.is_empty(), "two of one payment");
        let read = blocks(&tx, "webhook_deliveries").await? - before;
        ensure!(read < 3000, "{read} blocks to find that all wait for one");
        tx.commit().await?;
        let done = ended(claimed.remove(0), Verdict::Delivered);
        queue::settle(&mut client, &mut vec![done]).await?;
    }
    Ok(())
}

/// Two hundred and fifty-six are looked at. What blocks them stands behind them after a kill, and where it is sent again.
#[tokio::test]
async fn an_event_that_blocks_more_than_a_claim_looks_at_is_sent_and_those_of_other_payments_are_found() -> Result<()> {
    let (_lab, pool, mut db, merchant, endpoint) = three_events().await?;
    db.batch_execute(
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state, next_attempt)
         SELECT endpoint_id, 'more ' || i, type, payment_id, 3 + i, 'pending', now() - interval '1 minute'
         FROM webhook_deliveries, generate_series(1, 600) AS i WHERE event_id = '1'",
    )
    .await?;
    let first = async |db: &Client| -> Result<ClaimedDelivery> {
        let mut claimed = due(db, Lane::Healthy).await?;
        ensure!(claimed.len() == 1 && claimed[0].event_id == "1", "{claimed:?}");
        Ok(claimed.remove(0))
    };
    first(&db).await?;
    // Its sender is killed.
    queue::release_claims(&db, "lab").await?;
    let delivery = first(&db).await?;
    // It failed for good, and is asked for again. Those behind it are due.
    let done = ended(delivery, Verdict::Failed);
    queue::settle(&mut db, &mut vec![done]).await?;
    let filter = RedeliverFilter::Event("1".to_owned());
    deliveries::redeliver(&pool, merchant, endpoint, &filter, RedeliverCursor::START).await?;
    db.execute("UPDATE webhook_endpoints SET failing_since = NULL, resting_until = NULL", &[]).await?;
    first(&db).await?;

    // While it is on its way, nothing else is found. Another payment's is due, behind all those that wait.
    db.batch_execute(
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state, next_attempt)
         SELECT endpoint_id, 'other', type, gen_random_uuid(), 0, 'pending', now() - interval '10 s'
         FROM webhook_deliveries WHERE event_id = '1'",
    )
    .await?;
    ensure!(due(&db, Lane::Healthy).await?.is_empty(), "this test tests nothing");
    let fronts = queue::pending(&db).await?;
    let put = queue::put_behind(&db, &fronts).await?;
    let claimed = due(&db, Lane::Healthy).await?;
    ensure!(claimed.len() == 1 && claimed[0].event_id == "other", "{put}: {claimed:?}");
    let again = queue::put_behind(&db, &fronts).await?;
    ensure!(put >= 600 && again == 0, "{put}, then {again}");

    // While it waits for its next attempt, they wait with it, though they were due.
    db.batch_execute(
        "UPDATE webhook_deliveries SET next_attempt = now() - interval '1 minute' WHERE sequence > 1;
         UPDATE webhook_deliveries SET next_attempt = now() + interval '30 s', claimed_by = NULL, tries = 1 WHERE sequence = 1",
    )
    .await?;
    queue::put_behind(&db, &fronts).await?;
    let sql = "SELECT count(*) FROM webhook_deliveries f JOIN webhook_deliveries b ON b.sequence = 1 WHERE f.sequence > 1
        AND f.next_attempt = b.next_attempt";
    ensure!(db.query_one(sql, &[]).await?.get::<_, i64>(0) == 602, "they are due and can't be sent");
    Ok(())
}

/// Its merchant may send a delivery again as often as it likes.
#[tokio::test]
async fn of_a_delivery_that_is_sent_again_and_again_the_last_attempts_are_kept() -> Result<()> {
    let (_lab, _pool, mut db, _, endpoint) = three_events().await?;
    for number in 1..=13 {
        let delivery = due(&db, Lane::Healthy).await?.remove(0);
        ensure!(delivery.event_id == "1" && delivery.attempt_number == number, "{delivery:?}");
        let done = ended(delivery, Verdict::Delivered);
        queue::settle(&mut db, &mut vec![done]).await?;
        db.execute("UPDATE webhook_deliveries SET state = 'pending', next_attempt = now() WHERE event_id = '1'", &[]).await?;
    }
    let kept: Vec<i32> = db.query_one("SELECT array_agg(number ORDER BY number) FROM webhook_attempts", &[]).await?.get(0);
    ensure!(kept.iter().copied().eq(4..=13), "{kept:?}");
    let listed = deliveries::list(&db, endpoint, Some("pending"), i64::MAX, 10).await?;
    ensure!(listed.last().is_some_and(|first| first.attempts.len() == 10 && first.attempts[9].number == 13), "{listed:?}");
    Ok(())
}

/// Two merchants with an endpoint and eight pings each: those of one have ten thousand bytes, those of the other a hundred.
async fn large_and_small() -> Result<(Lab, Client, Uuid)> {
    let lab = Lab::without_topics().await?;
    for name in ["large", "small"] {
        lab.merchant(name)?;
    }
    let db = db::generic_plan_pool(&lab.env["DATABASE_URL"], 1, CommitMode::Asynchronous, None)?.get().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, name, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants;
         INSERT INTO webhook_messages (event_id, merchant_id, body)
         SELECT name || i, id, repeat('x', CASE name WHEN 'large' THEN 10000 ELSE 100 END) FROM merchants, generate_series(1, 8) AS i;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
         SELECT id, url || i, 'webhook.ping', 'pending' FROM webhook_endpoints, generate_series(1, 8) AS i",
    )
    .await?;
    let large = db.query_one("SELECT id FROM merchants WHERE name = 'large'", &[]).await?.get(0);
    Ok((lab, db, large))
}

#[tokio::test]
async fn a_claim_takes_no_more_bytes_than_there_is_room_for_and_leaves_others_theirs() -> Result<()> {
    let (_lab, db, large) = large_and_small().await?;
    let max_deliveries = Cell::new(100);
    let claimed = async |max_bytes: i64, of_merchant: i64, in_flight: i64| -> Result<(usize, usize, usize)> {
        queue::release_claims(&db, "lab").await?;
        let load = [MerchantLoad { merchant: large, messages: 1, bytes: in_flight }];
        let limits = ClaimLimits {
            max_deliveries: max_deliveries.get(),
            max_bytes,
            max_bytes_per_merchant: of_merchant,
            in_flight_of_merchants: &load,
            ..limits()
        };
        let claimed = claim(&db, limits).await?;
        let of_large = claimed.iter().filter(|due| due.merchant == large).count();
        Ok((of_large, claimed.len() - of_large, claimed.iter().map(|due| due.body.len()).sum()))
    };
    ensure!(claimed(1_000_000, 1_000_000, 0).await? == (8, 8, 80_800));
    ensure!(claimed(1_000_000, 25_000, 0).await? == (3, 8, 30_800), "a merchant's share");
    ensure!(claimed(1_000_000, 25_000, 20_000).await? == (1, 8, 10_800), "with what is in flight");
    ensure!(claimed(1_000_000, 25_000, 25_000).await? == (0, 8, 800), "the other has the rest");
    max_deliveries.set(8);
    for _ in 0..10 {
        ensure!(claimed(1_000_000, 25_000, 25_000).await? == (0, 8, 800), "who has no bytes left takes no place of others");
    }
    max_deliveries.set(100);
    for _ in 0..5 {
        let (of_large, of_small, bytes) = claimed(15_000, 1_000_000, 0).await?;
        ensure!(of_large == 2 && bytes < 25_000, "{of_large} and {of_small}: {bytes}");
    }
    ensure!(
        claimed(1, 1, 0).await?.2 > 0 && claimed(0, 1_000_000, 0).await? == (0, 0, 0),
        "none is too large, if there is room"
    );
    Ok(())
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_and_a_message_that_is_gone_stop_nobody_else() -> Result<()> {
    let (_lab, db, large) = large_and_small().await?;
    db.batch_execute(
        "UPDATE webhook_endpoints SET secret = 'whsec_short', old_secret = 'x', old_secret_until = now() + interval '1 day' WHERE url = 'large';
         DELETE FROM webhook_messages WHERE event_id = 'small3'",
    )
    .await?;
    let claimed = due(&db, Lane::Healthy).await?;
    ensure!(claimed.len() == 16, "{claimed:?}");
    for due in &claimed {
        let expected = match due.event_id.as_str() {
            "small3" => Some("this message"),
            _ if due.merchant == large => Some("/rotate"),
            _ => None,
        };
        let is_so = match (due.unsendable, expected) {
            (Some(cause), Some(expected)) => cause.contains(expected),
            (cause, expected) => cause.is_none() && expected.is_none(),
        };
        ensure!(is_so, "{due:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_delivery_that_somebody_keeps_locked_delays_no_other() -> Result<()> {
    let (lab, mut db, _) = large_and_small().await?;
    let delivered = |delivery| ended(delivery, Verdict::Delivered);
    let mut done: Vec<FinishedAttempt> = due(&db, Lane::Healthy).await?.into_iter().map(delivered).collect();
    let locked = done.iter().find(|one| one.delivery.event_id == "large1").context("it was due")?.delivery.delivery_id;
    let mut other = lab.database().await?;
    let holder = other.transaction().await?;
    holder.execute("SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE", &[&locked]).await?;
    let settling = tokio::time::timeout(Duration::from_secs(10), queue::settle(&mut db, &mut done));
    let settled = settling.await.context("it waits for the lock")??;
    ensure!(settled.attempts.len() == 15 && done.len() == 1 && done[0].delivery.delivery_id == locked, "{done:?}");
    let releasing = tokio::time::timeout(Duration::from_secs(10), queue::release_claims(&db, "lab"));
    ensure!(releasing.await.context("a start waits for the lock")?? == 0, "it is locked");
    holder.rollback().await?;
    // One that is removed meanwhile is waited for by nobody.
    let settled = queue::settle(&mut db, &mut done).await?;
    ensure!(settled.attempts.len() == 1 && done.is_empty(), "{done:?}");
    let sql = "SELECT count(*) FROM webhook_attempts JOIN webhook_deliveries ON id = delivery_id WHERE state = 'delivered'";
    ensure!(db.query_one(sql, &[]).await?.get::<_, i64>(0) == 16, "an attempt was not written down");
    db.execute("DELETE FROM webhook_deliveries WHERE id = $1", &[&locked]).await?;
    let mut gone = settled.attempts;
    queue::settle(&mut db, &mut gone).await?;
    ensure!(gone.is_empty(), "{gone:?}");
    Ok(())
}
