//! Another server becomes the primary.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Network, Plan, PostgresServer, Stack, eventually};
use runtime::Failure;
use runtime::db::{Bounds, Gate, Lineage};
use serde_json::json;
use std::time::{Duration, Instant};

/// The old primary is named first and still accepts connections. It stands still with statements of all roles in hand, and goes on later.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_while_the_primary_stands_still_takes_the_writes() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let primary = PostgresServer::primary(&lab.stack).await?;
    let standby = primary.standby().await?;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port, standby.port);
    lab.env.insert("DATABASE_URL".to_owned(), format!("postgres://ctrip@{hosts}/postgres"));
    lab.ctrip(&["migrate"])?;
    let (mut ctrip, api) = lab.serve("up", "failover").await?;
    let order = || json!({ "chain": "anvil", "amount": 5 });
    let before = api.create_surely(order()).await?;
    lab.node.pay(before.address()?, before.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(before.id(), "confirmed").await?;
    let unpaid = api.create_surely(order()).await?;

    // It has statements in hand that it will never answer.
    let locking = runtime::db::pool(&primary.url("postgres"), 1)?.get().await?;
    locking.batch_execute("BEGIN; LOCK TABLE stage_offsets, webhook_deliveries IN ACCESS EXCLUSIVE MODE").await?;
    lab.node.mine(1).await?;
    eventually("the fold and the webhooks to wait", || async {
        let sql = "SELECT count(DISTINCT query) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        Ok((locking.query_one(sql, &[]).await?.get::<_, i64>(0) >= 2).then_some(()))
    })
    .await?;
    primary.stand_still()?;
    let promoting = Instant::now();
    standby.promote().await?;
    let after = api.create_surely(order()).await?;
    let took = promoting.elapsed();
    println!("payments are created again {took:.1?} after the promotion began");
    ensure!(took < Duration::from_secs(40), "{took:?}");
    ensure!(after.address()? != unpaid.address()?, "an address was given out twice");
    for payment in [&unpaid, &after] {
        lab.node.pay(payment.address()?, payment.amount()?).await?;
    }
    lab.node.mine(3).await?;
    for payment in [&before, &unpaid, &after] {
        api.until(payment.id(), "confirmed").await?;
    }
    ctrip.check()?;

    // Nobody has told it that it is the primary no more.
    primary.go_on()?;
    ctrip.kill()?;
    let mut ctrip = lab.spawn("up")?;
    api.ready(&mut ctrip).await?;
    let restarted = api.create_surely(order()).await?;
    let db = runtime::db::pool(&standby.url("postgres"), 1)?.get().await?;
    let id: uuid::Uuid = restarted.id().parse()?;
    ensure!(db.query_opt("SELECT FROM payments WHERE id = $1", &[&id]).await?.is_some(), "created on the old primary");
    ctrip.check()
}

