//! Payments that are read by id at the same time, which share a read of the database: none of them may notice.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, PostgresServer, eventually};
use futures::future::{join_all, try_join_all};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use uuid::Uuid;

async fn read(api: &Api, id: &str) -> Result<(StatusCode, Value)> {
    api.request(Method::GET, &format!("/api/v1/payments/{id}"), None, &[]).await
}

/// Whoever asks, and beside payments that must not be shown, can't be read, are not there, or have many transfers.
#[tokio::test(flavor = "multi_thread")]
async fn payments_that_are_read_together_are_each_shown_to_their_own_merchant_alone() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut server, shop) = lab.serve("api", "shop").await?;
    let other = lab.merchant("other shop")?;
    let mut made = Vec::new();
    for _ in 0..20 {
        made.extend([(&shop, shop.coin(1).await?), (&other, other.coin(2).await?)]);
    }
    let (hidden, broken, much_paid) = (shop.coin(3).await?, shop.coin(4).await?, other.coin(5).await?);
    let missing = Uuid::now_v7().to_string();
    let db = lab.database().await?;
    // Nobody can publish it.
    let hide = "INSERT INTO unacknowledged_intents (payment_id, intent) VALUES ($1::text::uuid, '')";
    db.execute(hide, &[&hidden.id()]).await?;
    let pay = "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number,
                   block_timestamp, transaction_index, sender, amount, credited, listed, below_minimum)
               SELECT 31337, sha256('a block'), sha256(n::text::bytea), 'transaction', 0, $1::text::uuid, 1, 1, n,
                   decode(repeat('11', 20), 'hex'), 1, false, true, n % 20 = 0
               FROM generate_series(1, 60) AS n";
    db.execute(pay, &[&much_paid.id()]).await?;
    for round in 0..6 {
        if round == 3 {
            let spoil = "UPDATE payments SET amount = repeat('9', 78)::numeric WHERE id = $1::text::uuid";
            db.execute(spoil, &[&broken.id()]).await?;
        }
        let asked = made.iter().flat_map(|(owner, payment)| [&shop, &other].map(|api| (api, *owner, payment)));
        let asked = asked.map(async |(api, owner, payment)| {
            let (status, answer) = read(api, payment.id()).await?;
            let is_own = api.key == owner.key;
            let expected = if is_own { StatusCode::OK } else { StatusCode::NOT_FOUND };
            ensure!(status == expected && is_own == (answer == payment.0), "{status} {answer}, of {}", payment.0);
            anyhow::Ok(())
        });
        let special = [(&shop, hidden.id()), (&shop, broken.id()), (&other, missing.as_str()), (&other, much_paid.id())];
        let special = try_join_all(special.map(|(api, id)| read(api, id)));
        let (special, _) = tokio::try_join!(special, try_join_all(asked))?;
        let of_broken = if round < 3 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        let expected = [StatusCode::SERVICE_UNAVAILABLE, of_broken, StatusCode::NOT_FOUND, StatusCode::OK];
        let statuses: Vec<StatusCode> = special.iter().map(|(status, _)| *status).collect();
        ensure!(statuses == expected, "{statuses:?}, and not {expected:?}");
        let transfers = special[3].1["transfers"].as_array().context("transfers")?;
        ensure!(transfers.len() == 60, "{} transfers", transfers.len());
        ensure!(special[3].1["unexpected_transfers"] == 57, "{}", special[3].1["unexpected_transfers"]);
    }
    // Each by its own request alone.
    let failures = server.log().matches("a request failed: ").count();
    ensure!(failures == 3, "{failures} failures in the log:\n{}", server.tail());
    server.check()
}

