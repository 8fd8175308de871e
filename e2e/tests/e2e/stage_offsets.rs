//! Where a stage stands that keeps its offsets in Postgres: one row for each partition of a topic, by the topic's name with the prefix.

use anyhow::{Result, ensure};
use deadpool_postgres::Pool;
use e2e::{Lab, Plan};
use payments::store;
use runtime::kafka::{Publisher, Record};
use runtime::{FoldStage, Kafka, db};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const FOLDING: FoldStage =
    FoldStage { stage: "lab", topic: Topic::Events, max_records: 100, max_bytes: 1 << 20, on_return: Some(store::ON_RETURN) };

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
    outcome??.map_err(Into::into)
}

/// The chains of which it is not known from where on their records are read.
async fn read_from_somewhere(pool: &Pool) -> Result<Vec<i64>> {
    let sql = "SELECT chain_id FROM chain_heads WHERE reads_again IS NULL ORDER BY chain_id";
    Ok(pool.get().await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// As after a power cut that took the last record, in whose place another one was written before the stage was back. No clock tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_cut_and_written_again_is_known_by_its_last_record() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, pool) = (lab.kafka().await?, db::pool(&lab.env["DATABASE_URL"], 2)?);
    publish(&kafka, 3).await?;
    ensure!(fold(&kafka, &pool, 3).await? == [0, 1, 2]);
    let heads =
        "INSERT INTO chain_heads (chain_id, sequence, first_number, number, block_timestamp, read_sequence, read_from, read_to,
                     reads_again)
                 SELECT chain_id, 1, 1, 1, 1, 1, 1, 1, false FROM generate_series(1, 100) AS chain_id";
    pool.get().await?.execute(heads, &[]).await?;
    let other = "UPDATE stage_offsets SET last_record = set_byte(last_record, 11, 255 - get_byte(last_record, 11))";
    ensure!(pool.get().await?.execute(other, &[]).await? == 1);
    ensure!(fold(&kafka, &pool, 3).await? == [0, 1, 2], "what may not be applied is read again");
    let partition = |key: &str| FOLDING.topic.partition_of(key);
    let of_partition: Vec<i64> = (1..=100).filter(|chain: &i64| partition(&chain.to_string()) == partition("key")).collect();
    ensure!((1..100).contains(&of_partition.len()), "chains of that partition, and others");
    ensure!(read_from_somewhere(&pool).await? == of_partition, "chains of other partitions go on as before");
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
