//! A withdrawn sweep is not signed, even before it is dropped; and how past sweeps hold back the next ones.

use super::books::{Books, TREASURY, Turn, planned, settings};
use super::rig::{CHAIN, PACE, Rig, somebody_waits};
use alloy::primitives::Address;
use anyhow::{Result, ensure};
use deadpool_postgres::Client;
use e2e::eventually;
use std::collections::BTreeSet;
use sweeper::engine::fold::drop_outgoing;
use sweeper::keys::Signer as _;
use sweeper::plan::rules::Hold;
use sweeper::plan::store::past;
use sweeper::plan::{Settings, Waits, admin, queue_due, to_drop};
use uuid::Uuid;

/// A rig whose sender has a coin that is queued.
async fn queued() -> Result<(Rig, Books, Uuid)> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.paid(rig.key.address()).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    let (_, outgoing) = books.last().await?;
    Ok((rig, books, outgoing))
}

async fn until_somebody_waits(books: &Books) -> Result<()> {
    let db = books.pool.get().await?;
    eventually("somebody to wait for a lock", async || Ok(somebody_waits(&db).await?.then_some(()))).await
}

async fn ensure_unsigned(rig: &mut Rig) -> Result<()> {
    for _ in 0..3 {
        rig.turn(usize::MAX).await?;
    }
    let states = rig.states().await?;
    ensure!(states.iter().all(|(state, _)| state == "queued" || state == "dropped"), "{states:?}");
    Ok(())
}

/// The engine is in the middle of a pass, and the planner comes after it.
#[tokio::test]
async fn what_is_not_wanted_any_more_is_not_signed_from_that_moment() -> Result<()> {
    let (mut rig, books, outgoing) = queued().await?;
    let mut db = rig.pool.get().await?;
    let all = Hold { chain: None, address: None, token: None, merchant: None };
    let hold = admin::hold(&mut db, &all, "a test").await?;
    ensure_unsigned(&mut rig).await?;
    // Released before any planner has seen it.
    ensure!(admin::release(&db, hold).await?);
    ensure_unsigned(&mut rig).await?;
    ensure!(to_drop(&db, CHAIN).await? == [outgoing]);
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    let plan = async |now: u64| -> Result<(Uuid, Uuid)> {
        let turn = books.queue_due(now).await?;
        ensure!(turn.queued == 1, "{turn:?}");
        books.last().await
    };
    let (sweep, outgoing) = plan(1_000_100).await?;
    ensure!(admin::drop_sweep(&db, sweep).await?);
    ensure_unsigned(&mut rig).await?;
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    // The treasury is another, and what comes after fails each time: the daily look at all addresses.
    let (_, outgoing) = plan(1_000_200).await?;
    let other = Settings { treasury: Some(Address::repeat_byte(0x78)), ..settings() };
    let (_, looked_at) = books.paid(Address::repeat_byte(5)).await?;
    db.batch_execute("ALTER TABLE sweep_candidates ADD CONSTRAINT none CHECK (false) NOT VALID").await?;
    sweeper::plan::store::look_at_all(&db, None).await?;
    let asked = async |_: &[Address], _| std::collections::HashMap::new();
    ensure!(queue_due(&mut db, CHAIN, &other, asked, 1_000_300).await.is_err(), "nothing is looked at");
    db.batch_execute("ALTER TABLE sweep_candidates DROP CONSTRAINT none").await?;
    books.remove(looked_at).await?;
    ensure_unsigned(&mut rig).await?;
    ensure!(to_drop(&db, CHAIN).await? == [outgoing]);
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    let (_, outgoing) = plan(1_000_400).await?;
    let refused = Settings { refused: Some("it takes no coin".to_owned()), ..settings() };
    let told = books.turn(&refused, 1_000_500).await?;
    ensure!(told.to_drop == [outgoing] && matches!(told.waits, Some(Waits::Refused(_))), "{told:?}");
    ensure_unsigned(&mut rig).await?;
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    // And while it is about to be signed.
    let (_, outgoing) = plan(1_000_600).await?;
    let tx = db.transaction().await?;
    tx.execute("UPDATE outgoing SET withheld = true WHERE id = $1", &[&outgoing]).await?;
    let withheld = async {
        until_somebody_waits(&books).await?;
        anyhow::Ok(tx.commit().await?)
    };
    let (signed, withheld) = futures::future::join(rig.turn(usize::MAX), withheld).await;
    signed?;
    withheld?;
    ensure_unsigned(&mut rig).await
}

