//! What happens beside a transaction of Postgres that is under way: each waits for the other, and nothing that one wrote is
//! undone by the other.

use super::rig::{CHAIN, DEPTH, PACE, Rig, applied, ensure_all, somebody_waits};
use alloy::primitives::{Address, B256, Bytes};
use anyhow::{Context as _, Result, bail, ensure};
use deadpool_postgres::{GenericClient, Pool};
use e2e::eventually;
use std::future::Future;
use sweeper::engine::answers::Answer;
use sweeper::engine::content::SignedBytes;
use sweeper::engine::fees::Fees;
use sweeper::engine::fold::{ChainEvent, apply_chain_event, drop_outgoing};
use sweeper::engine::history::SeenTransaction;
use sweeper::engine::outgoing::{Input, Mined, Moment, Order, Outgoing, Phase};
use sweeper::engine::restored::{Ended, Outcome, freeze_lane, take_outcome};
use sweeper::engine::rows::Stored;
use sweeper::engine::step::step;
use sweeper::engine::store::{Queued, block_to_count, load, lock, save, set_counted, store_attempt};
use sweeper::keys::Signer as _;
use sweeper::reading;
use topics::BlockRef;
use topics::wire::BlockRecord;
use topics::wire::block_record::{Kind, Transaction};
use uuid::Uuid;

/// Above what the rig's node has.
fn block(number: u64) -> BlockRef {
    BlockRef { number: 1_000 + number, hash: B256::with_last_byte(number.to_be_bytes()[7]) }
}

fn transaction(from: Address, hash: B256, nonce: u64) -> SeenTransaction {
    SeenTransaction { hash, from, nonce, succeeded: None, gas_used: None, gas_price: None }
}

async fn queued(rig: &Rig) -> Result<Uuid> {
    let queued = rig.queue(0).await?;
    let Queued::New(id) = queued else { bail!("{queued:?}") };
    Ok(id)
}

async fn stored(db: &impl GenericClient, id: Uuid) -> Result<Stored> {
    load(db, &[id]).await?.pop().context("its row")
}

/// Applies an input to a row whose lane is locked.
async fn apply(db: &impl GenericClient, Stored { id, outgoing, .. }: &Stored, input: &Input) -> Result<()> {
    let moment = Moment { time: 2_000, market: None, is_lowest: true, blocks: 0, pace: PACE };
    Ok(save(db, *id, outgoing, &step(outgoing, input, &moment)?.next, &PACE).await?)
}

/// Begins with `other`, and returns it when it waits for a lock, or has ended.
async fn begun<T: Send + 'static>(
    pool: &Pool,
    other: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<tokio::task::JoinHandle<Result<T>>> {
    let (db, other) = (pool.get().await?, tokio::spawn(other));
    eventually("somebody who waits for a lock, or needs none", async || {
        Ok((somebody_waits(&db).await? || other.is_finished()).then_some(()))
    })
    .await?;
    Ok(other)
}

