//! The OpenAPI document is true: requests made from it get the documented answers.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, root};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// What a merchant has.
struct Belongings {
    payment: Payment,
    address: Value,
    webhook: Value,
    /// Names of the owner, and what transfers, events and deliveries show. No request has them, so no answer to another repeats them.
    secrets: Vec<String>,
}

impl Belongings {
    async fn of(lab: &Lab, api: &Api, owner: &str) -> Result<Self> {
        let own = json!({ "external_id": owner, "metadata": { "owner": owner } });
        let mut order = json!({ "chain": "anvil", "amount": 12_345 });
        order.as_object_mut().into_iter().for_each(|order| order.extend(own.as_object().cloned().unwrap_or_default()));
        let payment = api.create(order).await?;
        let (_, address) = api.request(Method::POST, "/api/v1/addresses", Some(own), &[]).await?;
        let url = json!({ "url": format!("https://{owner}.example/") });
        let (_, webhook) = api.request(Method::POST, "/api/v1/webhooks", Some(url), &[]).await?;
        let text = address["address"].as_str().context("an address")?.to_owned();
        let paid = lab.node.pay(payment.address()?, payment.amount()?).await?;
        let deposited = lab.node.pay_token(text.parse()?, payment.amount()?).await?;
        let secrets = vec![owner.to_owned(), payment.text("address").to_owned(), text, paid.to_string(), deposited.to_string()];
        Ok(Self { payment, address, webhook, secrets })
    }

    /// A configuration of schemathesis with these ids.
    fn known(&self, webhook: &Value) -> Result<String> {
        let known = |path: &str, id: &str| {
            format!("[[operations]]\ninclude-path-regex = \"/{path}/\"\nparameters = {{ id = \"{id}\" }}\n")
        };
        Ok(known("payments", self.payment.id())
            + &known("addresses", self.address["id"].as_str().context("an id")?)
            + &known("webhooks", webhook["id"].as_str().context("an id")?))
    }
}

/// Runs all checks of schemathesis: among others, documented requests are accepted, undocumented ones refused, no answer has an
/// undocumented status, header or shape, and requests without a key get 401. Two merchants do so at the same time, one with a key that
/// reads: first with ids that are found or invented, and the reader with those of the other one; then each with those of what it has.
/// No answer to one has anything of the other's.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_the_document_does_not_promise() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut ctrip, api) = lab.serve("up", "fuzzed").await?;
    let neighbour = lab.merchant("neighbour")?;
    let reader = neighbour.with_key(&lab.ctrip(&["keys", "create", "neighbour", "--scope", "read"])?);
    // Its address is an example of the document, so answers have it.
    api.coin(1).await?;
    let own = Belongings::of(&lab, &api, "owned-by-fuzzed").await?;
    let others = Belongings::of(&lab, &neighbour, "owned-by-neighbour").await?;
    lab.node.mine(3).await?;
    api.until(own.payment.id(), "confirmed").await?;

    let run = |name: &'static str, api: &Api, config: &str, options: &[&str]| {
        let report = lab.dir.join(format!("{name}.har"));
        let text = schemathesis(api, config, &report, options)?;
        Ok::<_, anyhow::Error>((text, answers(&report)?))
    };
    let both = |first: (&str, &[&str]), second: (&str, &[&str])| {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| run("fuzzed", &api, first.0, first.1));
            let ((_, read), writing) = (run("neighbour", &reader, second.0, second.1)?, writing.join());
            let (text, answers) = writing.map_err(|_| anyhow::anyhow!("a run panicked"))??;
            let shown = |of: &Belongings, answers: &str| of.secrets.iter().filter(|secret| answers.contains(*secret)).count();
            ensure!(shown(&others, &answers) == 0, "the neighbour's in the fuzzed one's answers: {text}");
            ensure!(shown(&own, &read) == 0, "the fuzzed one's in the neighbour's answers");
            ensure!(shown(&own, &answers) > 1 && shown(&others, &read) > 1, "not their own: {text}");
            Ok(text)
        })
    };
    let text = both(
        ("", &["--max-examples", "30"]),
        (&own.known(&own.webhook)?, &["--phases", "examples,fuzzing", "--max-examples", "5", "--include-method", "GET"]),
    )?;
    // It called every operation, except that of the document, which it has read before.
    let (_, document) = api.request(Method::GET, "/openapi.json", None, &[]).await?;
    let paths = document["paths"].as_object().into_iter().flatten();
    let operations: usize = paths.map(|(_, item)| item.as_object().map_or(0, serde_json::Map::len)).sum();
    ensure!(text.contains(&format!("Tested: {}", operations - 1)), "{operations} operations: {text}");

    // The first pass may have left as many as a merchant can have, or none.
    let (_, webhooks) = api.request(Method::GET, "/api/v1/webhooks", None, &[]).await?;
    let webhook = match webhooks["data"].get(0) {
        Some(webhook) => webhook.clone(),
        None => api.request(Method::POST, "/api/v1/webhooks", Some(json!({ "url": "https://fuzzed.example/" })), &[]).await?.1,
    };
    let phases = ["--phases", "examples,coverage,fuzzing", "--include-path-regex", r"\{id\}", "--max-examples", "10"];
    // A deleted webhook has nothing to show.
    let phases = [&phases[..], &["--exclude-method", "DELETE"]].concat();
    let reading =
        ["--phases", "examples,fuzzing", "--max-examples", "5", "--include-path-regex", r"\{id\}", "--include-method", "GET"];
    let text = both((&own.known(&webhook)?, &phases), (&others.known(&others.webhook)?, &reading))?;
    ensure!(!text.contains("Missing test data"), "{text}");
    ctrip.check()
}

fn schemathesis(api: &Api, config: &str, report: &Path, options: &[&str]) -> Result<String> {
    let output = Command::new(root().join("e2e/python/fuzz-api"))
        .args([config, &format!("{}/openapi.json", api.url), "--header", &format!("X-Api-Key: {}", api.key)])
        .args(["--seed", "20261125", "--report", "har", "--report-har-path"])
        .arg(report)
        .args(options)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "schemathesis: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// All answers of a run, without the requests.
fn answers(report: &Path) -> Result<String> {
    let report: Value = serde_json::from_slice(&std::fs::read(report)?)?;
    let entries = report["log"]["entries"].as_array().context("no entries")?;
    Ok(entries.iter().filter_map(|entry| entry["response"]["content"]["text"].as_str()).collect())
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
