//! Payments created and read per second by clients in a process of their own, with all roles in another, beside pgbench
//! inserting the same row; and the memory of idle roles.

use crate::figure::{Figure, memory_mb, quantile};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, eventually};
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const CREATE: &str = "/api/v1/payments";
const CLIENTS: usize = 64;
const MANY_CLIENTS: usize = 256;
const BATCH: usize = 100;
const SECONDS: u64 = 10;
const WARM_UP_SECONDS: u64 = 2;
/// Payments that are read, half of which are paid: some for each client.
const READ: usize = 1_000;
pub const TIME: Duration = Duration::from_secs(SECONDS);

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("api: {CLIENTS} and {MANY_CLIENTS} clients for {SECONDS} s each way, then pgbench");
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_RATE_LIMIT".to_owned(), "0".to_owned());
    let mut figures = idle(&lab).await?;
    let (mut server, api) = lab.serve("up", "bench").await?;

    let single = Work { paths: vec![CREATE.to_owned()], body: Some(order().to_string()), units: 1 };
    let orders = json!({ "payments": vec![order(); BATCH] }).to_string();
    let batch = Work { paths: vec![format!("{CREATE}/batch")], body: Some(orders), units: BATCH };
    let read = payments_to_read(&lab, &api, &batch).await?;
    let mut clients = Outside { api: &api, created: u64::try_from(read.paths.len())? };
    clients.load(&single, CLIENTS, WARM_UP_SECONDS)?;
    let creates = clients.load(&single, CLIENTS, SECONDS)?;
    let many = clients.load(&single, MANY_CLIENTS, SECONDS)?;
    clients.load(&batch, CLIENTS, WARM_UP_SECONDS)?;
    let batches = clients.load(&batch, CLIENTS, SECONDS)?;
    let reads = clients.load(&read, CLIENTS, SECONDS)?;
    let created = clients.created;
    let (_, mut relaxed) = load(&api, TIME, Some(many.per_s / 2.0)).await?;
    let row = lab.database().await?.query_one("SELECT count(*) FROM payments", &[]).await?;
    // What was under way when the clients left is there as well.
    let kept = u64::try_from(row.get::<_, i64>(0))?;
    ensure!(kept >= created + u64::try_from(relaxed.len())?, "{created} payments were answered, and {kept} are kept");
    server.terminate()?;
    let inserts = pgbench(&lab)?;
    let rate = |name, units: f64| Figure::new(name, units, "payments/s", "-");
    let ms = |name, value: f64, aim: &str| Figure::new(name, value, "ms", aim);
    let ratio = |name, units: f64, aim: &str| Figure::new(name, units / inserts, "ratio", aim);
    let loaded = |[per_s, p50, p99]: [&'static str; 3], load: &Loaded| {
        [rate(per_s, load.per_s), ms(p50, load.p50, "-"), ms(p99, load.p99, "-")]
    };
    figures.extend(loaded(["api_creates_per_s", "api_create_ms_p50", "api_create_ms_p99"], &many));
    figures.extend(loaded(["api_creates_per_s_64", "api_create_ms_p50_64", "api_create_ms_p99_64"], &creates));
    figures.extend([
        ms("api_create_ms_p50_half", quantile(&mut relaxed, 0.5), "-"),
        ms("api_create_ms_p99_half", quantile(&mut relaxed, 0.99), "50"),
    ]);
    figures.extend(loaded(["api_batch_creates_per_s", "api_batch_ms_p50", "api_batch_ms_p99"], &batches));
    figures.extend(loaded(["api_reads_per_s", "api_read_ms_p50", "api_read_ms_p99"], &reads));
    figures.extend([
        Figure::new("pgbench_inserts_per_s", inserts, "rows/s", "the yardstick"),
        ratio("api_creates_to_pgbench", many.per_s, "1"),
        ratio("api_creates_to_pgbench_64", creates.per_s, "0.8"),
        ratio("api_batch_creates_to_pgbench", batches.per_s, "3"),
        ratio("api_reads_to_pgbench", reads.per_s, "2.5"),
    ]);
    Ok(figures)
}

