//! Partitions without a leader, on a cluster that is made up: whoever needs all of a topic goes on with the others where it can.

use anyhow::{Context as _, Result, ensure};
use base::locked;
use e2e::{Lab, Plan, eventually};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use recovery::Recovery;
use runtime::kafka::{Publisher, Record};
use runtime::{FoldStage, Kafka, db, stage};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const WITHOUT: i32 = 3;
const FOLDING: FoldStage =
    FoldStage { stage: "leaders", topic: Topic::Events, max_records: 100, max_bytes: 1 << 20, on_return: None };
const PATIENCE: Duration = Duration::from_secs(60);

/// Partition and offset of each record, as they came.
type Applied = Mutex<Vec<(i32, i64)>>;

fn cluster(topics: &[Topic]) -> Result<(MockCluster<'static, DefaultProducerContext>, Kafka)> {
    let cluster = MockCluster::new(1)?;
    topics.iter().try_for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1))?;
    let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
    Ok((cluster, kafka))
}

/// A record for each partition.
async fn publish(kafka: &Kafka, topic: Topic) -> Result<()> {
    let keys = (0..200).map(|key: i32| key.to_string());
    let mut records: Vec<Option<(String, Vec<u8>)>> = vec![None; usize::try_from(topic.partitions())?];
    for key in keys {
        let partition = usize::try_from(topic.partition_of(&key))?;
        records[partition].get_or_insert((key, b"value".to_vec()));
    }
    let records: Vec<_> = records.into_iter().collect::<Option<_>>().context("keys for all partitions")?;
    Publisher::open(kafka, Duration::from_secs(10))?.publish(topic, &records).await.into_iter().collect()
}

/// Waits until so many records are applied; returns their partitions and offsets.
async fn all_applied(applied: &Applied, count: usize) -> Result<Vec<(i32, i64)>> {
    eventually("the records are applied", async || {
        let mut applied = locked(applied).clone();
        applied.sort_unstable();
        Ok((applied.len() >= count).then_some(applied))
    })
    .await
}

/// Waits until the comparison says for which partition of a topic it waits.
async fn named(topic: Topic) -> Result<String> {
    let place = format!("{topic}/{WITHOUT}");
    eventually(
        "the partition is named",
        async || Ok(stage::cause_of("recovery: topics").filter(|cause| cause.contains(&place))),
    )
    .await
}

/// What a stage has applied must be there still when it begins; of a partition without a leader that can't be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_begins_though_a_partition_has_no_leader_and_reads_that_one_once_it_has() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let pool = db::pool(&lab.env["DATABASE_URL"], 2)?;
    let (cluster, kafka) = cluster(&[FOLDING.topic])?;
    let applied: Arc<Applied> = Arc::default();
    let run = |stop: CancellationToken| {
        let (kafka, pool, handle, applied) = (kafka.clone(), pool.clone(), Handle::current(), Arc::clone(&applied));
        tokio::spawn(stage::run(FOLDING.stage, stop, move |stop| {
            FOLDING.follow(&kafka, &pool, &handle, stop, |spans| {
                for (span, records) in spans {
                    handle.block_on(async { FOLDING.claim(&pool.get().await?, span).await })?;
                    let places = records.iter().map(|record: &&Record<'_>| (record.partition(), record.offset()));
                    locked(&applied).extend(places);
                }
                Ok(())
            })
        }))
    };
    // First nothing is applied of it yet, and then something.
    for round in 1..=2 {
        publish(&kafka, FOLDING.topic).await?;
        cluster.partition_leader(FOLDING.topic.name(), WITHOUT, None)?;
        let stop = CancellationToken::new();
        let stage = run(stop.clone());
        let others = all_applied(&applied, 8 * round - 1).await?;
        let offset = i64::try_from(round)? - 1;
        ensure!(!others.contains(&(WITHOUT, offset)), "{others:?}");
        let told = eventually("it is named", async || Ok(stage::cause_of("leaders: partition 3"))).await?;
        ensure!(told.contains("payment.events/3") && told.contains("those of other partitions go on"), "{told}");
        cluster.partition_leader(FOLDING.topic.name(), WITHOUT, Some(1))?;
        let all = all_applied(&applied, 8 * round).await?;
        let each_once: Vec<_> = (0..8).flat_map(|partition| (0..=offset).map(move |offset| (partition, offset))).collect();
        ensure!(all == each_once, "{all:?}");
        ensure!(stage::cause_of("leaders: partition 3").is_none());
        stop.cancel();
        stage.await??;
    }
    Ok(())
}

