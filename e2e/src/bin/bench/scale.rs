//! A database of many payments: how long each list, read and cancellation takes, and payments created and blocks confirmed per second
//! beside a database that is empty.

use crate::api::{TIME, load};
use crate::confirmer::{Blocks, ChainName, fold_in};
use crate::figure::{Figure, quantile};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};
use uuid::Uuid;

const PAYMENTS: u64 = 20_000_000;
/// Payments written in one transaction.
const SLICE: u64 = 200_000;
const REQUESTS: usize = 200;
/// Chains beside the lab's. Nobody answers there, and nobody is asked.
const CHAINS: [(&str, u64); 4] = [("one", 1), ("two", 137), ("three", 8453), ("four", 42161)];
/// Each with two payments that it pays in full.
const CONFIRMED_BLOCKS: u64 = 10_000;
/// Not counted: a database that has run for a while holds its random-access pages, such as those of the index of addresses, in memory, and
/// has logged them whole since the last checkpoint.
const WARM_UP: Duration = Duration::from_secs(60);
const WARM_UP_BLOCKS: u64 = 30_000;

pub async fn run() -> Result<Vec<Figure>> {
    let payments = match std::env::var("CTRIP_SCALE_PAYMENTS") {
        Ok(number) => number.parse().context("CTRIP_SCALE_PAYMENTS: expected a number of payments")?,
        Err(_) => PAYMENTS,
    };
    eprintln!("scale: {payments} payments");
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_RATE_LIMIT".to_owned(), "0".to_owned());
    lab.env.insert("WEBHOOK_ALLOW_NETWORKS".to_owned(), "127.0.0.1".to_owned());
    add_chains(&lab)?;
    let mut server = lab.spawn("api")?;
    let (large, small) = (lab.merchant("scale 1")?, lab.merchant("scale 2")?);
    large.ready(&mut server).await?;
    let empty = creates(&large).await?;
    let webhook = json!({ "url": "https://127.0.0.1/" });
    let (_, webhook) = large.request(Method::POST, "/api/v1/webhooks", Some(webhook), &[]).await?;
    server.terminate()?;
    let empty_confirms = confirms(&lab, 1).await?;

    fill(&lab, payments).await?;
    let mut server = lab.spawn("api")?;
    large.ready(&mut server).await?;
    let size = lab.database().await?.query_one("SELECT pg_database_size(current_database()) / 1000000", &[]).await?;
    let mut figures = vec![
        Figure::new("scale_payments", as_f64(payments), "payments", "20000000"),
        Figure::new("scale_database_mb", as_f64(u64::try_from(size.get::<_, i64>(0))?), "MB", "-"),
    ];
    for (name, paths) in reads(payments, webhook["id"].as_str().context("the webhook's id")?) {
        figures.push(timed(name, Method::GET, &large, &paths).await?);
    }
    // Of one in a hundred.
    let lists = ["?status=detected&chain=two", "?status=detected&token=DAI", "?limit=50"]
        .map(|query| format!("/api/v1/payments{query}"));
    figures.push(timed("scale_small_merchant_ms_p99", Method::GET, &small, &lists).await?);
    figures.push(timed("scale_cancel_ms_p99", Method::POST, &large, &pending(&lab).await?).await?);
    let full = creates(&large).await?;
    server.terminate()?;
    let confirms = confirms(&lab, 2).await?;
    figures.extend([
        Figure::new("scale_creates_per_s_empty", empty, "payments/s", "-"),
        Figure::new("scale_creates_per_s", full, "payments/s", "-"),
        Figure::new("scale_creates_to_empty", full / empty, "ratio", "0.9"),
        Figure::new("scale_confirmer_blocks_per_s_empty", empty_confirms, "blocks/s", "-"),
        Figure::new("scale_confirmer_blocks_per_s", confirms, "blocks/s", "-"),
        Figure::new("scale_confirmer_flatness", empty_confirms / confirms, "ratio", "1.2"),
    ]);
    Ok(figures)
}

