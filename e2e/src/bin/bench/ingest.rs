//! Blocks per second from a node with instant responses to Kafka, beside a client that only fetches the same bytes.

use crate::chainserver::Server;
use crate::figure::{Figure, memory_mb};
use anyhow::{Context as _, Result, ensure};
use base::metrics;
use e2e::prepared::{CHAIN_ID, FIRST, LOGS};
use e2e::{Lab, Plan, free_port};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

const BLOCKS: u64 = 6_000;
/// Requests in flight, as in ingest.
const PARALLEL: usize = 8;
const DEADLINE: Duration = Duration::from_secs(600);
/// The unit of CPU time in /proc, on every Linux.
const TICKS_PER_S: f64 = 100.0;

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("ingest: {BLOCKS} blocks of 150 transactions and {LOGS} logs");
    let server = Server::start(BLOCKS).await?;
    let bare = fetch(&server).await?;
    let lab = Lab::start(Plan::default()).await?;
    let run = ingest(&lab, &server).await?;
    eprintln!("  CPU-seconds per second: ingest {:.2}, node {:.2}, broker {:.2}", run.busy(0), run.busy(1), run.busy(2));
    let aim = (bare.rate() * 0.8).min(500.0);
    Ok(vec![
        Figure::new("ingest_blocks_per_s", run.rate(), "blocks/s", format!("{aim:.0} (0.8 of bare, at most 500)")),
        Figure::new("ingest_cpu_s_per_10k_blocks", run.cpu_per_10k(0), "CPU-s", "49 (980 / 20)"),
        Figure::new("ingest_peak_rss_mb", run.peak_mb, "MB", "200"),
        Figure::new("ingest_broker_cpu_s_per_10k", run.cpu_per_10k(2), "CPU-s", "-"),
        Figure::new("bare_fetch_blocks_per_s", bare.rate(), "blocks/s", "the yardstick"),
        Figure::new("bare_fetch_cpu_s_per_10k", bare.cpu_per_10k(0), "CPU-s", "-"),
        Figure::new("node_cpu_s_per_10k_blocks", bare.cpu_per_10k(1), "CPU-s", "-"),
        Figure::new("ingest_to_bare_fetch", run.rate() / bare.rate(), "ratio", format!("{:.2}", aim / bare.rate())),
    ])
}

/// Blocks, time and CPU time of some processes over a span.
struct Span {
    blocks: f64,
    seconds: f64,
    cpu: Vec<f64>,
    peak_mb: f64,
}

impl Span {
    fn rate(&self) -> f64 {
        self.blocks / self.seconds
    }

    fn busy(&self, process: usize) -> f64 {
        self.cpu.get(process).map_or(f64::NAN, |cpu| cpu / self.seconds)
    }

    fn cpu_per_10k(&self, process: usize) -> f64 {
        self.busy(process) / self.rate() * 10_000.0
    }
}

/// A moment, and the CPU time of processes until then.
struct Mark {
    at: Instant,
    blocks: f64,
    cpu: Vec<f64>,
}

impl Mark {
    fn new(blocks: f64, processes: &[u32]) -> Result<Self> {
        let cpu = processes.iter().map(|process| cpu_seconds(*process)).collect::<Result<_>>()?;
        Ok(Self { at: Instant::now(), blocks, cpu })
    }

    fn until(&self, end: &Self) -> Span {
        Span {
            blocks: end.blocks - self.blocks,
            seconds: (end.at - self.at).as_secs_f64(),
            cpu: end.cpu.iter().zip(&self.cpu).map(|(end, start)| end - start).collect(),
            peak_mb: f64::NAN,
        }
    }
}

/// Ingest's request for each block, with as many in flight; the responses are discarded as they arrive.
async fn fetch(server: &Server) -> Result<Span> {
    let http = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let processes = [std::process::id(), server.id];
    let start = Mark::new(0.0, &processes)?;
    let bytes: usize = futures::stream::iter(FIRST..FIRST + BLOCKS)
        // One task per request, as in ingest, so that both cores fetch.
        .map(|number| tokio::spawn(fetch_block(http.clone(), server.url.clone(), number)))
        .buffered(PARALLEL)
        .map(|size| size?)
        .try_fold(0, async |sum, size| Ok(sum + size))
        .await?;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let end = Mark::new(BLOCKS as f64, &processes)?;
    let span = start.until(&end);
    #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
    let each = bytes as f64 / span.blocks / 1000.0;
    eprintln!(
        "  bare fetch: {each:.0} kB per block; CPU-seconds per second: client {:.2}, node {:.2}",
        span.busy(0),
        span.busy(1)
    );
    Ok(span)
}

