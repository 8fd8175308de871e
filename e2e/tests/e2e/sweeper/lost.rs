//! `sweep.events` or Postgres has lost what it had, or both have.

use super::{FINAL, QUEUED_AGAIN, Sweeping, tell};
use ::sweeper::engine::content::{Content, SignedBytes};
use ::sweeper::engine::fees::Fees;
use ::sweeper::keys::{LocalKey, Signer as _};
use ::sweeper::plan::store::past;
use alloy::primitives::{Address, keccak256};
use anyhow::{Context as _, Result, ensure};
use deadpool_postgres::Client;
use e2e::{Backup, KafkaAdmin, Process, eventually, records};
use std::collections::BTreeMap;
use topics::wire::SweepEvent;
use topics::{ChainId, Topic};
use uuid::Uuid;

impl Sweeping {
    /// Pays so many addresses, and has what is there swept by a sweeper, until it is told as final.
    async fn swept(&self, count: usize) -> Result<(Vec<Address>, Vec<Uuid>, Process)> {
        let (senders, mut sweeps) = (self.paid(count).await?, Vec::new());
        for sender in &senders {
            sweeps.push(self.queue(*sender).await?);
        }
        let sweeper = self.sweeper()?;
        let mined = i64::try_from(count)?;
        self.until_mined(mined).await?;
        self.lab.node.mine(FINAL).await?;
        self.until_final(count).await?;
        eventually("that to be noted", async || {
            let db = self.pool()?.get().await?;
            let noted = db.query_one("SELECT count(*) FROM outgoing WHERE announced = 'final'", &[]).await?;
            Ok((noted.get::<_, i64>(0) >= mined).then_some(()))
        })
        .await?;
        Ok((senders, sweeps, sweeper))
    }

    /// Waits until a sweeper refuses the topic, and says what it says to say.
    async fn accept(&self, sweeper: &Process, db: &Client) -> Result<()> {
        let command = eventually("it to refuse the topic", async || {
            let log = sweeper.log().replace('\\', "");
            let command = log.rsplit("INSERT INTO outgoing_restored").next().filter(|rest| rest.len() < log.len());
            Ok(command
                .and_then(|rest| Some(format!("INSERT INTO outgoing_restored{}", rest.split("excluded.accepted").next()?))))
        })
        .await?;
        Ok(db.batch_execute(&format!("{command}excluded.accepted")).await?)
    }

    async fn noted(&self) -> Result<i64> {
        let db = self.pool()?.get().await?;
        let row = db.query_one("SELECT coalesce(sum(next_offset), 0)::bigint FROM outgoing_compared", &[]).await?;
        Ok(row.get(0))
    }
}

/// Retention, or somebody who deletes records; or the topic is made anew, and nothing says how much it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_has_lost_records_is_refused_and_then_gets_what_postgres_has() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let (senders, sweeps, mut sweeper) = sweeping.swept(1).await?;
    eventually("how far the topic has grown to be noted", async || Ok((sweeping.noted().await? >= 2).then_some(()))).await?;
    sweeper.kill()?;
    let key = format!("31337/{}", sweeps[0]);
    let admin = KafkaAdmin::of(&sweeping.lab)?;
    let end = admin.end(Topic::Sweeps, &key)?;
    admin.delete_before(Topic::Sweeps, &key, end).await?;
    let db = sweeping.pool()?.get().await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.accept(&sweeper, &db).await?;
    ensure!(admin.end(Topic::Sweeps, &key)? == end, "nothing is written before a person has looked");
    eventually("both records to be there again", async || Ok((admin.end(Topic::Sweeps, &key)? >= end + 2).then_some(())))
        .await?;
    sweeping.check(&senders).await?;
    sweeper.kill()?;

    admin.make_anew(Topic::Sweeps).await?;
    // As a backup has it that knows of the transaction, and not of the topic's end.
    db.execute("UPDATE outgoing_compared SET begins = 0, next_offset = 0", &[]).await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.accept(&sweeper, &db).await?;
    ensure!(sweeper.log().contains("lacks 1 signed transactions and 1 outcomes"), "{}", sweeper.tail());
    ensure!(admin.end(Topic::Sweeps, &key)? == 0, "nothing is written before a person has looked");
    eventually("both records to be there again", async || Ok((admin.end(Topic::Sweeps, &key)? >= 2).then_some(()))).await?;
    sweeping.check(&senders).await?;
    sweeper.check()
}

/// As when a broker has lost its disk: nobody restarts the sweeper.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_while_the_sweeper_runs_is_noticed() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let (.., mut sweeper) = sweeping.swept(1).await?;
    eventually("how far the topic has grown to be noted", async || Ok((sweeping.noted().await? >= 2).then_some(()))).await?;
    KafkaAdmin::of(&sweeping.lab)?.make_anew(Topic::Sweeps).await?;
    let db = sweeping.pool()?.get().await?;
    sweeping.accept(&sweeper, &db).await?;
    sweeper.check()
}

