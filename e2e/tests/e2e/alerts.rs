//! Alerts and runbooks, tried with Prometheus' own tool and a cTrip at work: each alert fires, and the commands run.

use crate::webhooks::Receiver;
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, Process, eventually, promtool, root};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use topics::{Address, U256};

const COIN: u64 = 100_000_000_000_000_000;

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
