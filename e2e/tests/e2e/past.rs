//! A chain's past: a reorg below final blocks halts the chain until an operator resumes it; and `ctrip backfill` brings a
//! range from before the first block, whatever kills it.

use crate::groups::CHAIN;
use crate::hanging;
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Extent, Fault, Lab, Lacks, Payment, Plan, Proxy, events, eventually, records, write_chains};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use topics::{Topic, wire};
use wire::block_record::Kind;

/// anvil calls every block final that is this far below its head.
const FINAL_BELOW: u64 = 64;

#[tokio::test]
async fn a_reorganisation_below_what_is_final_halts_the_chain_until_it_is_resumed() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    lab.node.mine(5).await?;
    let payment = api.create(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
    eventually("the receipt", || lab.node.receipt(hash)).await?;
    lab.node.mine(FINAL_BELOW + 5).await?;
    api.until(payment.id(), "confirmed").await?;
    let head = lab.node.head().await?;
    until_processed(&api, head).await?;

    let depth = FINAL_BELOW + 6;
    lab.node.reorg(depth).await?;
    lab.node.mine(1).await?;
    let halted =
        eventually("the chain to halt", || async { Ok(chain_health(&api).await?.filter(|c| c["status"] == "halted")) });
    let halted = halted.await?;
    ensure!(halted["halted"].as_str().is_some_and(|why| why.contains("final")), "{halted}");
    eventually("a metric to say so", || async {
        let metrics = reqwest::get(format!("http://{}/metrics", lab.env["METRICS_LISTEN"])).await?.text().await?;
        Ok(metrics.contains("chain_halted{chain=\"anvil\"} 1").then_some(()))
    })
    .await?;
    ensure!(api.get(payment.id()).await?.status() == "confirmed", "something was taken back without being asked for");
    let order = json!({ "chain": "anvil", "amount": "1000" });
    let (status, refused) = api.request(Method::POST, "/api/v1/payments", Some(order.clone()), &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "an address on a chain that nobody follows: {refused}");
    ensure!(
        refused["detail"].as_str().is_some_and(|detail| detail.contains("anvil") && detail.contains("halted")),
        "{refused}"
    );
    // A static address is for all chains.
    let customer = json!({ "external_id": "customer" });
    let (status, answer) = api.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
    ensure!(status == StatusCode::CREATED, "{status} {answer}");

    // The halt survives a restart: nothing moves, and no moment is there in which a payment is taken.
    let before = blocks(&lab).await?.len();
    up.kill()?;
    let mut up = lab.spawn("up")?;
    api.ready(&mut up).await?;
    let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(order.clone()), &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "an address on a chain that nobody follows: {status} {answer}");
    eventually("ingest to say that the chain is halted still", || async {
        Ok(up.tail().contains("halted until a person resumes it").then_some(()))
    })
    .await?;
    ensure!(chain_health(&api).await?.is_some_and(|chain| chain["status"] == "halted"), "it goes on after a restart");
    ensure!(blocks(&lab).await?.len() == before, "blocks were published on a halted chain");

    // Other chains may be in another partition, which nobody can read.
    let own = hanging::place_of(&lab, Topic::Blocks, CHAIN);
    let mut places = (0..Topic::Blocks.partitions()).map(|partition| (own.0.clone(), partition));
    let other = places.find(|place| *place != own).context("another partition")?;
    hanging::leave_open(&lab, &other)?;
    // Without the number nothing happens, and the error tells it.
    let refused = lab.ctrip(&["resume", "--chain", "anvil"]).err().context("resumed without being told the depth")?;
    ensure!(format!("{refused:#}").contains(&format!("--take-back {depth}")), "{refused:#}");
    lab.ctrip(&["resume", "--chain", "anvil", "--take-back", &depth.to_string()])?;
    hanging::end(&lab, &other)?;
    api.until(payment.id(), "pending").await?;
    until_processed(&api, lab.node.head().await?).await?;
    let chain = chain_health(&api).await?.context("the chain")?;
    ensure!(chain["status"] == "ok", "{chain}");
    api.create_surely(json!({ "chain": "anvil", "amount": "1000" })).await?;

    let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
    eventually("the receipt", || lab.node.receipt(hash)).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;
    let removed = blocks(&lab).await?.iter().filter(|block| block.kind() == Kind::Removed).count();
    ensure!(removed as u64 == depth, "{removed} blocks were taken back; the reorg had {depth}");
    let again = lab.ctrip(&["resume", "--chain", "anvil"]).err().context("a chain that goes on was resumed")?;
    ensure!(format!("{again:#}").contains("is not halted"), "{again:#}");
    Ok(())
}