async fn fetch_block(http: reqwest::Client, url: String, number: u64) -> Result<usize> {
    let number = format!("{number:#x}");
    let request = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": [number, true] },
        { "jsonrpc": "2.0", "id": 2, "method": "eth_getBlockReceipts", "params": [number] },
    ]);
    let mut answer = http.post(url).json(&request).send().await?.error_for_status()?;
    let mut size = 0;
    while let Some(chunk) = answer.chunk().await? {
        size += chunk.len();
    }
    ensure!(size > 300_000, "block {number}: only {size} bytes");
    Ok(size)
}

/// Runs the role itself until it has published the chain, and reads its own counters.
async fn ingest(lab: &Lab, server: &Server) -> Result<Span> {
    let chains_file = lab.env.get("CHAINS_FILE").context("CHAINS_FILE")?;
    let url = &server.url;
    let chain = format!("- name: prepared\n  chain_id: {CHAIN_ID}\n  rpc_url: {url}\n  start_block: {FIRST}\n  tokens: []\n");
    std::fs::write(chains_file, chain)?;
    let log = std::fs::File::create(lab.dir.join("ingest.log"))?;
    let port = free_port()?;
    let mut role = tokio::process::Command::new(std::env::current_exe()?.with_file_name("ctrip"))
        .arg("ingest")
        .envs(&lab.env)
        .env("METRICS_LISTEN", format!("127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("ctrip ingest")?;
    let id = role.id().context("ctrip ingest has ended")?;
    let processes = [id, server.id, broker()?];
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let (all, all_logs) = (BLOCKS as f64, (BLOCKS * LOGS) as f64);
    let started = Instant::now();
    let mut first = None;
    loop {
        let folder = lab.dir.display();
        ensure!(role.try_wait()?.is_none(), "ctrip ingest has ended; its log is in {folder}");
        ensure!(started.elapsed() < DEADLINE, "ingest did not finish in {DEADLINE:?}; its log is in {folder}");
        let counters = Counters::read(port).await.unwrap_or_default();
        if counters.blocks > 0.0 {
            first.get_or_insert(Mark::new(counters.blocks, &processes)?);
        }
        if counters.blocks >= all {
            let end = Mark::new(counters.blocks, &processes)?;
            let first = first.context("all blocks at once: more are needed to measure")?;
            // A fast run that is wrong does not count.
            let right = Counters { blocks: all, logs: all_logs, unproven: 0.0 };
            ensure!(counters == right, "published {counters:?}; expected {right:?}");
            return Ok(Span { peak_mb: memory_mb(id, "VmHWM")?, ..first.until(&end) });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ingest's own counters.
#[derive(Debug, Default, PartialEq)]
struct Counters {
    blocks: f64,
    logs: f64,
    /// Blocks whose proof failed, or was not by root.
    unproven: f64,
}

impl Counters {
    async fn read(port: u16) -> Option<Self> {
        let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.ok()?.text().await.ok()?;
        let sum = |metric: &str| {
            let lines = text.lines().filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{')));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        Some(Self {
            blocks: sum(metrics::CHAIN_BLOCKS.name),
            logs: sum(metrics::CHAIN_LOGS.name),
            unproven: sum(metrics::CHAIN_UNPROVEN.name) + sum(metrics::CHAIN_UNCHECKED.name),
        })
    }
}

/// The process id of the stack's Kafka.
fn broker() -> Result<u32> {
    let data = std::env::var_os("CTRIP_STACK_DATA").map_or_else(|| e2e::root().join("dev/.data"), PathBuf::from);
    let file = data.join("kafka.pid");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    text.trim().parse().with_context(|| format!("{}: expected a process id, got {text:?}", file.display()))
}

/// CPU time of a process until now, in user and kernel mode.
fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).with_context(|| format!("process {process}"))?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("a name in /proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_S)
}
