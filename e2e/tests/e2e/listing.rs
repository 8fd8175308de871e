//! chains.yaml while ctrip runs: SIGHUP has it read again.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Node, Plan, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_read_again_is_taken_whole_or_refused_whole() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let other = Node::start_with(&lab.stack, &["--chain-id", "31338"]).await?;
    let twin = lab.node.deploy("Token").await?;
    let process = &mut lab.spawn("up")?;
    let api = lab.merchant("shop")?;
    api.ready(process).await?;
    let chain = |name: &str, id: u64, url: &str, tokens: Value| json!({ "name": name, "chain_id": id, "rpc_url": url, "confirmations": 1, "poll_interval_ms": 20, "start_block": 0, "tokens": tokens });
    let dusd = json!({ "symbol": "DUSD", "address": lab.node.token.to_string(), "decimals": 6 });
    let twin_of = |decimals: u8| json!({ "symbol": "TWIN", "address": twin.to_string(), "decimals": decimals });
    let known = chain("anvil", 31337, &lab.node.url, json!([dusd, twin_of(6)]));
    let new = |confirmations: i32| {
        let mut new = chain("other", 31338, &other.url, json!([]));
        new["confirmations"] = json!(confirmations);
        json!([known, new])
    };
    let in_token = json!({ "chain": "anvil", "token": "TWIN", "amount": 5 });
    let in_coin = json!({ "chain": "other", "amount": 7 });
    let status = async |order: &Value| -> Result<StatusCode> {
        Ok(api.request(Method::POST, "/api/v1/payments", Some(order.clone()), &[]).await?.0)
    };
    let named = async || -> Result<Option<String>> {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        let stages = health["components"]["stages"].as_array().context("no stages")?;
        let of_file = stages.iter().find(|stage| stage["stage"] == "chains file");
        Ok(of_file.and_then(|stage| stage["error"].as_str()).map(str::to_owned))
    };

    // Refused whole: its sound parts are not taken either. JSON is YAML.
    lab.write_chains(&serde_json::to_string_pretty(&new(-3))?)?;
    process.signal("HUP")?;
    let cause = eventually("the mistake to be named", &named).await?;
    ensure!(cause.contains("chains.yaml:") && cause.contains("confirmations"), "{cause}");
    ensure!(process.metric("chains_file_reloads_total", &[("outcome", "refused")]).await? == 1.0);
    for order in [&in_token, &in_coin] {
        ensure!(status(order).await? == StatusCode::UNPROCESSABLE_ENTITY);
    }
    ensure!(status(&json!({ "chain": "anvil", "token": "DUSD", "amount": 5 })).await? == StatusCode::CREATED);

    lab.write_chains(&new(1).to_string())?;
    process.signal("HUP")?;
    eventually("the mistake to be gone", async || Ok(named().await?.is_none().then_some(()))).await?;
    let taken = async |order: &Value| {
        let asked = async || Ok((status(order).await? == StatusCode::CREATED).then_some(()));
        eventually("the order to be taken", asked).await?;
        api.create(order.clone()).await
    };
    let (token_payment, coin_payment) = (taken(&in_token).await?, taken(&in_coin).await?);
    lab.node.pay_with(twin, token_payment.address()?, token_payment.amount()?).await?;
    other.pay(coin_payment.address()?, coin_payment.amount()?).await?;
    for payment in [&token_payment, &coin_payment] {
        let confirmed = async || Ok((api.get(payment.id()).await?.status() == "confirmed").then_some(()));
        eventually("the payment to be confirmed", confirmed).await?;
    }
    let document = api.request(Method::GET, "/openapi.json", None, &[]).await?.1.to_string();
    ensure!(document.contains("TWIN") && document.contains("\"other\""), "the document has what was listed before");

    // Without the other chain, and with other decimals than the contract's: the rest goes on.
    lab.write_chains(&json!([chain("anvil", 31337, &lab.node.url, json!([dusd, twin_of(8)]))]).to_string())?;
    process.signal("HUP")?;
    let refused = async || {
        let statuses = (status(&in_coin).await?, status(&in_token).await?);
        Ok((statuses == (StatusCode::UNPROCESSABLE_ENTITY, StatusCode::SERVICE_UNAVAILABLE)).then_some(()))
    };
    eventually("both to be refused", refused).await?;
    ensure!(status(&json!({ "chain": "anvil", "token": "DUSD", "amount": 5 })).await? == StatusCode::CREATED);
    process.check()
}
