//! A flood of dust to one payment, beside another merchant's payments in the same blocks: `chain.matches` is written block by block,
//! as the detector would, and a confirmer of its own folds it.

use crate::lab::{Lab, Plan};
use crate::process::memory_mb;
use anyhow::{Result, ensure};
use runtime::Kafka;
use runtime::kafka::TransactionalProducer;
use std::time::{Duration, Instant};
use topics::{Address, Amount, Message as _, Topic, wire};

const CONFIRMATIONS: u64 = 3;
/// What the other merchant asks for.
const AMOUNT: u64 = 1_000;

/// The flood.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Blocks that pay the other merchant once each, and the dust.
    pub blocks: u64,
    /// Transfers of one unit of a listed token in each, to the same payment.
    pub transfers: u64,
    /// Time from block to block.
    pub block_time: Duration,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Aftermath {
    /// The most memory that the confirmer had, in MB of 10^6 bytes.
    pub peak_memory_mb: f64,
    /// From the block that pays the other merchant to its confirmation; the longest.
    pub confirmed_after: Duration,
    /// Events of the payment that got the dust.
    pub events: i64,
}

impl Flood {
    /// The other merchant's payments alone.
    pub const fn without_dust(self) -> Self {
        Self { transfers: 0, ..self }
    }

    /// Lets it come down, and checks every sum.
    ///
    /// # Errors
    /// When a part does not start, or a sum is wrong.
    pub async fn run(self) -> Result<Aftermath> {
        let lab = Lab::start(Plan { confirmations: u32::try_from(CONFIRMATIONS)?, ..Plan::default() }).await?;
        let database = lab.database().await?;
        lab.ctrip(&["keys", "create", "flooded"])?;
        lab.ctrip(&["keys", "create", "other"])?;
        let token = self.insert_payments(&lab, &database).await?;
        let kafka = lab.kafka().await?;
        let mut confirmer = lab.spawn("confirmer")?;
        let sent = tokio::task::spawn_blocking(move || self.write_blocks(&kafka, token));
        let mut confirmed_after = Duration::ZERO;
        let last = self.blocks + CONFIRMATIONS - 1;
        let started = Instant::now();
        let mut confirmed_at = Vec::new();
        while confirmed_at.len() < usize::try_from(self.blocks)? {
            let confirmed = "SELECT count(*) FROM payments WHERE amount = 1000 AND status = 'confirmed'";
            let confirmed: i64 = database.query_one(confirmed, &[]).await?.get(0);
            confirmed_at.resize(usize::try_from(confirmed)?, Instant::now());
            confirmer.check()?;
            ensure!(started.elapsed() < Duration::from_secs(300), "{confirmed} payments are confirmed after five minutes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sent = sent.await??;
        for (sent, confirmed) in sent.iter().zip(&confirmed_at) {
            confirmed_after = confirmed_after.max(confirmed.duration_since(*sent));
        }
        let head: i64 = database.query_one("SELECT number FROM chain_heads", &[]).await?.get(0);
        ensure!(u64::try_from(head)? == last, "the head is {head}, expected {last}");
        let events = self.check(&database).await?;
        let peak_memory_mb = memory_mb(confirmer.id(), "VmHWM")?;
        confirmer.terminate()?;
        Ok(Aftermath { peak_memory_mb, confirmed_after, events })
    }

    /// Payment 0 gets the dust; payment n is paid by block n.
    async fn insert_payments(self, lab: &Lab, database: &tokio_postgres::Client) -> Result<Address> {
        let token = lab.node.token;
        database.batch_execute("INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('dust', 'dust', 'dust')").await?;
        database
            .execute(
                "INSERT INTO payments (id, merchant_id, chain_id, chain, token, token_address, decimals, address, xpub, address_index,
                     amount, status, confirmations_required, sequence, created_at, expires_at, updated_at)
                 SELECT gen_random_uuid(), (SELECT id FROM merchants WHERE name = CASE WHEN i = 0 THEN 'flooded' ELSE 'other' END),
                     31337, 'anvil', CASE WHEN i = 0 THEN 'DUST' END, CASE WHEN i = 0 THEN $3::bytea END,
                     CASE WHEN i = 0 THEN 6 ELSE 18 END, decode(lpad(to_hex(i + 1), 40, '0'), 'hex'), 'dust', i,
                     CASE WHEN i = 0 THEN 1000000000 ELSE $2::bigint END, 'pending', $4::integer, 1, 1, 1000000000, 1
                 FROM generate_series(0, $1::bigint) AS i",
                &[&i64::try_from(self.blocks)?, &i64::try_from(AMOUNT)?, &token.as_slice(), &i32::try_from(CONFIRMATIONS)?],
            )
            .await?;
        Ok(token)
    }

    /// Returns when each block was sent.
    fn write_blocks(self, kafka: &Kafka, token: Address) -> Result<Vec<Instant>, runtime::Failure> {
        let producer = TransactionalProducer::open(kafka, "dust")?;
        let mut sent: Vec<Instant> = Vec::new();
        for number in 1..=self.blocks + CONFIRMATIONS - 1 {
            let record = self.block(number, token);
            if let Some(last) = sent.last() {
                std::thread::sleep(self.block_time.saturating_sub(last.elapsed()));
            }
            let transaction = producer.begin()?;
            transaction.send(Topic::Matches, &record.key(), &kafka.encode(&record))?;
            transaction.commit()?;
            sent.push(Instant::now());
        }
        Ok(sent)
    }

    fn block(self, number: u64, token: Address) -> wire::MatchesRecord {
        let hash = |number: u64| number.to_be_bytes().repeat(4);
        let transfer = |index: u32, to: u64, token: Vec<u8>, amount: u64| wire::matches_record::Transfer {
            transaction_hash: hash(number).into(),
            source: wire::matches_record::Source::Log.into(),
            index,
            token: token.into(),
            from: vec![7; 20].into(),
            to: Address::left_padding_from(&(to + 1).to_be_bytes()).to_vec().into(),
            amount: Amount::from(amount).to_wire().into(),
            transaction_index: 0,
        };
        let transfers = if number > self.blocks {
            Vec::new()
        } else {
            let dust = (0..self.transfers).map(|i| transfer(u32::try_from(i).unwrap_or(u32::MAX), 0, token.to_vec(), 1));
            dust.chain([transfer(u32::MAX, number, Vec::new(), AMOUNT)]).collect()
        };
        wire::MatchesRecord {
            chain_id: 31337,
            sequence: number,
            kind: wire::matches_record::Kind::Added.into(),
            number,
            hash: hash(number).into(),
            parent_hash: hash(number - 1).into(),
            timestamp: number,
            safe_number: None,
            finalized_number: None,
            witnessed_number: Some(number),
            parent_number: None,
            transfers,
            part: 0,
            parts: 0,
        }
    }

    /// Every unit is in the sums and has its row. Returns how many events told of them.
    async fn check(self, database: &tokio_postgres::Client) -> Result<i64> {
        let flooded = "SELECT id, amount_received::text, confirmed::text, sequence - 1,
                 (SELECT count(*) FROM transfers t WHERE t.payment_id = p.id), (SELECT count(*) FROM payment_parts t WHERE t.payment_id = p.id)
             FROM payments p WHERE amount = 1000000000";
        let row = database.query_one(flooded, &[]).await?;
        let expected = (self.blocks * self.transfers).to_string();
        let sums = [row.get::<_, String>(1), row.get::<_, String>(2), row.get::<_, i64>(4).to_string()];
        ensure!(sums.iter().all(|sum| *sum == expected), "{sums:?} received, confirmed and in rows, expected {expected}");
        let parts: i64 = row.get(5);
        let blocks = if self.transfers > 0 { self.blocks } else { 0 };
        ensure!(u64::try_from(parts)? == blocks, "{parts} parts of {blocks} blocks");
        Ok(row.get(3))
    }
}
