//! What is not wanted any more is not signed, though it is not dropped yet; and what past sweeps say of the next ones.

use super::books::{Books, COIN, Paid, plan_turn, settings};
use super::replans::{addresses, open, proven};
use super::rig::{CHAIN, PACE, Rig};
use alloy::primitives::Address;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;
use sweeper::engine::fold::drop_outgoing;
use sweeper::keys::Signer as _;
use sweeper::plan::rules::Hold;
use sweeper::plan::store::past;
use sweeper::plan::{Settings, Waits, admin, queue_due, to_drop};
use uuid::Uuid;

/// A rig whose sender has a coin that is queued.
async fn queued() -> Result<(Rig, Uuid, Uuid)> {
    let mut rig = Rig::start().await?;
    rig.follow().await?;
    let books = Books::open(&rig).await?;
    let payment = books.payment(rig.key.address(), "own", None).await?;
    books.pay(Some(payment), None, Paid::credited(5, COIN)).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    let (_, outgoing) = books.last().await?;
    let merchant = books.merchant;
    Ok((rig, merchant, outgoing))
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
    let (mut rig, merchant, outgoing) = queued().await?;
    let mut db = rig.pool.get().await?;
    let all = Hold { chain: None, address: None, token: None, merchant: None };
    let hold = admin::hold(&mut db, &all, "a test").await?;
    ensure_unsigned(&mut rig).await?;
    // Released before any planner has seen it.
    ensure!(admin::release(&db, hold).await?);
    ensure_unsigned(&mut rig).await?;
    ensure!(to_drop(&db, CHAIN).await? == [outgoing]);
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    let plan = async |rig: &Rig, now: u64| -> Result<(Uuid, Uuid)> {
        let turn = Books { rig, merchant }.queue_due(now).await?;
        ensure!(turn.queued == 1, "{turn:?}");
        Books { rig, merchant }.last().await
    };
    let (sweep, outgoing) = plan(&rig, 1_000_100).await?;
    ensure!(admin::drop_sweep(&db, sweep).await?);
    ensure_unsigned(&mut rig).await?;
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    // The treasury is another, and what comes after fails each time: the daily look at all addresses.
    let (_, outgoing) = plan(&rig, 1_000_200).await?;
    let other = Settings { treasury: Some(Address::repeat_byte(0x78)), ..settings() };
    let books = Books { rig: &rig, merchant };
    let payment = books.payment(Address::repeat_byte(5), "own", None).await?;
    let looked_at = books.pay(Some(payment), None, Paid::credited(5, COIN)).await?;
    db.batch_execute("ALTER TABLE sweep_candidates ADD CONSTRAINT none CHECK (false) NOT VALID").await?;
    sweeper::plan::store::look_at_all(&db, None).await?;
    let asked = async |_: &[Address]| std::collections::HashMap::new();
    ensure!(queue_due(&mut db, CHAIN, &other, asked, 1_000_300).await.is_err(), "nothing is looked at");
    db.batch_execute("ALTER TABLE sweep_candidates DROP CONSTRAINT none").await?;
    books.remove(looked_at).await?;
    ensure_unsigned(&mut rig).await?;
    ensure!(to_drop(&db, CHAIN).await? == [outgoing]);
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    let (_, outgoing) = plan(&rig, 1_000_400).await?;
    let refused = Settings { refused: Some("it takes no coin".to_owned()), ..settings() };
    let told = plan_turn(&mut db, &refused, 1_000_500).await?;
    ensure!(told.to_drop == [outgoing] && matches!(told.waits, Some(Waits::Refused(_))), "{told:?}");
    ensure_unsigned(&mut rig).await?;
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;

    // And while it is about to be signed.
    let (_, outgoing) = plan(&rig, 1_000_600).await?;
    let tx = db.transaction().await?;
    tx.execute("UPDATE outgoing SET withheld = true WHERE id = $1", &[&outgoing]).await?;
    let withheld = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        tx.commit().await
    };
    let (signed, withheld) = futures::future::join(rig.turn(usize::MAX), withheld).await;
    signed?;
    withheld?;
    ensure_unsigned(&mut rig).await
}

#[tokio::test]
async fn sweeps_that_are_reverted_in_blocks_stop_a_chain_before_these_are_final() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    addresses(&books, 6).await?;
    proven(&books, 5).await?;
    let db = rig.pool.get().await?;
    let planned: Vec<Uuid> = open(&books).await?.into_iter().collect();
    let mine = async |ids: &[Uuid], succeeded: bool, block: i64| -> Result<()> {
        let nonces = "INSERT INTO outgoing_nonces (chain_id, sender, nonce, outgoing)
                      SELECT chain_id, sender, 0, id FROM outgoing WHERE id = ANY($1)";
        db.execute(nonces, &[&ids]).await?;
        let mined = "UPDATE outgoing SET state = 'mined', nonce = 0, mined_hash = sha256(id::text::bytea), succeeded = $2,
                         block_hash = sha256('block'), block_number = $3 WHERE id = ANY($1)";
        db.execute(mined, &[&ids, &succeeded, &block]).await?;
        Ok(())
    };
    mine(&planned[..2], false, 10).await?;
    ensure!(books.queue_due(1_000_100).await?.waits.is_none(), "two, after one that is final");
    mine(&planned[2..3], false, 11).await?;
    let turn = books.queue_due(1_000_101).await?;
    let unsigned: BTreeSet<Uuid> = planned[3..].iter().copied().collect();
    ensure!(turn.waits == Some(Waits::Vain) && turn.to_drop.into_iter().collect::<BTreeSet<_>>() == unsigned);
    let treasury = super::books::TREASURY;
    ensure!(past(&db, CHAIN, treasury).await?.is_proven, "no final one says otherwise yet");
    db.execute("UPDATE outgoing SET state = 'failed' WHERE id = $1", &[&planned[0]]).await?;
    ensure!(!past(&db, CHAIN, treasury).await?.is_proven, "the next goes alone");
    // A later one got there.
    db.execute("UPDATE outgoing SET succeeded = true, block_number = 12 WHERE id = $1", &[&planned[2]]).await?;
    ensure!(!past(&db, CHAIN, treasury).await?.is_vain);
    Ok(())
}