/// Applies an input to a row as the engine does, while `other` goes on beside, and returns what the row is then.
async fn beside(
    rig: &Rig,
    id: Uuid,
    input: &Input,
    other: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<Outgoing> {
    let mut db = rig.pool.get().await?;
    let tx = db.transaction().await?;
    lock(&tx, &rig.lane()).await?.context("the lane")?;
    let row = stored(&tx, id).await?;
    let other = begun(&rig.pool, other).await?;
    apply(&tx, &row, input).await?;
    tx.commit().await?;
    other.await??;
    Ok(stored(&db, id).await?.outgoing)
}

/// Each of them writes the whole row.
#[tokio::test]
async fn what_changes_a_row_beside_the_engine_is_not_undone_by_it() -> Result<()> {
    let mut rig = Rig::start().await?;
    let id = queued(&rig).await?;
    rig.turn(usize::MAX).await?;
    let hash = stored(&rig.pool.get().await?, id).await?.outgoing.attempts[0].hash;

    rig.apply(&ChainEvent::Added { block: block(1), transactions: vec![transaction(rig.key.address(), hash, 0)] }).await?;
    let (succeeded, gas_used, gas_price) = (Some(true), Some(21_000), Some(1));
    let receipt = Input::Receipt(Some(Mined { hash, block: block(1), succeeded, gas_used, gas_price }));
    let removed = beside(&rig, id, &receipt, applied(rig.pool.clone(), ChainEvent::Removed(block(1)))).await?;
    ensure!(removed.phase == Phase::Broadcast, "its block has left the chain: {removed:?}");

    let pool = rig.pool.clone();
    let answer = Input::Answer(hash, Answer::Accepted);
    let dropped = beside(&rig, id, &answer, async move { Ok(drop_outgoing(&pool, id, &PACE).await?) }).await?;
    ensure!(dropped.dropping, "it is not wanted any more: {dropped:?}");
    ensure!(dropped.attempts[0].last_sent == Some(2_000), "and was sent: {dropped:?}");
    Ok(())
}

/// It would wait for a block for ever: its nonce is used, and no record tells that again.
#[tokio::test]
async fn a_nonce_that_is_given_out_while_a_stranger_is_read_with_it_is_known_to_be_used() -> Result<()> {
    let rig = Rig::start().await?;
    let id = queued(&rig).await?;
    let mut db = rig.pool.get().await?;
    let tx = db.transaction().await?;
    lock(&tx, &rig.lane()).await?.context("the lane")?;
    let row = stored(&tx, id).await?;
    let order = Order { nonce: None, fees: Fees { tip: 1, cap: 2 }, cancels: false };
    let signed = SignedBytes { hash: B256::repeat_byte(1), raw: Bytes::from_static(b"signed") };
    let (attempt, _) = store_attempt(&tx, &row, 0, &order, &signed).await?;
    let seen = transaction(rig.key.address(), B256::repeat_byte(2), 0);
    let added = ChainEvent::Added { block: block(1), transactions: vec![seen] };
    let other = begun(&rig.pool, applied(rig.pool.clone(), added)).await?;
    apply(&tx, &row, &Input::Signed(attempt)).await?;
    tx.commit().await?;
    other.await??;
    let outgoing = stored(&db, id).await?.outgoing;
    ensure!(outgoing.phase == Phase::Replaced(block(1).number), "{outgoing:?}");
    Ok(())
}

/// On a fast chain one comes while nodes are asked: no new sender would ever be counted. What strangers use in it counts.
#[tokio::test]
async fn a_count_holds_though_blocks_are_added_meanwhile() -> Result<()> {
    let mut rig = Rig::start().await?;
    queued(&rig).await?;
    let (mut db, lane) = (rig.pool.get().await?, rig.lane());
    let at = block_to_count(&db, &lane).await?.context("a block")?;
    let seen = transaction(lane.sender, B256::repeat_byte(2), 0);
    rig.apply(&ChainEvent::Added { block: block(1), transactions: vec![seen] }).await?;
    rig.apply(&ChainEvent::Final(block(1).number)).await?;
    let tx = db.transaction().await?;
    set_counted(&tx, &lane, &at, 0).await?;
    // Somebody else was asked the same at another time.
    set_counted(&tx, &lane, &at, 5).await?;
    tx.commit().await?;
    rig.turn(usize::MAX).await?;
    ensure_all(&rig.nonces().await?, &[("broadcast", 1)])
}

#[tokio::test]
async fn a_count_of_a_block_is_forgotten_if_one_has_left_the_chain_meanwhile() -> Result<()> {
    let rig = Rig::start().await?;
    queued(&rig).await?;
    let (mut db, lane) = (rig.pool.get().await?, rig.lane());
    for leaves in [ChainEvent::Removed(block(1)), ChainEvent::Restarted(rig.follower.told_final)] {
        rig.apply(&ChainEvent::Added { block: block(1), transactions: Vec::new() }).await?;
        let at = block_to_count(&db, &lane).await?.context("a block")?;
        rig.apply(&leaves).await?;
        rig.apply(&ChainEvent::Added { block: block(1), transactions: Vec::new() }).await?;
        let tx = db.transaction().await?;
        set_counted(&tx, &lane, &at, 0).await?;
        let counted = lock(&tx, &lane).await?.context("the lane")?.counted;
        ensure!(counted.is_none(), "{counted:?} after {leaves:?}");
    }
    Ok(())
}

/// A block that is being read may not know yet that a sender is ours: what strangers use in it is not noted, so that only a
/// count up to it knows.
#[tokio::test]
async fn a_sender_that_is_new_is_counted_up_to_the_block_that_is_being_read() -> Result<()> {
    let rig = Rig::start().await?;
    let mut db = rig.pool.get().await?;
    let tx = db.transaction().await?;
    let lane = rig.lane();
    let added = ChainEvent::Added { block: block(1), transactions: vec![transaction(lane.sender, B256::repeat_byte(2), 0)] };
    apply_chain_event(&tx, CHAIN, &added, &PACE).await?;
    queued(&rig).await?;
    let pool = rig.pool.clone();
    let asked = begun(&rig.pool, async move { Ok(block_to_count(&pool.get().await?, &lane).await?) }).await?;
    tx.commit().await?;
    let at = asked.await??.context("a block")?;
    ensure!(at.block == block(1).hash, "{at:?}");
    Ok(())
}

/// Blocks are missing, a transfer is in one of them, and its receipt is on its way: nothing takes that block back once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_says_nothing_when_a_final_block_has_left_the_chain_since_it_was_asked_for() -> Result<()> {
    let mut rig = Rig::start().await?;
    let id = queued(&rig).await?;
    rig.turn(usize::MAX).await?;
    rig.lab.node.mine(1).await?;
    let head = rig.lose_records().await?;
    rig.lab.node.mine(DEPTH).await?;
    rig.follow().await?;
    ensure!(rig.follower.told_final >= head, "the block of the transfer is final");
    rig.now += PACE.resend_after;

    // Before the node answers, the chain begins anew below.
    let (pool, handle) = (rig.pool.clone(), tokio::runtime::Handle::current());
    rig.proxy.watch(move |call| {
        if call["method"] == "eth_getTransactionReceipt" {
            let left = applied(pool.clone(), ChainEvent::Restarted(head - 1));
            tokio::task::block_in_place(|| handle.block_on(left)).unwrap_or_else(|error| panic!("{error:#}"));
        }
    });
    rig.turn(usize::MAX).await?;
    ensure!(rig.proxy.asked("eth_getTransactionReceipt") > 0, "nobody asked");
    let outgoing = stored(&rig.pool.get().await?, id).await?.outgoing;
    ensure!(outgoing.phase == Phase::Lost, "{outgoing:?}");
    Ok(())
}