/// Before anything is written all has to be compared. Later, what is not compared is what does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_waits_for_a_partition_names_it_and_ends_at_a_stop() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (cluster, kafka) = cluster(&[Topic::Events, Topic::Intents])?;
    let recovery = || Recovery::new(kafka.clone(), &lab.settings()?);
    for topic in [Topic::Events, Topic::Intents] {
        cluster.partition_leader(topic.name(), WITHOUT, None)?;
        let (waits, stop) = (recovery()?, CancellationToken::new());
        let running = tokio::spawn(waits.clone().run(stop.clone()));
        named(topic).await?;
        ensure!(tokio::time::timeout(Duration::from_millis(100), waits.gate().opened()).await.is_err(), "nothing is written");
        let began = Instant::now();
        stop.cancel();
        running.await??;
        ensure!(began.elapsed() < Duration::from_secs(3), "it ended after {:?}", began.elapsed());
        cluster.partition_leader(topic.name(), WITHOUT, Some(1))?;
    }

    let (follows, stop) = (recovery()?, CancellationToken::new());
    let running = tokio::spawn(follows.clone().run(stop.clone()));
    tokio::time::timeout(PATIENCE, follows.gate().opened()).await.context("all answer")?;
    cluster.partition_leader(Topic::Events.name(), WITHOUT, None)?;
    named(Topic::Events).await?;
    let compares = follows.clone();
    let left_out = tokio::task::spawn_blocking(move || compares.catch_up(&Handle::current())).await??;
    ensure!(left_out.keys().eq([&(Topic::Events, WITHOUT)]), "{left_out:?}");
    cluster.partition_leader(Topic::Events.name(), WITHOUT, Some(1))?;
    eventually("it is named no more", async || Ok(stage::cause_of("recovery: topics").is_none().then_some(()))).await?;
    stop.cancel();
    running.await?
}

/// It comes back without its end, as after an unclean election, and has grown beyond that before the topics are checked.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_partition_lost_while_it_had_no_leader_is_noticed_although_it_has_grown_since() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (cluster, kafka) = cluster(&[Topic::Events, Topic::Intents])?;
    let topic = Topic::Intents;
    let run = async || {
        let (recovery, stop) = (Recovery::new(kafka.clone(), &lab.settings()?)?, CancellationToken::new());
        let running = tokio::spawn(recovery.clone().run(stop.clone()));
        tokio::time::timeout(PATIENCE, recovery.gate().opened()).await.context("all is compared")?;
        anyhow::Ok((stop, running))
    };
    let (stop, running) = run().await?;
    publish(&kafka, topic).await?;
    let db = lab.database().await?;
    let known = async |sql: &str| {
        let sql = format!("SELECT 1 FROM known_offsets WHERE {sql}");
        anyhow::Ok(db.query_opt(&sql, &[]).await?.is_some())
    };
    let first = "topic = 'payment.intents' AND partition = 3 AND next_offset = 1";
    eventually("the first record is known", async || Ok(known(first).await?.then_some(()))).await?;
    cluster.partition_leader(topic.name(), WITHOUT, None)?;
    named(topic).await?;
    // It was another record. What is known under other prefixes is forgotten once the loss is noticed.
    let lose = "UPDATE known_offsets SET last_record = '\\x00' WHERE topic = 'payment.intents' AND partition = 3";
    db.execute(lose, &[]).await?;
    db.execute("INSERT INTO known_offsets (topic, partition, next_offset) VALUES ('other.payment.intents', 0, 0)", &[]).await?;
    cluster.partition_leader(topic.name(), WITHOUT, Some(1))?;
    publish(&kafka, topic).await?;
    eventually("the loss is noticed", async || Ok((!known("topic LIKE 'other.%'").await?).then_some(()))).await?;
    let again = "topic = 'payment.intents' AND partition = 3 AND next_offset = 2 AND last_record <> '\\x00'";
    eventually("the topic is compared anew", async || Ok(known(again).await?.then_some(()))).await?;
    eventually("it is named no more", async || Ok(stage::cause_of("recovery: topics").is_none().then_some(()))).await?;
    stop.cancel();
    running.await??;

    // So it is where they take the place of others, and were lost before they were compared to their end.
    db.execute(lose, &[]).await?;
    db.execute("UPDATE installation SET compared = 'other.payment.intents'", &[]).await?;
    publish(&kafka, topic).await?;
    let (stop, running) = run().await?;
    let whole = "topic = 'payment.intents' AND partition = 3 AND next_offset = 3 AND last_record <> '\\x00'";
    ensure!(known(whole).await?, "the topic is compared");
    stop.cancel();
    running.await?
}
