//! How long Postgres takes to catch up with `payment.intents` after a restore: with a thousand payments lost of millions.

use crate::detector::write_intents;
use crate::figure::Figure;
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, eventually};
use recovery::Recovery;
use reqwest::{Method, StatusCode};
use runtime::kafka::Backlog;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use topics::Topic;

const BATCHES: usize = 10;
const BATCH: usize = 100;
const LOST: usize = BATCHES * BATCH;

pub async fn run(intents: u64) -> Result<Vec<Figure>> {
    eprintln!("restore: {intents} payments, of which {LOST} are lost");
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_RATE_LIMIT".to_owned(), "0".to_owned());
    let (mut server, api) = lab.serve("api", "bench").await?;
    server.terminate()?;
    fill(&lab, intents).await?;
    let backup = copy(&lab).await?;

    let mut server = lab.spawn("api")?;
    api.ready(&mut server).await?;
    create(&api).await?;
    let database = lab.database().await?;
    eventually("the intents to be acknowledged", || async {
        let row = database.query_one("SELECT count(*) FROM unacknowledged_intents", &[]).await?;
        Ok((row.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    server.terminate()?;
    drop(database);
    put_in_place(&lab, &backup).await?;

    let before = count(&lab).await?;
    let lost = compare(&lab).await?;
    let after = count(&lab).await?;
    ensure!(after - before == i64::try_from(LOST)?, "{} payments are there again, expected {LOST}", after - before);
    let nothing = compare(&lab).await?;
    Ok(vec![
        Figure::new("restore_s", lost.as_secs_f64(), "s", "1"),
        Figure::new("restore_of_nothing_s", nothing.as_secs_f64(), "s", "-"),
    ])
}

/// Intents in Kafka and their payments in Postgres, which knows that it has them all.
async fn fill(lab: &Lab, intents: u64) -> Result<()> {
    let kafka = lab.kafka().await?;
    let ends = tokio::task::spawn_blocking(move || {
        write_intents(&kafka, intents)?;
        let name = kafka.name(Topic::Intents);
        Ok::<_, runtime::Failure>((name, Backlog::open(&kafka)?.ends(Topic::Intents)?))
    });
    let (topic, ends) = ends.await??;
    let database = lab.database().await?;
    // Far above the indices that the API is going to issue.
    database
        .execute(
            "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
                 confirmations_required, sequence, created_at, expires_at, updated_at)
             SELECT lpad(to_hex(i), 32, '0')::uuid, (SELECT id FROM merchants LIMIT 1), 31337, 'anvil', 18,
                 decode(lpad(to_hex(i), 40, '0'), 'hex'), (SELECT fingerprint FROM xpubs LIMIT 1), 1000000000 + i, 1000, 'pending', 3, 1, 1, 2000000000, 1
             FROM generate_series(0, $1::bigint - 1) AS i",
            &[&i64::try_from(intents)?],
        )
        .await?;
    database.execute("DELETE FROM known_offsets WHERE topic = $1", &[&topic]).await?;
    let statement = database.prepare("INSERT INTO known_offsets (topic, partition, next_offset) VALUES ($1, $2, $3)").await?;
    for (partition, end) in ends {
        database.execute(&statement, &[&topic, &partition, &end]).await?;
    }
    for statement in ["VACUUM ANALYZE payments", "CHECKPOINT"] {
        database.batch_execute(statement).await?;
    }
    Ok(())
}

async fn create(api: &Api) -> Result<()> {
    for batch in 0..BATCHES {
        let orders: Vec<_> = (0..BATCH)
            .map(|order| json!({ "chain": "anvil", "amount": "1000", "idempotency_key": format!("{batch}-{order}") }))
            .collect();
        let (status, answer) =
            api.request(Method::POST, "/api/v1/payments/batch", Some(json!({ "payments": orders })), &[]).await?;
        ensure!(status == StatusCode::OK, "{status} {answer}");
        let created = answer["data"].as_array().context("data")?.iter().filter(|result| result["status"] == 201).count();
        ensure!(created == BATCH, "{created} of {BATCH} were created: {answer}");
    }
    Ok(())
}

/// Copies the database file by file, which no role uses now, and returns the copy's name.
async fn copy(lab: &Lab) -> Result<String> {
    let (_, name) = lab.env["DATABASE_URL"].rsplit_once('/').context("DATABASE_URL names no database")?;
    let copy = format!("{name}_backup");
    let admin = lab.stack.admin().await?;
    eventually("the database to be left by all", || async {
        Ok(admin.batch_execute(&format!("CREATE DATABASE {copy} TEMPLATE {name}")).await.ok())
    })
    .await?;
    Ok(copy)
}

async fn put_in_place(lab: &Lab, copy: &str) -> Result<()> {
    let (_, name) = lab.env["DATABASE_URL"].rsplit_once('/').context("DATABASE_URL names no database")?;
    let admin = lab.stack.admin().await?;
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    Ok(admin.batch_execute(&format!("ALTER DATABASE {copy} RENAME TO {name}")).await?)
}

async fn count(lab: &Lab) -> Result<i64> {
    Ok(lab.database().await?.query_one("SELECT count(*) FROM payments", &[]).await?.get(0))
}

/// How long one comparison takes, connections included.
async fn compare(lab: &Lab) -> Result<Duration> {
    let recovery = Recovery::new(lab.kafka().await?, &lab.settings()?)?;
    let started = Instant::now();
    let compared = tokio::task::spawn_blocking(move || recovery.catch_up(&Handle::current())).await?;
    compared?;
    Ok(started.elapsed())
}
