use crate::fold::{self, Batch};
use crate::relay;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::Pool;
use runtime::kafka::{Consumer, Record};
use runtime::{Failure, Kafka, Settings, db, metrics, stage};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topics::{Matches, Topic, frame, wire};

const STAGE: &str = "confirmer";
/// Blocks a Postgres transaction at most.
const MOST: usize = 256;
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// The role: `chain.matches` into payments, and their events to Kafka.
///
/// # Errors
/// When the configuration is wrong, or a stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let kafka = Kafka::connect(&settings).await?;
    let pool = db::pool_of_ranges(&settings.database_url, 4)?;
    let (call, called) = channel();
    // A stage's body runs again and again, the receiver lives once.
    let called = Mutex::new(called);

    let mut stages = JoinSet::new();
    let (folding_kafka, folding_pool, handle) = (kafka.clone(), pool.clone(), Handle::current());
    stages.spawn(stage::run(STAGE, stop.clone(), move |stop| {
        follow(&folding_kafka, &folding_pool, &chains, &handle, &call, stop)
    }));
    let handle = Handle::current();
    stages.spawn(stage::run("outbox", stop.clone(), move |stop| {
        let called = called.lock().map_err(|_| Failure::Halt(anyhow!("the relay panicked before")))?;
        relay::run(&kafka, &pool, &handle, &called, stop)
    }));
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            anyhow::bail!("a stage of the confirmer ended without being asked to");
        }
    }
    Ok(())
}

fn follow(
    kafka: &Kafka,
    pool: &Pool,
    chains: &Chains,
    handle: &Handle,
    call: &Sender<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (position_pool, position_handle) = (pool.clone(), handle.clone());
    let position = move |_: Topic, partition: i32| position_handle.block_on(fold::position(&position_pool, partition));
    let consumer = Consumer::open(kafka, STAGE, &[Topic::Matches], Some(Box::new(position)))?;
    let mut next: HashMap<i32, i64> = HashMap::new();
    let mut assignment = 0;
    while !stop.is_cancelled() {
        let batch = consumer.poll(MOST, MOST_BYTES, Duration::from_millis(100))?;
        if batch.assignment != assignment {
            assignment = batch.assignment;
            next.clear();
        }
        let started = Instant::now();
        let mut partitions: BTreeMap<i32, Vec<&Record<'_>>> = BTreeMap::new();
        for record in &batch.records {
            partitions.entry(record.partition()).or_default().push(record);
        }
        for (partition, records) in partitions {
            let from = match next.get(&partition) {
                Some(from) => *from,
                // First records since the assignment: they begin where the database stands.
                None => handle.block_on(fold::position(pool, partition))?.unwrap_or(0),
            };
            let ours = decode(partition, from, &records)?;
            if handle.block_on(fold::apply(pool, chains, &ours))? > 0 {
                // The relay is gone only when the role ends.
                let _ = call.send(());
            }
            next.insert(partition, ours.next);
            report(&records, started);
        }
    }
    Ok(())
}

fn decode(partition: i32, from: i64, records: &[&Record<'_>]) -> Result<Batch, Failure> {
    let mut matches = Vec::with_capacity(records.len());
    let mut next = from;
    for record in records {
        let place = || format!("{} partition {partition} offset {}", Topic::Matches, record.offset());
        if record.offset() < next {
            return Err(Failure::Retry(anyhow!("{}: read again, the database stands at {next}", place())));
        }
        // A record left out would break the chain's order, so what can't be read stops the stage.
        let decoded: wire::MatchesRecord = frame::decode(record.payload()).map_err(|e| Failure::halt(e).context(place()))?;
        matches.push(Matches::try_from(&decoded).map_err(|e| Failure::halt(e).context(place()))?);
        next = record.offset() + 1;
    }
    Ok(Batch { partition, from, next, records: matches })
}

fn report(records: &[&Record<'_>], started: Instant) {
    let stage = [("stage", STAGE)];
    metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(records.len()).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
    if let Some(written) = records.last().and_then(|record| record.timestamp_ms()) {
        metrics::stage_lag(STAGE, written);
    }
}
