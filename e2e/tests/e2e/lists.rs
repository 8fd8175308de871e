//! What a list reads of a database: about a page, whatever its filter, and however many rows there are of which it wants none.

use crate::lost_rows::until_one_waits;
use anyhow::{Result, ensure};
use deadpool_postgres::{Client, GenericClient, Pool};
use e2e::Stack;
use payments::store::{self, Claim, OutboxFront, PaymentFilter, Place};
use payments::{Exception, Status};
use runtime::db::{self, CommitMode, lock};
use runtime::set_aside;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio_postgres::IsolationLevel;
use topics::{Address, B256, ChainId, PaymentId, Topic};
use uuid::Uuid;
use webhooks::deliveries::{self, RedeliverCursor, RedeliverFilter, STATES};

const MERCHANT: Uuid = Uuid::from_u128(1);
const STATIC_ADDRESS: Uuid = Uuid::from_u128(2);
const ENDPOINT: Uuid = Uuid::from_u128(3);
const LIMIT: i64 = 51;
/// Down the index for each of six statuses, and along a few pages. All payments are ten times as many blocks.
const MAX_BLOCKS: i64 = 60;

/// One half has expired on one chain, the other is confirmed on another. Deposits have the external id of their customer.
const PAYMENTS: &str = "
    INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('f', 'x', 's');
    INSERT INTO deposit_addresses (id, merchant_id, external_id, address, xpub, address_index, created_at)
        VALUES (lpad('2', 32, '0')::uuid, lpad('1', 32, '0')::uuid, 'shop', decode(repeat('ff', 20), 'hex'), 'f', 1000000, 0);
    INSERT INTO payments (id, merchant_id, external_id, chain_id, chain, token, decimals, address, deposit_address, xpub,
            address_index, amount, status, exception, confirmations_required, sequence, created_at, expires_at, updated_at)
        SELECT lpad(to_hex(i), 32, '0')::uuid, lpad('1', 32, '0')::uuid,
            CASE WHEN i > 60000 OR i % 300 = 0 THEN 'shop' ELSE 'order-' || i END, 1 + i / 30000, 'c',
            CASE WHEN i <= 30000 THEN 'USDC' WHEN i % 2 = 0 THEN 'DAI' END, 6, decode(lpad(to_hex(i), 40, '0'), 'hex'),
            CASE WHEN i > 60000 THEN lpad('2', 32, '0')::uuid END, 'f', i, 1, CASE WHEN i <= 30000 THEN 'expired' ELSE 'confirmed' END,
            CASE WHEN i <= 20000 THEN 'underpaid' WHEN i <= 60000 AND i % 2 = 0 THEN 'overpaid' END,
            1, 1, i, i, i
        FROM generate_series(1, 80000) AS i;
    INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
            transaction_index, sender, amount, credited, listed)
        SELECT 1, sha256('b'), sha256(int4send(i)), 'log', n, lpad(to_hex(i), 32, '0')::uuid, 1, 1, 0, decode(repeat('ee', 20), 'hex'), 1,
            true, true
        FROM generate_series(1, 20000) AS i CROSS JOIN generate_series(1, 2) AS n;
    VACUUM ANALYZE payments;
    VACUUM ANALYZE transfers";
/// Almost all have failed so far, and are tried again.
const DELIVERIES: &str = "
    INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
        VALUES (lpad('3', 32, '0')::uuid, lpad('1', 32, '0')::uuid, 'https://shop.example/', 'whsec_');
    INSERT INTO webhook_messages (event_id, merchant_id, body)
        SELECT 'evt_' || i, lpad('1', 32, '0')::uuid, '{}' FROM generate_series(1, 60000) AS i;
    INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state, tries, created_at)
        SELECT lpad('3', 32, '0')::uuid, 'evt_' || i, 'ping', CASE WHEN i > 10 THEN 'pending' WHEN i > 5 THEN 'failed' ELSE 'delivered' END,
            1, to_timestamp(i)
        FROM generate_series(1, 60000) AS i;
    VACUUM ANALYZE webhook_deliveries";