/// Counted by the server when all sessions of the API have ended: until then it may not have all.
async fn transactions(lab: &Lab) -> Result<i64> {
    let db = lab.database().await?;
    eventually("the sessions of the API to end", async || {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        Ok((db.query_one(others, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    let ended = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    Ok(db.query_one(ended, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_that_are_read_at_the_same_time_share_transactions() -> Result<()> {
    // Few: a read that takes long on a busy machine is made again, alone.
    const CLIENTS: usize = 16;
    const READS: i64 = 200;
    let lab = Lab::start(Plan::default()).await?;
    let (mut server, shop) = lab.serve("api", "shop").await?;
    let payments = try_join_all((0..CLIENTS).map(|_| shop.coin(1))).await?;
    server.terminate()?;
    let before = transactions(&lab).await?;
    let mut server = lab.spawn("api")?;
    shop.ready(&mut server).await?;
    let client = async |payment: &Payment| {
        for _ in 0..READS {
            ensure!(shop.get(payment.id()).await?.0 == payment.0, "another payment");
        }
        Ok(())
    };
    try_join_all(payments.iter().map(client)).await?;
    server.terminate()?;
    let (took, reads) = (transactions(&lab).await? - before, i64::try_from(CLIENTS)? * READS);
    println!("{took} transactions for {reads} reads and a start");
    // A lone read is one.
    ensure!(took < reads * 3 / 4, "{took} transactions for {reads} reads");
    Ok(())
}

/// Lets Postgres sleep where it reads a payment, named `id`, for which this holds.
async fn slow_down(db: &Client, condition: &str, seconds: u32) -> Result<()> {
    let view = format!(
        "CREATE FUNCTION sleeps(id uuid) RETURNS boolean LANGUAGE plpgsql COST 100000 AS $$ BEGIN
             IF {condition} THEN PERFORM pg_sleep({seconds}); END IF;
             PERFORM set_config('test.read', coalesce(current_setting('test.read', true), '') || '+', true);
             RETURN true;
         END $$;
         ALTER TABLE payments RENAME TO kept_payments;
         CREATE VIEW payments AS SELECT * FROM kept_payments WHERE sleeps(id)"
    );
    Ok(db.batch_execute(&view).await?)
}

/// The second that a transaction reads.
const IS_SECOND: &str = "current_setting('test.read', true) = '+'";

/// It is read in batches as all are, until the time-out of the statement, and then alone in its merchant's share.
#[tokio::test(flavor = "multi_thread")]
async fn payments_that_take_long_to_read_keep_another_merchants_from_no_answer_in_time() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut server, shop) = lab.serve("api", "shop").await?;
    let other = lab.merchant("other shop")?;
    let (slow, quick) = (shop.coin(1).await?, other.coin(2).await?);
    let db = lab.database().await?;
    slow_down(&db, &format!("id = '{}'", slow.id()), 60).await?;
    let mut flood = JoinSet::<Result<()>>::new();
    for _ in 0..100 {
        let (shop, id) = (shop.clone(), slow.id().to_owned());
        flood.spawn(async move {
            loop {
                let (status, answer) = read(&shop, &id).await?;
                ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {answer}");
            }
        });
    }
    let reads_in_time = async || {
        for _ in 0..10 {
            let began = Instant::now();
            for answer in join_all((0..5).map(|_| other.get(quick.id()))).await {
                ensure!(answer?.0 == quick.0, "another payment");
            }
            // The slow ones take ten seconds.
            ensure!(began.elapsed() < Duration::from_secs(4), "{:.1?}", began.elapsed());
        }
        anyhow::Ok(())
    };
    // Some share a batch with a slow one.
    reads_in_time().await?;
    // The merchant's half of the connections, and those of batches: then there is no batch.
    eventually("the slow reads to have what they may have", async || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        Ok((db.query_one(sleeping, &[]).await?.get::<_, i64>(0) == 12).then_some(()))
    })
    .await?;
    reads_in_time().await?;
    if let Some(ended) = flood.try_join_next() {
        ended??;
    }
    drop(flood);
    server.check()
}

/// Those of a batch that takes long are read alone, each in no time: so the replica is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_long_sets_no_replica_aside() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let primary = PostgresServer::primary(&lab.stack).await?;
    let standby = primary.standby().await?;
    lab.env.insert("DATABASE_URL".to_owned(), primary.url("postgres"));
    lab.env.insert("DATABASE_READ_URL".to_owned(), standby.url("postgres"));
    lab.ctrip(&["migrate"])?;
    let (mut server, shop) = lab.serve("api", "shop").await?;
    let mut payments = Vec::new();
    for _ in 0..16 {
        payments.push(shop.coin(1).await?);
    }
    slow_down(&lab.database().await?, IS_SECOND, 3).await?;
    let (replica, connection) = tokio_postgres::connect(&standby.url("postgres"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let sleeping = async || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        anyhow::Ok(replica.query_one(sleeping, &[]).await?.get::<_, i64>(0))
    };
    let is_named = async || {
        let (_, health) = shop.request(Method::GET, "/health", None, &[]).await?;
        anyhow::Ok(health["components"]["stages"].to_string().contains("DATABASE_READ_URL"))
    };
    for tries in 1.. {
        eventually("the replica to be well", async || Ok((!is_named().await?).then_some(()))).await?;
        let mut was_named = false;
        // After three that take too long it would be named for a minute.
        for _ in 0..5 {
            eventually("a batch to sleep on the replica", async || {
                for answer in join_all(payments.iter().map(|payment| shop.get(payment.id()))).await {
                    answer?;
                }
                Ok((sleeping().await? > 0).then_some(()))
            })
            .await?;
            eventually("the batches to end", async || Ok((sleeping().await? == 0).then_some(()))).await?;
            was_named |= is_named().await?;
        }
        if !was_named {
            break;
        }
        // On a machine that takes long for a round trip the replica is left for that.
        ensure!(tries < 3, "the replica is named again and again");
    }
    server.check()
}
