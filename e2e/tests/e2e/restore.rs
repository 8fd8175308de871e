//! Postgres is restored from a backup, or `payment.intents` is lost: what was given out and told stays as it was.

use crate::api::batch;
use crate::merchants::OTHER_XPUB;
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Backup, KafkaAdmin, Lab, Payment, Plan, Process, XPUB, events, eventually, ledger};
use futures::future::try_join_all;
use payments::intents::ACKNOWLEDGEMENT_TIMEOUT;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use reqwest::{Method, StatusCode};
use runtime::db::lock;
use runtime::kafka::{Backlog, Publisher};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use topics::{Message as _, Topic, U256, wire};
use uuid::Uuid;
use wallet::AccountXpub;

const PER_ROUND: usize = 100;
const AMOUNT: u64 = 1_000;

/// [`e2e::XPUB`] with the fingerprint 01020304 of another parent.
const TWIN: &str =
    "xpub6BfCU6SeCoGLy92bvSZvNKRX2UMZopiPQ1e5UE6v6wVLWWXtMz1Qc94NcGd1MH21r7cdbLkBCJxVmsk2zq8KHW34pZzeR1KPN71raQyzwsj";

/// What becomes of a payment in its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Paid,
    Cancelled,
    /// Paid at the end.
    Open,
}

struct Made {
    key: String,
    payment: Payment,
    fate: Fate,
}

/// Creates a payment with a key, with retries while the API catches up. Returns whether an earlier request had made it.
async fn create(api: &Api, key: &str) -> Result<(Payment, bool)> {
    let client = e2e::plain_http().build()?;
    let body = json!({ "chain": "anvil", "amount": AMOUNT.to_string(), "metadata": { "key": key }, "confirmations": 2 });
    eventually("a payment to be created", async || {
        let request = client.post(format!("{}/api/v1/payments", api.url)).header("X-Api-Key", &api.key);
        let Ok(answer) = request.header("Idempotency-Key", key).json(&body).send().await else { return Ok(None) };
        let (status, repeated) = (answer.status(), answer.headers().contains_key("idempotent-replayed"));
        let text = answer.text().await?;
        // Also while the database is away, keys of the API can't be looked up.
        ensure!(status == StatusCode::CREATED || status.is_server_error(), "{key}: {status} {text}");
        Ok((status == StatusCode::CREATED)
            .then(|| serde_json::from_str(&text))
            .transpose()?
            .map(|made| (Payment(made), repeated)))
    })
    .await
}

/// Waits until the last event of each payment has the status that `expected` says; `None` stands for any.
async fn until_told<'a>(lab: &Lab, all: &'a [Made], expected: impl Fn(&'a Made) -> Option<&'static str>) -> Result<()> {
    let outcome = eventually("all to be told", async || {
        let told = events(lab).await?;
        let mut last: HashMap<&str, &wire::PaymentEvent> = HashMap::new();
        for event in &told {
            let known = last.entry(event.payment_id.as_str()).or_insert(event);
            if known.sequence < event.sequence {
                *known = event;
            }
        }
        let missing = all.iter().find(|made| {
            let status = last.get(made.payment.id()).map(|event| event.status.as_str());
            expected(made).is_some_and(|expected| status != Some(expected))
        });
        Ok(missing.is_none().then_some(()))
    });
    outcome.await
}