/// Clients in a process of their own, which take less of the processors than ours.
struct Outside<'a> {
    api: &'a Api,
    /// Payments that were created, by the answers.
    created: u64,
}

struct Loaded {
    /// Units.
    per_s: f64,
    /// Milliseconds, whole ones.
    p50: f64,
    p99: f64,
}

impl Outside<'_> {
    /// Each client sends its next request when it has its answer.
    fn load(&mut self, work: &Work, clients: usize, seconds: u64) -> Result<Loaded> {
        let options = json!({
            "url": self.api.url, "connections": clients, "duration": seconds, "paths": work.paths, "body": work.body,
            "method": if work.body.is_some() { "POST" } else { "GET" },
            "headers": { "X-Api-Key": self.api.key, "Content-Type": "application/json" },
        });
        let mut command = Command::new(e2e::root().join("dev/load"));
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("dev/load")?;
        process.stdin.take().context("its input")?.write_all(options.to_string().as_bytes())?;
        let output = process.wait_with_output()?;
        let said = || String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dev/load: {} {}", output.status, said());
        let result: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("dev/load: {}", said()))?;
        let number = |value: &Value| value.as_f64().context("a number of autocannon's");
        for failed in ["non2xx", "errors", "timeouts"] {
            ensure!(result[failed] == 0, "{failed}: {result}");
        }
        let answered = u32::try_from(result["2xx"].as_u64().context("2xx")?)?;
        let units = answered * u32::try_from(work.units)?;
        if work.body.is_some() {
            self.created += u64::from(units);
        }
        let latency = |quantile: &str| number(&result["latency"][quantile]);
        Ok(Loaded { per_s: f64::from(units) / number(&result["duration"])?, p50: latency("p50")?, p99: latency("p99")? })
    }
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

/// A request that clients repeat.
struct Work {
    /// Each client has some of them.
    paths: Vec<String>,
    body: Option<String>,
    units: usize,
}

fn order() -> Value {
    json!({ "chain": "anvil", "amount": "1000000" })
}

/// Reads by id. Every second payment is paid.
async fn payments_to_read(lab: &Lab, api: &Api, batch: &Work) -> Result<Work> {
    let mut made = Vec::new();
    while made.len() < READ {
        let answer: Value = serde_json::from_str(&api.text(&batch.paths[0], batch.body.as_deref()).await?)?;
        made.extend(answer["data"].as_array().context("data")?.iter().map(|item| Payment(item["payment"].clone())));
    }
    for payment in made.iter().step_by(2) {
        lab.node.pay(payment.address()?, payment.amount()?).await?;
    }
    lab.node.mine(3).await?;
    for payment in made.iter().step_by(2) {
        api.until(payment.id(), "confirmed").await?;
    }
    let paths = made.iter().map(|payment| format!("/api/v1/payments/{}", payment.id())).collect();
    Ok(Work { paths, body: None, units: 1 })
}

/// Payments created per second, one per request, and the milliseconds of each. With a rate, clients send at fixed times, and a request that is late
/// because the one before was slow counts from its planned time.
pub async fn load(api: &Api, time: Duration, rate: Option<f64>) -> Result<(f64, Vec<f64>)> {
    let (started, sent, body) = (Instant::now(), AtomicU32::new(0), order().to_string());
    let clients = (0..CLIENTS).map(|_| async {
        let mut latencies = Vec::new();
        while started.elapsed() < time {
            let mut asked = Instant::now();
            if let Some(rate) = rate {
                asked = started + Duration::from_secs_f64(f64::from(sent.fetch_add(1, Ordering::Relaxed)) / rate);
                tokio::time::sleep_until(asked.into()).await;
            }
            let answer = api.text(CREATE, Some(&body)).await?;
            ensure!(answer.matches("\"status\":\"pending\"").count() == 1, "{answer}");
            latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
        }
        anyhow::Ok(latencies)
    });
    let latencies: Vec<f64> = futures::future::try_join_all(clients).await?.concat();
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    Ok((latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies))
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