async fn read(rig: &Rig, record: &BlockRecord) -> Result<()> {
    let mut db = rig.pool.get().await?;
    let tx = db.transaction().await?;
    let mut place = reading::load(&tx, CHAIN).await?;
    reading::take(&tx, CHAIN, &mut place, record, &PACE).await?;
    reading::save(&tx, CHAIN, &place).await?;
    Ok(tx.commit().await?)
}

/// What a record says of who sent a transaction is one endpoint's word.
#[tokio::test]
async fn a_transaction_of_a_record_is_ours_by_its_hash_and_a_strangers_makes_its_sender_be_counted_anew() -> Result<()> {
    let mut rig = Rig::start().await?;
    let id = queued(&rig).await?;
    rig.turn(usize::MAX).await?;
    let (db, lane) = (rig.pool.get().await?, rig.lane());
    let counted = async || -> Result<Option<i64>> {
        let sql = "SELECT counted FROM outgoing_lanes WHERE sender = $1";
        Ok(db.query_one(sql, &[&lane.sender.as_slice()]).await?.get(0))
    };
    let record = |sequence, from: Address, hash: B256| BlockRecord {
        sequence,
        kind: Kind::Added.into(),
        number: block(sequence).number,
        hash: block(sequence).hash.to_vec().into(),
        parent_hash: block(sequence - 1).hash.to_vec().into(),
        transactions: vec![Transaction { from: from.to_vec().into(), hash: hash.to_vec().into(), ..Transaction::default() }],
        ..BlockRecord::default()
    };
    db.execute("UPDATE outgoing_chains SET sequence = 0, head_hash = $1", &[&block(0).hash.as_slice()]).await?;
    ensure!(counted().await? == Some(0), "{:?}", counted().await?);
    // A stranger's, as one endpoint says.
    read(&rig, &record(1, lane.sender, B256::repeat_byte(2))).await?;
    let phase = stored(&db, id).await?.outgoing.phase;
    ensure!(counted().await?.is_none() && phase == Phase::Broadcast, "{:?} {phase:?}", counted().await?);
    let foreign: i64 = db.query_one("SELECT count(*) FROM outgoing_foreign", &[]).await?.get(0);
    ensure!(foreign == 0, "{foreign} are believed");
    // Ours, of somebody else as one endpoint says, and without its nonce.
    let hash = stored(&db, id).await?.outgoing.attempts[0].hash;
    read(&rig, &record(2, Address::ZERO, hash)).await?;
    let phase = stored(&db, id).await?.outgoing.phase;
    ensure!(matches!(phase, Phase::Mined(mined) if mined.block == block(2)), "{phase:?}");
    // A record is missing: what is in a block is believed up to what is final.
    read(&rig, &record(4, Address::ZERO, B256::repeat_byte(3))).await?;
    let phase = stored(&db, id).await?.outgoing.phase;
    ensure!(phase == Phase::Broadcast, "{phase:?}");
    Ok(())
}