#[tokio::test]
async fn a_list_reads_about_a_page_whatever_it_is_filtered_by() -> Result<()> {
    let mut client = large(PAYMENTS).await?.get().await?;
    let place = |created_at| Place { created_at, id: PaymentId(Uuid::max()) };
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}")).await?;
        for filter in filters() {
            let pages = [(None, None, None), (Some(place(20_000)), None, Some(10)), (Some(place(70_000)), Some(100), None)];
            for (below, created_before, created_from) in pages {
                let filter = PaymentFilter { below, created_before, created_from, ..filter.clone() };
                let before = read(&transaction).await?;
                let found = store::list_payments(&transaction, MERCHANT, &filter, LIMIT).await?;
                let read = read(&transaction).await? - before;
                // Those of the external id are looked at one by one.
                let limit = if filter.external_id_beside_others().is_some() { MAX_BLOCKS + 250 } else { MAX_BLOCKS };
                ensure!(read <= limit, "{mode}: {read} blocks for {} payments of {filter:?}", found.len());
            }
        }
        let before = blocks(&transaction, "payments").await?;
        let deposits = store::list_deposits(&transaction, STATIC_ADDRESS, Place::FIRST, LIMIT).await?;
        let read = blocks(&transaction, "payments").await? - before;
        ensure!(deposits.len() == 51 && read <= MAX_BLOCKS, "{read} blocks for {} deposits", deposits.len());
    }
    let costs = costs(&mut client, "%transaction_hash = %").await?;
    ensure!(costs.len() > 10 && costs.iter().all(|cost| *cost < 100.0), "{costs:?} for what one transaction has paid");
    let both = "SELECT indexrelid::regclass::text FROM pg_index WHERE indexprs IS NOT NULL AND indpred IS NOT NULL";
    let both: Vec<String> = client.query(both, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(both.is_empty(), "of an expression and of some rows, so the planner has no statistics of {both:?}");
    let transaction = Some(B256::from_slice(&Sha256::digest(7_i32.to_be_bytes())));
    let filter = PaymentFilter { transaction, exception: Some(Exception::Underpaid), ..PaymentFilter::default() };
    let paid = store::list_payments(&client, MERCHANT, &filter, LIMIT).await?;
    ensure!(paid.len() == 1 && paid[0].created_at == 7, "two transfers of one payment: {paid:?}");
    // Alike in all that the index has of it.
    let alike = transaction.map(|hash| hash ^ B256::with_last_byte(1));
    let filter = PaymentFilter { transaction: alike, ..PaymentFilter::default() };
    let paid = store::list_payments(&client, MERCHANT, &filter, LIMIT).await?;
    ensure!(paid.is_empty(), "a transaction that there is not: {paid:?}");
    ensure!(!store::is_common_external_id(&client, MERCHANT, "shop").await?);
    client.execute("UPDATE payments SET external_id = 'shop' WHERE created_at <= 2000", &[]).await?;
    ensure!(store::is_common_external_id(&client, MERCHANT, "shop").await?);
    Ok(())
}

