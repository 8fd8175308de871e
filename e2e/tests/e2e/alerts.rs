//! Alerts, dashboards and runbooks, tried with Prometheus and a cTrip at work: each alert fires, each query finds something,
//! and the commands run.

use crate::webhooks::Receiver;
use anyhow::{Context as _, Result, ensure};
use base::locked;
use e2e::{Api, Lab, Plan, Process, Prometheus, eventually, promtool, root};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use topics::{Address, U256};

const COIN: u64 = 100_000_000_000_000_000;
/// Metrics that have nothing to say while nothing is wrong, on a chain with one endpoint and no websocket.
const OF_FAULTS: [&str; 18] = [
    "aged_rows_removed_total",
    "chain_unagreed_blocks_total",
    "chain_unchecked_blocks_total",
    "chain_unproven_answers_total",
    "chain_untraced_blocks_total",
    "chains_file_reloads_total",
    "database_replica_lag_seconds",
    "http_connections_closed_total",
    "intents_repaired_total",
    "kafka_publishers_reopened_total",
    "orphan_transfers_total",
    "quarantined_records_total",
    "restored_from_topics_total",
    "rpc_contradictions_total",
    "stage_restarts_total",
    "unmatched_replays_total",
    "webhook_endpoints_disabled_total",
    "ws_",
];
/// Of other programs.
const OF_OTHERS: &str = "node_";

/// A lab whose payments are told by webhooks and swept.
async fn shop() -> Result<(Lab, Process, Api)> {
    let treasury = Address::repeat_byte(0x7e);
    let mut lab = Lab::start(Plan { treasury: Some(treasury), ..Plan::default() }).await?;
    for (name, value) in [("WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8"), ("WEBHOOK_ALLOW_HTTP", "true")] {
        lab.env.insert(name.to_owned(), value.to_owned());
    }
    let (up, api) = lab.serve("up", "shop").await?;
    Ok((lab, up, api))
}

/// A payment from its creation to the treasury, told to a merchant one of whose endpoints fails, with a reorg on the way.
async fn live(lab: &Lab, api: &Api) -> Result<()> {
    let merchant = Receiver::start().await?;
    for endpoint in ["well", "broken"] {
        let body = json!({ "url": format!("{}/{endpoint}/shop", merchant.url) });
        let (status, said) = api.request(Method::POST, "/api/v1/webhooks", Some(body), &[]).await?;
        ensure!(status.is_success(), "{status}: {said}");
    }
    let payment = api.coin(COIN).await?;
    let pay = async || lab.node.pay(payment.address()?, U256::from(COIN)).await;
    pay().await?;
    api.until(payment.id(), "detected").await?;
    lab.node.reorg(1).await?;
    api.until(payment.id(), "pending").await?;
    pay().await?;
    eventually("a payment to be settled", async || {
        lab.node.mine(5).await?;
        Ok((api.get(payment.id()).await?.status() == "settled").then_some(()))
    })
    .await?;
    merchant.until("well/shop", 5).await.map(drop)
}

#[test]
fn each_alert_fires_by_its_fault_and_none_in_ordinary_operation() -> Result<()> {
    let Some(promtool) = promtool()? else { return Ok(()) };
    let folder = root().join("deploy/prometheus");
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]] {
        let output = Command::new(&promtool).args(arguments).current_dir(&folder).output()?;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    }
    Ok(())
}

/// The queries of all dashboards, by their panels, as Grafana would send them.
fn panels() -> Result<Vec<(String, String)>> {
    let mut queries = Vec::new();
    let files = std::fs::read_dir(root().join("deploy/grafana"))?.collect::<Result<Vec<_>, _>>()?;
    for path in files.into_iter().map(|file| file.path()) {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        for panel in dashboard["panels"].as_array().context("panels")? {
            let title = format!("{}: {}", dashboard["uid"], panel["title"]);
            let targets = panel["targets"].as_array().into_iter().flatten();
            let exprs = targets.filter_map(|target| target["expr"].as_str());
            queries.extend(exprs.map(|expr| (title.clone(), expr.replace("$chain", ".+").replace("$__rate_interval", "1m"))));
        }
    }
    ensure!(queries.len() > 50, "the dashboards have moved: found {} queries", queries.len());
    Ok(queries)
}

/// What alerts look at: each metric that they name, with its labels.
fn selectors(rules: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let braces = rules.match_indices("{job=\"ctrip\"");
    let found = braces.filter_map(|(at, _)| {
        let start = rules[..at].rfind(|c| !is_name(c))? + 1;
        let end = at + rules[at..].find('}')? + 1;
        Some(rules[start..end].to_owned())
    });
    found.collect()
}

