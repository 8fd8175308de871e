//! The API's promises to its clients: batches, lists, limits, ids, and no address on a chain that lags.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, Process, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

struct Running {
    lab: Lab,
    api: Api,
    process: Process,
}

async fn running() -> Result<Running> {
    serving(Lab::start(Plan::default()).await?).await
}

async fn serving(lab: Lab) -> Result<Running> {
    let (process, api) = lab.serve("api", "shop").await?;
    Ok(Running { lab, api, process })
}

pub async fn batch(api: &Api, orders: &[Value], headers: &[(&str, &str)]) -> Result<(StatusCode, Value)> {
    api.request(Method::POST, "/api/v1/payments/batch", Some(json!({ "payments": orders })), headers).await
}

fn statuses(answer: &Value) -> Vec<u64> {
    answer["data"].as_array().into_iter().flatten().filter_map(|one| one["status"].as_u64()).collect()
}

fn coin(amount: u64) -> Value {
    json!({ "chain": "anvil", "amount": amount })
}

#[tokio::test]
async fn each_order_of_a_batch_is_answered_for_itself_and_in_order() -> Result<()> {
    let Running { lab: _lab, api, process: _process } = running().await?;
    let keyed = json!({ "chain": "anvil", "amount": 3, "idempotency_key": "three" });
    let other = json!({ "chain": "anvil", "amount": 4, "idempotency_key": "three" });
    let orders = [coin(1), coin(0), json!({ "chain": "anvil", "token": "DUSD", "amount": 2 }), keyed.clone(), other, json!(7)];
    let (status, answer) = batch(&api, &orders, &[]).await?;
    // The fifth has the key of the fourth.
    ensure!(status == StatusCode::OK && statuses(&answer) == [201, 422, 201, 201, 409, 400], "{status} {answer}");
    let data = answer["data"].as_array().context("data")?;
    ensure!(data[1]["problem"]["errors"][0]["field"] == "amount" && data[1].get("payment").is_none(), "{answer}");
    ensure!(data[2]["payment"]["token"] == "DUSD" && data[0]["payment"]["amount"] == "1", "{answer}");
    ensure!(data[4]["problem"]["type"] == "urn:ctrip:problem:idempotency-key-reused", "a retry would not help: {answer}");
    let (_, all) = batch(&api, std::slice::from_ref(&keyed), &[("Idempotency-Key", "three")]).await?;
    ensure!(all["status"] == 409 || all["data"][0]["problem"]["type"] == "urn:ctrip:problem:idempotency-key-reused", "{all}");
    // Each order is treated as if it had come alone.
    let headers = [("Idempotency-Key", "three")];
    let (_, alone) = api.request(Method::POST, "/api/v1/payments", Some(coin(3)), &headers).await?;
    ensure!(alone == data[3]["payment"], "{alone} {answer}");
    let (_, again) = batch(&api, &[keyed], &[]).await?;
    ensure!(again["data"][0]["replayed"] == true && again["data"][0]["payment"] == alone, "{again}");
    Ok(())
}

#[tokio::test]
async fn a_thousand_orders_are_made_once_however_often_they_are_sent() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let orders: Vec<Value> = (1..=1000).map(coin).collect();
    let headers = [("Idempotency-Key", "a day's invoices")];
    let (status, first) = batch(&api, &orders, &headers).await?;
    ensure!(status == StatusCode::OK && statuses(&first).iter().all(|status| *status == 201), "{status} {first}");
    let payments = |answer: &Value| -> Vec<Value> {
        answer["data"].as_array().into_iter().flatten().map(|one| one["payment"].clone()).collect()
    };
    let addresses: HashSet<String> = payments(&first).iter().map(|payment| payment["address"].to_string()).collect();
    ensure!(addresses.len() == 1000, "{} addresses", addresses.len());
    let (_, again) = batch(&api, &orders, &headers).await?;
    ensure!(payments(&again) == payments(&first), "the second time was another");
    // The same key with other orders creates nothing, not even the additional ones.
    for other in [orders[..999].to_vec(), [orders.clone(), vec![coin(1)]].concat()[1..].to_vec()] {
        let (status, refused) = batch(&api, &other, &headers).await?;
        ensure!(status == StatusCode::CONFLICT, "{status} {refused}");
        ensure!(refused["type"] == "urn:ctrip:problem:idempotency-key-reused", "{refused}");
    }
    let (status, refused) = batch(&api, &[orders, vec![coin(1)]].concat(), &[]).await?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "1,001 orders: {status} {refused}");
    let count: i64 = lab.database().await?.query_one("SELECT count(*) FROM payments", &[]).await?.get(0);
    ensure!(count == 1000, "{count} payments");
    Ok(())
}

/// All pages of a list, three payments per page.
async fn pages(api: &Api, query: &str) -> Result<Vec<String>> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/payments?limit=3&{query}{cursor}");
        let (status, page) = api.request(Method::GET, &path, None, &[]).await?;
        ensure!(status.is_success(), "{path}: {status} {page}");
        let data = page["data"].as_array().context("data")?;
        ensure!(ids.len() <= 100, "{path}: the list does not end");
        ids.extend(data.iter().filter_map(|payment| payment["id"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(ids),
        }
    }
}