/// A dump keeps what was deleted. An event whose number was drawn early may be written late, and is told all the same.
#[tokio::test]
async fn the_relay_passes_over_what_was_deleted_once_and_over_nothing_that_is_written_late() -> Result<()> {
    let pool = db::generic_plan_pool(&database().await?, 4, CommitMode::Asynchronous, None)?;
    let (mut dump, mut first, mut late, mut client) =
        (pool.get().await?, pool.get().await?, pool.get().await?, pool.get().await?);
    let dump = dump.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await?;
    dump.execute("SELECT FROM outbox", &[]).await?;
    // One transaction ends before another that began later, and has drawn a lower id.
    let (first, late) = (first.transaction().await?, late.transaction().await?);
    first.execute("SELECT FROM pg_current_xact_id()", &[]).await?;
    let draw = "SELECT nextval(pg_get_serial_sequence('outbox', 'id')) FROM pg_current_xact_id()";
    let drawn: i64 = late.query_one(draw, &[]).await?.get(0);
    let event = "INSERT INTO outbox (payment_id, event, state) SELECT gen_random_uuid(), '', '' FROM generate_series(1, $1)";
    first.execute(event, &[&1]).await?;
    first.commit().await?;
    let mut front = OutboxFront::default();
    for _ in 0..3 {
        ensure!(front.move_on(&client).await? == 1, "one event");
    }
    for batch in 1..=10 {
        client.execute(event, &[if batch == 1 { &999 } else { &1000 }]).await?;
        ensure!(front.claim(&mut client, batch, 1000).await?.rows.len() == 1000, "batch {batch}");
        ensure!(front.move_on(&client).await? == 1000, "batch {batch}");
    }
    let written =
        "INSERT INTO outbox (id, payment_id, event, state) OVERRIDING SYSTEM VALUE VALUES ($1, gen_random_uuid(), '', '')";
    late.execute(written, &[&drawn]).await?;
    late.commit().await?;
    let claimed = front.claim(&mut client, 11, 1000).await?.rows;
    ensure!(claimed.len() == 1 && claimed[0].id == drawn, "{claimed:?}");
    let (mut batch, mut last) = (11, Instant::now());
    loop {
        batch += 1;
        let mut transaction = client.transaction().await?;
        // Postgres counts on from transaction to transaction, for a second or more.
        let before = blocks(&transaction, "outbox").await?;
        ensure!(front.claim(&mut transaction, batch, 1000).await?.rows.is_empty(), "told twice");
        let read = blocks(&transaction, "outbox").await? - before;
        transaction.commit().await?;
        if read <= 100 {
            return Ok(());
        }
        wait_for_others(&client, &mut last, &format!("{read} blocks to find nothing")).await?;
        front.move_on(&client).await?;
    }
}

