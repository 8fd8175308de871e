//! The OpenAPI document is true: requests made from it get the answers that it promises.

use anyhow::{Result, ensure};
use e2e::{Lab, Plan, root};
use reqwest::Method;
use serde_json::Value;
use std::process::Command;

/// All checks that schemathesis has, on a payment in each state that it finds: among them that what the document allows is
/// taken, what it forbids is refused, no answer has an undocumented status, header or shape, and no key means 401.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_the_document_does_not_promise() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut ctrip = lab.spawn("up")?;
    let api = lab.merchant("fuzzed")?;
    api.ready(&mut ctrip).await?;
    let payment = api.coin(12_345).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;

    let output = Command::new(root().join("e2e/python/fuzz-api"))
        .args([&api.url, &api.key])
        .args(["--checks", "all", "--max-examples", "30", "--seed", "20261125", "--generation-database", "none"])
        .args(["--continue-on-failure"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "schemathesis: {text}{}", String::from_utf8_lossy(&output.stderr));
    // It did what it is for: every operation was called.
    let (_, document) = api.request(Method::GET, "/openapi.json", None, &[]).await?;
    let operations: usize =
        document["paths"].as_object().into_iter().flatten().map(|(_, item)| item.as_object().map_or(0, |o| o.len())).sum();
    ensure!(text.contains(&format!("Tested: {operations}")), "{operations} operations: {text}");
    ctrip.check()
}

/// Behind a firewall as well: the page and what it loads come from this server, and its policy lets the browser ask no other.
#[tokio::test]
async fn the_page_asks_no_other_server() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut process = lab.spawn("api")?;
    let api = lab.merchant("reader")?;
    api.ready(&mut process).await?;
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