fn add_chains(lab: &Lab) -> Result<()> {
    let mut yaml = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    for (name, id) in CHAINS {
        yaml += &format!(
            "- name: {name}\n  chain_id: {id}\n  rpc_url: http://127.0.0.1:1\n  confirmations: 3\n  tokens:\n    - {{ symbol: USDC, address: \"0x{}\", decimals: 6 }}\n    - {{ symbol: DAI, address: \"0x{}\", decimals: 6 }}\n",
            "11".repeat(20),
            "12".to_owned() + &"11".repeat(19)
        );
    }
    lab.write_chains(&yaml)
}

/// Payments created per second by the clients of the API's bench.
async fn creates(api: &Api) -> Result<f64> {
    load(api, WARM_UP, None).await?;
    Ok(load(api, TIME, None).await?.0)
}

/// Blocks confirmed per second, in the first or the second turn.
async fn confirms(lab: &Lab, turn: u64) -> Result<f64> {
    let (name, id) = CHAINS[3];
    let count = WARM_UP_BLOCKS + CONFIRMED_BLOCKS;
    let blocks = Blocks { first: (turn - 1) * count + 1, last: turn * count, matches: 2, warm: WARM_UP_BLOCKS };
    fold_in(lab, ChainName { id, name }, count * 2, blocks).await
}

/// What a bulk load leaves for later: single rows come to most indexes in no order, and would have the disk read for each once the
/// indexes outgrow the memory. The script itself needs two of them.
const PUT_INDEXES_OFF: &str = "
    SET synchronous_commit = off;
    SET session_replication_role = replica;
    SET maintenance_work_mem = '1GB';
    CREATE TEMPORARY TABLE put_off AS
        SELECT indexname AS name, indexdef AS definition FROM pg_indexes
        WHERE tablename IN ('payments', 'transfers', 'payment_parts', 'webhook_deliveries', 'webhook_messages')
            AND indexname NOT IN ('payments_address_index', 'transfers_of_payment')
            AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexname::regclass);
    DO $$ DECLARE put_off_index record; BEGIN
        FOR put_off_index IN SELECT name FROM put_off LOOP EXECUTE format('DROP INDEX %I', put_off_index.name); END LOOP;
    END $$";
const BUILD_INDEXES: &str = "
    DO $$ DECLARE put_off_index record; BEGIN
        FOR put_off_index IN SELECT definition FROM put_off LOOP EXECUTE put_off_index.definition; END LOOP;
    END $$";