/// Waits a moment for a front to move on. Transactions of other tests hold it up, and may take minutes on a busy machine: it fails
/// once none of them has lasted for a second for 20 seconds. `last` is when one had.
async fn wait_for_others(db: &Client, last: &mut Instant, what: &str) -> Result<()> {
    let others = "SELECT FROM pg_stat_activity
                  WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '1 second'";
    if !db.query(others, &[]).await?.is_empty() {
        *last = Instant::now();
    }
    ensure!(last.elapsed() < Duration::from_secs(20), "{what}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// An outbox with an event for each of these partitions of `payment.events`, in order. Returns the ids.
async fn outbox_of(db: &Client, partitions: &[i32]) -> Result<Vec<i64>> {
    let payment = |partition| (0..).map(Uuid::from_u128).find(|id| Topic::Events.partition_of(&id.to_string()) == partition);
    let payments: Vec<Uuid> = partitions.iter().filter_map(|partition| payment(*partition)).collect();
    let sql = "INSERT INTO outbox (payment_id, event, state) SELECT id, '', '' FROM unnest($1::uuid[]) AS id RETURNING id";
    Ok(db.query(sql, &[&payments]).await?.iter().map(|row| row.get(0)).collect())
}

fn ids(claim: &Claim) -> Vec<i64> {
    claim.rows.iter().map(|row| row.id).collect()
}

/// As after a crash, before anybody knows whether Kafka has the batch.
#[tokio::test]
async fn a_batch_that_was_claimed_is_claimed_again_whole_and_in_order_before_what_is_new() -> Result<()> {
    let mut client = db::pool(&database().await?, 1)?.get().await?;
    // What is written in one order lies in another.
    let write = |count: i32| {
        format!(
            "INSERT INTO outbox (payment_id, event, state) SELECT gen_random_uuid(), '', '' FROM generate_series(1, {count});
             UPDATE outbox SET state = 'x' WHERE id % 3 = 1 AND batch IS NULL;
             ANALYZE outbox"
        )
    };
    client.batch_execute(&write(300)).await?;
    let all: Vec<i64> = client.query("SELECT id FROM outbox ORDER BY id", &[]).await?.iter().map(|row| row.get(0)).collect();
    let mut front = OutboxFront::default();
    ensure!(ids(&front.claim(&mut client, 1, 200).await?) == all[..200], "the oldest, in order");
    client.batch_execute(&write(100)).await?;
    for mut front in [front, OutboxFront::default()] {
        ensure!(ids(&front.claim(&mut client, 1, 200).await?) == all[..200], "the same ones again");
    }
    let mut front = OutboxFront::default();
    ensure!(ids(&front.claim(&mut client, 2, 100).await?) == all[200..], "those behind them");
    let left: i64 = client.query_one("SELECT count(*) FROM outbox", &[]).await?.get(0);
    ensure!(left == 200, "{left} events, with the batch in hand and what is new");
    Ok(())
}

/// The relay keeps back what goes to a partition that it can't read to its end, and what may be there already.
#[tokio::test]
async fn what_the_relay_keeps_back_is_not_claimed_and_holds_no_front() -> Result<()> {
    let mut db = db::generic_plan_pool(&database().await?, 1, CommitMode::Asynchronous, None)?.get().await?;
    let rows = outbox_of(&db, &[3, 5, 3, 5, 1, 2]).await?;
    db.execute("UPDATE outbox SET batch = 7 WHERE id <= $1", &[&rows[1]]).await?;
    let mut front = OutboxFront::of(8, &[3, 5]);
    let first = front.claim(&mut db, 8, 10).await?;
    ensure!(ids(&first) == [rows[4], rows[5]] && first.kept == 2, "{first:?}");
    ensure!(front.move_on(&db).await? == 6, "those of the batch, two that are kept back, and two in doubt");
    let second = front.claim(&mut db, 9, 10).await?;
    ensure!(second.rows.is_empty() && second.kept == 0, "{second:?}");
    ensure!(front.move_on(&db).await? == 4, "two that are kept back, and two in doubt");
    // Once other tests' transactions have ended, the front has passed them, and they are found apart.
    let mut last = Instant::now();
    ensure!(format!("{front:?}").contains("LowestId { id: "), "{front:?}");
    while format!("{front:?}").contains("LowestId { id: 0,") {
        ensure!(front.move_on(&db).await? == 4);
        wait_for_others(&db, &mut last, "the front does not move").await?;
    }
    ensure!(front.move_on(&db).await? == 4, "none of them is published");
    let new = outbox_of(&db, &[3]).await?;
    front.release(3);
    ensure!(ids(&front.claim(&mut db, 9, 10).await?) == [rows[2], new[0]], "what was kept back is in its order again");
    ensure!(front.claim(&mut db, 10, 10).await?.rows.is_empty());
    ensure!(front.move_on(&db).await? == 3);
    ensure!(ids(&OutboxFront::of(11, &[]).claim(&mut db, 11, 10).await?) == [rows[3]], "the next relay does not hold it");
    ensure!(store::claims(&db).await?.len() == 3, "what is in doubt stays as it is");
    Ok(())
}

/// A scan that has no alternative counts as the most expensive of all. To compile its plan takes longer than all else at a start.
#[tokio::test]
async fn no_plan_of_a_pool_without_scans_is_compiled() -> Result<()> {
    let db = db::generic_plan_pool(&database().await?, 1, CommitMode::Synchronous, None)?.get().await?;
    let plan = db.query("EXPLAIN ANALYZE SELECT FROM merchants WHERE accept_late", &[]).await?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let compiles = plan.iter().any(|line| line.contains("JIT"));
    ensure!(plan[0].starts_with("Seq Scan") && !compiles, "{plan:?}");
    Ok(())
}

/// It would be told under its number while an earlier event of its payment, which is kept back, waits for the next one.
#[tokio::test]
async fn a_crash_leaves_nothing_claimed_of_a_partition_that_is_held() -> Result<()> {
    let mut db = db::generic_plan_pool(&database().await?, 1, CommitMode::Asynchronous, None)?.get().await?;
    let mut front = OutboxFront::of(8, &[3]);
    let first = outbox_of(&db, &[3]).await?;
    ensure!(front.claim(&mut db, 8, 10).await?.kept == 1);
    let rows = [first, outbox_of(&db, &[3, 1]).await?].concat();
    let crash = "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''a crash''; END';
                 CREATE TRIGGER crash BEFORE UPDATE ON outbox FOR EACH ROW WHEN (NEW.batch < 0) EXECUTE FUNCTION crash()";
    db.batch_execute(crash).await?;
    ensure!(front.claim(&mut db, 8, 10).await.is_err());
    let claims = store::claims(&db).await?;
    ensure!(claims.is_empty(), "{claims:?}");
    // By then the partition can be read.
    ensure!(ids(&OutboxFront::of(8, &[]).claim(&mut db, 8, 10).await?) == rows);
    Ok(())
}

/// A comparison passes over rows that the relay has locked: an event that Kafka has behind a transaction would be told again.
#[tokio::test]
async fn nothing_is_claimed_while_told_events_are_compared_and_a_partition_is_held() -> Result<()> {
    let pool = db::generic_plan_pool(&database().await?, 3, CommitMode::Asynchronous, None)?;
    let (mut comparing, mut db, watching) = (pool.get().await?, pool.get().await?, pool.get().await?);
    let rows = outbox_of(&db, &[1, 3]).await?;
    let comparison = comparing.transaction().await?;
    lock::begin_comparison(&comparison).await?;
    ensure!(ids(&OutboxFront::of(8, &[]).claim(&mut db, 8, 1).await?) == rows[..1], "what Kafka has was compared before");
    let claim = tokio::spawn(async move { OutboxFront::of(9, &[3]).claim(&mut db, 9, 10).await });
    until_one_waits(&watching).await?;
    comparison.query("SELECT FROM outbox FOR UPDATE NOWAIT", &[]).await?;
    comparison.commit().await?;
    let claim = claim.await??;
    ensure!(claim.rows.is_empty() && claim.kept == 1, "{claim:?}");
    Ok(())
}

#[tokio::test]
async fn many_lost_payments_are_counted_and_the_chains_beside_them_are_found_at_once() -> Result<()> {
    let aside = "INSERT INTO set_aside (stage, topic, partition, item, next_offset, cause)
                     SELECT 'restored', 'payment.intents', i % 12, 'lost ' || i, i, repeat('long ', 100) FROM generate_series(1, 60000) AS i;
                 INSERT INTO set_aside (stage, topic, partition, item, next_offset, cause)
                     VALUES ('confirmer', 'chain.matches', 1, '31337', 7, 'stands still'), ('webhooks', 'payment.events', 1, 'evt', 7, 'untold');
                 VACUUM ANALYZE set_aside";
    let mut client = large(aside).await?.get().await?;
    let transaction = client.transaction().await?;
    // Postgres may not have taken over yet what was written before.
    let before = blocks(&transaction, "set_aside").await?;
    let chains = set_aside::chains(&transaction, "").await?;
    ensure!(chains.len() == 1 && chains[0].item == "31337", "{chains:?}");
    let read = blocks(&transaction, "set_aside").await? - before;
    ensure!(read <= 10, "{read} blocks");
    let counts = set_aside::counts(&transaction, "").await?;
    ensure!(counts == BTreeMap::from([("restored".to_owned(), 60_000), ("webhooks".to_owned(), 1)]), "{counts:?}");
    Ok(())
}

/// Hashes are in no order, and an index that begins with one grows with all that there ever was: each row goes to a page of it
/// that nobody has used for long, which is read from the disk, and written whole after a checkpoint.
#[tokio::test]
async fn transactions_have_a_small_index_and_new_parts_are_written_to_few_pages() -> Result<()> {
    let client = large(PAYMENTS).await?.get().await?;
    for statement in [&transfers("1 + i / 100"), &parts(2, 60_000), "VACUUM ANALYZE", "CHECKPOINT"] {
        client.batch_execute(statement).await?;
    }
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}", parts(60_001, 60_500));
    let plan: serde_json::Value = client.query_one(&explain, &[]).await?.get(0);
    let dirtied = plan[0]["Plan"]["Shared Dirtied Blocks"].as_i64().unwrap_or_default();
    // The one that is in no order has some 300 pages, and would have thrice as many with whole hashes.
    ensure!((50..=330).contains(&dirtied), "{dirtied} blocks are written for 500 parts");
    let size = "SELECT pg_relation_size('transfers_of_transaction') / count(*) FROM transfers";
    let bytes: i64 = client.query_one(size, &[]).await?.get(0);
    // Whole hashes would take some 85.
    ensure!(bytes < 45, "{bytes} bytes for each transfer in the index of transactions");
    Ok(())
}

/// Most payments have one part, so the planner takes whatever index begins with the payment for as good as the key.
#[tokio::test]
async fn a_payment_with_parts_in_many_blocks_is_shown_without_reading_them_all() -> Result<()> {
    let many = Uuid::from_u128(7);
    let mut client = large(PAYMENTS).await?.get().await?;
    let received = format!("UPDATE payments SET received = 1000 WHERE id = '{many}'");
    for statement in [&transfers("CASE WHEN i % 60 = 0 THEN 7 ELSE i END"), &parts(2, 60_500), &received, "VACUUM ANALYZE"] {
        client.batch_execute(statement).await?;
    }
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}")).await?;
        let before = blocks(&transaction, "payment_parts").await?;
        let found = store::load_payments(&transaction, &[many]).await?;
        let after = blocks(&transaction, "payment_parts").await?;
        let (shown, read) = (found.iter().map(|payment| payment.transfers.len()).sum::<usize>(), after - before);
        ensure!(shown == 100 && read <= 600, "{mode}: {read} blocks for the parts of {shown} transfers");
        let numbers = store::counted_from(&transaction, &found).await?;
        let read = blocks(&transaction, "payment_parts").await? - after;
        ensure!(numbers == HashMap::from([(PaymentId(many), 7)]) && read <= 20, "{mode}: {read} blocks for {numbers:?}");
    }
    Ok(())
}