/// Written again, what was signed comes behind what became of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_behind_its_own_outcome_is_read_and_what_was_never_signed_is_nothing_to_put_back() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let backup = Backup::take(&sweeping.lab)?;
    let (senders, _, mut sweeper) = sweeping.swept(1).await?;
    sweeper.kill()?;
    let mut all = records::<SweepEvent>(&sweeping.lab).await?;
    all.sort_by_key(|event| event.r#type != "sweep.final");
    let unsigned = SweepEvent {
        id: "swe_none".to_owned(),
        r#type: "sweep.dropped".to_owned(),
        transaction_id: Uuid::new_v4().to_string(),
        block: None,
        transaction_hash: Vec::new().into(),
        raw: Vec::new().into(),
        ..all[0].clone()
    };
    KafkaAdmin::of(&sweeping.lab)?.make_anew(Topic::Sweeps).await?;
    all.push(unsigned);
    tell(&sweeping.lab, &all).await?;
    backup.restore(&sweeping.lab).await?;
    let mut sweeper = sweeping.sweeper()?;
    eventually("it to be final again", async || {
        Ok((sweeping.states().await.unwrap_or_default() == BTreeMap::from([("final".to_owned(), 1)])).then_some(()))
    })
    .await?;
    eventually("it to have been compared", async || Ok(sweeper.log().contains("Postgres has all").then_some(()))).await?;
    ensure!(sweeper.log().contains("what became of 1;"), "{}", sweeper.log());
    let aside = sweeping.lab.ctrip(&["set-aside"])?;
    ensure!(!aside.contains("sweep"), "{aside}");
    sweeping.check(&senders).await?;
    sweeper.check()
}

/// Its treasury became another one, so it was planned anew; the backup does not know that.
#[tokio::test(flavor = "multi_thread")]
async fn sweeps_that_were_dropped_to_be_planned_anew_do_not_stop_a_restored_chain() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let db = sweeping.pool()?.get().await?;
    for sender in 1..=3 {
        let sender = Address::repeat_byte(sender);
        let sweep = sweeping.queue(sender).await?;
        let sql =
            "INSERT INTO sweeps (id, chain_id, address, token_address, merchant_id, amount, treasury, way, arrived, outgoing)
                   SELECT $1, 31337, $2, '', (SELECT id FROM merchants LIMIT 1), 1, $3, 'coin', 1, id
                   FROM outgoing WHERE idempotency_key = $4";
        let former = Address::repeat_byte(9);
        db.execute(sql, &[&sweep, &sender.as_slice(), &former.as_slice(), &format!("sweep:{sweep}")]).await?;
    }
    drop(db);
    let backup = Backup::take(&sweeping.lab)?;
    let mut sweeper = sweeping.sweeper()?;
    eventually("all to be dropped and told", async || {
        let events = records::<SweepEvent>(&sweeping.lab).await?;
        Ok((events.iter().filter(|event| event.r#type == "sweep.dropped").count() == 3).then_some(()))
    })
    .await?;
    sweeper.kill()?;
    backup.restore(&sweeping.lab).await?;
    let mut sweeper = sweeping.sweeper()?;
    eventually("all to be dropped again", async || {
        Ok((sweeping.states().await.unwrap_or_default().get("dropped") == Some(&3)).then_some(()))
    })
    .await?;
    let db = sweeping.pool()?.get().await?;
    let aside: i64 = db.query_one("SELECT count(*) FROM sweeps WHERE set_aside OR NOT put_back", &[]).await?.get(0);
    let past = past(&db, ChainId(31337), sweeping.treasury).await?;
    ensure!(aside == 0 && !past.is_vain, "{aside} are set aside: {past:?}");
    // What was signed, or has failed, waits for a person; the chain does not.
    db.execute("UPDATE sweeps SET set_aside = true", &[]).await?;
    ensure!(!past_of(&db, &sweeping).await?);
    db.execute("UPDATE sweeps SET put_back = false, replan = false", &[]).await?;
    ensure!(past_of(&db, &sweeping).await?, "three of its own stop it");
    sweeper.check()
}

async fn past_of(db: &Client, sweeping: &Sweeping) -> Result<bool> {
    Ok(past(db, ChainId(31337), sweeping.treasury).await?.is_vain)
}

/// While it waits for a lane, a part of what it has compared already goes back to before.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_restored_in_place_while_it_is_compared_is_compared_anew() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let (senders, sweeps, mut sweeper) = sweeping.swept(2).await?;
    sweeper.kill()?;
    let forget = async |db: &Client, sweep: Uuid| -> Result<()> {
        let of = format!("(SELECT id FROM outgoing WHERE idempotency_key = 'sweep:{sweep}')");
        let sql = format!(
            "BEGIN; DELETE FROM outgoing_attempts WHERE outgoing = {of};
             UPDATE outgoing SET state = 'queued', nonce = NULL, due_at = 0, mined_hash = NULL, block_hash = NULL,
                 block_number = NULL, succeeded = NULL, announced = NULL WHERE id = {of};
             DELETE FROM outgoing_nonces WHERE outgoing = {of}; COMMIT"
        );
        Ok(db.batch_execute(&sql).await?)
    };
    let pool = sweeping.pool()?;
    let (mut holding, db) = (pool.get().await?, pool.get().await?);
    forget(&db, sweeps[0]).await?;
    let lane = holding.transaction().await?;
    lane.execute("SELECT FROM outgoing_lanes WHERE sender = $1 FOR UPDATE", &[&senders[0].as_slice()]).await?;
    let mut sweeper = sweeping.sweeper()?;
    eventually("it to wait for the lane", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                       AND query LIKE '%outgoing_lanes%'";
        let waits: i64 = db.query_one(sql, &[]).await?.get(0);
        Ok((waits > 0).then_some(()))
    })
    .await?;
    forget(&db, sweeps[1]).await?;
    // A second of its time.
    db.execute("UPDATE stage_offsets SET next_offset = next_offset - 1 WHERE stage = 'sweeper' AND next_offset > 0", &[])
        .await?;
    lane.commit().await?;
    eventually("both to be final again", async || Ok((sweeping.states().await?.get("final") == Some(&2)).then_some(())))
        .await?;
    ensure!(sweeper.log().contains("when it began to be compared"), "{}", sweeper.tail());
    sweeping.check(&senders).await?;
    sweeper.check()
}

