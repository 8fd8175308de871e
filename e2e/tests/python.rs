//! A stock Python consumer, with nothing of ours but the schemas, reads the topics.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, root};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_python_consumer_reads_events_and_blocks() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut ctrip = lab.spawn("up")?;
    let api = lab.merchant("python")?;
    api.ready(&mut ctrip).await?;
    let payment = api.coin(12_345_678_901_234_567).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;

    let output =
        Command::new(root().join("e2e/python/run")).arg(root().join("e2e/python/consume.py")).envs(&lab.env).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "consume.py: {text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<serde_json::Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("its lines")?;
    let events: Vec<_> = lines.iter().filter(|line| line["payment_id"] == payment.id()).collect();
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    ensure!(kinds == ["payment.created", "payment.detected", "payment.confirmed"], "{text}");
    ensure!(events.iter().all(|event| event["amount"] == "12345678901234567"), "{text}");
    let blocks = lines.iter().filter(|line| line["block"].is_u64()).count();
    let head = usize::try_from(lab.node.head().await?)?;
    ensure!(blocks == head + 1, "{blocks} blocks, the head is {head}: {text}");
    Ok(())
}