/// Whether there is something to be found while nothing is wrong.
fn is_ordinary(query: &str) -> bool {
    let of_errors = ["status=~\"5..\"", "status=\"429\""].iter().any(|part| query.contains(part));
    !of_errors && !query.contains(OF_OTHERS) && !OF_FAULTS.iter().any(|metric| query.contains(metric))
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_evaluates_each_alert_and_each_panel_and_finds_what_they_look_at() -> Result<()> {
    let Some(promtool) = promtool()? else { return Ok(()) };
    let (lab, mut up, api) = shop().await?;
    let prometheus = Prometheus::start(&promtool, &lab.env["METRICS_LISTEN"], &lab.dir)?;
    live(&lab, &api).await?;

    let panels = panels()?;
    for (title, query) in &panels {
        prometheus.series(query).await.context(title.clone())?;
    }
    let mut asked: Vec<String> = panels.into_iter().map(|(_, query)| query).collect();
    asked.extend(selectors(&std::fs::read_to_string(root().join("deploy/prometheus/rules.yml"))?));
    asked.retain(|query| is_ordinary(query));
    // Rates need two samples, and there is a payment now and then.
    let missing = Mutex::new(asked);
    let found = eventually("each query to find something", async || {
        let mut still = Vec::new();
        let asked = locked(&missing).clone();
        for query in asked {
            if prometheus.series(&query).await? == 0 {
                still.push(query);
            }
        }
        let payment = api.coin(COIN).await?;
        lab.node.pay(payment.address()?, U256::from(COIN)).await?;
        lab.node.mine(5).await?;
        let all = still.is_empty();
        *locked(&missing) = still;
        Ok(all.then_some(()))
    });
    found.await.with_context(|| format!("nothing was found of {:#?}", locked(&missing)))?;

    let rules = prometheus.ask("rules", &[]).await?.context("the rules")?;
    let groups = rules["groups"].as_array().context("groups")?;
    let all: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    ensure!(all.len() > 20, "{} rules", all.len());
    for rule in all {
        ensure!(rule["health"] == "ok", "{}: {}", rule["name"], rule["lastError"]);
    }
    let text = reqwest::get(format!("http://{}/metrics", lab.env["METRICS_LISTEN"])).await?.text().await?;
    let file = lab.dir.join("metrics.txt");
    std::fs::write(&file, text)?;
    let output = Command::new(&promtool).args(["check", "metrics"]).stdin(std::fs::File::open(&file)?).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "promtool check metrics: {said}");
    up.check()
}

/// The runbooks' pages, by their paths.
fn pages() -> Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(root().join("docs/runbooks"))?.map(|file| file.map(|file| file.path()));
    let mut pages = files.collect::<Result<Vec<_>, _>>()?;
    pages.push(root().join("docs/runbook.md"));
    pages.sort();
    Ok(pages)
}

fn blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next())
}

/// What is on the machines of an installation and not here, and ends that are no errors: nothing is halted, nothing is found, or a
/// time is over.
const BESIDES: &str = r#"
ctrip() { command ctrip "$@" || [ "$1" = resume ]; }
journalctl() { :; }
systemctl() { :; }
grep() { command grep "$@" || [ $? -eq 1 ]; }
timeout() { shift; command timeout 2 "$@" || [ $? -eq 124 ]; }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_runbooks_look_with_runs_as_it_stands() -> Result<()> {
    let (lab, mut up, api) = shop().await?;
    live(&lab, &api).await?;
    let tools = lab.stack.kafka_tools(&lab.dir)?;
    let bin = e2e::built("ctrip")?;
    let path = format!("{}:{}", bin.parent().context("a folder")?.display(), tools[0].1);
    let variables = [
        ("API", format!("http://{}", lab.env["API_LISTEN"])),
        ("INSTANCE", lab.env["METRICS_LISTEN"].clone()),
        ("CHAIN", "anvil".to_owned()),
        ("PATH", path),
    ];
    let mut faults = Vec::new();
    for page in pages()? {
        let text = std::fs::read_to_string(&page)?;
        // What changes something stands below, with words in capitals for what a person has to know.
        let looks = text.split("\n## Mitigation").next().unwrap_or_default();
        for block in blocks(looks).filter(|block| !block.contains("/etc/ctrip")) {
            let script = format!("set -eu{BESIDES}{block}");
            let mut command = Command::new("bash");
            command.args(["-c", &script]).envs(&lab.env).envs(tools.clone()).envs(variables.clone());
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() || said.contains("ERROR") {
                faults.push(format!("{}: {}\n{block}{said}", page.display(), output.status));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    up.check()
}

/// The commands of `ctrip` in a page, in blocks and in sentences.
fn commands(page: &str) -> BTreeSet<&str> {
    let lines = blocks(page).flat_map(str::lines).map(|line| line.split('#').next().unwrap_or_default());
    // Every second piece between marks of code is code.
    let sentences = page.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
    lines.chain(sentences).map(str::trim).filter(|code| code.starts_with("ctrip ")).collect()
}

#[test]
fn the_runbooks_name_commands_and_flags_that_there_are() -> Result<()> {
    let bin = e2e::built("ctrip")?;
    let mut faults = Vec::new();
    for page in pages()? {
        for command in commands(&std::fs::read_to_string(&page)?) {
            let words = || command.split_whitespace().skip(1);
            let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
            let output = Command::new(&bin).args(words().take_while(is_name)).arg("--help").output()?;
            let help = String::from_utf8_lossy(&output.stdout);
            let unknown = words().filter(|word| word.starts_with("--")).find(|flag| !help.contains(flag));
            if !output.status.success() || unknown.is_some() {
                faults.push(format!("{}: {command}: {unknown:?} {}", page.display(), String::from_utf8_lossy(&output.stderr)));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