/// A transfer in each of many blocks, to the payment of this number.
fn transfers(payment: &str) -> String {
    format!(
        "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
             transaction_index, sender, amount, credited, listed)
         SELECT 1, sha256(int4send(i)), sha256(int4send(-i)), 'log', 0, lpad(to_hex({payment}), 32, '0')::uuid, i, i, 0,
             decode(repeat('ee', 20), 'hex'), 1, true, true
         FROM generate_series(2, 60500) AS i"
    )
}

/// The parts that they are.
fn parts(first: u32, last: u32) -> String {
    format!(
        "INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due)
         SELECT payment_id, chain_id, block_hash, block_number, block_timestamp, 1, 1, block_number FROM transfers
         WHERE chain_id = 1 AND block_number BETWEEN {first} AND {last}"
    )
}

/// What a connection's statements cost by the planner's count. From some cost on a plan is compiled at each call.
async fn costs(client: &mut Client, like: &str) -> Result<Vec<f64>> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL plan_cache_mode = force_generic_plan").await?;
    let sql =
        "SELECT format('EXPLAIN (FORMAT JSON) EXECUTE %I (NULL%s)', name, repeat(', NULL', cardinality(parameter_types) - 1))
               FROM pg_prepared_statements WHERE statement LIKE $1";
    let mut costs = Vec::new();
    for row in transaction.query(sql, &[&like]).await? {
        let plan: serde_json::Value = transaction.query_one(row.get::<_, &str>(0), &[]).await?.get(0);
        costs.extend(plan[0]["Plan"]["Total Cost"].as_f64());
    }
    Ok(costs)
}