/// On a chain without a `start_block`: what is final stands, and what is not comes again, without a backfill.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_begins_anew_goes_on_above_its_last_final_block() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("  start_block: 0\n", ""))?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let pay = async || -> Result<_> {
        let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
        let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
        eventually("the receipt", || lab.node.receipt(hash)).await?;
        lab.node.mine(3).await?;
        api.until(payment.id(), "confirmed").await
    };
    let old = pay().await?;
    lab.node.mine(FINAL_BELOW).await?;
    let new = pay().await?;
    let head = lab.node.head().await?;
    until_processed(&api, head).await?;

    // A record of tags may come after the last block, and then it is to be run again.
    let refused = eventually("a plan", async || {
        let refused = lab.output(&["chain", "restart", "anvil"])?;
        Ok((!refused.stdout.is_empty()).then_some(refused))
    })
    .await?;
    let said = String::from_utf8_lossy(&refused.stdout);
    let (stands, begins) = (head - FINAL_BELOW, head - FINAL_BELOW + 1);
    ensure!(said.contains(&format!("up to block {stands} stands")) && said.contains(&format!("at block {begins}")), "{said}");
    ensure!(!refused.status.success() && !said.contains("ctrip backfill"), "{said}");
    eventually("a restart", async || Ok(lab.ctrip(&["chain", "restart", "anvil", "--execute"]).ok())).await?;
    // A running ingest notices with the next block.
    lab.node.mine(1).await?;
    let told = async |payment: &Payment, kind: &str| -> Result<usize> {
        let of_kind = |event: &&wire::PaymentEvent| event.payment_id == payment.id() && event.r#type == kind;
        Ok(events(&lab).await?.iter().filter(of_kind).count())
    };
    eventually("the new payment to be taken back and confirmed again", async || {
        Ok((told(&new, "payment.confirmed").await? == 2).then_some(()))
    })
    .await?;
    ensure!(told(&new, "payment.reverted").await? == 1 && told(&old, "payment.reverted").await? == 0, "what was final stands");
    for payment in [&old, &new] {
        let now = api.get(payment.id()).await?;
        ensure!(now.status() == "confirmed" && now.text("amount_received") == "1000", "{}", now.0);
    }
    pay().await?;
    up.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_killed_goes_on_and_brings_every_block_once() -> Result<()> {
    const START: u64 = 2000;
    let lab = Lab::start(Plan::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("start_block: 0", &format!("start_block: {START}")))?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let body = |amount: &str, token: bool| {
        let token = if token { json!("DUSD") } else { Value::Null };
        json!({ "chain": "anvil", "token": token, "amount": amount, "expires_in": 86_400 })
    };
    let (coin, token) = (api.create(body("1000", false)).await?, api.create(body("70", true)).await?);
    for hash in
        [lab.node.pay(coin.address()?, coin.amount()?).await?, lab.node.pay_token(token.address()?, token.amount()?).await?]
    {
        eventually("the receipt", || lab.node.receipt(hash)).await?;
    }
    while lab.node.head().await? < START + FINAL_BELOW + 10 {
        lab.node.mine(500.min(START + FINAL_BELOW + 10 - lab.node.head().await?)).await?;
    }
    until_processed(&api, lab.node.head().await?).await?;
    ensure!(api.get(coin.id()).await?.status() == "pending", "paid before the first block that is followed");

    let (last, beyond) = ((START - 1).to_string(), lab.node.head().await?.to_string());
    let early = lab.ctrip(&["backfill", "--chain", "anvil", "--from", "0", "--to", &beyond]).err().context("not final")?;
    ensure!(format!("{early:#}").contains("can still be taken back"), "{early:#}");

    // From here on only the backfill reads the file: its node holds back the blocks above a number, so that the kill comes
    // in the middle.
    let proxy = Proxy::start(&lab.node.url, Lacks::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace(&lab.node.url, &proxy.url))?;
    let arguments = ["backfill", "--chain", "anvil", "--from", "0", "--to", &last];
    for held in [300, 400, 1500] {
        let before = replayed(&lab).await?.len();
        proxy.make(Fault::HoldAbove(held), Extent::Always);
        let mut backfill = lab.spawn_with(&arguments)?;
        eventually("more blocks", || async { Ok((replayed(&lab).await?.len() > before).then_some(())) }).await?;
        backfill.kill()?;
        proxy.heal();
    }
    let said = lab.ctrip(&arguments)?;
    ensure!(said.contains("are in the topics") && !said.contains("earlier run"), "{said}");
    let said = lab.ctrip(&arguments)?;
    ensure!(said.contains("by an earlier run") && said.contains("--again"), "{said}");

    let blocks = replayed(&lab).await?;
    ensure!(blocks.iter().map(|block| block.number).eq(0..START), "a block is missing, doubled or out of order");
    for pair in blocks.windows(2) {
        ensure!(pair[0].hash == pair[1].parent_hash && pair[1].sequence == 0, "block {}", pair[1].number);
    }
    let logs: Vec<wire::LogsRecord> = records(&lab).await?;
    let logs: Vec<_> = logs.into_iter().filter(|logs| logs.kind() == wire::logs_record::Kind::Replayed).collect();
    ensure!(logs.iter().map(|logs| &logs.hash).eq(blocks.iter().map(|block| &block.hash)), "the logs are of other blocks");
    for (payment, what) in [(&coin, "coin"), (&token, "token")] {
        let paid = api.until(payment.id(), "confirmed").await?;
        ensure!(paid.text("amount_received") == payment.text("amount"), "{what}: {}", paid.0);
    }
    // The head is unchanged, and follows the chain.
    lab.node.mine(2).await?;
    until_processed(&api, lab.node.head().await?).await?;
    up.check()
}

