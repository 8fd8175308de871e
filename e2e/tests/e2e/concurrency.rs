//! Many clients at once, which send each request twice.

use crate::api::batch;
use anyhow::{Result, ensure};
use e2e::{Api, Lab, Plan};
use rand::seq::SliceRandom as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 64;

/// Creates a payment as a careful client does: retries until there is a final answer.
async fn create(api: &Api, number: usize) -> Result<Value> {
    let (key, body) = (format!("order-{number}"), json!({ "chain": "anvil", "amount": number + 1 }));
    loop {
        let headers = [("Idempotency-Key", key.as_str())];
        let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(body.clone()), &headers).await?;
        match status {
            StatusCode::CREATED => return Ok(answer),
            StatusCode::CONFLICT if answer["type"] != "urn:ctrip:problem:idempotency-key-in-flight" => {
                anyhow::bail!("{key} is taken for another request: {answer}")
            }
            StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => anyhow::bail!("{status} {answer}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_keys_from_many_clients_make_each_payment_once_at_an_address_of_its_own() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_server, api) = lab.serve("api", "busy").await?;
    // Each number twice, in random order; the first half among neighbours, so that many are in flight at the same time.
    let mut numbers: Vec<usize> = (0..REQUESTS / 2).flat_map(|number| [number, number]).collect();
    numbers.chunks_mut(CLIENTS).for_each(|some| some.shuffle(&mut rand::rng()));
    let half = numbers.len() / 2;
    numbers[half..].shuffle(&mut rand::rng());
    numbers.reverse();

    let queue = Arc::new(Mutex::new(numbers));
    let clients = (0..CLIENTS).map(|_| {
        let (api, queue) = (api.clone(), Arc::clone(&queue));
        tokio::spawn(async move {
            let mut answers = Vec::new();
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.pop());
                let Some(number) = next else { return anyhow::Ok(answers) };
                answers.push((number, create(&api, number).await?));
            }
        })
    });
    let mut answers: HashMap<usize, Vec<Value>> = HashMap::new();
    for client in futures::future::join_all(clients).await {
        for (number, answer) in client?? {
            answers.entry(number).or_default().push(answer);
        }
    }
    ensure!(answers.len() == REQUESTS / 2, "{} keys", answers.len());
    for (number, same) in &answers {
        ensure!(same.len() == 2 && same[0] == same[1], "order-{number}: {same:?}");
        let amount = (number + 1).to_string();
        ensure!(same[0]["amount"] == amount.as_str(), "order-{number} has another's payment: {}", same[0]);
    }
    let distinct = |field: &str| answers.values().map(|same| same[0][field].to_string()).collect::<HashSet<_>>().len();
    ensure!((distinct("id"), distinct("address")) == (REQUESTS / 2, REQUESTS / 2), "shared ids or addresses");
    let db = lab.database().await?;
    let row = db.query_one("SELECT count(*), count(DISTINCT address), max(address_index) FROM payments", &[]).await?;
    let counts: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    ensure!(counts == (5000, 5000, 4999), "{counts:?}: payments that nobody was told of, or indices used up for nothing");
    Ok(())
}

/// Also where requests of both are in one batch.
#[tokio::test(flavor = "multi_thread")]
async fn two_merchants_that_use_the_same_keys_at_once_do_not_meet() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_server, shop) = lab.serve("api", "shop").await?;
    let other = lab.merchant("other shop")?;
    let create = async |api: &Api, number: usize| {
        let (key, body) = (format!("order-{number}"), json!({ "chain": "anvil", "amount": number + 1 }));
        api.request(Method::POST, "/api/v1/payments", Some(body), &[("Idempotency-Key", key.as_str())]).await
    };
    for round in 0..10 {
        let numbers = round * 20..(round + 1) * 20;
        let both = numbers.flat_map(|number| [create(&shop, number), create(&other, number)]);
        let answers = futures::future::try_join_all(both).await?;
        ensure!(answers.iter().all(|(status, _)| *status == StatusCode::CREATED), "{answers:?}");
    }
    // Nor with the key of a whole batch, however often it comes.
    for (api, amount) in [(&shop, "1"), (&other, "2"), (&shop, "1"), (&other, "2")] {
        let orders = [json!({ "chain": "anvil", "amount": amount })];
        let (status, answer) = batch(api, &orders, &[("Idempotency-Key", "batch")]).await?;
        ensure!(status.is_success() && answer["data"][0]["payment"]["amount"] == amount, "{status} {answer}");
    }
    Ok(())
}

/// Two instances write the same keys, each in another order.
#[tokio::test(flavor = "multi_thread")]
async fn batches_with_the_same_keys_in_any_order_do_not_deadlock() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_first, api) = lab.serve("api", "shop").await?;
    let (mut second, url) = lab.spawn_beside("api")?;
    let mut other = api.clone();
    other.url = url;
    other.ready(&mut second).await?;
    for round in 0..20 {
        let order = |number| json!({ "chain": "anvil", "amount": 1, "idempotency_key": format!("{round}-{number}") });
        let orders: Vec<Value> = (0..100).map(order).collect();
        let reversed: Vec<Value> = orders.iter().rev().cloned().collect();
        let (one, two) = tokio::try_join!(batch(&api, &orders, &[]), batch(&other, &reversed, &[]))?;
        let made = |(_, answer): &(StatusCode, Value)| -> Vec<Value> {
            answer["data"].as_array().into_iter().flatten().map(|one| one["payment"]["id"].clone()).collect()
        };
        let (one, mut two) = (made(&one), made(&two));
        two.reverse();
        ensure!(one.len() == 100 && one.iter().all(Value::is_string) && one == two, "{round}: {one:?} {two:?}");
    }
    Ok(())
}