/// Has transactions mined in a block.
async fn mine(db: &Client, ids: &[Uuid], succeeded: bool, block: i64) -> Result<()> {
    sign(db, ids).await?;
    let mined = "UPDATE outgoing SET state = 'mined', mined_hash = sha256(id::text::bytea), succeeded = $2,
                     block_hash = sha256('block'), block_number = $3 WHERE id = ANY($1)";
    db.execute(mined, &[&ids, &succeeded, &block]).await?;
    Ok(())
}

/// As if the engine had signed them.
async fn sign(db: &Client, ids: &[Uuid]) -> Result<()> {
    let nonces = "INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing)
                  SELECT chain_id, sender, 0, id FROM outgoing WHERE id = ANY($1)";
    db.execute(nonces, &[&ids]).await?;
    db.execute("UPDATE outgoing SET state = 'signed', nonce = 0 WHERE id = ANY($1)", &[&ids]).await?;
    Ok(())
}

#[tokio::test]
async fn sweeps_that_are_reverted_in_blocks_stop_a_chain_before_these_are_final() -> Result<()> {
    let (rig, books, planned) = planned(5).await?;
    let db = rig.pool.get().await?;
    mine(&db, &planned[..2], false, 10).await?;
    ensure!(books.queue_due(1_000_100).await?.waits.is_none(), "two, after one that is final");
    mine(&db, &planned[2..3], false, 11).await?;
    let turn = books.queue_due(1_000_101).await?;
    let unsigned: BTreeSet<Uuid> = planned[3..].iter().copied().collect();
    ensure!(turn.waits == Some(Waits::Vain) && turn.to_drop.into_iter().collect::<BTreeSet<_>>() == unsigned);
    ensure!(past(&db, CHAIN, TREASURY).await?.is_proven, "no final one says otherwise yet");
    db.execute("UPDATE outgoing SET state = 'failed' WHERE id = $1", &[&planned[0]]).await?;
    ensure!(!past(&db, CHAIN, TREASURY).await?.is_proven, "the next goes alone");
    // A later one got there.
    db.execute("UPDATE outgoing SET succeeded = true, block_number = 12 WHERE id = $1", &[&planned[2]]).await?;
    ensure!(!past(&db, CHAIN, TREASURY).await?.is_vain);
    Ok(())
}

#[tokio::test]
async fn a_chain_whose_last_sweeps_have_failed_waits_for_a_person_and_for_nothing_else() -> Result<()> {
    let (rig, books, planned) = planned(6).await?;
    let db = rig.pool.get().await?;
    let (failed, cancelled, unsigned) = (&planned[..3], planned[3], &planned[4..]);
    mine(&db, failed, false, 10).await?;
    db.execute("UPDATE outgoing SET state = 'failed' WHERE id = ANY($1)", &[&failed]).await?;
    let turn = books.queue_due(1_000_100).await?;
    ensure!(turn.waits == Some(Waits::Vain) && turn.to_drop.len() == 3, "{turn:?}");
    // It ends what is not signed, and one that was is cancelled: neither says that the treasury takes anything.
    for outgoing in unsigned {
        drop_outgoing(&rig.pool, *outgoing, &PACE).await?;
    }
    mine(&db, &[cancelled], true, 20).await?;
    let attempt = "INSERT INTO outgoing_attempts (hash, outgoing, chain_id, sender, nonce, raw, tip, cap, cancels)
                   SELECT mined_hash, id, chain_id, sender, nonce, '', 1, 1, true FROM outgoing WHERE id = $1";
    db.execute(attempt, &[&cancelled]).await?;
    for again in 0..3 {
        let turn = books.queue_due(1_000_140 + again).await?;
        ensure!(turn.waits == Some(Waits::Vain) && turn.queued == 0, "{turn:?}");
    }
    db.execute("UPDATE outgoing_attempts SET cancels = false", &[]).await?;
    ensure!(!past(&db, CHAIN, TREASURY).await?.is_vain, "one has got there");
    db.execute("UPDATE outgoing_attempts SET cancels = true", &[]).await?;
    ensure!(admin::retry(&db, None, Some(CHAIN)).await? == 3);
    db.execute("UPDATE outgoing SET state = 'dropped' WHERE state = 'mined'", &[]).await?;
    let turn = books.queue_due(1_000_200).await?;
    ensure!(turn.queued == 1 && turn.waits.is_none(), "{turn:?}");
    Ok(())
}

