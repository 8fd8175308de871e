//! Nobody is believed alone: what a lone endpoint shows is detected, and confirmed only when others have it too.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Lacks, Node, Plan, Proxy, events, eventually, write_chains};
use reqwest::Method;
use serde_json::{Value, json};

const SOUND: Lacks = Lacks { batches: false, block_receipts: false };

fn host(proxy: &Proxy) -> &str {
    proxy.url.trim_start_matches("http://")
}

/// The payments' events so far, without their prefix.
async fn told(lab: &Lab, id: &str) -> Result<Vec<String>> {
    let all = events(lab).await?.into_iter().filter(|event| event.payment_id == id);
    Ok(all.map(|event| event.r#type.trim_start_matches("payment.").to_owned()).collect())
}

async fn health(api: &Api) -> Result<Value> {
    Ok(api.request(Method::GET, "/health", None, &[]).await?.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_in_a_branch_that_the_first_endpoint_invents_is_never_confirmed_and_taken_back() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        endpoints.push(Proxy::start(&lab.node.url, SOUND).await?);
    }
    write_chains(&lab, &endpoints, "")?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    lab.node.mine(3).await?;
    let [robbed, honest] = [api.coin(1_000).await?, api.coin(2_000).await?];

    // The liar's blocks stand on the real head, and prove what they say: it is a node of its own.
    let liar = Node::start_with(&lab.stack, &["--fork-url", &lab.node.url, "--chain-id", "31337"]).await?;
    liar.pay(robbed.address()?, robbed.amount()?).await?;
    liar.mine(20).await?;
    endpoints[0].lead_to(&liar.url);
    api.until(robbed.id(), "detected").await?;

    // The others go on without it.
    lab.node.pay(honest.address()?, honest.amount()?).await?;
    lab.node.mine(5).await?;
    api.until(honest.id(), "confirmed").await?;
    api.until(robbed.id(), "pending").await?;
    liar.mine(5).await?;
    lab.node.mine(5).await?;
    let another = api.coin(3_000).await?;
    lab.node.pay(another.address()?, another.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(another.id(), "confirmed").await?;

    // The relay may be behind.
    let told = eventually("what became of the robbed payment", || async {
        Ok(Some(told(&lab, robbed.id()).await?).filter(|told| told.len() >= 3))
    })
    .await?;
    ensure!(told == ["created", "detected", "reverted"], "{told:?}");
    let liar_host = host(&endpoints[0]);
    let counted = up.metric("rpc_contradictions_total", &[("chain", "anvil"), ("endpoint", liar_host)]).await?;
    ensure!(counted >= 1.0, "the contradictions of {liar_host} are not counted");
    let others = up.metric("rpc_contradictions_total", &[("chain", "anvil")]).await? - counted;
    ensure!(others == 0.0, "{others} contradictions of endpoints that did not lie");
    let witnessed = up.metric("chain_witnessed_block", &[("chain", "anvil")]).await?;
    #[expect(clippy::cast_precision_loss, reason = "a short chain")]
    let head = lab.node.head().await? as f64;
    ensure!(witnessed <= head, "block {witnessed} is witnessed, and {head} is the last there is");
    let log = up.log();
    let named = |line: &str| line.contains("contradiction") && line.contains(liar_host);
    ensure!(log.lines().any(named), "the log does not name {liar_host}:\n{}", up.tail());
    up.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_of_two_endpoints_down_payments_are_detected_and_wait_and_health_says_so() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut endpoints = vec![Proxy::start(&lab.node.url, SOUND).await?, Proxy::start(&lab.node.url, SOUND).await?];
    write_chains(&lab, &endpoints, "")?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let first = api.coin(1_000).await?;
    lab.node.pay(first.address()?, first.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(first.id(), "confirmed").await?;

    endpoints[1].close().await?;
    let second = api.create_surely(json!({ "chain": "anvil", "amount": 2_000 })).await?;
    lab.node.pay(second.address()?, second.amount()?).await?;
    lab.node.mine(10).await?;
    api.until(second.id(), "detected").await?;
    let degraded = eventually("a chain without witnesses in /health", || async {
        Ok(Some(health(&api).await?).filter(|health| health["status"] == "degraded"))
    });
    let chain = degraded.await?["components"]["chains"][0].take();
    let why = chain["unwitnessed"].as_str().context("no word on witnesses")?;
    ensure!(chain["status"] == "unwitnessed" && why.contains("ctrip check --chain anvil"), "{chain}");
    ensure!(chain["witnessed"].as_u64() < chain["processed"].as_u64(), "{chain}");
    let (ready, _) = api.request(Method::GET, "/readyz", None, &[]).await?;
    ensure!(ready.is_success(), "/readyz says {ready}");
    let second = api.get(second.id()).await?;
    ensure!(second.status() == "detected", "confirmed by one endpoint alone");
    ensure!(second.0["confirmations"] == 0, "blocks of one endpoint alone are counted: {}", second.0);

    // No block comes any more: what is learned between blocks confirms it.
    endpoints[1].open().await?;
    api.until(second.id(), "confirmed").await?;
    eventually("/health to be well", || async { Ok((health(&api).await?["status"] == "ok").then_some(())) }).await?;
    up.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_witnesses_the_log_and_the_check_say_so() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let endpoints = [Proxy::start(&lab.node.url, SOUND).await?, Proxy::start(&lab.node.url, SOUND).await?];
    let [one, two] = &endpoints;
    let entry = |rest: Value| {
        let mut chain = json!({ "name": "anvil", "chain_id": 31337, "poll_interval_ms": 20 });
        chain.as_object_mut().context("an object")?.extend(rest.as_object().cloned().unwrap_or_default());
        lab.write_chains(&json!([chain]).to_string())
    };
    let cases = [
        (json!({ "rpc_url": one.url }), "nobody witnesses", "one endpoint"),
        (json!({ "rpc_urls": [one.url, two.url], "witnesses": 1 }), "nobody witnesses", "witnesses is 1"),
        (
            json!({ "rpc_urls": [{ "url": one.url, "group": "same" }, { "url": two.url, "group": "same" }] }),
            "nobody witnesses",
            "one endpoint or provider",
        ),
        (json!({ "rpc_urls": [one.url, two.url] }), "a block needs 2 witnesses", "2 usable endpoints"),
    ];
    for (rest, verdict, why) in &cases {
        entry(rest.clone())?;
        let said = lab.ctrip(&["check"])?;
        ensure!(said.lines().any(|line| line.contains(verdict) && line.contains(why)), "{rest}:\n{said}");
    }
    entry(cases[0].0.clone())?;
    let mut ingest = lab.spawn("ingest")?;
    eventually("a word on witnesses in the log", || async {
        Ok(ingest.log().lines().any(|line| line.contains("WARN") && line.contains("nobody witnesses")).then_some(()))
    })
    .await?;
    ingest.check()
}