/// Blocks of payments and transfers that this transaction has read so far.
async fn read(db: &impl GenericClient) -> Result<i64> {
    Ok(blocks(db, "payments").await? + blocks(db, "transfers").await?)
}

/// Filters of which many find nothing, or what is oldest.
fn filters() -> Vec<PaymentFilter> {
    let mut filters = Vec::new();
    for status in [None, Some(Status::Expired), Some(Status::Detected)] {
        for exception in [None, Some(Exception::Underpaid), Some(Exception::Late)] {
            for chain in [None, Some(ChainId(1)), Some(ChainId(2))] {
                for token in [None, Some("USDC".to_owned()), Some("DAI".to_owned())] {
                    for external_id in [None, Some("shop".to_owned())] {
                        let (token, all) = (token.clone(), PaymentFilter::default());
                        filters.push(PaymentFilter { status, exception, chain, token, external_id, ..all });
                    }
                }
            }
        }
    }
    // With what finds few, all others are looked at one by one.
    let address = Some(Address::with_last_byte(7));
    let transaction = Some(B256::from_slice(&Sha256::digest(7_i32.to_be_bytes())));
    let few = [(address, None), (None, transaction), (address, transaction)];
    let beside = filters
        .clone()
        .into_iter()
        .flat_map(|filter| few.map(|(address, transaction)| PaymentFilter { address, transaction, ..filter.clone() }));
    filters.extend(beside.collect::<Vec<_>>().into_iter().step_by(7));
    filters.extend(few.map(|(address, transaction)| PaymentFilter { address, transaction, ..PaymentFilter::default() }));
    filters
}

