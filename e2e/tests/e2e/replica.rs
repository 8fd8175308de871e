//! A replica for the API's reads.

use anyhow::{Result, ensure};
use e2e::{Api, Lab, Plan, PostgresServer, eventually};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const LIST: &str = "/api/v1/payments";

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_answers_reads_while_it_keeps_up_and_the_primary_what_it_lacks() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let primary = PostgresServer::primary(&lab.stack).await?;
    let standby = primary.standby().await?;
    lab.env.insert("DATABASE_URL".to_owned(), primary.url("postgres"));
    lab.env.insert("DATABASE_READ_URL".to_owned(), standby.url("postgres"));
    lab.env.insert("DATABASE_READ_MAX_LAG_MS".to_owned(), "1000".to_owned());
    lab.ctrip(&["migrate"])?;
    let (mut server, api) = lab.serve("api", "reader").await?;
    let order = || json!({ "chain": "anvil", "amount": 5 });
    let old = api.create_surely(order()).await?;
    let (replica, connection) = tokio_postgres::connect(&standby.url("postgres"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    until_used(&api, &replica).await?;

    replica.execute("SELECT pg_wal_replay_pause()", &[]).await?;
    eventually("the replica to stand still", || async {
        let state = replica.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await?;
        Ok((state.get::<_, &str>(0) == "paused").then_some(()))
    })
    .await?;
    let new = api.create_surely(order()).await?;
    ensure!(api.get(new.id()).await?.address()? == new.address()?, "what the replica lacks is on the primary");
    let (status, cancelled) = api.request(Method::POST, &format!("{LIST}/{}/cancel", old.id()), None, &[]).await?;
    ensure!(status.is_success() && cancelled["status"] == "cancelled", "{status} {cancelled}");
    api.until(old.id(), "cancelled").await?;
    let (_, page) = api.request(Method::GET, LIST, None, &[]).await?;
    ensure!(page["data"][0]["id"] == new.id(), "{page}");
    eventually("/health to name it", || async {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        let stages = health["components"]["stages"].to_string();
        Ok((stages.contains("DATABASE_READ_URL") && stages.contains("The primary answers")).then_some(()))
    })
    .await?;
    ensure!(server.metric("database_replica_lag_seconds", &[]).await? >= 1.0);

    replica.execute("SELECT pg_wal_replay_resume()", &[]).await?;
    until_used(&api, &replica).await?;
    eventually("/health to be well again", || async {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok((!health.to_string().contains("DATABASE_READ_URL")).then_some(()))
    })
    .await?;

    standby.stand_still()?;
    let asked = Instant::now();
    // The first is late; it leaves the replica alone, and the others do not wait for it.
    for _ in 0..20 {
        let (status, page) = api.request(Method::GET, LIST, None, &[]).await?;
        ensure!(status.is_success() && page["data"][0]["id"] == new.id(), "{status} {page}");
    }
    ensure!(asked.elapsed() < Duration::from_secs(10), "{:.1?}", asked.elapsed());
    standby.go_on()?;
    server.check()
}

/// Both keep up, as far as they have to, and one stands still.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_standbys_that_lag_differently_one_is_read_from() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let primary = PostgresServer::primary(&lab.stack).await?;
    let standbys = [primary.standby().await?, primary.standby().await?];
    let hosts = standbys.each_ref().map(|standby| {
        let url = standby.url("postgres");
        url.trim_start_matches("postgres://ctrip@").trim_end_matches("/postgres").to_owned()
    });
    let both = format!("postgres://ctrip@{}/postgres?load_balance_hosts=random", hosts.join(","));
    lab.env.insert("DATABASE_URL".to_owned(), primary.url("postgres"));
    lab.env.insert("DATABASE_READ_URL".to_owned(), both);
    lab.env.insert("DATABASE_READ_MAX_LAG_MS".to_owned(), "60000".to_owned());
    lab.ctrip(&["migrate"])?;
    let (mut server, api) = lab.serve("api", "reader").await?;
    let payment = api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await?;
    let mut looks = Vec::new();
    for standby in &standbys {
        let (look, connection) = tokio_postgres::connect(&standby.url("postgres"), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        looks.push(look);
    }
    let shows = async |look: &Client, condition: &str| {
        eventually("a standby to show it", || async {
            let sql = format!("SELECT FROM payments, replica_beats WHERE {condition}");
            Ok(look.query_opt(&sql, &[]).await.ok().flatten().map(drop))
        })
        .await
    };
    // Some beats after it may have been taken to be read from.
    shows(&looks[0], "status = 'pending' AND beat > 4").await?;
    looks[0].execute("SELECT pg_wal_replay_pause()", &[]).await?;
    let (status, cancelled) = api.request(Method::POST, &format!("{LIST}/{}/cancel", payment.id()), None, &[]).await?;
    ensure!(status.is_success() && cancelled["status"] == "cancelled", "{status} {cancelled}");
    shows(&looks[1], "status = 'cancelled'").await?;
    eventually("a replica to be used", async || {
        Ok((server.metric("database_replica_lag_seconds", &[]).await? < 60.0).then_some(()))
    })
    .await?;
    let read = async || Ok::<_, anyhow::Error>(api.get(payment.id()).await?.status().to_owned());
    // With many at a time there are many connections.
    for _ in 0..4 {
        futures::future::try_join_all((0..16).map(|_| read())).await?;
    }
    let first = read().await?;
    for _ in 0..64 {
        let next = read().await?;
        ensure!(next == first, "one standby showed {first}, and another one {next}");
    }
    server.check()
}

/// Waits until the replica has answered a list.
async fn until_used(api: &Api, replica: &Client) -> Result<()> {
    let scans = async || {
        let sql = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'payments_of_merchant'";
        // It may not have the tables yet.
        Ok::<i64, anyhow::Error>(replica.query_opt(sql, &[]).await?.map_or(0, |row| row.get(0)))
    };
    let before = scans().await?;
    eventually("the replica to be asked", || async {
        api.request(Method::GET, LIST, None, &[]).await?;
        Ok((scans().await? > before).then_some(()))
    })
    .await
}
