//! A transfer to an address that has an intent in Kafka and no payment in Postgres.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, eventually};
use reqwest::Method;
use runtime::kafka::Publisher;
use serde_json::Value;
use std::time::Duration;
use topics::{Address, Message as _, Topic, U256, wire};
use uuid::Uuid;

/// It stops nobody, is named, and is credited when its payment is there. The reorg that removes one leaves nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_stops_nobody_and_is_credited_when_its_payment_is_there() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut up = lab.spawn("up")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut up).await?;
    let other = api.coin(1_000).await?;
    // Intents that say too little to bring their payments back.
    let (lost, gone) = (Address::from(rand::random::<[u8; 20]>()), Address::from(rand::random::<[u8; 20]>()));
    let kafka = lab.kafka().await?;
    let intents: Vec<_> = [lost, gone]
        .map(|address| wire::PaymentIntent {
            address: address.to_vec().into(),
            payment_id: Uuid::new_v4().to_string(),
            ..Default::default()
        })
        .iter()
        .map(|intent| (intent.key(), kafka.encode(intent)))
        .collect();
    for outcome in Publisher::open(&kafka, Duration::from_secs(10))?.publish(Topic::Intents, &intents).await {
        outcome?;
    }
    let paid = lab.node.pay(lost, U256::from(70)).await?;
    eventually("the receipt", || lab.node.receipt(paid)).await?;
    let paid = lab.node.pay(gone, U256::from(7)).await?;
    eventually("the receipt", || lab.node.receipt(paid)).await?;
    lab.node.pay(other.address()?, other.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(other.id(), "confirmed").await?;
    up.check()?;
    let orphans = async || {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok::<_, anyhow::Error>((health["status"].clone(), health["components"]["orphans"].clone()))
    };
    let (status, said) = orphans().await?;
    ensure!(
        status == "degraded" && said["error"].as_str().is_some_and(|text| text.starts_with("2 transfers")),
        "{status} {said}"
    );
    ensure!(up.metric("orphan_transfers_total", &[]).await? >= 2.0, "not counted");

    // A reorg takes the second one off the chain: its nonce is taken by other transactions of the fork.
    lab.node.reorg(5).await?;
    lab.node.mine(1).await?;
    let db = lab.database().await?;
    let count = async |address: Address| -> Result<i64> {
        let sql = "SELECT count(*) FROM orphan_transfers WHERE address = $1";
        Ok(db.query_one(sql, &[&address.as_slice()]).await?.get(0))
    };
    eventually("the removed orphan to be gone", async || Ok((count(gone).await? == 0).then_some(()))).await?;
    ensure!(count(lost).await? == 1, "the orphan below the reorg");

    // Its payment comes back.
    let id = Uuid::now_v7();
    let copied = "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
            confirmations_required, sequence, created_at, expires_at, updated_at)
        SELECT $1, merchant_id, chain_id, chain, decimals, $2, xpub, 1000000, 70, 'pending', 3, 1, created_at, expires_at, updated_at
        FROM payments WHERE id = $3";
    db.execute(copied, &[&id, &lost.as_slice(), &other.id().parse::<Uuid>()?]).await?;
    lab.node.mine(1).await?;
    let payment = api.until(&id.to_string(), "confirmed").await?;
    ensure!(payment.text("amount_received") == "70", "{}", payment.0);
    let (_, said) = orphans().await?;
    ensure!(said == serde_json::json!({ "status": "ok" }), "{said}");
    let found: Vec<Value> = payment.0["transfers"].as_array().context("transfers")?.clone();
    ensure!(found.len() == 1, "{found:?}");
    up.check()
}