/// Runs beside a planner's turn that finds rows locked; the planner waits for what is written there.
async fn beside(books: &Books, settings: &Settings, now: u64, statements: &[(&str, Uuid)]) -> Result<Turn> {
    let mut other = books.pool.get().await?;
    let tx = other.transaction().await?;
    for (sql, id) in statements {
        tx.execute(*sql, &[id]).await?;
    }
    let committed = async {
        until_somebody_waits(books).await?;
        anyhow::Ok(tx.commit().await?)
    };
    let (turn, committed) = futures::future::join(books.turn(settings, now), committed).await;
    committed?;
    turn
}

/// The engine writes its rows all the time: a planner that gave up for that would withhold nothing.
#[tokio::test]
async fn what_is_not_wanted_any_more_is_withheld_though_the_engine_is_at_work_on_it() -> Result<()> {
    let (rig, books, ids) = planned(3).await?;
    let db = rig.pool.get().await?;
    let [tried, signed, quiet] = ids[..] else { anyhow::bail!("{ids:?}") };
    let refused = Settings { refused: Some("it takes no coin".to_owned()), ..settings() };
    let nonce = "INSERT INTO outgoing_nonces SELECT chain_id, sender, 0, id FROM outgoing WHERE id = $1";
    let sign = "UPDATE outgoing SET state = 'signed', nonce = 0 WHERE id = $1";
    let work = [("UPDATE outgoing SET tried = 1 WHERE id = $1", tried), (nonce, signed), (sign, signed)];
    let turn = beside(&books, &refused, 1_000_100, &work).await?;
    ensure!(matches!(turn.waits, Some(Waits::Refused(_))), "{turn:?}");
    let named: BTreeSet<Uuid> = turn.to_drop.into_iter().collect();
    ensure!(named == BTreeSet::from([tried, quiet]), "what is signed by now goes on: {named:?}");
    let withheld = "SELECT count(*) FROM outgoing WHERE withheld AND id = ANY($1)";
    ensure!(db.query_one(withheld, &[&[tried, quiet].as_slice()]).await?.get::<_, i64>(0) == 2);
    Ok(())
}

/// The same of what a reorg has taken back.
#[tokio::test]
async fn what_was_taken_back_is_dropped_though_the_engine_is_at_work_on_it() -> Result<()> {
    let (rig, books, ids) = planned(3).await?;
    let db = rig.pool.get().await?;
    let [tried, pays, dropped] = ids[..] else { anyhow::bail!("{ids:?}") };
    sign(&db, &ids).await?;
    db.execute("UPDATE outgoing SET told = 'insufficient funds' WHERE state = 'signed'", &[]).await?;
    db.batch_execute("DELETE FROM payment_parts; UPDATE transfers SET removed = true").await?;
    // One can pay again, and a person has said of another that its address could not.
    let work = [
        ("UPDATE outgoing SET tried = 1 WHERE id = $1", tried),
        ("UPDATE outgoing SET told = NULL WHERE id = $1", pays),
        ("UPDATE outgoing SET withheld = true WHERE id = $1", dropped),
        ("UPDATE sweeps SET replan = true, unpaid = true WHERE outgoing = $1", dropped),
    ];
    let turn = beside(&books, &settings(), 1_000_100, &work).await?;
    let named: BTreeSet<Uuid> = turn.to_drop.into_iter().collect();
    ensure!(named == BTreeSet::from([tried, dropped]), "{named:?}");
    let unpaid = "SELECT outgoing FROM sweeps WHERE unpaid";
    let unpaid: Vec<Uuid> = db.query(unpaid, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(unpaid == [dropped], "{unpaid:?}");
    Ok(())
}
