//! Settlement by the whole of cTrip: `sweep.events` in Kafka, and a confirmer that is killed.

use crate::sweeper::tell;
use anyhow::{Context as _, Result, ensure};
use e2e::{Backup, Lab, Payment, Plan, Process, events, eventually};
use reqwest::Method;
use runtime::kafka::Publisher;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use topics::wire::{PaymentEvent, SweepEvent, sweep_event};
use topics::{Address, Amount, Topic};
use uuid::Uuid;

/// `sweep.final` of a transaction that has moved these totals of coin.
fn record(moved: &[(Address, u64)], number: u64) -> SweepEvent {
    let id = Uuid::new_v4();
    let moved = moved.iter().map(|(address, total)| sweep_event::Moved {
        address: address.to_vec().into(),
        token_address: Vec::new().into(),
        amount: Amount::from(*total).to_wire().into(),
        total: Amount::from(*total).to_wire().into(),
    });
    SweepEvent {
        id: format!("final_{id}"),
        r#type: "sweep.final".to_owned(),
        sweep_id: id.to_string(),
        chain_id: 31_337,
        chain: "anvil".to_owned(),
        kind: "sweep".to_owned(),
        transaction_hash: id.as_bytes().repeat(2).into(),
        block: Some(sweep_event::Block { number, hash: vec![5; 32].into(), timestamp: 1_800_000_000 }),
        fee: Some(vec![0x52, 0x08].into()),
        moved: moved.collect(),
        occurred_at: 1_800_000_000,
        ..SweepEvent::default()
    }
}

/// The kinds of a payment's events, in order.
async fn life(lab: &Lab, id: &str) -> Result<Vec<String>> {
    let mut events: Vec<PaymentEvent> = events(lab).await?.into_iter().filter(|event| event.payment_id == id).collect();
    events.sort_by_key(|event| event.sequence);
    Ok(events.into_iter().map(|event| event.r#type).collect())
}

/// Beside it a record that can't be read, a reorg, and a kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_settles_once_told_twice_or_too_early_beside_a_kill_a_reorg_and_a_restore() -> Result<()> {
    let lab = Lab::start(Plan { confirmations: 8, ..Plan::default() }).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let again = |up: &mut Process| -> Result<()> {
        up.kill()?;
        *up = lab.spawn("up")?;
        Ok(())
    };
    let payments: Vec<Payment> = futures::future::try_join_all((0..3).map(|_| api.coin(1_000))).await?;
    let [early, late, other] = payments.as_slice() else { anyhow::bail!("three payments") };
    let (_, static_address) = api.request(Method::POST, "/api/v1/addresses", Some(json!({ "external_id": "c" })), &[]).await?;
    let address: Address = static_address["address"].as_str().context("address")?.parse()?;
    for payment in &payments {
        lab.node.pay(payment.address()?, payment.amount()?).await?;
    }
    lab.node.pay(address, topics::U256::from(70)).await?;
    lab.node.pay(address, topics::U256::from(30)).await?;
    api.until(early.id(), "detected").await?;

    // Final blocks are below those that confirm, but a confirmer may lag.
    let head = lab.node.head().await?;
    let sweep = record(&[(early.address()?, 1_000), (address, 70)], head);
    let unreadable = ("31337/x".to_owned(), b"no record".to_vec());
    let publisher = Publisher::open(&lab.kafka().await?, Duration::from_secs(20))?;
    publisher.publish(Topic::Sweeps, &[unreadable]).await.into_iter().collect::<Result<(), _>>()?;
    tell(&lab, &[sweep.clone(), sweep.clone()]).await?;
    up.check()?;
    ensure!(!life(&lab, early.id()).await?.contains(&"payment.settled".to_owned()), "it is not confirmed");
    lab.node.mine(8).await?;
    api.until(early.id(), "confirmed").await?;
    // Anvil calls a block final that has 64 above it.
    lab.node.mine(64).await?;
    let settled = api.until(early.id(), "settled").await?;
    let hash = format!("0x{}", Uuid::parse_str(&sweep.sweep_id)?.simple().to_string().repeat(2));
    ensure!(
        settled.0["settlement"]["transaction_hash"] == json!(hash) && settled.0["settlement"]["fee"] == "21000",
        "{}",
        settled.0["settlement"]
    );
    let path = format!("/api/v1/addresses/{}/deposits", static_address["id"].as_str().context("id")?);
    let deposits = async || -> Result<BTreeMap<String, String>> {
        let (_, page) = api.request(Method::GET, &path, None, &[]).await?;
        let text = |deposit: &serde_json::Value, field| deposit[field].as_str().unwrap_or_default().to_owned();
        Ok(page["data"].as_array().into_iter().flatten().map(|d| (text(d, "amount"), text(d, "status"))).collect())
    };
    let one = BTreeMap::from([("70".to_owned(), "settled".to_owned()), ("30".to_owned(), "confirmed".to_owned())]);
    eventually("the first deposit to be settled", async || Ok((deposits().await? == one).then_some(()))).await?;

    // While nobody reads; the database goes back to before that afterwards.
    let backup = Backup::take(&lab)?;
    up.kill()?;
    tell(&lab, &[record(&[(late.address()?, 1_000), (address, 100)], head + 1), sweep.clone()]).await?;
    up = lab.spawn("up")?;
    api.until(late.id(), "settled").await?;
    again(&mut up)?;
    lab.node.mine(2).await?;
    lab.node.reorg(2).await?;
    lab.node.mine(2).await?;
    let all = BTreeMap::from([("70".to_owned(), "settled".to_owned()), ("30".to_owned(), "settled".to_owned())]);
    eventually("all deposits to be settled", async || Ok((deposits().await.ok() == Some(all.clone())).then_some(()))).await?;
    eventually("all to be told", async || {
        Ok(life(&lab, late.id()).await?.contains(&"payment.settled".to_owned()).then_some(()))
    })
    .await?;
    backup.restore(&lab).await?;
    api.until(late.id(), "settled").await?;
    tell(&lab, &[sweep]).await?;
    let marker = record(&[(other.address()?, 1_000)], head + 2);
    tell(&lab, &[marker]).await?;
    api.until(other.id(), "settled").await?;
    eventually("the last to be told", async || {
        Ok(life(&lab, other.id()).await?.contains(&"payment.settled".to_owned()).then_some(()))
    })
    .await?;

    for payment in &payments {
        let told = life(&lab, payment.id()).await?;
        ensure!(told == ["payment.created", "payment.detected", "payment.confirmed", "payment.settled"], "{told:?}");
    }
    let deposit_events = events(&lab).await?.into_iter().filter(|event| event.r#type == "deposit.settled").count();
    ensure!(deposit_events == 2, "{deposit_events} events of two deposits");
    let aside = lab.ctrip(&["set-aside"])?;
    ensure!(aside.contains("settling") && aside.contains("a later sweep of the same address"), "{aside}");
    up.check()
}