/// The database went back to before it read the block, and has what became of the transfer from its record.
#[tokio::test]
async fn what_was_told_as_final_stands_while_blocks_are_read_that_came_before() -> Result<()> {
    let mut rig = Rig::start().await?;
    let id = queued(&rig).await?;
    rig.turn(usize::MAX).await?;
    let (db, lane) = (rig.pool.get().await?, rig.lane());
    let (hash, nonce) = {
        let attempt = &stored(&db, id).await?.outgoing.attempts[0];
        (attempt.hash, attempt.nonce)
    };
    let mined = Mined { hash, block: block(9), succeeded: Some(true), gas_used: Some(21_000), gas_price: Some(1) };
    let outcome = Outcome { id, lane, phase: Phase::Final(mined) };
    ensure!(take_outcome(&db, &outcome, &PACE).await? == Ok(Ended::Row));
    let seen = |at: u64| ChainEvent::Added { block: block(at), transactions: vec![transaction(lane.sender, hash, nonce)] };
    let is_as_told = async || -> Result<bool> {
        let Outgoing { phase, frozen, .. } = stored(&db, id).await?.outgoing;
        Ok(phase == Phase::Final(mined) && frozen.is_none())
    };
    // It was in another block first, records are missing, and its own block left the chain once.
    for event in [seen(5), ChainEvent::Removed(block(5)), ChainEvent::Restarted(block(2).number), seen(9)] {
        rig.apply(&event).await?;
        ensure!(is_as_told().await?, "after {event:?}");
    }
    rig.apply(&ChainEvent::Removed(block(9))).await?;
    rig.apply(&seen(9)).await?;
    rig.apply(&ChainEvent::Final(block(9).number)).await?;
    ensure!(is_as_told().await?);
    // From then on a final block that leaves the chain is what can't be.
    rig.apply(&ChainEvent::Removed(block(9))).await?;
    let outgoing = stored(&db, id).await?.outgoing;
    ensure!(outgoing.frozen.is_some(), "{outgoing:?}");
    Ok(())
}

/// Whoever reads records back may freeze a lane while another process works on it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_signed_or_sent_in_a_lane_that_is_frozen_meanwhile() -> Result<()> {
    let mut rig = Rig::start().await?;
    queued(&rig).await?;
    let (db, lane) = (rig.pool.get().await?, rig.lane());
    // After it was found to be due: the count is asked for first.
    let (pool, handle) = (rig.pool.clone(), tokio::runtime::Handle::current());
    rig.proxy.watch(move |call| {
        if call["method"] == "eth_getTransactionCount" {
            let frozen = async { freeze_lane(&pool.get().await?, &lane, "a record").await.map_err(anyhow::Error::from) };
            tokio::task::block_in_place(|| handle.block_on(frozen)).unwrap_or_else(|error| panic!("{error:#}"));
        }
    });
    rig.turn(usize::MAX).await?;
    ensure!(rig.proxy.asked("eth_getTransactionCount") > 0, "nobody asked");
    let signed: i64 = db.query_one("SELECT count(*) FROM outgoing_attempts", &[]).await?.get(0);
    ensure!(signed == 0, "{signed} are signed");
    Ok(())
}

/// Rows are put into the tables of before, and the process that has signed runs on.
#[tokio::test]
async fn a_process_signs_nothing_on_a_database_that_knows_less_than_it_has_signed() -> Result<()> {
    let rig = Rig::start().await?;
    let id = queued(&rig).await?;
    let engine = rig.engine()?;
    engine.turn(rig.now).await?;
    let db = rig.pool.get().await?;
    let signed = async || -> Result<i64> { Ok(db.query_one("SELECT count(*) FROM outgoing_attempts", &[]).await?.get(0)) };
    ensure!(signed().await? == 1);
    db.batch_execute(
        "DELETE FROM outgoing_attempts; UPDATE outgoing SET state = 'queued', nonce = NULL, due_at = 0; DELETE FROM outgoing_nonces",
    )
    .await?;
    engine.turn(rig.now + 60).await?;
    let phase = stored(&db, id).await?.outgoing.phase;
    ensure!(signed().await? == 0 && phase == Phase::Queued, "{phase:?}");
    Ok(())
}
