//! Blocks per second of the confirmer, from `chain.matches` into Postgres, with few and many pending payments.

use crate::figure::Figure;
use anyhow::{Result, ensure};
use e2e::{Lab, Plan};
use runtime::Kafka;
use runtime::kafka::TransactionalProducer;
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};
use topics::{Amount, Message as _, Topic, wire};

/// Enough that reading them takes seconds.
const BLOCKS: u64 = 300_000;
const BUSY_BLOCKS: u64 = 20_000;
/// 1 % of 200 transfers per block.
const MATCHES_A_BLOCK: u64 = 2;
const AMOUNT: u64 = 1_000;

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("confirmer: {BLOCKS} blocks with 10 to 1,000,000 pending payments");
    let mut figures = Vec::new();
    let mut rates = Vec::new();
    for (name, pending) in
        [("confirmer_blocks_per_s_10", 10), ("confirmer_blocks_per_s_10k", 10_000), ("confirmer_blocks_per_s_1m", 1_000_000)]
    {
        let rate = fold(pending, BLOCKS, 0).await?;
        figures.push(Figure::new(name, rate, "blocks/s", "flat within 1.2"));
        rates.push(rate);
    }
    if let (Some(few), Some(many)) = (rates.first(), rates.last()) {
        figures.push(Figure::new("confirmer_flatness", few / many, "ratio", "1.2"));
    }
    let busy = fold(BUSY_BLOCKS * MATCHES_A_BLOCK, BUSY_BLOCKS, MATCHES_A_BLOCK).await?;
    figures.push(Figure::new("confirmer_blocks_per_s_busy", busy, "blocks/s", "-"));
    Ok(figures)
}

/// Blocks per second with this many pending payments, of which each block pays some in full, in a database of their own.
async fn fold(pending: u64, blocks: u64, matches: u64) -> Result<f64> {
    let lab = Lab::start(Plan::default()).await?;
    lab.ctrip(&["keys", "create", "bench"])?;
    fold_in(&lab, ChainName { id: 31337, name: "anvil" }, pending, Blocks { first: 1, last: blocks, matches, warm: 0 }).await
}

#[derive(Clone, Copy)]
pub(crate) struct ChainName {
    pub(crate) id: u64,
    pub(crate) name: &'static str,
}

/// Each pays some payments in full.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) matches: u64,
    /// So many of the first ones are not counted.
    pub(crate) warm: u64,
}

/// Of a chain that nothing else writes to.
pub(crate) async fn fold_in(lab: &Lab, chain: ChainName, pending: u64, blocks: Blocks) -> Result<f64> {
    let database = lab.database().await?;
    database
        .execute("INSERT INTO xpubs (fingerprint, index_sequence) VALUES ('bench', 'bench') ON CONFLICT DO NOTHING", &[])
        .await?;
    let id = i64::try_from(chain.id)?;
    let first = i64::try_from((blocks.first - 1) * blocks.matches)?;
    let last = first + i64::try_from(pending)?;
    // Ids in the order of time and addresses in none, as the API makes them.
    database
        .execute(
            "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount, status,
                 confirmations_required, sequence, created_at, expires_at, updated_at)
             SELECT (lpad(to_hex(1700000000000 + i), 12, '0') || '7' || substr(md5(i::text), 1, 19))::uuid,
                 (SELECT id FROM merchants LIMIT 1), $4, $5, 18, substr(sha256(int8send(i)), 13), 'bench', i, $3::bigint, 'pending', 3,
                 1, 1, 1000000000 + i, 1
             FROM generate_series($1::bigint + 1, $2::bigint) AS i",
            &[&first, &last, &i64::try_from(AMOUNT)?, &id, &chain.name],
        )
        .await?;
    // As autovacuum and the checkpointer leave it; otherwise they would run during the measurement.
    for statement in ["VACUUM ANALYZE payments", "CHECKPOINT"] {
        database.batch_execute(statement).await?;
    }
    let kafka = lab.kafka().await?;
    let written = tokio::task::spawn_blocking(move || write_blocks(&kafka, chain.id, blocks));
    written.await??;

    let mut confirmer = lab.spawn("confirmer")?;
    let statement = database.prepare("SELECT number FROM chain_heads WHERE chain_id = $1 AND number >= $2").await?;
    let mut seen = None;
    let started = Instant::now();
    loop {
        let head = database
            .query_opt(&statement, &[&id, &i64::try_from(blocks.first + blocks.warm)?])
            .await?
            .map(|row| row.get::<_, i64>(0));
        if let Some(number) = head.map(u64::try_from).transpose()? {
            let (since, from) = *seen.get_or_insert((Instant::now(), number));
            if number >= blocks.last {
                confirmer.terminate()?;
                let confirmed =
                    "SELECT count(*) FROM payments WHERE xpub = 'bench' AND address_index > $1 AND status = 'confirmed'";
                let confirmed: i64 = database.query_one(confirmed, &[&first]).await?.get(0);
                // Those of the last two blocks are not deep enough.
                let expected = (blocks.last + 1 - blocks.first).saturating_sub(2) * blocks.matches;
                ensure!(u64::try_from(confirmed)? == expected, "{confirmed} payments are confirmed, expected {expected}");
                #[expect(clippy::cast_precision_loss, reason = "thousands")]
                return Ok((number - from) as f64 / since.elapsed().as_secs_f64());
            }
        }
        confirmer.check()?;
        ensure!(started.elapsed() < Duration::from_secs(600), "the head is {head:?} after ten minutes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn write_blocks(kafka: &Kafka, chain: u64, blocks: Blocks) -> Result<(), runtime::Failure> {
    let producer = TransactionalProducer::open(kafka, "bench-matches")?;
    for first in (blocks.first..=blocks.last).step_by(2_000) {
        let transaction = producer.begin()?;
        for number in first..=blocks.last.min(first + 1_999) {
            let record = block(chain, number, blocks.matches);
            transaction.send(Topic::Matches, &record.key(), &kafka.encode(&record))?;
        }
        transaction.commit()?;
    }
    Ok(())
}

fn block(chain_id: u64, number: u64, matches: u64) -> wire::MatchesRecord {
    let hash = |number: u64| Sha256::digest(number.to_be_bytes()).to_vec();
    let transfer = |place: u64| wire::matches_record::Transfer {
        transaction_hash: hash(number * 1_000 + place).into(),
        source: wire::matches_record::Source::Transaction.into(),
        index: 0,
        token: Vec::new().into(),
        from: vec![7; 20].into(),
        to: hash((number - 1) * matches + place + 1)[12..].to_vec().into(),
        amount: Amount::from(AMOUNT).to_wire().into(),
        transaction_index: u32::try_from(place).unwrap_or_default(),
    };
    wire::MatchesRecord {
        chain_id,
        sequence: number,
        kind: wire::matches_record::Kind::Added.into(),
        number,
        hash: hash(number).into(),
        parent_hash: hash(number - 1).into(),
        timestamp: number,
        safe_number: None,
        finalized_number: None,
        transfers: (0..matches).map(transfer).collect(),
        witnessed_number: Some(number),
        parent_number: None,
        part: 0,
        parts: 0,
    }
}
