//! Payments created a second by 64 clients, beside pgbench inserting the same row.

use crate::{Figure, quantile};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan};
use std::process::Command;
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;
const SECONDS: u64 = 10;

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("api: {CLIENTS} clients for {SECONDS} s, then pgbench");
    let lab = Lab::start(Plan::default()).await?;
    let mut ctrip = lab.spawn("api")?;
    let api = lab.merchant("bench")?;
    api.ready(&mut ctrip).await?;
    load(&api, Duration::from_secs(2)).await?;
    let (rate, mut latencies) = load(&api, Duration::from_secs(SECONDS)).await?;
    ctrip.terminate()?;
    let inserts = pgbench(&lab)?;
    Ok(vec![
        Figure::new("api_creates_per_s", rate, "payments/s", format!("{:.0} (0.5 of pgbench)", inserts * 0.5)),
        Figure::new("api_create_ms_p99", quantile(&mut latencies, 0.99), "ms", "-"),
        Figure::new("pgbench_inserts_per_s", inserts, "rows/s", "the yardstick"),
        Figure::new("api_creates_to_pgbench", rate / inserts, "ratio", "0.5"),
    ])
}

async fn load(api: &Api, time: Duration) -> Result<(f64, Vec<f64>)> {
    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while started.elapsed() < time {
                    let asked = Instant::now();
                    api.coin(1_000_000).await?;
                    latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await??);
    }
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    Ok((latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies))
}

/// The same row, one a transaction, as fast as Postgres takes it from as many clients.
fn pgbench(lab: &Lab) -> Result<f64> {
    let script = lab.dir.join("insert.sql");
    std::fs::write(
        &script,
        "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
             confirmations_required, sequence, created_at, expires_at, updated_at)
         SELECT gen_random_uuid(), (SELECT id FROM merchants LIMIT 1), 31337, 'anvil', 18,
             substring(decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex') FOR 20),
             (SELECT fingerprint FROM xpubs LIMIT 1), 1000000000 + nextval('bench_index'), 1000000, 'pending', 3, 1, 1, 2, 1;\n",
    )?;
    let url = lab.env.get("DATABASE_URL").context("DATABASE_URL")?;
    let tool = |name: &str| Command::new(format!("{}/{name}", lab.stack.get("PG_BIN").unwrap_or_default()));
    let made = tool("psql").args([url.as_str(), "-qc", "CREATE SEQUENCE bench_index"]).status().context("psql")?;
    ensure!(made.success(), "psql: {made}");
    let output = tool("pgbench")
        .args(["-n", "-c", &CLIENTS.to_string(), "-j", "2", "-T", &SECONDS.to_string(), "-M", "prepared", "-f"])
        .arg(&script)
        .arg(url)
        .output()
        .context("pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
    tps.and_then(|tps| tps.parse().ok()).with_context(|| format!("pgbench: {text} {}", String::from_utf8_lossy(&output.stderr)))
}
