//! Where a stage stands that keeps its offsets in Postgres: one row for each partition of a topic, by the topic's name with the prefix.

use anyhow::{Result, ensure};
use deadpool_postgres::Pool;
use e2e::{Lab, Plan};
use runtime::kafka::{Publisher, Record};
use runtime::{FoldStage, Kafka, db};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const FOLDING: FoldStage =
    FoldStage { stage: "lab", topic: Topic::Events, max_records: 100, max_bytes: 1 << 20, on_return: None };

/// Publishes so many records to one partition.
async fn publish(kafka: &Kafka, count: usize) -> Result<()> {
    let records = vec![("key".to_owned(), b"value".to_vec()); count];
    Publisher::open(kafka, Duration::from_secs(10))?.publish(FOLDING.topic, &records).await.into_iter().collect()
}

/// Runs the stage until it stands at an offset. Returns those of the records that it has applied.
async fn fold(kafka: &Kafka, pool: &Pool, until: i64) -> Result<Vec<i64>> {
    let (kafka, pool, handle, stop) = (kafka.clone(), pool.clone(), Handle::current(), CancellationToken::new());
    let ended = stop.clone().drop_guard();
    let stage = tokio::task::spawn_blocking(move || {
        let mut applied = Vec::new();
        let outcome = FOLDING.follow(&kafka, &pool, &handle, &stop, |spans| {
            for (span, records) in spans {
                handle.block_on(async { FOLDING.claim(&pool.get().await?, span).await })?;
                applied.extend(records.iter().copied().map(Record::offset));
                if span.next >= until {
                    stop.cancel();
                }
            }
            Ok(())
        });
        outcome.map(|()| applied)
    });
    let outcome = tokio::time::timeout(Duration::from_secs(30), stage).await;
    drop(ended);
    outcome??.map_err(|failure| anyhow::anyhow!("{failure}"))
}

/// As after a power cut that took the last record, in whose place another one was written before the stage was back. No clock tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_cut_and_written_again_is_known_by_its_last_record() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, pool) = (lab.kafka().await?, db::pool(&lab.env["DATABASE_URL"], 2)?);
    publish(&kafka, 3).await?;
    ensure!(fold(&kafka, &pool, 3).await? == [0, 1, 2]);
    let other = "UPDATE stage_offsets SET last_record = set_byte(last_record, 11, 255 - get_byte(last_record, 11))";
    ensure!(pool.get().await?.execute(other, &[]).await? == 1);
    ensure!(fold(&kafka, &pool, 3).await? == [0, 1, 2], "what may not be applied is read again");
    publish(&kafka, 1).await?;
    ensure!(fold(&kafka, &pool, 4).await? == [3], "and nothing else is");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_returns_to_a_topic_prefix_goes_on_where_it_was() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let (first, pool) = (lab.kafka().await?, db::pool(&lab.env["DATABASE_URL"], 2)?);
    publish(&first, 3).await?;
    ensure!(fold(&first, &pool, 3).await? == [0, 1, 2]);
    let prefix = format!("{}other.", lab.env["TOPIC_PREFIX"]);
    lab.env.insert("TOPIC_PREFIX".to_owned(), prefix);
    lab.ctrip(&["topics", "apply"])?;
    let other = lab.kafka().await?;
    publish(&other, 2).await?;
    ensure!(fold(&other, &pool, 2).await? == [0, 1], "a topic of its own");
    publish(&first, 1).await?;
    ensure!(fold(&first, &pool, 4).await? == [3], "nothing is left out, and nothing applied twice");
    Ok(())
}
