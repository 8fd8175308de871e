//! Static deposit addresses: one per customer, and every deposit to it has events.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, Process, events, eventually, records};
use futures::StreamExt as _;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use reqwest::{Method, StatusCode};
use runtime::db::lock;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use topics::{Address, U256, wire};
use uuid::Uuid;

struct Running {
    lab: Lab,
    api: Api,
    _process: Process,
}

async fn running(role: &str) -> Result<Running> {
    let lab = Lab::start(Plan::default()).await?;
    let mut process = lab.spawn(role)?;
    let api = lab.merchant("shop")?;
    api.ready(&mut process).await?;
    Ok(Running { lab, api, _process: process })
}

async fn address(api: &Api, body: Value) -> Result<(StatusCode, Value)> {
    api.request(Method::POST, "/api/v1/addresses", Some(body), &[]).await
}

async fn get(api: &Api, path: &str) -> Result<Value> {
    let (status, answer) = api.request(Method::GET, path, None, &[]).await?;
    ensure!(status.is_success(), "{path}: {status} {answer}");
    Ok(answer)
}

#[tokio::test]
async fn a_customer_has_one_address_however_often_it_is_asked_for() -> Result<()> {
    let Running { lab, api, _process } = running("api").await?;
    let first = json!({ "external_id": "customer-1", "metadata": { "vip": true, "limit": 1e300 } });
    let answers = try_join_all((0..16).map(|_| address(&api, first.clone()))).await?;
    let made = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    ensure!(made == 1 && answers.iter().all(|(status, _)| status.is_success()), "{answers:?}");
    let known = &answers[0].1;
    ensure!(answers.iter().all(|(_, answer)| answer == known), "{answers:?}");
    let (status, again) = address(&api, json!({ "external_id": "customer-1", "metadata": {} })).await?;
    ensure!(status == StatusCode::OK && &again == known, "the metadata of the first time stays: {status} {again}");
    ensure!(&get(&api, &format!("/api/v1/addresses/{}", known["id"].as_str().context("id")?)).await? == known);

    // A customer of another merchant with the same name is another customer, and neither merchant sees the other's.
    let other = lab.merchant("other shop")?;
    let (status, theirs) = address(&other, json!({ "external_id": "customer-1" })).await?;
    ensure!(status == StatusCode::CREATED && theirs["address"] != known["address"], "{status} {theirs}");
    for path in ["", "/deposits"] {
        let path = format!("/api/v1/addresses/{}{path}", known["id"].as_str().context("id")?);
        let (status, answer) = other.request(Method::GET, &path, None, &[]).await?;
        ensure!(status == StatusCode::NOT_FOUND, "another merchant's {path}: {status} {answer}");
    }

    // A static address is no payment's, and a list has each of them once.
    let payment = api.coin(1).await?;
    let mut expected = vec![known["address"].clone()];
    for number in 2..=5 {
        let (status, answer) = address(&api, json!({ "external_id": format!("customer-{number}") })).await?;
        ensure!(status == StatusCode::CREATED, "{status} {answer}");
        expected.push(answer["address"].clone());
    }
    expected.reverse();
    ensure!(!expected.contains(&json!(payment.text("address"))) && !expected.contains(&theirs["address"]), "{expected:?}");
    let (mut cursor, mut listed) = (String::new(), Vec::new());
    loop {
        let page = get(&api, &format!("/api/v1/addresses?limit=2{cursor}")).await?;
        listed.extend(page["data"].as_array().into_iter().flatten().map(|address| address["address"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    listed.sort_unstable_by_key(Value::to_string);
    expected.sort_unstable_by_key(Value::to_string);
    ensure!(listed == expected, "{listed:?} for {expected:?}");
    let found = get(&api, "/api/v1/addresses?external_id=customer-3").await?;
    ensure!(
        found["data"].as_array().is_some_and(|found| found.len() == 1 && found[0]["external_id"] == "customer-3"),
        "{found}"
    );

    for (body, field) in [(json!({}), "external_id"), (json!({ "external_id": "x", "amount": 1 }), "amount")] {
        let (status, answer) = address(&api, body).await?;
        ensure!(status == StatusCode::UNPROCESSABLE_ENTITY && answer["errors"][0]["field"] == field, "{status} {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_that_wait_for_one_lock_leave_others_connections_and_take_no_lock_of_a_role() -> Result<()> {
    let Running { lab, api, _process } = running("api").await?;
    let other = lab.merchant("other shop")?;
    get(&other, "/api/v1/addresses").await?;
    let db = lab.database().await?;
    let merchant: Uuid = db.query_one("SELECT id FROM merchants WHERE name = 'shop'", &[]).await?.get(0);
    let name = format!("{merchant}/customer-1");
    db.execute("SELECT pg_advisory_lock($1, hashtext($2))", &[&lock::CUSTOMERS, &name]).await?;
    let mut asked: FuturesUnordered<_> = (0..32).map(|_| address(&api, json!({ "external_id": "customer-1" }))).collect();
    // One number is the key of a role's lock.
    let waiting =
        "SELECT count(*), count(*) FILTER (WHERE objsubid = 1) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let look = async || {
        let (row, asked) = (db.query_one(waiting, &[]).await?, Instant::now());
        get(&other, "/api/v1/addresses").await?;
        anyhow::Ok((row.get::<_, i64>(0), row.get::<_, i64>(1), asked.elapsed()))
    };
    let mut most = 0;
    let first = loop {
        tokio::select! {
            first = asked.next() => break first,
            seen = look() => {
                let (held, of_roles, took) = seen?;
                most = most.max(held);
                ensure!(most <= 8 && of_roles == 0 && took < Duration::from_secs(1), "{held} {of_roles} {took:?}");
            }
        }
    };
    ensure!(most == 8, "{most} of the API's connections, and not half");
    let (status, answer) = first.context("an answer")??;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "none waits for long: {status} {answer}");
    db.execute("SELECT pg_advisory_unlock($1, hashtext($2))", &[&lock::CUSTOMERS, &name]).await?;
    while let Some(answer) = asked.next().await {
        let (status, answer) = answer?;
        ensure!(status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE, "{status} {answer}");
    }
    let (status, answer) = address(&api, json!({ "external_id": "customer-1" })).await?;
    ensure!(status.is_success(), "{status} {answer}");
    Ok(())
}

#[tokio::test]
async fn an_address_is_not_shown_long_after_its_connection_was_taken_unless_kafka_had_it_before() -> Result<()> {
    let Running { lab, api, _process } = running("api").await?;
    let (_, customer) = address(&api, json!({ "external_id": "customer-1" })).await?;
    let (customer, payment) = (customer["id"].as_str().context("id")?, api.coin(1).await?);
    let (customer, cancel) = (format!("/api/v1/addresses/{customer}"), format!("/api/v1/payments/{}/cancel", payment.id()));
    // Both as they were before Kafka acknowledged them, and too young for the repair.
    let (mut db, other) = (lab.database().await?, lab.database().await?);
    let intents = records::<wire::PaymentIntent>(&lab).await?;
    let ids = intents.iter().map(|intent| intent.payment_id.parse()).collect::<Result<Vec<Uuid>, _>>()?;
    let intents: Vec<Vec<u8>> = intents.iter().map(wire::PaymentIntent::encode_to_vec).collect();
    let take_back = "INSERT INTO unacknowledged_intents (payment_id, intent, created_at)
                     SELECT *, now() + interval '1 hour' FROM unnest($1::uuid[], $2::bytea[])";
    db.execute(take_back, &[&ids, &intents]).await?;
    let held = db.transaction().await?;
    held.batch_execute("LOCK TABLE payments, deposit_addresses IN ACCESS EXCLUSIVE MODE").await?;
    let ask = async || {
        tokio::try_join!(api.request(Method::GET, &customer, None, &[]), api.request(Method::POST, &cancel, None, &[]),)
    };
    let release = async {
        eventually("both to wait for their tables", async || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN ('payments'::regclass, 'deposit_addresses'::regclass)";
            Ok((other.query_one(waiting, &[]).await?.get::<_, i64>(0) >= 2).then_some(()))
        })
        .await?;
        // Longer than an address may be given out after its connection was taken.
        tokio::time::sleep(Duration::from_secs(6)).await;
        Ok(held.commit().await?)
    };
    let (answers, ()) = tokio::try_join!(ask(), release)?;
    ensure!([&answers.0, &answers.1].iter().all(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE), "{answers:?}");
    let answers = ask().await?;
    ensure!([&answers.0, &answers.1].iter().all(|(status, _)| status.is_success()), "{answers:?}");
    Ok(())
}

async fn deposits(api: &Api, address: &str) -> Result<Vec<Value>> {
    let page = get(api, &format!("/api/v1/addresses/{address}/deposits")).await?;
    page["data"].as_array().cloned().context("deposits")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_deposit_to_an_address_is_told_and_a_reorganisation_takes_it_back() -> Result<()> {
    let Running { lab, api, _process } = running("up").await?;
    let (_, customer) = address(&api, json!({ "external_id": "customer-1" })).await?;
    let id = customer["id"].as_str().context("id")?;
    let to: Address = customer["address"].as_str().context("address")?.parse()?;

    lab.node.pay(to, U256::from(1_000)).await?;
    lab.node.pay_token(to, U256::from(2_500_000)).await?;
    lab.node.mine(3).await?;
    // Until the last block is counted, since the pages below have to show the same count. The coin's block is the token's parent.
    let confirmed = eventually("two deposits to be confirmed, and counted to the head", async || {
        let deposits = deposits(&api, id).await?;
        let counted = |deposit: &Value| deposit["status"] == "confirmed" && deposit["confirmations"].as_u64() >= Some(4);
        Ok((deposits.len() == 2 && deposits.iter().all(counted)).then_some(deposits))
    });
    let seen = confirmed.await?;
    let of = |amount: &str| seen.iter().find(|deposit| deposit["amount"] == amount).context("a deposit");
    let (coin, token) = (of("1000")?, of("2500000")?);
    ensure!(coin["token"].is_null() && token["token"] == e2e::TOKEN_SYMBOL, "{coin} {token}");
    for deposit in [coin, token] {
        ensure!(deposit["deposit_address_id"] == id && deposit["address"] == customer["address"], "{deposit}");
        ensure!(deposit["amount_received"] == deposit["amount"] && deposit["external_id"] == "customer-1", "{deposit}");
        ensure!(deposit["expires_at"].is_null() && deposit["payment_uri"].is_null(), "{deposit}");
    }
    // Requested payments are another list.
    ensure!(get(&api, "/api/v1/payments").await?["data"] == json!([]));
    let (newest, rest) = {
        let first = get(&api, &format!("/api/v1/addresses/{id}/deposits?limit=1")).await?;
        let cursor = first["next_cursor"].as_str().context("a second page")?;
        let second = get(&api, &format!("/api/v1/addresses/{id}/deposits?limit=1&cursor={cursor}")).await?;
        ensure!(second["next_cursor"].is_null(), "{second}");
        (first["data"][0].clone(), second["data"][0].clone())
    };
    ensure!(seen == [newest, rest], "{seen:?}");

    // Both of its blocks are removed, and events take the deposits back.
    lab.node.reorg(5).await?;
    eventually("both to be taken back", async || {
        let deposits = deposits(&api, id).await?;
        let taken_back = |deposit: &Value| deposit["status"] == "pending" && deposit["amount_received"] == "0";
        Ok((deposits.len() == 2 && deposits.iter().all(taken_back)).then_some(()))
    })
    .await?;
    for deposit in [coin, token] {
        let own = deposit["id"].as_str().context("id")?;
        let history = get(&api, &format!("/api/v1/payments/{own}/events")).await?;
        let told: Vec<&Value> = history["data"].as_array().into_iter().flatten().map(|event| &event["type"]).collect();
        ensure!(told.first().is_some_and(|kind| *kind == "deposit.detected"), "{history}");
        ensure!(told.get(1).is_some_and(|kind| *kind == "deposit.confirmed"), "{history}");
        ensure!(told.last().is_some_and(|kind| *kind == "deposit.reverted"), "{history}");
        let on_topic = eventually("its events in Kafka", async || {
            let told = told.len();
            let events = events(&lab).await?.into_iter().filter(|event| event.payment_id == own).collect::<Vec<_>>();
            Ok((events.len() == told).then_some(events))
        });
        let on_topic = on_topic.await?;
        ensure!(on_topic.iter().map(|event| json!(event.r#type)).eq(told.into_iter().cloned()), "{on_topic:?} for {history}");
        ensure!(on_topic.iter().all(|event| event.deposit_address_id == id), "{on_topic:?}");
    }
    Ok(())
}