/// Runs the script, slice by slice.
async fn fill(lab: &Lab, payments: u64) -> Result<()> {
    let database = lab.database().await?;
    let record: Vec<u8> = database.query_one("SELECT record FROM payment_events LIMIT 1", &[]).await?.get(0);
    // The statements before are short; each of these writes for minutes.
    database
        .batch_execute(
            "INSERT INTO xpubs (fingerprint, index_sequence) VALUES ('scale', 'scale');
             INSERT INTO merchants (id, name) SELECT gen_random_uuid(), 'scale ' || n FROM generate_series(3, 50) AS n;
             INSERT INTO deposit_addresses (id, merchant_id, external_id, address, xpub, address_index, created_at)
                 SELECT lpad(to_hex(n), 32, '0')::uuid, (SELECT id FROM merchants WHERE name = 'scale 1'), 'customer-' || n,
                     decode(md5('d' || n) || repeat('ff', 4), 'hex'), 'scale', 2000000000 + n, 1
                 FROM generate_series(0, 999) AS n",
        )
        .await?;
    database.batch_execute(PUT_INDEXES_OFF).await?;
    let started = Instant::now();
    for first in (1..=payments).step_by(usize::try_from(SLICE)?) {
        let last = payments.min(first + SLICE - 1);
        let script = include_str!("scale.sql")
            .replace(":first", &first.to_string())
            .replace(":last", &last.to_string())
            .replace(":total", &payments.to_string())
            .replace(":record", &hex::encode(&record));
        database.batch_execute(&script).await?;
        eprintln!("  {last} payments after {:.0} s", started.elapsed().as_secs_f64());
    }
    for statement in [BUILD_INDEXES, "VACUUM ANALYZE", "CHECKPOINT"] {
        database.batch_execute(statement).await?;
        eprintln!("  {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Each kind of request, by the name of its figure: of the merchant that has every second payment.
fn reads(payments: u64, webhook: &str) -> Vec<(&'static str, Vec<String>)> {
    // Spread over all.
    let payment = |n: u64| Uuid::from_u128(u128::from(2 * (1 + n * 7919 % (payments / 2))));
    let some = |path: &dyn Fn(u64) -> String| (0..u64::try_from(REQUESTS).unwrap_or_default()).map(path).collect::<Vec<_>>();
    let of_payment = |rest: &'static str| some(&|n| format!("/api/v1/payments/{}{rest}", payment(n)));
    let list = |query: &'static str| vec![format!("/api/v1/payments{query}")];
    vec![
        ("scale_get_ms_p99", of_payment("")),
        ("scale_events_ms_p99", of_payment("/events")),
        ("scale_transfers_ms_p99", of_payment("/transfers")),
        ("scale_list_ms_p99", list("?limit=50")),
        ("scale_list_200_ms_p99", list("?limit=200")),
        ("scale_list_by_time_ms_p99", list("?created_before=2000-01-01T00:00:00Z")),
        ("scale_list_status_ms_p99", list("?status=detected")),
        ("scale_list_chain_ms_p99", list("?chain=four")),
        ("scale_list_token_ms_p99", list("?token=DAI")),
        ("scale_list_status_chain_ms_p99", list("?status=detected&chain=two")),
        ("scale_list_status_token_ms_p99", list("?status=detected&token=DAI")),
        ("scale_list_chain_token_ms_p99", list("?chain=two&token=DAI")),
        ("scale_list_all_filters_ms_p99", list("?status=cancelled&chain=two&token=DAI&created_from=2020-01-01T00:00:00Z")),
        ("scale_list_external_id_ms_p99", some(&|n| format!("/api/v1/payments?external_id=order-{}&chain=two", 2 * n + 2))),
        ("scale_addresses_ms_p99", vec!["/api/v1/addresses?limit=50".to_owned()]),
        ("scale_deposits_ms_p99", some(&|n| format!("/api/v1/addresses/{}/deposits", deposit_address(n)))),
        ("scale_deliveries_ms_p99", vec![format!("/api/v1/webhooks/{webhook}/deliveries")]),
        ("scale_deliveries_failed_ms_p99", vec![format!("/api/v1/webhooks/{webhook}/deliveries?state=failed")]),
        ("scale_deliveries_pending_ms_p99", vec![format!("/api/v1/webhooks/{webhook}/deliveries?state=pending")]),
    ]
}

fn deposit_address(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n * 20 % 1000 + 10))
}

/// The paths that cancel some of the large merchant's pending payments.
async fn pending(lab: &Lab) -> Result<Vec<String>> {
    let sql = "SELECT id FROM payments WHERE xpub = 'scale' AND status = 'pending' AND deposit_address IS NULL
               AND merchant_id = (SELECT id FROM merchants WHERE name = 'scale 1') ORDER BY id LIMIT $1";
    let rows = lab.database().await?.query(sql, &[&i64::try_from(REQUESTS)?]).await?;
    Ok(rows.iter().map(|row| format!("/api/v1/payments/{}/cancel", row.get::<_, Uuid>(0))).collect())
}

/// One client, one request after the other.
async fn timed(name: &'static str, method: Method, api: &Api, paths: &[String]) -> Result<Figure> {
    ensure!(!paths.is_empty(), "{name}: there is nothing to ask for");
    let mut took = Vec::new();
    // A cancellation is asked for once.
    let requests = if method == Method::GET { REQUESTS } else { paths.len() };
    for path in paths.iter().cycle().take(requests) {
        let asked = Instant::now();
        let (status, answer) = api.request(method.clone(), path, None, &[]).await?;
        ensure!(status.is_success(), "{path}: {status} {answer}");
        took.push(asked.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Figure::new(name, quantile(&mut took, 0.99), "ms", "50"))
}

#[expect(clippy::cast_precision_loss, reason = "millions")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