/// Nobody is told: neither the roles, whose statements the server has in hand, nor the server, whose locks they hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_vanishes_holds_up_nobody_for_long() -> Result<()> {
    let Some(network) = Network::start()? else {
        println!("not run: this user may not make network namespaces");
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default()).await?;
    let primary = PostgresServer::primary_on(&lab.stack, Some(network)).await?;
    let standby = primary.standby().await?;
    lab.env.insert(
        "DATABASE_URL".to_owned(),
        format!("{},127.0.0.1:{}/postgres", primary.url("").trim_end_matches('/'), standby.port),
    );
    lab.ctrip(&["migrate"])?;
    let (mut ctrip, api) = lab.serve("up", "vanished").await?;
    let order = || json!({ "chain": "anvil", "amount": 5 });
    api.create_surely(order()).await?;
    let gone = runtime::db::pool(&primary.url("postgres"), 1)?.get().await?;
    gone.batch_execute("BEGIN; SELECT pg_advisory_lock(7); LOCK TABLE payments IN ACCESS EXCLUSIVE MODE").await?;
    let heir = runtime::db::pool(&primary.socket_url("postgres"), 1)?.get().await?;

    primary.vanish()?;
    let vanished = Instant::now();
    let (takes_over, promotes) = tokio::join!(
        async {
            let takes =
                heir.batch_execute("BEGIN; SELECT pg_advisory_lock(7); LOCK TABLE payments IN ACCESS EXCLUSIVE MODE; ROLLBACK");
            tokio::time::timeout(Duration::from_secs(60), takes).await.context("its locks are still taken")??;
            anyhow::Ok(vanished.elapsed())
        },
        async {
            standby.promote().await?;
            let payment = api.create_surely(order()).await?;
            let took = vanished.elapsed();
            lab.node.pay(payment.address()?, payment.amount()?).await?;
            lab.node.mine(3).await?;
            api.until(payment.id(), "confirmed").await?;
            anyhow::Ok((took, vanished.elapsed()))
        }
    );
    let (takes_over, (creates, confirms)) = (takes_over?, promotes?);
    println!(
        "after a host vanished: its locks are free after {takes_over:.1?}, creates again {creates:.1?}, confirms {confirms:.1?}"
    );
    // Within 20 s on a machine that has nothing else to do; without the time-outs, minutes to hours.
    for took in [takes_over, creates, confirms] {
        ensure!(took < Duration::from_secs(60), "{took:?}");
    }
    ensure!(
        gone.batch_execute("SELECT 1").await.is_err() && vanished.elapsed() < Duration::from_secs(40),
        "still waits for it"
    );
    ctrip.check()
}

/// As a server does that becomes a standby, or is set so, under its connections.
#[tokio::test]
async fn a_server_that_takes_no_more_writes_is_left() -> Result<()> {
    let stack = Stack::attach()?;
    let url = stack.create_database(&format!("refuses_{}", uuid::Uuid::new_v4().simple())).await?;
    let pool = runtime::db::pool(&url, 1)?;
    pool.get().await?.batch_execute("CREATE TABLE t (i int)").await?;
    let write = async || pool.get().await?.execute("INSERT INTO t VALUES (1)", &[]).await.map_err(Failure::from);
    for rests in [false, true] {
        pool.get().await?.batch_execute("SET default_transaction_read_only = on").await?;
        if rests {
            tokio::time::sleep(Duration::from_millis(1_100)).await;
        } else {
            let refused = write().await.err().map(|failure| failure.to_string()).unwrap_or_default();
            ensure!(refused.contains("read-only"), "{refused:?}");
        }
        write().await?;
    }
    Ok(())
}

/// The callers are gone, their connections are replaced, and the server would go on.
#[tokio::test]
async fn statements_whose_callers_are_gone_end_and_do_not_pile_up() -> Result<()> {
    let stack = Stack::attach()?;
    let url = stack.create_database(&format!("gone_{}", uuid::Uuid::new_v4().simple())).await?;
    let (gate, plain) = (Gate::default(), runtime::db::pool(&url, 1)?);
    let db = plain.get().await?;
    let lineage = Lineage::of(&db).await?;
    gate.open(lineage.clone());
    let bounds = Bounds { connections: 1, wait: Duration::from_secs(10), statement: Duration::from_secs(2) };
    let pool = runtime::db::bounded_pool(&url, bounds, &gate)?;
    for _ in 0..3 {
        gate.looked(lineage.clone(), Instant::now());
        let client = pool.get().await?;
        let dropped = tokio::time::timeout(Duration::from_millis(1_100), client.batch_execute("SELECT pg_sleep(60)")).await;
        ensure!(dropped.is_err(), "{dropped:?}");
    }
    eventually("the statements to end", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE '%sleep(60)'";
        Ok((db.query_one(sql, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    let ended = pool.get().await?.batch_execute("SELECT pg_sleep(60)").await.err().and_then(|error| error.code().cloned());
    ensure!(ended.is_some_and(|code| code.code() == "57014"), "not ended as too long");
    Ok(())
}