#[tokio::test]
async fn deliveries_of_a_rare_state_and_of_a_late_hour_are_found_at_once() -> Result<()> {
    let pool = large(DELIVERIES).await?;
    let mut client = pool.get().await?;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}")).await?;
        for state in STATES.map(Some).into_iter().chain([None]) {
            let before = blocks(&transaction, "webhook_deliveries").await?;
            let found = deliveries::list(&transaction, ENDPOINT, state, i64::MAX, LIMIT).await?;
            let read = blocks(&transaction, "webhook_deliveries").await? - before;
            // Each row is read as well.
            ensure!(read <= MAX_BLOCKS + LIMIT * 2, "{mode}: {read} blocks for {} deliveries, {state:?}", found.len());
            let expected = if matches!(state, Some("failed" | "delivered")) { 5 } else { LIMIT };
            ensure!(i64::try_from(found.len())? == expected, "{state:?}: {}", found.len());
            ensure!(found.windows(2).all(|pair| pair[0].id > pair[1].id), "{state:?} in order");
            ensure!(found.iter().all(|one| one.body.as_deref() == Some("{}")), "{state:?} with their messages");
        }
    }
    drop(client);
    let at = |second: i64| OffsetDateTime::from_unix_timestamp(second);
    let filter = RedeliverFilter::CreatedBetween { from: at(59_991)?, before: at(59_996)? };
    let before = blocks_of_index(&pool).await?;
    let again = deliveries::redeliver(&pool, MERCHANT, ENDPOINT, &filter, RedeliverCursor::START).await?;
    let read = blocks_of_index(&pool).await? - before;
    ensure!(again.is_some_and(|(count, rest)| count == 5 && rest.is_none()), "{again:?}");
    ensure!(read <= MAX_BLOCKS, "{read} blocks for five deliveries of a range");
    Ok(())
}

async fn database() -> Result<String> {
    Stack::attach()?.create_migrated(&format!("lists_{}", Uuid::new_v4().simple())).await
}

async fn large(rows: &str) -> Result<Pool> {
    let pool = db::pool(&database().await?, 1)?;
    let client = pool.get().await?;
    client.execute("INSERT INTO merchants (id, name) VALUES ($1, 'large')", &[&MERCHANT]).await?;
    // VACUUM does not run with others.
    for statement in rows.split(';') {
        client.batch_execute(statement).await?;
    }
    Ok(pool)
}

/// Blocks of a table and its indexes that this transaction has read so far.
pub async fn blocks(db: &impl GenericClient, table: &str) -> Result<i64> {
    let sql = "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class
               WHERE oid = $1::text::regclass OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = $1::text::regclass)";
    Ok(db.query_one(sql, &[&table]).await?.get(0))
}

/// Blocks of the index by time that were ever read.
async fn blocks_of_index(pool: &Pool) -> Result<i64> {
    let client = pool.get().await?;
    client.batch_execute("SELECT pg_stat_force_next_flush()").await?;
    let sql = "SELECT idx_blks_read + idx_blks_hit FROM pg_statio_user_indexes WHERE indexrelname = 'webhook_deliveries_made'";
    Ok(client.query_one(sql, &[]).await?.get(0))
}
