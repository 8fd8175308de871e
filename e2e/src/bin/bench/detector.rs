//! Logs matched per second on one core, from Kafka, beside consumers of the same topic that do less.

use crate::figure::{Figure, memory_mb};
use alloy::primitives::keccak256;
use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, free_port};
use prost::Message as _;
use runtime::Kafka;
use runtime::kafka::{Consumer, TransactionalProducer};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use topics::{Address, B256, Message as _, Topic, frame, wire};

const BLOCKS: u64 = 20_000;
const LOGS_A_BLOCK: u32 = 300;
const TRANSACTIONS_A_BLOCK: u32 = 150;
const TOTAL: u64 = BLOCKS * LOGS_A_BLOCK as u64;
/// The core to which the measured process is pinned; the broker has the rest.
const CORE: &str = "1";

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("detector: {TOTAL} logs in {BLOCKS} blocks, one core");
    let mut figures = Vec::new();
    let mut rates = Vec::new();
    let mut small_memory = 0.0;
    for (name, addresses) in
        [("detector_logs_per_s_1k", 1_000_u64), ("detector_logs_per_s_1m", 1_000_000), ("detector_logs_per_s_10m", 10_000_000)]
    {
        let lab = Lab::start(Plan::default()).await?;
        let kafka = lab.kafka().await?;
        eprintln!("  writing {addresses} intents and {TOTAL} logs");
        tokio::task::spawn_blocking(move || -> Result<(), runtime::Failure> {
            write_intents(&kafka, addresses)?;
            write_blocks(&kafka, addresses)
        })
        .await??;
        let run = detect(&lab, addresses).await?;
        figures.push(Figure::new(name, run.logs_per_s, "logs/s", "3000000"));
        rates.push(run.logs_per_s);
        if addresses == 1_000 {
            small_memory = run.memory;
            for (name, how) in [("bare_consumer_logs_per_s", "bare"), ("decode_only_logs_per_s", "decode")] {
                figures.push(Figure::new(name, consumed(&lab, how)?, "logs/s", "the yardstick"));
            }
        }
        if addresses == 10_000_000 {
            let bytes = (run.memory - small_memory) / 10_000_000.0;
            figures.push(Figure::new("detector_bytes_per_address", bytes, "bytes", "32"));
            figures.push(Figure::new("detector_ready_s_10m", run.ready_s, "s", "10"));
        }
    }
    if let (Some(small), Some(large)) = (rates.first(), rates.last()) {
        figures.push(Figure::new("detector_flatness", small / large, "ratio", "1.2"));
    }
    Ok(figures)
}

/// The i-th watched address.
fn watched(i: u64) -> Address {
    Address::from_word(keccak256(i.to_be_bytes()))
}

pub fn write_intents(kafka: &Kafka, addresses: u64) -> Result<(), runtime::Failure> {
    let producer = TransactionalProducer::open(kafka, "bench")?;
    for start in (0..addresses).step_by(100_000) {
        let transaction = producer.begin()?;
        for i in start..addresses.min(start + 100_000) {
            let intent = wire::PaymentIntent {
                address: watched(i).to_vec().into(),
                payment_id: uuid::Uuid::from_u128(u128::from(i)).to_string(),
                merchant_id: uuid::Uuid::nil().to_string(),
                chain_id: 31337,
                chain: "anvil".to_owned(),
                amount: vec![1, 2, 3].into(),
                created_at: 1_700_000_000,
                expires_at: 1_700_003_600,
                address_index: u32::try_from(i).unwrap_or_default(),
                ..Default::default()
            };
            transaction.send(Topic::Intents, &intent.key(), &kafka.encode(&intent))?;
        }
        transaction.commit()?;
    }
    // The detector's table relies on a record at the end of each partition, as the API's producer leaves it; a transaction
    // ends with a marker.
    let publisher = runtime::kafka::Publisher::open(kafka, Duration::from_secs(30)).map_err(runtime::Failure::Halt)?;
    let last: Vec<_> = (0..addresses.min(1000)).map(|i| (alloy::hex::encode_prefixed(watched(i)), Vec::new())).collect();
    for outcome in tokio::runtime::Handle::current().block_on(publisher.publish(Topic::Intents, &last)) {
        outcome.map_err(runtime::Failure::Halt)?;
    }
    Ok(())
}

/// Blocks whose logs are half transfers, of which one in ten thousand pays a watched address.
fn write_blocks(kafka: &Kafka, addresses: u64) -> Result<(), runtime::Failure> {
    let producer = TransactionalProducer::open(kafka, "bench")?;
    let mut parent = B256::ZERO;
    for start in (0..BLOCKS).step_by(200) {
        let transaction = producer.begin()?;
        for number in start..BLOCKS.min(start + 200) {
            let hash = keccak256(number.to_be_bytes());
            let block = block(number, hash, parent);
            let logs = logs(number, hash, addresses);
            transaction.send(Topic::Blocks, &block.key(), &kafka.encode(&block))?;
            transaction.send(Topic::Logs, &logs.key(), &kafka.encode(&logs))?;
            parent = hash;
        }
        transaction.commit()?;
    }
    Ok(())
}

