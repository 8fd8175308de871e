//! Kafka and Postgres are killed and come back, and every role recovers by itself.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, Process, Stack, events, ledger};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use topics::Address;
use topics::wire::PaymentIntent;

const PAYMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn every_role_recovers_when_kafka_or_postgres_was_killed() -> Result<()> {
    let data = tempfile::Builder::new().prefix("ctrip-stack-").tempdir()?;
    let stack = Stack::own(data.path())?;
    let outcome = live_through(&stack).await;
    if outcome.is_err() {
        stack.keep_logs("outage")?;
    }
    stack.purge()?;
    outcome
}

async fn live_through(stack: &Stack) -> Result<()> {
    let lab = Lab::on(stack.clone(), Plan::default()).await?;
    let mut roles =
        ["api", "ingest", "detector", "confirmer"].map(|role| lab.spawn(role)).into_iter().collect::<Result<Vec<Process>>>()?;
    let api = lab.merchant("outage")?;
    api.ready(&mut roles[0]).await?;
    let mut payments: Vec<Payment> = Vec::new();
    let mut addresses = Vec::new();
    for i in 0..PAYMENTS {
        // In mid-flow, with payments created and paid before, during and after.
        let part = match i {
            10 => Some("kafka"),
            20 => Some("postgres"),
            _ => None,
        };
        if let Some(part) = part {
            println!("kill -9 {part}");
            stack.kill(part)?;
        }
        let during = part.is_some().then(|| {
            let api = api.clone();
            tokio::spawn(async move { api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await })
        });
        // A customer gets an address once, and only when Kafka has its intent.
        let customer = part.map(|part| {
            let (api, customer) = (api.clone(), json!({ "external_id": part }));
            tokio::spawn(async move {
                e2e::eventually("an address", || async {
                    let answer = api.request(Method::POST, "/api/v1/addresses", Some(customer.clone()), &[]).await;
                    Ok(answer.ok().filter(|(status, _)| status.is_success()).map(|(_, address)| address))
                })
                .await
            })
        });
        if part.is_some() {
            // The chain does not wait: what was issued is paid while the part is away.
            tokio::time::sleep(Duration::from_secs(2)).await;
            lab.node.mine(2).await?;
            if part == Some("kafka") {
                reads_go_on(&lab, &api, payments[0].id()).await?;
            }
            stack.up()?;
        }
        let payment = match during {
            Some(creating) => creating.await??,
            None => api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await?,
        };
        lab.node.pay(payment.address()?, payment.amount()?).await?;
        payments.push(payment);
        if let Some(customer) = customer {
            let customer = customer.await??;
            addresses.push(customer["address"].as_str().context("an address")?.parse::<Address>()?);
        }
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
    ensure!(rows.len() == PAYMENTS, "{} payments in Postgres, {PAYMENTS} were made", rows.len());
    let seen =
        e2e::eventually("all events", || async { Ok(Some(events(&lab).await?).filter(|e| e.len() >= 3 * PAYMENTS)) }).await?;
    ensure!(seen.len() == 3 * PAYMENTS, "{} events of {PAYMENTS} payments, expected three each", seen.len());
    Ok(())
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