/// The same database has all, and then less, before its gate is opened.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_lose_rows_as_they_are_compared_are_compared_again() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let senders = sweeping.paid(2).await?;
    let backup = Backup::take(&sweeping.lab)?;
    for sender in &senders {
        sweeping.queue(*sender).await?;
    }
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_mined(2).await?;
    sweeping.lab.node.mine(FINAL).await?;
    sweeping.until_final(senders.len()).await?;
    sweeper.kill()?;
    backup.restore(&sweeping.lab).await?;
    let pool = sweeping.pool()?;
    let (mut notes, db) = (pool.get().await?, pool.get().await?);
    // It notes that all is compared, and so it waits once it has put back what is lacking.
    let held = notes.transaction().await?;
    held.batch_execute("LOCK TABLE outgoing_restored IN EXCLUSIVE MODE").await?;
    let mut sweeper = sweeping.sweeper()?;
    let are_final = async || {
        let count: i64 = db.query_one("SELECT count(*) FROM outgoing WHERE state = 'final'", &[]).await?.get(0);
        Ok((count == 2).then_some(()))
    };
    eventually("what became of them to be put back", are_final).await?;
    db.batch_execute(QUEUED_AGAIN).await?;
    held.commit().await?;
    eventually("it to be put back once more", are_final).await?;
    sweeping.check(&senders).await?;
    sweeper.check()
}

/// It is of another request than the row: nothing of it is put back.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_set_aside_says_nothing_of_its_sweep() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let key = LocalKey::new(&keccak256(b"cancels").0)?;
    let (sender, db) = (key.address(), sweeping.pool()?.get().await?);
    let sweep = sweeping.queue(sender).await?;
    let sql = "INSERT INTO sweeps (id, chain_id, address, token_address, merchant_id, amount, treasury, way, arrived, outgoing)
               SELECT $1, 31337, $2, '', (SELECT id FROM merchants LIMIT 1), 1, $3, 'coin', 1, id
               FROM outgoing WHERE idempotency_key = $4 RETURNING outgoing";
    let (treasury, idempotency_key) = (sweeping.treasury.to_vec(), format!("sweep:{sweep}"));
    let outgoing: Uuid = db.query_one(sql, &[&sweep, &sender.as_slice(), &treasury, &idempotency_key]).await?.get(0);
    let nothing = Content::nothing(sender).unsigned(ChainId(31337), 0, Fees { tip: 1, cap: 2 }).context("a transaction")?;
    let signature = key.sign_transaction(&nothing).await?;
    let SignedBytes { hash, raw } = SignedBytes::new(nothing, signature, sender).context("its bytes")?;
    let cancel = SweepEvent {
        id: "swe_cancel".to_owned(),
        r#type: "sweep.signed".to_owned(),
        sweep_id: sweep.to_string(),
        transaction_id: outgoing.to_string(),
        chain_id: 31337,
        chain: "anvil".to_owned(),
        kind: "sweep".to_owned(),
        sender: sender.to_vec().into(),
        transaction_hash: hash.to_vec().into(),
        raw: raw.to_vec().into(),
        cancels: true,
        idempotency_key,
        request_hash: vec![7; 32].into(),
        occurred_at: 1_700_000_000,
        ..SweepEvent::default()
    };
    tell(&sweeping.lab, &[cancel]).await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_compared().await?;
    let aside = sweeping.lab.ctrip(&["set-aside"])?;
    ensure!(aside.contains(&outgoing.to_string()) && aside.contains("something else"), "{aside}");
    let put_back: bool = db.query_one("SELECT put_back FROM sweeps WHERE id = $1", &[&sweep]).await?.get(0);
    ensure!(!put_back, "nothing of it was put back");
    sweeper.check()
}
