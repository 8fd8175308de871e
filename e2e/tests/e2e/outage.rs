//! Kafka and Postgres are killed and come back, and every role recovers by itself.

use crate::webhooks::Receiver;
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, Process, Stack, events, ledger};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use topics::Address;
use topics::wire::{PaymentEvent, PaymentIntent};
use uuid::Uuid;

/// Two of them while a part is away.
const PAYMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn every_role_recovers_when_kafka_or_postgres_was_killed() -> Result<()> {
    let data = tempfile::Builder::new().prefix("ctrip-stack-").tempdir()?;
    let stack = Stack::own(data.path())?;
    let outcome = live_through(&stack).await;
    let kept = if outcome.is_err() { stack.keep_logs("outage") } else { Ok(()) };
    stack.purge()?;
    outcome.and(kept)
}

async fn live_through(stack: &Stack) -> Result<()> {
    let mut lab = Lab::on(stack.clone(), Plan::default()).await?;
    let allowed = [("WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8"), ("WEBHOOK_ALLOW_HTTP", "true")];
    lab.env.extend(allowed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let mut roles = ["api", "ingest", "detector", "confirmer", "webhooks"]
        .map(|role| lab.spawn(role))
        .into_iter()
        .collect::<Result<Vec<Process>>>()?;
    let api = lab.merchant("outage")?;
    api.ready(&mut roles[0]).await?;
    let receiver = Receiver::start().await?;
    let hook = json!({ "url": format!("{}/well/all", receiver.url) });
    let (status, made) = api.request(Method::POST, "/api/v1/webhooks", Some(hook), &[]).await?;
    ensure!(status.is_success(), "{status} {made}");
    let mut payments: Vec<Payment> = Vec::new();
    let mut addresses = Vec::new();
    for i in 0..PAYMENTS {
        // In mid-flow, with payments created and paid before, during and after.
        let part = match i {
            10 => Some("kafka"),
            20 => Some("postgres"),
            _ => None,
        };
        let Some(part) = part else {
            let payment = api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await?;
            lab.node.pay(payment.address()?, payment.amount()?).await?;
            payments.push(payment);
            continue;
        };
        let issued = api.coin(5).await?;
        if part == "kafka" {
            // A lone broker that is killed while it commits may take partitions for deleted when it is back, before it knows that it
            // leads them. Then it leaves the transaction open for good, and the log tells an operator how to end it. So all is told by
            // now: of the last two payments, and of this one, there is more to come.
            let told = 3 * payments.len() - 1;
            e2e::eventually("nothing to be on its way", || async { Ok((events(&lab).await?.len() >= told).then_some(())) })
                .await?;
        }
        println!("kill -9 {part}");
        stack.kill(part)?;
        // Before it says so, a backend that outlives the postmaster for a moment may still create a payment.
        e2e::eventually("the API to say so", || async {
            let answer = api.request(Method::GET, "/readyz", None, &[]).await;
            Ok(answer.ok().filter(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE).map(drop))
        })
        .await?;
        let (refused, mut first) = watch::channel(false);
        let during = tokio::spawn(create_meanwhile(api.clone(), refused));
        // A customer gets an address once, and only when Kafka has its intent.
        let customer = tokio::spawn({
            let (api, customer) = (api.clone(), json!({ "external_id": part }));
            async move {
                e2e::eventually("an address", || async {
                    let answer = api.request(Method::POST, "/api/v1/addresses", Some(customer.clone()), &[]).await;
                    Ok(answer.ok().filter(|(status, _)| status.is_success()).map(|(_, address)| address))
                })
                .await
            }
        });
        // The chain does not wait: what was issued is paid while the part is away.
        lab.node.pay(issued.address()?, issued.amount()?).await?;
        lab.node.mine(2).await?;
        if part == "kafka" {
            reads_go_on(&lab, &api, payments[0].id()).await?;
        }
        // A request may wait for some seconds before it is refused, and the part is back within fewer.
        if first.wait_for(|refused| *refused).await.is_err() {
            during.await??;
            anyhow::bail!("nothing was refused while the part was away");
        }
        stack.up()?;
        let created = during.await??;
        lab.node.pay(created.address()?, created.amount()?).await?;
        payments.extend([issued, created]);
        let customer = customer.await??;
        addresses.push(customer["address"].as_str().context("an address")?.parse::<Address>()?);
    }
    lab.node.mine(3).await?;
    for payment in &payments {
        let outcome = api.until(payment.id(), "confirmed").await;
        for role in &mut roles {
            role.check()?;
        }
        outcome?;
    }
    let intents: Vec<PaymentIntent> = e2e::records(&lab).await?;
    let watched = |address: &Address| intents.iter().any(|intent| intent.address == address.as_slice());
    ensure!(addresses.len() == 2 && addresses.iter().all(watched), "{addresses:?} are not all watched");
    let rows = ledger(&lab).await?;
    ensure!(rows.len() == payments.len(), "{} payments in Postgres, {} were made", rows.len(), payments.len());
    let ids = |seen: &[PaymentEvent]| seen.iter().map(|event| event.id.clone()).collect::<BTreeSet<_>>();
    e2e::eventually("all events, and a webhook for each", || async {
        let told: BTreeSet<String> = receiver.at("well/all").iter().map(|message| message.id().to_owned()).collect();
        let seen = events(&lab).await?;
        Ok((seen.len() >= 3 * payments.len() && told == ids(&seen)).then_some(()))
    })
    .await?;
    // What a role would tell twice it has told when it has ended.
    for role in &mut roles {
        ensure!(role.terminate()?.success(), "{}", role.tail());
    }
    let seen = events(&lab).await?;
    ensure!(seen.len() == 3 * payments.len(), "{} events of {} payments, expected three each", seen.len(), payments.len());
    ensure!(ids(&seen).len() == seen.len(), "an event is there twice");
    Ok(())
}

/// Creates a payment while a part is away: it is refused with the time to come back, and a retry creates it once.
async fn create_meanwhile(api: Api, refused: watch::Sender<bool>) -> Result<Payment> {
    let (client, key) = (e2e::plain_http().timeout(Duration::from_secs(30)).build()?, Uuid::new_v4().to_string());
    let body = json!({ "chain": "anvil", "amount": 5 });
    e2e::eventually("a payment to be created", async || {
        let request = client.post(format!("{}/api/v1/payments", api.url)).header("X-Api-Key", &api.key);
        let answer = request.header("Idempotency-Key", &key).json(&body).send().await?;
        if answer.status() == StatusCode::CREATED {
            return Ok(Some(Payment(answer.json().await?)));
        }
        let is_refusal = answer.status() == StatusCode::SERVICE_UNAVAILABLE && answer.headers().contains_key("retry-after");
        ensure!(is_refusal, "{answer:?}");
        refused.send_replace(true);
        Ok(None)
    })
    .await
}

/// Reads of a payment that Kafka does not have wait for Kafka, and take no connection from others meanwhile.
async fn reads_go_on(lab: &Lab, api: &Api, shown: &str) -> Result<()> {
    let db = lab.database().await?;
    let hidden = e2e::eventually("a payment that Kafka does not have", async || {
        let sql = "SELECT p.id::text FROM unacknowledged_intents u JOIN payments p ON p.id = u.payment_id";
        Ok(db.query_opt(&format!("{sql} LIMIT 1"), &[]).await?.map(|row| row.get::<_, String>(0)))
    })
    .await?;
    let mut waiting = JoinSet::new();
    for _ in 0..40 {
        let (api, path) = (api.clone(), format!("/api/v1/payments/{hidden}"));
        waiting.spawn(async move { api.request(Method::GET, &path, None, &[]).await });
    }
    let (mut longest, path) = (Duration::ZERO, format!("/api/v1/payments/{shown}"));
    while !waiting.is_empty() {
        let started = Instant::now();
        let (status, answer) = api.request(Method::GET, &path, None, &[]).await?;
        ensure!(status.is_success(), "{status} {answer}");
        longest = longest.max(started.elapsed());
        while let Some(ended) = waiting.try_join_next() {
            ensure!(ended??.0 == StatusCode::SERVICE_UNAVAILABLE, "an address that Kafka does not have is shown");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Kafka is given five seconds.
    ensure!(longest < Duration::from_secs(3), "a read took {longest:?}");
    Ok(())
}