/// A round of payments, of which some are paid and some cancelled, all of it told.
async fn round(lab: &Lab, api: &Api, name: &str) -> Result<Vec<Made>> {
    let made = try_join_all((0..PER_ROUND).map(|place| async move {
        let key = format!("{name}-{place}");
        let (payment, repeated) = create(api, &key).await?;
        ensure!(!repeated, "{key} was made before");
        let fate = [Fate::Paid, Fate::Cancelled, Fate::Open][place % 3];
        anyhow::Ok(Made { key, payment, fate })
    }))
    .await?;
    let mut parts = Vec::new();
    for (place, made) in made.iter().enumerate() {
        let amount = match made.fate {
            Fate::Paid => AMOUNT,
            // A part before it is cancelled, and the rest at the end, so that its life has events on both sides.
            Fate::Cancelled if place % 2 == 0 => 1,
            Fate::Cancelled | Fate::Open => continue,
        };
        if amount == 1 {
            parts.push(made.payment.id().to_owned());
        }
        lab.node.pay(made.payment.address()?, U256::from(amount)).await?;
    }
    lab.node.mine(2).await?;
    until_told(lab, &made, |made| (made.fate == Fate::Paid).then_some("confirmed")).await?;
    eventually("the parts to be told", async || {
        let told = events(lab).await?;
        let has = |id: &String| told.iter().any(|event| event.payment_id == *id && event.r#type == "payment.underpaid");
        Ok(parts.iter().all(has).then_some(()))
    })
    .await?;
    for made in made.iter().filter(|made| made.fate == Fate::Cancelled) {
        let path = format!("/api/v1/payments/{}/cancel", made.payment.id());
        let (status, answer) = api.request(Method::POST, &path, None, &[]).await?;
        ensure!(status.is_success(), "cancel: {status} {answer}");
    }
    until_told(lab, &made, |made| {
        Some(match made.fate {
            Fate::Paid => "confirmed",
            Fate::Cancelled => "cancelled",
            Fate::Open => "pending",
        })
    })
    .await?;
    Ok(made)
}

async fn customer(api: &Api, name: &str) -> Result<Value> {
    eventually("a static address", async || {
        let body = json!({ "external_id": name });
        let answer = api.request(Method::POST, "/api/v1/addresses", Some(body), &[]).await;
        Ok(answer.ok().filter(|(status, _)| status.is_success()).map(|(_, address)| address))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_restored_while_all_roles_are_stopped_takes_back_nothing() -> Result<()> {
    restored(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_restored_while_all_roles_run_takes_back_nothing() -> Result<()> {
    restored(true).await
}

async fn restored(while_running: bool) -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let mut all = round(&lab, &api, "before").await?;
    let clerk = lab.merchant("clerk")?;
    let backup = Backup::take(&lab)?;
    all.extend(round(&lab, &api, "lost").await?);
    let own = AccountXpub::parse(OTHER_XPUB)?;
    lab.ctrip(&["merchants", "update", "clerk", "--own-xpub", OTHER_XPUB])?;
    let owned = clerk.coin(AMOUNT).await?;
    ensure!(owned.address()? == own.address(0)?, "the clerk's account is its own");
    let known = customer(&api, "customer 7").await?;
    let deposit = lab.node.pay(known["address"].as_str().context("an address")?.parse()?, U256::from(5)).await?;
    eventually("the receipt", || lab.node.receipt(deposit)).await?;
    lab.node.mine(3).await?;
    let is_deposit = |event: &&wire::PaymentEvent| event.r#type == "deposit.confirmed";
    eventually("the deposit", async || Ok(events(&lab).await?.iter().find(is_deposit).map(drop))).await?;

    if while_running {
        backup.restore(&lab).await?;
    } else {
        ensure!(up.terminate()?.success(), "{}", up.tail());
        backup.restore(&lab).await?;
        up = lab.spawn("up")?;
        api.ready(&mut up).await?;
    }
    all.extend(round(&lab, &api, "after").await.with_context(|| up.tail())?);
    up.check()?;
    ensure!(up.metric("restored_from_topics_total", &[("what", "payments")]).await? >= 100.0, "{}", up.tail());
    let again = customer(&api, "customer 7").await?;
    ensure!(again == known, "the customer's address was {known}, and is {again}");

    // Its settings are those of the backup, and its next payments would go to another wallet.
    let order = json!({ "chain": "anvil", "amount": AMOUNT });
    let (status, refused) = clerk.request(Method::POST, "/api/v1/payments", Some(order.clone()), &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE && refused.to_string().contains("the operator has to say"), "{refused}");
    let (status, refused) = clerk.request(Method::POST, "/api/v1/addresses", Some(json!({ "external_id": "c" })), &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{refused}");
    let (_, health) = clerk.request(Method::GET, "/health", None, &[]).await?;
    ensure!(health["components"]["topics"].to_string().contains("1 merchants get no addresses"), "{health}");
    ensure!(lab.ctrip(&["merchants", "list"])?.contains(&own.fingerprint()), "the account of before is shown");
    ensure!(up.log().contains("merchant \"clerk\" gets no addresses"), "{}", up.tail());
    lab.ctrip(&["merchants", "update", "clerk", "--own-xpub", OTHER_XPUB])?;
    ensure!(clerk.create_surely(order).await?.address()? == own.address(1)?, "as the operator has said");

    let addresses = all.iter().map(|made| made.payment.address()).collect::<Result<BTreeSet<_>>>()?;
    ensure!(addresses.len() == 3 * PER_ROUND, "an address was given out twice");
    for made in all.iter().filter(|made| made.fate != Fate::Paid) {
        lab.node.pay(made.payment.address()?, U256::from(AMOUNT)).await?;
    }
    lab.node.mine(3).await?;
    let end = |made: &Made| if made.fate == Fate::Cancelled { "cancelled" } else { "confirmed" };
    until_told(&lab, &all, |made| Some(end(made))).await?;
    eventually("the last money to be told", async || {
        let told = events(&lab).await?;
        let late = told.iter().filter(|event| event.r#type == "payment.late").count();
        Ok((late == all.iter().filter(|made| made.fate == Fate::Cancelled).count()).then_some(()))
    })
    .await?;
    for made in &all {
        let id = made.payment.id();
        let now = api.get(id).await?;
        let received: u64 = now.text("amount_received").parse()?;
        ensure!(now.status() == end(made) && received >= AMOUNT, "{}: {}", made.key, now.0);
        for field in ["address", "amount", "expires_at", "created_at"] {
            ensure!(now.0[field] == made.payment.0[field], "{}: {field} was {} and is {}", made.key, made.payment.0, now.0);
        }
        ensure!(now.0["metadata"] == json!({ "key": made.key }) && now.0["confirmations_required"] == 2, "{}", now.0);
        let (repeated, is_repeated) = create(&api, &made.key).await?;
        ensure!(is_repeated && repeated.id() == id, "{}: the key made {} and then {}", made.key, id, repeated.id());
    }
    ensure!(ledger(&lab).await?.len() == 3 * PER_ROUND + 3, "payments, the clerk's two and the deposit in Postgres");
    check_events(&lab, &all).await?;
    up.check()
}

/// A replica wrote it to the database that another one has taken the place of, and still waited for Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn an_intent_that_reaches_kafka_after_the_restore_keeps_its_address() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let account = AccountXpub::parse(XPUB)?;
    let first = api.coin(AMOUNT).await?;
    ensure!(first.address()? == account.address(0)?);
    let sql = "SELECT merchant_id, i.id FROM payments, installation i";
    let row = lab.database().await?.query_one(sql, &[]).await?;
    let intent = wire::PaymentIntent {
        address: account.address(1)?.to_vec().into(),
        payment_id: Uuid::now_v7().to_string(),
        merchant_id: row.get::<_, Uuid>(0).to_string(),
        chain_id: 31337,
        chain: "anvil".to_owned(),
        amount: vec![1].into(),
        address_index: 1,
        account: account.fingerprint(),
        installation: row.get::<_, Uuid>(1).to_string(),
        ..Default::default()
    };
    let kafka = lab.kafka().await?;
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;

    Backup::take(&lab)?.restore(&lab).await?;
    let acknowledged_late = async {
        tokio::time::sleep(ACKNOWLEDGEMENT_TIMEOUT - Duration::from_secs(1)).await;
        publisher.publish(Topic::Intents, &[(intent.key(), kafka.encode(&intent))]).await.into_iter().collect::<Result<()>>()
    };
    let create = api.create_surely(json!({ "chain": "anvil", "amount": AMOUNT }));
    let (next, ()) = tokio::try_join!(create, acknowledged_late)?;
    ensure!(next.address()? == account.address(2)?, "the address of the intent that was on its way was given out again");
    ensure!(ledger(&lab).await?.contains_key(&intent.payment_id), "{}", up.tail());
    up.check()
}

/// Whoever leads there holds the lock for as long as the server runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_waits_for_the_lead_on_an_old_primary_leaves_it() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let db = lab.database().await?;
    db.execute("SELECT pg_advisory_lock($1)", &[&lock::RELAY]).await?;
    let mut confirmer = lab.spawn("confirmer")?;
    eventually("the relay to wait", async || {
        let sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
             AND query = 'SELECT pg_try_advisory_lock($1) AS leads_the_relay'";
        Ok(db.query_opt(sql, &[]).await?)
    })
    .await?;
    // From now on new connections find another database, while the old ones answer.
    db.batch_execute(
        "BEGIN; CREATE TABLE anew (LIKE stage_offsets INCLUDING ALL); INSERT INTO anew TABLE stage_offsets;
         DROP TABLE stage_offsets; ALTER TABLE anew RENAME TO stage_offsets; COMMIT",
    )
    .await?;
    let said = "another database has taken the place of the one that the relay reads";
    eventually("the relay to leave", async || Ok(confirmer.log().contains(said).then_some(()))).await?;
    confirmer.check()
}

/// No event is there twice, and none is missing: each payment's are numbered without gaps, and their types are those of its life.
async fn check_events(lab: &Lab, all: &[Made]) -> Result<()> {
    let left = eventually("the outbox to be empty", async || {
        let depth = lab.database().await?.query_one("SELECT count(*) FROM outbox WHERE batch IS NULL", &[]).await?;
        Ok((depth.get::<_, i64>(0) == 0).then_some(()))
    });
    left.await?;
    let told = events(lab).await?;
    let mut lives: BTreeMap<&str, BTreeMap<u64, &wire::PaymentEvent>> = BTreeMap::new();
    for event in &told {
        let twice = lives.entry(&event.payment_id).or_default().insert(event.sequence, event);
        ensure!(twice.is_none(), "{} was told twice:\n{event:?}\n{twice:?}", event.id);
    }
    for made in all {
        let life = lives.get(made.payment.id()).context("a payment without events")?;
        let kinds: Vec<&str> = life.values().map(|event| event.r#type.trim_start_matches("payment.")).collect();
        ensure!(life.keys().copied().eq(1..=life.len() as u64), "{}: {:?}", made.key, life.keys());
        let expected: &[&[&str]] = match made.fate {
            Fate::Paid | Fate::Open => &[&["created", "detected", "confirmed"]],
            Fate::Cancelled => &[&["created", "cancelled", "late"], &["created", "underpaid", "cancelled", "late"]],
        };
        ensure!(expected.contains(&kinds.as_slice()), "{}: {kinds:?}", made.key);
    }
    let left = lab.database().await?.query_one("SELECT count(*) FROM told_events", &[]).await?;
    ensure!(left.get::<_, i64>(0) == 0, "told events that were not made again");
    Ok(())
}

fn admin(lab: &Lab) -> Result<AdminClient<DefaultClientContext>> {
    Ok(rdkafka::config::ClientConfig::new().set("bootstrap.servers", &lab.env["KAFKA_BROKERS"]).create()?)
}

/// Waits until the database knows that many intents.
async fn until_known(db: &tokio_postgres::Client, count: i64) -> Result<()> {
    eventually("the intents to be known", async || {
        let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM known_offsets WHERE topic LIKE '%payment.intents'";
        Ok((db.query_one(sql, &[]).await?.get::<_, i64>(0) >= count).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn intents_that_kafka_lost_are_published_again_and_their_addresses_watched() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let payments = try_join_all((0..10).map(|_| api.coin(AMOUNT))).await?;
    let address = customer(&api, "customer 7").await?;
    let db = lab.database().await?;
    until_known(&db, 11).await?;
    ensure!(up.terminate()?.success(), "{}", up.tail());
    KafkaAdmin::of(&lab)?.make_anew(Topic::Intents).await?;

    let mut up = lab.spawn("up")?;
    api.ready(&mut up).await?;
    for payment in &payments {
        lab.node.pay(payment.address()?, payment.amount()?).await?;
    }
    lab.node.pay(address["address"].as_str().context("an address")?.parse()?, U256::from(5)).await?;
    lab.node.mine(3).await?;
    try_join_all(payments.iter().map(|payment| api.until(payment.id(), "confirmed"))).await?;
    let is_deposit = |event: &&wire::PaymentEvent| event.r#type == "deposit.confirmed";
    eventually("the deposit", async || Ok(events(&lab).await?.iter().find(is_deposit).map(drop))).await?;
    let log = std::fs::read_to_string(&up.log)?;
    ensure!(log.contains("lacks records that Kafka had acknowledged"), "{log}");
    ensure!(lab.ctrip(&["intents", "republish"])?.contains("published 11 intents"));
    up.check()
}

/// Nothing of such topics is known, and neither are the addresses that were given out under the other prefix.
#[tokio::test(flavor = "multi_thread")]
async fn intents_are_published_again_under_another_topic_prefix() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    try_join_all((0..10).map(|_| api.coin(AMOUNT))).await?;
    customer(&api, "customer 7").await?;
    until_known(&lab.database().await?, 11).await?;
    ensure!(up.terminate()?.success(), "{}", up.tail());
    let first = lab.env["TOPIC_PREFIX"].clone();
    lab.env.insert("TOPIC_PREFIX".to_owned(), format!("{first}other."));
    lab.ctrip(&["topics", "apply"])?;
    let db = lab.database().await?;
    let ours: String = db.query_one("SELECT compared_cluster FROM installation", &[]).await?.try_get(0)?;
    // From the first offsets on that are known the topic seems whole. Whoever returns to the first prefix lacks what came meanwhile, and
    // what is known of another cluster's topic of the same name says nothing.
    for (prefix, times) in [(format!("{first}other."), 1), (first.clone(), 2), (first, 3)] {
        lab.env.insert("TOPIC_PREFIX".to_owned(), prefix.clone());
        if times == 3 {
            db.execute("UPDATE installation SET compared_cluster = 'another'", &[]).await?;
            let refused = lab.output(&["intents", "republish"])?;
            ensure!(String::from_utf8_lossy(&refused.stderr).contains("was not compared"), "{refused:?}");
        }
        let mut confirmer = lab.spawn("confirmer")?;
        eventually("the intents to be published again", async || {
            Ok((confirmer.log().matches("published 11 intents again").count() == times).then_some(()))
        })
        .await?;
        // Killed before it has noted which topic it compared, it has not left the one of before.
        eventually("the topic and its cluster to be noted", async || {
            let noted = "SELECT 1 FROM installation WHERE compared = $1 AND compared_cluster = $2";
            let name = format!("{prefix}{}", Topic::Intents);
            Ok(db.query_opt(noted, &[&name, &ours]).await?.map(drop))
        })
        .await?;
        confirmer.kill()?;
    }
    until_known(&db, 11).await
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_somebody_adds_move_no_address_and_are_named() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (admin, name) = (admin(&lab)?, format!("{}{}", lab.env["TOPIC_PREFIX"], Topic::Intents));
    let more = NewPartitions::new(&name, 20);
    for added in admin.create_partitions(&[more], &AdminOptions::new()).await? {
        added.map_err(|(topic, code)| anyhow::anyhow!("adding partitions to {topic}: {code}"))?;
    }
    // The controller has answered, and a broker may not have heard of it. A detector counts them with the first blocks, and then at
    // an interval, if there are more.
    eventually("the broker to know of the partitions", async || {
        let metadata = admin.inner().fetch_metadata(Some(&name), Duration::from_secs(10))?;
        Ok((metadata.topics()[0].partitions().len() == 20).then_some(()))
    })
    .await?;
    let mut roles: Vec<Process> =
        ["ingest", "detector", "confirmer", "api"].map(|role| lab.spawn(role)).into_iter().collect::<Result<_>>()?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[3]).await?;
    let health = eventually("the partitions to be named", async || {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok(Some(health).filter(|health| health["components"]["topics"]["status"] == "failing"))
    })
    .await?;
    let said = health["components"]["topics"]["error"].as_str().unwrap_or_default();
    ensure!(health["status"] == "degraded" && said.contains("20 partitions"), "{health}");
    let log = roles[1].log.clone();
    eventually("the detector to refuse", async || Ok(std::fs::read_to_string(&log)?.contains("20 partitions").then_some(())))
        .await?;
    try_join_all((0..30).map(|_| api.create_surely(json!({ "chain": "anvil", "amount": AMOUNT })))).await?;
    let written =
        |partition| -> Result<i64> { Ok(admin.inner().fetch_watermarks(&name, partition, Duration::from_secs(10))?.1) };
    let beyond = (Topic::Intents.partitions()..20).map(written).sum::<Result<i64>>()?;
    ensure!(beyond == 0, "{beyond} intents are in partitions that no detector reads");
    Ok(())
}

/// A second installation on our topics, with a database of its own, would give out our addresses.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_installation_on_the_same_topics_is_refused_unless_it_takes_the_place_of_the_first() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let payment = api.coin(AMOUNT).await?;
    let db = lab.database().await?;
    until_known(&db, 1).await?;
    ensure!(up.terminate()?.success(), "{}", up.tail());
    let known = db.query("SELECT topic, partition, next_offset FROM known_offsets WHERE topic LIKE '%intents'", &[]).await?;
    let (_, name) = lab.env["DATABASE_URL"].rsplit_once('/').context("DATABASE_URL")?;
    let second = lab.stack.create_database(&format!("{name}_second")).await?;
    lab.env.insert("DATABASE_URL".to_owned(), second);
    let refused = |lab: &Lab| -> Result<String> {
        let refused = lab.output(&["up"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("ctrip intents adopt"), "{said}");
        Ok(said)
    };
    refused(&lab)?;
    let db = lab.database().await?;
    // That it knows topics of another prefix makes it no less new to these, which get nothing of it.
    ensure!(db.execute("UPDATE installation SET compared = 'other.payment.intents'", &[]).await? == 1);
    let said = refused(&lab)?;
    ensure!(!said.contains("intents again"), "{said}");
    let written = "SELECT (SELECT count(*) FROM told_events) + (SELECT count(*) FROM payment_events) + (SELECT count(*) FROM known_offsets)";
    let written: i64 = db.query_one(written, &[]).await?.get(0);
    ensure!(written == 0, "a refused start has written {written} rows of the topics' installation");
    // As far as a first comparison may come that ends with a refusal.
    let begin = "INSERT INTO known_offsets (topic, partition, next_offset) VALUES ($1, $2, 0)";
    let end = "UPDATE known_offsets SET next_offset = $3 WHERE topic = $1 AND partition = $2";
    for row in &known {
        db.execute(begin, &[&row.get::<_, &str>(0), &row.get::<_, i32>(1)]).await?;
    }
    let said = refused(&lab)?;
    for row in &known {
        db.execute(end, &[&row.get::<_, &str>(0), &row.get::<_, i32>(1), &row.get::<_, i64>(2)]).await?;
    }
    // Neither do these have what it knows of those of one name in another cluster.
    let topic = known.first().context("offsets")?.get::<_, &str>(0);
    let sql = "UPDATE installation SET compared = $1, compared_cluster = 'another'";
    ensure!(db.execute(sql, &[&topic]).await? == 1);
    let state = "SELECT (SELECT count(*) FROM told_events) + (SELECT count(*) FROM payment_events),
                        (SELECT array_agg(partition || ':' || next_offset ORDER BY topic, partition) FROM known_offsets)";
    let state = async || -> Result<(i64, Vec<String>, BTreeMap<i32, i64>)> {
        let (row, kafka) = (db.query_one(state, &[]).await?, lab.kafka().await?);
        let ends = move || Backlog::open(&kafka)?.ends(Topic::Intents);
        let ends = tokio::task::spawn_blocking(ends).await??;
        Ok((row.get(0), row.get(1), ends))
    };
    let before = state().await?;
    ensure!(!refused(&lab)?.contains("intents again"));
    let after = state().await?;
    ensure!(before == after, "a refused start has made {after:?} of {before:?}");
    let id = said.split("ctrip intents adopt ").nth(1).and_then(|rest| rest.get(..36)).context("an installation's id")?;

    lab.ctrip(&["intents", "adopt", id])?;
    let mut up = lab.spawn("up")?;
    // The first database may have had a merchant of this name.
    ensure!(lab.ctrip(&["keys", "create", "clerk"]).is_err());
    let key = lab.ctrip(&["keys", "create", "clerk", "--new-merchant"])?;
    let api = api.with_key(&key);
    api.ready(&mut up).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    eventually("the payment of the first database", async || {
        let rows = ledger(&lab).await?;
        Ok(rows.get(payment.id()).filter(|row| row.status == "confirmed").map(drop))
    })
    .await?;
    ensure!(api.coin(AMOUNT).await?.address()? != payment.address()?, "an address was given out twice");
    up.check()
}

/// The one that was there first goes on, names the other, and gives out no index that the other gave out, nor one of an intent that it
/// can't read.
#[tokio::test(flavor = "multi_thread")]
async fn intents_that_bring_nothing_back_keep_their_indices() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let account = AccountXpub::parse(XPUB)?;
    ensure!(api.coin(AMOUNT).await?.address()? == account.address(0)?);
    let (kafka, other) = (lab.kafka().await?, Uuid::new_v4());
    let intent = wire::PaymentIntent {
        address: account.address(50)?.to_vec().into(),
        payment_id: Uuid::now_v7().to_string(),
        merchant_id: Uuid::new_v4().to_string(),
        chain_id: 31337,
        chain: "anvil".to_owned(),
        amount: vec![1].into(),
        address_index: 50,
        account: account.fingerprint(),
        installation: other.to_string(),
        ..Default::default()
    };
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;
    let publish = async |intent: &wire::PaymentIntent| {
        let outcomes = publisher.publish(Topic::Intents, &[(intent.key(), kafka.encode(intent))]).await;
        outcomes.into_iter().collect::<Result<()>>()
    };
    publish(&intent).await?;
    let health = eventually("the other installation to be named", async || {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok(Some(health).filter(|health| health["components"]["topics"]["status"] == "failing"))
    })
    .await?;
    ensure!(health["status"] == "degraded" && health.to_string().contains(&other.to_string()), "{health}");
    ensure!(api.coin(AMOUNT).await?.address()? == account.address(51)?, "an index of the other installation");
    ensure!(!ledger(&lab).await?.contains_key(&intent.payment_id), "the other's payment is not ours");

    let own: Uuid = lab.database().await?.query_one("SELECT id FROM installation", &[]).await?.get(0);
    let unreadable = wire::PaymentIntent {
        address: account.address(60)?.to_vec().into(),
        payment_id: Uuid::now_v7().to_string(),
        address_index: 60,
        finality: "soon".to_owned(),
        installation: own.to_string(),
        ..intent
    };
    publish(&unreadable).await?;
    eventually("the unreadable intent to be named", async || {
        Ok(lab.ctrip(&["set-aside"])?.contains(&unreadable.payment_id).then_some(()))
    })
    .await?;
    let health = eventually("it to be counted", async || {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok(health["components"]["set_aside"].to_string().contains("1 payments").then_some(health))
    })
    .await?;
    let address = format!("{:#x}", account.address(60)?);
    let all = health.to_string().to_lowercase();
    ensure!(!all.contains(&unreadable.payment_id) && !all.contains(&address), "anyone may read it: {health}");
    ensure!(api.coin(AMOUNT).await?.address()? == account.address(61)?, "the index of an unreadable intent");
    lab.ctrip(&["intents", "forget", &unreadable.payment_id])?;

    // Texts that Postgres can't keep end no role: neither as they are, nor in what names them.
    for (payment_id, index) in [("x\0".to_owned(), 70), ((0..400).map(|n| format!("{n:08}")).collect(), 71)] {
        let address = account.address(index)?.to_vec().into();
        publish(&wire::PaymentIntent { address, payment_id, address_index: index, ..unreadable.clone() }).await?;
    }
    let nul = wire::PaymentIntent {
        address: account.address(72)?.to_vec().into(),
        payment_id: Uuid::now_v7().to_string(),
        address_index: 72,
        finality: "soon\0".to_owned(),
        ..unreadable
    };
    publish(&nul).await?;
    let items = eventually("all three to be named", async || {
        let listed = lab.ctrip(&["set-aside"])?;
        let item = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        let items: Vec<String> = listed.lines().skip(1).filter_map(item).collect();
        Ok((items.len() == 3).then_some(items))
    })
    .await?;
    ensure!(items.contains(&nul.payment_id), "{items:?}");
    ensure!(api.coin(AMOUNT).await?.address()? == account.address(73)?, "their indices");
    for item in &items {
        lab.ctrip(&["intents", "forget", item])?;
    }
    up.check()
}

/// The same key exported under another parent has another text, and the same addresses.
#[tokio::test]
async fn an_xpub_with_the_key_of_another_is_refused_for_the_api_too() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    // A twin that came in all the same has given out our first address: one order takes it, and keeps the others from nothing.
    let (db, other) = (lab.database().await?, AccountXpub::parse(OTHER_XPUB)?);
    let (account, theirs) = (AccountXpub::parse(XPUB)?, other.fingerprint());
    let sql = "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ($1, $2, 's')";
    db.execute(sql, &[&theirs, &other.as_str()]).await?;
    let sql = "INSERT INTO deposit_addresses (id, merchant_id, external_id, address, xpub, address_index, created_at)
               SELECT gen_random_uuid(), id, 'customer', $1, $2, 0, 0 FROM merchants";
    db.execute(sql, &[&account.address(0)?.as_slice(), &theirs]).await?;
    let orders = vec![json!({ "chain": "anvil", "amount": AMOUNT }); 3];
    let (_, made) = batch(&api, &orders, &[]).await?;
    let made = made["data"].as_array().context("answers")?;
    ensure!(made.iter().all(|made| made["status"] == 201), "{made:?}");
    let taken = account.address(0)?.to_string();
    ensure!(made.iter().all(|made| made["payment"]["address"] != taken.as_str()), "a customer's address for a payment");

    ensure!(up.terminate()?.success(), "{}", up.tail());
    lab.env.insert("CTRIP_XPUB".to_owned(), TWIN.to_owned());
    for is_lost in [false, true] {
        if is_lost {
            // As after a restore: the account is known by its addresses alone.
            db.execute("UPDATE xpubs SET xpub = NULL WHERE fingerprint = $1", &[&account.fingerprint()]).await?;
        }
        let refused = lab.output(&["api"])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && said.contains("under another text"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_payment_and_a_static_address_share_no_index() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let db = lab.database().await?;
    db.batch_execute(
        "INSERT INTO merchants (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'shop');
         INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('f', 'x', 's'), ('g', 'y', 't');",
    )
    .await?;
    let at = |account: &str, index: i64| format!("decode(lpad(md5('{account}/{index}'), 40, '0'), 'hex')");
    let payment = |account: &str, index: i64, address: &str| {
        format!(
            "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
                 confirmations_required, sequence, created_at, expires_at, updated_at)
             SELECT gen_random_uuid(), id, 1, 'c', 18, {address}, '{account}', {index}, 1, 'pending',
                 1, 1, 0, 1, 0 FROM merchants"
        )
    };
    let address = |account: &str, index: i64, address: &str| {
        format!(
            "INSERT INTO deposit_addresses (id, merchant_id, external_id, address, xpub, address_index, created_at)
             SELECT gen_random_uuid(), id, gen_random_uuid()::text, {address}, '{account}', {index}, 0
             FROM merchants"
        )
    };
    db.batch_execute(&payment("f", 1, &at("f", 1))).await?;
    db.batch_execute(&address("f", 2, &at("f", 2))).await?;
    // Another account has indices of its own.
    db.batch_execute(&payment("g", 2, &at("g", 2))).await?;
    db.batch_execute(&address("g", 1, &at("g", 1))).await?;
    // And a twin's addresses are the same, at indices of its own.
    let of_twin = [address("g", 8, &at("f", 1)), payment("g", 9, &at("f", 2))];
    for sql in [address("f", 1, &at("f", 1)), payment("f", 2, &at("f", 2))].into_iter().chain(of_twin) {
        let refused = db.batch_execute(&sql).await.err().context("an index was given out twice")?;
        ensure!(refused.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION), "{refused}");
    }
    Ok(())
}
