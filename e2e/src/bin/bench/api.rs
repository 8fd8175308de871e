//! Payments created and read per second by 64 clients, beside pgbench inserting the same row, and the memory of idle roles.

use crate::figure::{Figure, memory_mb, quantile};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, eventually};
use reqwest::Method;
use serde_json::json;
use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;
const BATCH: usize = 100;
const SECONDS: u64 = 10;
pub const TIME: Duration = Duration::from_secs(SECONDS);

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("api: {CLIENTS} clients for {SECONDS} s each way, then pgbench");
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_RATE_LIMIT".to_owned(), "0".to_owned());
    let mut figures = idle(&lab).await?;
    let (mut server, api) = lab.serve("api", "bench").await?;

    let order = json!({ "chain": "anvil", "amount": "1000000" });
    let single = Work {
        paths: vec!["/api/v1/payments".to_owned()],
        body: Some(order.to_string()),
        sign: "\"status\":\"pending\"",
        units: 1,
    };
    let orders = json!({ "payments": vec![order; BATCH] }).to_string();
    let batch =
        Work { paths: vec!["/api/v1/payments/batch".to_owned()], body: Some(orders), sign: "\"status\":201", units: BATCH };
    load(&api, &single, Duration::from_secs(2), None).await?;
    let (rate, mut latencies) = load(&api, &single, TIME, None).await?;
    let (_, mut relaxed) = load(&api, &single, TIME, Some(rate / 2.0)).await?;
    load(&api, &batch, Duration::from_secs(2), None).await?;
    let (batched, mut batch_latencies) = load(&api, &batch, TIME, None).await?;
    let (reads, mut read_latencies) = load(&api, &some_payments(&api).await?, TIME, None).await?;
    server.terminate()?;
    let inserts = pgbench(&lab)?;
    figures.extend([
        Figure::new("api_creates_per_s", rate, "payments/s", format!("{:.0} (0.5 of pgbench)", inserts * 0.5)),
        Figure::new("api_create_ms_p50", quantile(&mut latencies, 0.5), "ms", "-"),
        Figure::new("api_create_ms_p99", quantile(&mut latencies, 0.99), "ms", "-"),
        Figure::new("api_create_ms_p50_half", quantile(&mut relaxed, 0.5), "ms", "-"),
        Figure::new("api_create_ms_p99_half", quantile(&mut relaxed, 0.99), "ms", "50"),
        Figure::new("api_batch_creates_per_s", batched, "payments/s", format!("{:.0} (2 of pgbench)", inserts * 2.0)),
        Figure::new("api_batch_ms_p50", quantile(&mut batch_latencies, 0.5), "ms", "-"),
        Figure::new("api_batch_ms_p99", quantile(&mut batch_latencies, 0.99), "ms", "-"),
        Figure::new("api_reads_per_s", reads, "payments/s", "-"),
        Figure::new("api_read_ms_p50", quantile(&mut read_latencies, 0.5), "ms", "-"),
        Figure::new("api_read_ms_p99", quantile(&mut read_latencies, 0.99), "ms", "-"),
        Figure::new("pgbench_inserts_per_s", inserts, "rows/s", "the yardstick"),
        Figure::new("api_creates_to_pgbench", rate / inserts, "ratio", "0.5"),
        Figure::new("api_batch_creates_to_pgbench", batched / inserts, "ratio", "2"),
    ]);
    Ok(figures)
}

/// Resident memory of each idle role, in MB of 10^6 bytes.
async fn idle(lab: &Lab) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (role, name) in
        [("api", "rss_mb_api"), ("ingest", "rss_mb_ingest"), ("detector", "rss_mb_detector"), ("confirmer", "rss_mb_confirmer")]
    {
        let mut process = lab.spawn(role)?;
        let last = Cell::new(0.0);
        // It is idle when it serves metrics and its memory no longer grows.
        let settled = eventually("a role's memory to settle", || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = memory_mb(process.id(), "VmRSS")?;
            let grown = now - last.replace(now);
            Ok((process.metric("database_pool_connections", &[]).await.is_ok() && grown.abs() < 0.1).then_some(now))
        });
        let settled = settled.await;
        process.check()?;
        figures.push(Figure::new(name, settled?, "MB", "-"));
        process.terminate()?;
    }
    Ok(figures)
}

/// A request that clients repeat. An answer is right if it contains `sign` once per unit.
pub struct Work {
    /// Taken in turn.
    pub paths: Vec<String>,
    pub body: Option<String>,
    pub sign: &'static str,
    pub units: usize,
}

/// Reads by id, of payments that are not paid yet.
async fn some_payments(api: &Api) -> Result<Work> {
    let (_, page) = api.request(Method::GET, "/api/v1/payments?limit=200", None, &[]).await?;
    let ids = page["data"].as_array().context("data")?.iter().filter_map(|payment| payment["id"].as_str());
    Ok(Work {
        paths: ids.map(|id| format!("/api/v1/payments/{id}")).collect(),
        body: None,
        sign: "\"status\":\"pending\"",
        units: 1,
    })
}

/// Units per second, and the milliseconds of each request. With a rate, clients send at fixed times, and a request that is late
/// because the one before was slow counts from its planned time.
pub async fn load(api: &Api, work: &Work, time: Duration, rate: Option<f64>) -> Result<(f64, Vec<f64>)> {
    let (started, sent) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let clients = (0..CLIENTS).map(|_| async {
        let mut latencies = Vec::new();
        while started.elapsed() < time {
            let mut asked = Instant::now();
            let place = sent.fetch_add(1, Ordering::Relaxed);
            if let Some(rate) = rate {
                asked = started + Duration::from_secs_f64(f64::from(u32::try_from(place)?) / rate);
                tokio::time::sleep_until(asked.into()).await;
            }
            let path = &work.paths[place % work.paths.len()];
            let answer = api.text(path, work.body.as_deref()).await?;
            ensure!(answer.matches(work.sign).count() == work.units, "{path}: {answer}");
            latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
        }
        anyhow::Ok(latencies)
    });
    let latencies: Vec<f64> = futures::future::try_join_all(clients).await?.concat();
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    Ok(((latencies.len() * work.units) as f64 / started.elapsed().as_secs_f64(), latencies))
}

/// Inserts of the same row per second, one per transaction, by as many clients.
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
