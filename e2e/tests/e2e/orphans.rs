//! A transfer to an address that has an intent in Kafka and no payment in Postgres.

use crate::books::{self, Books, X_LISTED, block_hash, chains, payments};
use anyhow::{Context as _, Result, ensure};
use confirmer::orphans::OrphanLook;
use e2e::{Lab, Plan, Stack, eventually};
use payments::{Status, store};
use reqwest::Method;
use runtime::kafka::Publisher;
use serde_json::{Value, json};
use std::time::Duration;
use topics::{Address, Amount, Message as _, PaymentId, Source, Topic, Transfer, TransferId, U256, wire};
use uuid::Uuid;

/// Inserts a payment $1 to the address $2, which is like the payment $3.
const COPY: &str =
    "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
        confirmations_required, sequence, created_at, expires_at, updated_at)
    SELECT $1, merchant_id, chain_id, chain, decimals, $2, xpub, 1000000, 70, 'pending', confirmations_required, 1, created_at,
        expires_at, updated_at
    FROM payments WHERE id = $3";

/// It stops nobody, is named, and is credited when its payment is there. The reorg that removes one leaves nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_stops_nobody_and_is_credited_when_its_payment_is_there() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
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
    db.execute(COPY, &[&id, &lost.as_slice(), &other.id().parse::<Uuid>()?]).await?;
    lab.node.mine(1).await?;
    let payment = api.until(&id.to_string(), "confirmed").await?;
    ensure!(payment.text("amount_received") == "70", "{}", payment.0);
    // `/health` counts them now and then.
    eventually("no orphan to be told of", async || Ok((orphans().await?.1 == json!({ "status": "ok" })).then_some(()))).await?;
    let found: Vec<Value> = payment.0["transfers"].as_array().context("transfers")?.clone();
    ensure!(found.len() == 1, "{found:?}");
    up.check()
}

/// Thousands of orphans cost the fold nothing while they wait, and are credited some blocks at a time.
#[tokio::test(flavor = "multi_thread")]
async fn many_orphans_wait_beside_the_fold_and_are_credited_block_by_block() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let like = payments().into_iter().find(|payment| payment.asset.token.is_none()).context("a payment in the coin")?;
    let (chain, lost) = (like.chain, Address::repeat_byte(0x99));
    let block = |number: u64, count: u32| {
        let transfer = |index| Transfer {
            id: TransferId { chain, block: block_hash(number), transaction: block_hash(9), source: Source::Trace, index },
            token: None,
            from: Address::ZERO,
            to: lost,
            amount: Amount::from(1),
            transaction_index: 0,
        };
        books::block(chain, number, (0..count).map(transfer).collect())
    };
    books.apply(&chains, &[block(1, 700), block(2, 700), block(3, 700)]).await?;
    let client = books.pool.get().await?;
    OrphanLook::default().credit_owned(&books.pool, &chains).await?;
    ensure!(books.orphans().await? == 2_100, "credited to nobody");
    // `ctrip chain restart` looks whether they are on the chain.
    let paid: Vec<u64> = store::paid_blocks(&client, chain, 2, 10).await?.iter().map(|block| block.number).collect();
    ensure!(paid == [2, 1], "{paid:?}");

    let id = Uuid::from_u128(5_000);
    client.execute(COPY, &[&id, &lost.as_slice(), &like.id.0]).await?;
    books.apply(&chains, &[block(4, 0)]).await?;
    ensure!(books.orphans().await? == 2_100, "the fold looks at those that wait");
    OrphanLook::default().credit_owned(&books.pool, &chains).await?;
    ensure!(books.orphans().await? == 0, "{} orphans are left", books.orphans().await?);
    let paid = books.all().await?.into_values().find(|payment| payment.id.0 == id).context("the payment")?;
    ensure!(paid.received() == Amount::from(2_100) && paid.status() == Status::Confirmed, "{paid:?}");
    let told = books.told(PaymentId(id)).await?;
    ensure!(
        told == ["payment.detected", "payment.overpaid", "payment.overpaid", "payment.confirmed", "payment.overpaid"],
        "{told:?}"
    );
    Ok(())
}