#[tokio::test]
async fn a_filtered_list_has_what_it_is_asked_for_newest_first_and_nothing_twice() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let mut made = Vec::new();
    for number in 0..10_u64 {
        let order = match number % 2 {
            0 => json!({ "chain": "anvil", "amount": 1, "external_id": format!("order-{}", number % 4) }),
            _ => json!({ "chain": "anvil", "amount": 1, "token": "DUSD" }),
        };
        made.push(api.create(order).await?);
    }
    // Two hours apart, so that a list can be filtered by time; ids do not show these times.
    let db = lab.database().await?;
    for (hours, payment) in made.iter().enumerate() {
        let (id, created_at) = (uuid::Uuid::parse_str(payment.id())?, 1_700_000_000 + 7200 * i64::try_from(hours)?);
        db.execute("UPDATE payments SET created_at = $2 WHERE id = $1", &[&id, &created_at]).await?;
    }
    api.request(Method::POST, &format!("/api/v1/payments/{}/cancel", made[7].id()), None, &[]).await?;
    let of = |places: &[usize]| -> Vec<String> { places.iter().rev().map(|place| made[*place].id().to_owned()).collect() };
    let seventh = format!("address={}", made[6].text("address"));
    let all: &[(&str, &[usize])] = &[
        ("", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("chain=anvil", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("status=cancelled", &[7]),
        ("status=pending", &[0, 1, 2, 3, 4, 5, 6, 8, 9]),
        ("token=DUSD", &[1, 3, 5, 7, 9]),
        ("token=dusd&status=pending", &[1, 3, 5, 9]),
        ("external_id=order-2", &[2, 6]),
        (&seventh, &[6]),
        ("created_from=2023-11-14T22:13:20Z&created_before=2023-11-15T00:13:20Z", &[0]),
        ("created_from=2023-11-15T00:13:20Z&created_before=2023-11-15T04:13:21Z&token=DUSD", &[1, 3]),
        ("created_from=2030-01-01T00:00:00Z", &[]),
    ];
    for (query, places) in all {
        let found = pages(&api, query).await?;
        ensure!(found == of(places), "{query}: {found:?}, expected {places:?}");
    }
    for (wrong, field) in
        [("token=DAI", "token"), ("address=0x12", "address"), ("created_from=1", "created_from"), ("x=1", "x")]
    {
        let (status, answer) = api.request(Method::GET, &format!("/api/v1/payments?{wrong}"), None, &[]).await?;
        ensure!(status == StatusCode::UNPROCESSABLE_ENTITY && answer["errors"][0]["field"] == field, "{wrong}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_when_to_come_back_and_others_go_on() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let limited = api.with_key(&lab.ctrip(&["keys", "create", "shop", "--rate-limit", "2"])?);
    let http = reqwest::Client::new();
    let ask = async |key: &str| {
        let request = http.get(format!("{}/api/v1/chains", api.url)).header("X-Api-Key", key);
        anyhow::Ok(request.send().await?)
    };
    let refused = eventually("a refusal", async || {
        Ok(Some(ask(&limited.key).await?).filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS))
    })
    .await?;
    let wait = refused.headers().get("retry-after").context("Retry-After")?.to_str()?.parse::<u64>()?;
    ensure!(wait == 1, "{wait}");
    ensure!(ask(&api.key).await?.status().is_success(), "another key of the merchant");
    eventually("the key to be heard again", async || Ok(ask(&limited.key).await?.status().is_success().then_some(()))).await?;
    // Each order of a batch counts; a client that waits for `Retry-After` gets them through.
    let orders: Vec<Value> = (1..=10).map(coin).collect();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let (status, answer) = batch(&limited, &orders, &[]).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    ensure!(ask(&limited.key).await?.status() == StatusCode::TOO_MANY_REQUESTS, "right after ten orders");
    Ok(())
}

#[tokio::test]
async fn a_request_is_found_in_the_log_by_its_id_and_a_body_that_is_too_large_is_refused() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("RUST_LOG".to_owned(), "info,api=debug".to_owned());
    let Running { lab: _lab, api, process } = serving(lab).await?;
    let http = reqwest::Client::new();
    let post = |path: &str, body: String| {
        let request = http.post(format!("{}{path}", api.url)).header("X-Api-Key", &api.key);
        request.header("x-request-id", "order-7/try-2").body(body).send()
    };
    let answer = post("/api/v1/payments", "{}".to_owned()).await?;
    ensure!(answer.headers()["x-request-id"] == "order-7/try-2");
    let problem: Value = answer.json().await?;
    ensure!(problem["request_id"] == "order-7/try-2", "{problem}");
    let log = std::fs::read_to_string(&process.log)?;
    let line = log.lines().find(|line| line.contains("order-7/try-2")).with_context(|| process.tail())?;
    ensure!(line.contains("/api/v1/payments") && line.contains("422"), "{line}");
    let own = http.get(format!("{}/livez", api.url)).send().await?;
    ensure!(own.headers()["x-request-id"].len() == 36, "{:?}", own.headers());
    let padded = |bytes: usize| format!("{}{}", json!({ "payments": [coin(1)] }), " ".repeat(bytes));
    ensure!(post("/api/v1/payments", padded(64 * 1024)).await?.status() == StatusCode::PAYLOAD_TOO_LARGE);
    ensure!(post("/api/v1/payments/batch", padded(64 * 1024)).await?.status() == StatusCode::OK);
    ensure!(post("/api/v1/payments/batch", padded(8 * 1024 * 1024)).await?.status() == StatusCode::PAYLOAD_TOO_LARGE);
    Ok(())
}

#[tokio::test]
async fn a_chain_that_lags_takes_no_new_payments_until_it_has_caught_up() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("  start_block: 0\n", "  start_block: 0\n  max_lag_s: 60\n"))?;
    let _roles = ["ingest", "detector", "confirmer"].map(|role| lab.spawn(role)).into_iter().collect::<Result<Vec<_>>>()?;
    let Running { lab, api, mut process } = serving(lab).await?;
    let create = async || api.request(Method::POST, "/api/v1/payments", Some(coin(1)), &[]).await;
    // A retry gets what the first try has made, whatever is refused by then.
    let mut keyed = (coin(2), coin(3));
    keyed.1["idempotency_key"] = json!("own");
    let single = async || api.request(Method::POST, "/api/v1/payments", Some(coin(1)), &[("Idempotency-Key", "one")]).await;
    let many = async || batch(&api, &[keyed.0.clone(), keyed.1.clone()], &[("Idempotency-Key", "all")]).await;
    let (first, first_many) = (single().await?.1["id"].clone(), many().await?.1);
    let ids = |answer: &Value| [0, 1].map(|place| answer["data"][place]["payment"]["id"].clone());
    ensure!(first.is_string() && statuses(&first_many) == [201, 201], "{first} {first_many}");
    let all_again = async || -> Result<()> {
        let ((status, again), (_, many)) = (single().await?, many().await?);
        ensure!(status == StatusCode::CREATED && again["id"] == first, "{status} {again}");
        ensure!(statuses(&many) == [201, 201] && ids(&many) == ids(&first_many), "{many}");
        Ok(())
    };
    lab.node.mine(1).await?;
    let (db, head) = (lab.database().await?, i64::try_from(lab.node.head().await?)?);
    // As if the pipeline had stopped: the last processed block is old.
    eventually("the pipeline to be at the head", async || {
        let aged = "UPDATE chain_heads SET block_timestamp = block_timestamp - 3600 WHERE number = $1";
        Ok((db.execute(aged, &[&head]).await? == 1).then_some(()))
    })
    .await?;
    let refused = eventually("a refusal", async || {
        let (status, answer) = create().await?;
        Ok((status == StatusCode::SERVICE_UNAVAILABLE).then_some(answer))
    })
    .await?;
    ensure!(refused["detail"].as_str().is_some_and(|detail| detail.contains("anvil (31337)")), "{refused}");
    let (_, answer) = batch(&api, &[coin(1)], &[]).await?;
    ensure!(statuses(&answer) == [503], "{answer}");
    all_again().await?;
    lab.node.mine(1).await?;
    eventually("the chain to be open again", async || Ok((create().await?.0 == StatusCode::CREATED).then_some(()))).await?;

    ensure!(process.terminate()?.success(), "{}", process.tail());
    lab.write_chains(&chains.replace("  start_block: 0\n", "  start_block: 0\n  min_transfer: '0.0000000000000001'\n"))?;
    let mut process = lab.spawn("api")?;
    api.ready(&mut process).await?;
    let (status, refused) = create().await?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let other = api.request(Method::POST, "/api/v1/payments", Some(coin(4)), &[("Idempotency-Key", "one")]).await?;
    ensure!(other.0 == StatusCode::UNPROCESSABLE_ENTITY, "it is another request: {}", other.1);
    all_again().await
}

#[tokio::test]
async fn idempotency_keys_of_more_than_a_day_are_removed_and_no_others() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let db = lab.database().await?;
    lab.merchant("shop")?;
    db.execute(
        "INSERT INTO idempotency_keys (merchant_id, key, request_hash, created_at)
         SELECT id, n::text, '\\x00', now() - n * interval '10 minutes' FROM merchants, generate_series(1, 2500) n",
        &[],
    )
    .await?;
    // Both instances clean up at the same time.
    let port = || e2e::free_port().map(|port| format!("127.0.0.1:{port}"));
    let first = lab.spawn("api")?;
    let second = lab.spawn_with(&["api", "--api-listen", &port()?, "--metrics-listen", &port()?])?;
    let left = async || {
        let rows = db.query("SELECT key::int FROM idempotency_keys ORDER BY 1", &[]).await?;
        let left: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        Ok((left.len() < 144).then_some(left))
    };
    let left = eventually("old keys to be gone", left).await?;
    // 24 hours are 144 times ten minutes, and some time has passed.
    ensure!(left == (1..144).collect::<Vec<_>>(), "{left:?}");
    drop((first, second));
    Ok(())
}