/// It was asked first again, and the backfill ended after 21 tries.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_blocks_do_not_link_ends_no_backfill() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    lab.node.mine(FINAL_BELOW + 10).await?;
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        endpoints.push(Proxy::start(&lab.node.url, Lacks::default()).await?);
    }
    endpoints[0].make(Fault::WrongParent, Extent::Always);
    // Without a proof, so that nothing but the links shows it.
    write_chains(&lab, &endpoints, "")?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("start_block: 0", "start_block: 0\n  verify: off"))?;
    let said = lab.ctrip(&["backfill", "--chain", "anvil", "--from", "1", "--to", "8"])?;
    ensure!(said.contains("are in the topics"), "{said}");
    ensure!(replayed(&lab).await?.iter().map(|block| block.number).eq(1..=8), "a block is missing, doubled or out of order");
    Ok(())
}

async fn chain_health(api: &Api) -> Result<Option<Value>> {
    let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
    Ok(health.pointer("/components/chains/0").cloned())
}

async fn until_processed(api: &Api, head: u64) -> Result<()> {
    let what = format!("block {head} to be processed");
    eventually(&what, || async {
        let processed = chain_health(api).await?.and_then(|chain| chain["processed"].as_u64());
        Ok(processed.filter(|number| *number >= head).map(drop))
    })
    .await
}

async fn blocks(lab: &Lab) -> Result<Vec<wire::BlockRecord>> {
    records(lab).await
}

async fn replayed(lab: &Lab) -> Result<Vec<wire::BlockRecord>> {
    Ok(blocks(lab).await?.into_iter().filter(|block| block.kind() == Kind::Replayed).collect())
}
