//! The OpenAPI document is true: requests made from it get the documented answers.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, root};
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Command;

/// Runs all checks of schemathesis: among others, documented requests are accepted, undocumented ones refused, no answer has an
/// undocumented status, header or shape, and requests without a key get 401. First with ids that it finds or invents, then
/// with those of a payment and of a deposit address that have content.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_the_document_does_not_promise() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut ctrip, api) = lab.serve("up", "fuzzed").await?;
    let payment = api.coin(12_345).await?;
    let customer = json!({ "external_id": "customer-7" });
    let (_, address) = api.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.pay_token(address["address"].as_str().context("an address")?.parse()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;

    let text = schemathesis(&api, "", &["--max-examples", "30"])?;
    // It called every operation, except that of the document, which it has read before.
    let (_, document) = api.request(Method::GET, "/openapi.json", None, &[]).await?;
    let paths = document["paths"].as_object().into_iter().flatten();
    let operations: usize = paths.map(|(_, item)| item.as_object().map_or(0, serde_json::Map::len)).sum();
    ensure!(text.contains(&format!("Tested: {}", operations - 1)), "{operations} operations: {text}");

    let known =
        |path: &str, id: &str| format!("[[operations]]\ninclude-path-regex = \"/{path}/\"\nparameters = {{ id = \"{id}\" }}\n");
    // The first pass may have left as many as a merchant can have, or none.
    let (_, webhooks) = api.request(Method::GET, "/api/v1/webhooks", None, &[]).await?;
    let webhook = match webhooks["data"].get(0) {
        Some(webhook) => webhook.clone(),
        None => api.request(Method::POST, "/api/v1/webhooks", Some(json!({ "url": "https://fuzzed.example/" })), &[]).await?.1,
    };
    let known = known("payments", payment.id())
        + &known("addresses", address["id"].as_str().context("an id")?)
        + &known("webhooks", webhook["id"].as_str().context("an id")?);
    let phases = ["--phases", "examples,coverage,fuzzing", "--include-path-regex", r"\{id\}", "--max-examples", "10"];
    // A deleted webhook has nothing to show.
    let phases = [&phases[..], &["--exclude-method", "DELETE"]].concat();
    let text = schemathesis(&api, &known, &phases)?;
    ensure!(!text.contains("Missing test data"), "{text}");
    ctrip.check()
}

fn schemathesis(api: &Api, config: &str, options: &[&str]) -> Result<String> {
    let output = Command::new(root().join("e2e/python/fuzz-api"))
        .args([config, &format!("{}/openapi.json", api.url), "--header", &format!("X-Api-Key: {}", api.key)])
        .args(["--seed", "20261125"])
        .args(options)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "schemathesis: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// Behind a firewall as well: the page and its resources come from this server, and its policy lets the browser ask no other.
#[tokio::test]
async fn the_page_asks_no_other_server() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_process, api) = lab.serve("api", "reader").await?;
    for path in ["/docs", "/docs/"] {
        let answer = reqwest::get(format!("{}{path}", api.url)).await?.error_for_status()?;
        let policy =
            answer.headers().get("content-security-policy").and_then(|policy| policy.to_str().ok()).unwrap_or_default();
        ensure!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
        let page = answer.text().await?;
        let links: Vec<&str> = page.split(['"', '\'']).filter(|text| text.starts_with('/') || text.contains("://")).collect();
        ensure!(links.len() == 3, "{links:?}");
        for link in links {
            let file = reqwest::get(format!("{}{link}", api.url)).await?.error_for_status()?.text().await?;
            ensure!(file.len() > 50, "{link}: {file}");
        }
    }
    let (status, missing) = api.request(Method::GET, "/docs/none.js", None, &[]).await?;
    ensure!(status == 404 && missing["type"] == "urn:ctrip:problem:not-found", "{status} {missing}");
    let (_, document) = api.request(Method::GET, "/openapi.json", None, &[]).await?;
    ensure!(document["openapi"] == "3.1.0" && document["info"]["title"].is_string(), "{}", Value::from(document.to_string()));
    Ok(())
}