fn block(number: u64, hash: B256, parent: B256) -> wire::BlockRecord {
    let stranger = |i: u32| keccak256([number.to_be_bytes().as_slice(), &i.to_be_bytes()].concat());
    let transactions = (0..TRANSACTIONS_A_BLOCK).map(|index| wire::block_record::Transaction {
        to: stranger(index).get(..20).unwrap_or_default().to_vec().into(),
        value: vec![1, 2, 3, 4, 5, 6, 7].into(),
        status: wire::block_record::Status::Success.into(),
        index,
        hash: stranger(index + 1_000_000).to_vec().into(),
        from: stranger(index + 2_000_000).get(..20).unwrap_or_default().to_vec().into(),
        r#type: 2,
        nonce: Some(1_000 + u64::from(index)),
        gas_used: Some(46_109),
        effective_gas_price: Some(vec![1, 2, 3, 4, 5].into()),
    });
    wire::BlockRecord {
        chain_id: 31337,
        sequence: number + 1,
        kind: wire::block_record::Kind::Added.into(),
        number,
        hash: hash.to_vec().into(),
        parent_hash: parent.to_vec().into(),
        timestamp: 1_700_000_000 + number,
        transactions: transactions.collect(),
        ..Default::default()
    }
}

fn logs(number: u64, hash: B256, addresses: u64) -> wire::LogsRecord {
    let word = |i: u32| keccak256([number.to_be_bytes().as_slice(), &i.to_be_bytes()].concat());
    let logs = (0..LOGS_A_BLOCK).map(|index| {
        let place = number * u64::from(LOGS_A_BLOCK) + u64::from(index);
        let to = if place.is_multiple_of(10_000) { watched(place % addresses) } else { Address::from_word(word(index)) };
        let topic = if index % 2 == 0 { detector::matching::TRANSFER_TOPIC } else { word(index + 5_000_000) };
        wire::logs_record::Log {
            address: word(index % 16).get(12..).unwrap_or_default().to_vec().into(),
            topics: vec![
                topic.to_vec().into(),
                Address::from_word(word(index + 1)).into_word().to_vec().into(),
                to.into_word().to_vec().into(),
            ],
            data: B256::with_last_byte(7).to_vec().into(),
            index,
            transaction_index: index / 2,
            transaction_hash: word(index / 2).to_vec().into(),
        }
    });
    wire::LogsRecord {
        chain_id: 31337,
        sequence: number + 1,
        kind: wire::logs_record::Kind::Added.into(),
        number,
        hash: hash.to_vec().into(),
        logs: logs.collect(),
        ..Default::default()
    }
}

struct Run {
    logs_per_s: f64,
    ready_s: f64,
    memory: f64,
}

/// Runs the role itself, pinned to a core, and reads its own counters.
async fn detect(lab: &Lab, addresses: u64) -> Result<Run> {
    let port = free_port()?;
    let started = Instant::now();
    let mut role = pinned(lab, &std::env::current_exe()?.with_file_name("ctrip"))
        .arg("detector")
        .env("METRICS_LISTEN", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .spawn()
        .context("taskset (util-linux)")?;
    let outcome = observe(&mut role, port, addresses, started).await;
    role.kill()?;
    role.wait()?;
    outcome
}

async fn observe(role: &mut Child, port: u16, addresses: u64, started: Instant) -> Result<Run> {
    let read = |metric: &'static str| async move {
        let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.ok()?.text().await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok())
    };
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let (addresses, total) = (addresses as f64, TOTAL as f64);
    let (mut ready, mut first) = (None, None);
    loop {
        ensure!(role.try_wait()?.is_none(), "the detector has ended");
        ensure!(started.elapsed() < Duration::from_secs(300), "the detector did not finish in five minutes");
        if ready.is_none() && read("watched_addresses").await.is_some_and(|n| n >= addresses) {
            ready = Some((started.elapsed().as_secs_f64(), memory_mb(role.id(), "VmRSS")? * 1e6));
        }
        let logs = read("matched_logs_total").await.unwrap_or_default();
        if first.is_none() && logs > 0.0 {
            first = Some((Instant::now(), logs));
        }
        if logs >= total {
            let (since, before) = first.context("all logs at once: more are needed to measure")?;
            let (ready_s, memory) = ready.context("matched before ready")?;
            return Ok(Run { logs_per_s: (total - before) / since.elapsed().as_secs_f64(), ready_s, memory });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pinned(lab: &Lab, program: &std::path::Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", CORE]).arg(program).envs(&lab.env).stdin(Stdio::null());
    command
}

/// Runs this program again, pinned, as a consumer that only reads, or reads and decodes.
fn consumed(lab: &Lab, how: &str) -> Result<f64> {
    let mut child = pinned(lab, &std::env::current_exe()?)
        .args(["consume", how, &TOTAL.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("taskset")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    child.wait()?;
    line.trim().parse().with_context(|| format!("a rate, got {line:?}"))
}

/// `bench consume bare|decode TOTAL`: prints logs per second.
pub async fn consume(how: &str, total: u64) -> Result<()> {
    use clap::Parser as _;
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        settings: runtime::Settings,
    }
    let kafka = Kafka::connect(&Arguments::parse_from(["bench"]).settings).await?;
    let decode = how == "decode";
    let group = if decode { "bench-decode" } else { "bench-bare" };
    tokio::task::spawn_blocking(move || -> Result<(), runtime::Failure> {
        let consumer = Consumer::open(&kafka, group, &[Topic::Logs], None)?;
        let (mut logs, mut first) = (0, None);
        while logs < total {
            for record in consumer.poll(1000, usize::MAX, Duration::from_secs(1))?.records {
                first.get_or_insert_with(Instant::now);
                if decode {
                    let payload = frame::payload(record.payload()).map_err(runtime::Failure::halt)?;
                    let decoded = wire::LogsRecord::decode(payload).map_err(runtime::Failure::halt)?;
                    logs += std::hint::black_box(decoded).logs.len() as u64;
                } else {
                    std::hint::black_box(record.payload());
                    logs += u64::from(LOGS_A_BLOCK);
                }
            }
        }
        let time = first.map_or(f64::NAN, |first| first.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "millions")]
        let rate = total as f64 / time;
        println!("{rate}");
        Ok(())
    })
    .await?
    .map_err(Into::into)
}
