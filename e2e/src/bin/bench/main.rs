//! `make bench`: the figures of the README, measured in one run on one machine, on the real parts.
//!
//! Prints a table and writes `target/bench/results.json`. `bench detector`, `bench api`, `bench latency`,
//! `bench ingest`, `bench confirmer`, `bench dust` and `bench webhooks` run alone; `bench restore` and `bench scale` run alone only.

mod api;
mod chainserver;
mod confirmer;
mod detector;
mod dust;
mod figure;
mod ingest;
mod latency;
mod restore;
mod scale;
mod webhooks;

use anyhow::{Context as _, Result, bail};
use figure::written;

#[tokio::main]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("bench: failed: {error:#}");
        std::process::exit(1);
    }
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figures = match arguments.as_slice() {
        ["all"] | [] => {
            let mut figures = latency::run().await?;
            figures.extend(api::run().await?);
            figures.extend(ingest::run().await?);
            figures.extend(detector::run().await?);
            figures.extend(confirmer::run().await?);
            figures.extend(dust::run().await?);
            figures.extend(webhooks::run().await?);
            figures
        }
        ["detector"] => detector::run().await?,
        ["api"] => api::run().await?,
        ["latency"] => latency::run().await?,
        ["ingest"] => ingest::run().await?,
        ["confirmer"] => confirmer::run().await?,
        ["dust"] => dust::run().await?,
        ["webhooks"] => webhooks::run().await?,
        // Not among all: filling ten million rows takes longer than the others together.
        ["restore"] => restore::run(10_000_000).await?,
        ["restore", intents] => restore::run(intents.parse().context("a number of intents")?).await?,
        // Nor is this.
        ["scale"] => scale::run().await?,
        // Ingest's bench starts this program again, as the node.
        ["serve", blocks] => return chainserver::serve(blocks.parse().context("a number of blocks")?).await,
        // The detector's bench starts this program again, pinned to a core.
        ["consume", how, total] => return detector::consume(how, total.parse().context("a number of logs")?).await,
        other => {
            bail!("expected all, detector, api, latency, ingest, confirmer, dust, restore, scale or webhooks, got {other:?}")
        }
    };
    let folder = e2e::root().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("results.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures)?)?;
    println!("\n{:<28} {:>16} {:<12} aim", "figure", "value", "unit");
    for figure in &figures {
        println!("{:<28} {:>16} {:<12} {}", figure.name, written(figure.value), figure.unit, figure.aim);
    }
    println!("\nwritten to {}", file.display());
    Ok(())
}
