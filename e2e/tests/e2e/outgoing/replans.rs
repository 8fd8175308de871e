//! Open sweeps that are withdrawn and planned anew; and what stops a chain from planning.

use super::books::{Books, COIN, HEAD, Paid, TREASURY, Turn, planned, settings};
use super::rig::{CHAIN, PACE, Rig};
use alloy::primitives::{Address, U256};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use sweeper::engine::fold::drop_outgoing;
use sweeper::keys::Signer as _;
use sweeper::plan::rules::{Hold, Verdict};
use sweeper::plan::settings::Refused;
use sweeper::plan::{Settings, Waits, admin, check_treasury, moved, store};
use uuid::Uuid;

async fn candidates(books: &Books) -> Result<i64> {
    let db = books.pool.get().await?;
    Ok(db.query_one("SELECT count(*) FROM sweep_candidates", &[]).await?.get(0))
}

#[tokio::test]
async fn the_first_sweep_to_a_treasury_is_named_while_others_wait_for_it_and_a_person_can_drop_it() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.addresses(2).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    let (first, outgoing) = books.last().await?;
    let turn = books.queue_due(1_000_040).await?;
    ensure!(turn.queued == 0 && turn.waits == Some(Waits::FirstUnderWay(first)), "{turn:?}");
    let status = rig.lab.ctrip(&["sweep", "status"])?;
    ensure!(status.contains("nothing is planned: the first sweep") && status.contains(&first.to_string()), "{status}");
    rig.lab.ctrip(&["sweep", "drop", &first.to_string()])?;
    ensure!(rig.lab.ctrip(&["sweep", "status"])?.contains("queued, to be dropped"));
    for again in 0..2 {
        let turn = books.queue_due(1_000_041 + again).await?;
        ensure!(turn.to_drop == [outgoing] && turn.queued == 0, "named until it is dropped: {turn:?}");
    }
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    ensure!(books.sweeps().await? == [("dropped".to_owned(), false)], "{:?}", books.sweeps().await?);
    ensure!(!rig.lab.output(&["sweep", "drop", &first.to_string()])?.status.success(), "it is over");
    let turn = books.queue_due(1_000_100).await?;
    ensure!(turn.queued == 1 && turn.waits.is_none() && turn.to_drop.is_empty(), "{turn:?}");
    Ok(())
}

#[tokio::test]
async fn what_goes_to_another_treasury_than_the_one_that_is_set_is_dropped_and_planned_anew() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let payment = books.addresses(3).await?;
    let unwanted: BTreeSet<Uuid> = books.proven(2).await?.into_iter().collect();
    // What comes to an address whose sweep is under way is not summed up again and again.
    books.pay(Some(payment), None, Paid { credited: None, ..Paid::credited(990, COIN) }).await?;
    books.set_head(1001).await?;
    ensure!(books.queue_due(1_000_045).await?.queued == 0 && candidates(&books).await? == 0);
    let other = Settings { treasury: Some(Address::repeat_byte(0x78)), ..settings() };
    let named: BTreeSet<Uuid> = books.turn(&other, 1_000_050).await?.to_drop.into_iter().collect();
    ensure!(named == unwanted, "{named:?}");
    for outgoing in unwanted {
        drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    }
    let planned = books.turn(&other, 1_000_100).await?;
    ensure!(planned.queued == 1 && planned.to_drop.is_empty(), "the first to it goes alone: {planned:?}");
    let to: Vec<u8> = rig.pool.get().await?.query_one("SELECT treasury FROM sweeps WHERE state = 'open'", &[]).await?.get(0);
    ensure!(to == [0x78; 20]);
    let (_, outgoing) = books.last().await?;
    let none = books.turn(&Settings { treasury: None, ..settings() }, 1_000_101).await?;
    ensure!(none == Turn { queued: 0, to_drop: vec![outgoing], waits: None }, "{none:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_queued_is_not_signed_once_a_hold_covers_it_or_a_person_has_to_look_first() -> Result<()> {
    let (rig, books, planned) = planned(5).await?;
    let mut db = rig.pool.get().await?;
    let outgoing = planned[0];
    let of = "SELECT address FROM sweeps WHERE outgoing = $1";
    let held = Address::from_slice(db.query_one(of, &[&outgoing]).await?.get(0));
    let id = admin::hold(&mut db, &Hold { chain: None, address: Some(held), token: None, merchant: None }, "a test").await?;
    let turn = books.queue_due(1_000_050).await?;
    ensure!(turn.to_drop == [outgoing] && turn.queued == 0, "{turn:?}");
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    ensure!(books.queue_due(1_000_051).await?.queued == 0 && books.verdicts(&settings()).await?[&held] == Verdict::Held);
    admin::release(&db, id).await?;
    ensure!(books.queue_due(1_000_090).await?.queued == 1, "the end of a hold frees what it has dropped");

    // Three come to nothing, in one block.
    for outgoing in &planned[1..4] {
        drop_outgoing(&rig.pool, *outgoing, &PACE).await?;
    }
    db.execute("UPDATE sweeps SET ended_at = now() WHERE state <> 'open'", &[]).await?;
    let others: BTreeSet<Uuid> = books.open_sweeps().await?.into_iter().collect();
    let turn = books.queue_due(1_000_100).await?;
    ensure!(turn.waits == Some(Waits::Vain) && turn.queued == 0, "{turn:?}");
    ensure!(others.len() == 2 && turn.to_drop.into_iter().collect::<BTreeSet<Uuid>>() == others);
    let status: Value = serde_json::from_str(&rig.lab.ctrip(&["sweep", "status", "--json"])?)?;
    ensure!(status["waiting"][0]["waits"].as_str().is_some_and(|waits| waits.contains("come to nothing")), "{status}");
    for outgoing in others {
        drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    }
    let turn = books.queue_due(1_000_101).await?;
    ensure!(turn.waits == Some(Waits::Vain) && turn.queued == 0, "what it has dropped itself says nothing: {turn:?}");
    ensure!(admin::retry(&db, None, Some(CHAIN)).await? == 3);
    let turn = books.queue_due(1_000_140).await?;
    ensure!(turn.queued == 1 && turn.waits.is_none(), "after one that came to nothing the next goes alone: {turn:?}");
    db.execute("UPDATE sweeps SET state = 'final', ended_at = now() + interval '1 s' WHERE state = 'open'", &[]).await?;
    let turn = books.queue_due(1_000_180).await?;
    ensure!(turn.queued == 4 && turn.waits.is_none(), "{turn:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_planned_while_gas_costs_too_much_or_nobody_says_how_much() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.addresses(1).await?;
    let unknown = Settings { price: None, ..settings() };
    ensure!(books.turn(&unknown, 1_000_000).await? == Turn { waits: Some(Waits::PriceUnknown), ..Turn::default() });
    let (price, max_fee) = (PACE.max_fee + 1, PACE.max_fee);
    let dear = Settings { price: Some(price), ..settings() };
    let waits = Some(Waits::TooDear { price, max_fee });
    ensure!(books.turn(&dear, 1_000_001).await? == Turn { waits, ..Turn::default() });
    ensure!(books.queue_due(1_000_002).await?.queued == 1);
    // What is queued already is signed when somebody says so.
    let waiting = books.turn(&unknown, 1_000_003).await?;
    ensure!(waiting.to_drop.is_empty() && waiting.waits == Some(Waits::PriceUnknown), "{waiting:?}");
    Ok(())
}

#[tokio::test]
async fn an_address_is_looked_at_when_its_sweep_is_over_and_what_has_left_is_told_once() -> Result<()> {
    let mut rig = Rig::start().await?;
    let address = rig.key.address();
    let books = Books::open(&rig).await?;
    let (payment, paid) = books.paid(address).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    // More comes while it is under way, in a block that is not read any more.
    books.pay(Some(payment), None, Paid { credited: None, ..Paid::credited(4, COIN) }).await?;
    ensure!(candidates(&books).await? == 0);
    rig.set_balance(address, 2 * COIN).await?;
    rig.settle().await?;
    let (_, outgoing) = books.last().await?;
    ensure!(candidates(&books).await? == 1, "what came meanwhile stays for ever");
    // The credit is gone before anybody asks what has left: that has left all the same.
    books.remove(paid).await?;
    let db = rig.pool.get().await?;
    let of = moved(&db, outgoing).await?;
    ensure!(of.len() == 1 && rig.balance(TREASURY).await? == of[0].amount, "{of:?}");
    let left = U256::from(2 * COIN) - rig.balance(address).await?;
    ensure!(of[0].total == left.max(U256::from(COIN)) && of[0].total > of[0].amount, "{of:?}, and {left} has left");
    ensure!(of[0].remains == of[0].total - left, "{of:?}, and {left} has left");
    // It comes again: what was told stays.
    books.pay(Some(payment), None, Paid::credited(6, COIN)).await?;
    ensure!(moved(&db, outgoing).await? == of);
    ensure!(books.queue_due(1_000_100).await?.queued == 1);
    Ok(())
}

/// What would be swept to it would be swept on.
#[tokio::test]
async fn a_treasury_that_is_given_out_later_is_refused() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.addresses(3).await?;
    let db = rig.pool.get().await?;
    let xpub: wallet::AccountXpub = rig.lab.env["CTRIP_XPUB"].parse()?;
    let refused = async |treasury| check_treasury(&db, treasury, &["own".to_owned()]).await;
    let (index, treasury) = (9_000, xpub.address(9_000)?);
    let found = refused(treasury).await?;
    ensure!(matches!(&found, Some(Refused::GivenOutLater { index: at, .. }) if *at == index), "{found:?}");
    ensure!(refused(TREASURY).await?.is_none());
    db.execute("INSERT INTO installation (id, own_account) VALUES (gen_random_uuid(), 'own')", &[]).await?;
    let chains = std::fs::read_to_string(&rig.lab.env["CHAINS_FILE"])?;
    rig.lab.write_chains(&chains.replace("  tokens:", &format!("  treasury: \"{treasury}\"\n  tokens:")))?;
    let shown = rig.lab.ctrip(&["sweep", "plan"])?;
    ensure!(shown.contains("nothing is swept") && shown.contains("the deposit address 9000 of the account own"), "{shown}");
    Ok(())
}

/// An address whose sweep can't be written holds up no other.
#[tokio::test]
async fn one_address_that_cannot_be_planned_holds_up_no_other() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.addresses(20).await?;
    let db = rig.pool.get().await?;
    db.batch_execute("ALTER TABLE sweeps ADD CONSTRAINT refused CHECK (address <> decode(repeat('07', 20), 'hex'))").await?;
    let (mut queued, mut failed) = (0, 0);
    for round in 0..400_u64 {
        match books.queue_due(1_000_000 + 5 * round).await {
            Ok(turn) => queued += turn.queued,
            Err(_) => failed += 1,
        }
        books.end_sweeps().await?;
    }
    ensure!(queued == 19 && failed > 0, "{queued} of 19 queued, {failed} turns failed");
    let looked: i64 = db.query_one("SELECT count(*) FROM sweep_candidates", &[]).await?.get(0);
    ensure!(looked == 1, "{looked} are looked at again");
    db.query_opt("SELECT FROM sweeps WHERE address = decode(repeat('01', 20), 'hex')", &[]).await?.context("the first")?;
    Ok(())
}

/// Nodes are asked what gas costs where there is something to plan, and not each second.
#[tokio::test]
async fn a_chain_on_which_nothing_has_come_has_nothing_to_plan() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let db = rig.pool.get().await?;
    ensure!(store::has_work(&db, CHAIN, 1_000_000).await?, "it was never looked at");
    books.queue_due(1_000_000).await?;
    ensure!(!store::has_work(&db, CHAIN, 1_000_001).await?);
    books.set_head(HEAD + 20).await?;
    let payment = books.payment(Address::repeat_byte(1), "own", None).await?;
    books.pay(Some(payment), None, Paid::credited(HEAD + 1, 50 * COIN)).await?;
    ensure!(store::has_work(&db, CHAIN, 1_000_002).await?, "coin has come");
    ensure!(books.queue_due(1_000_003).await?.queued == 1);
    ensure!(store::has_work(&db, CHAIN, 1_000_004).await?, "a sweep is open");
    books.end_sweeps().await?;
    ensure!(!store::has_work(&db, CHAIN, 1_000_005).await?);
    store::add_candidates(&db, CHAIN, &[Address::repeat_byte(1)]).await?;
    ensure!(store::has_work(&db, CHAIN, 1_000_006).await?, "an address is to be looked at");
    books.queue_due(1_000_007).await?;
    ensure!(!store::has_work(&db, CHAIN, 1_000_008).await?);
    ensure!(store::has_work(&db, CHAIN, 1_000_000 + 86_400).await?, "all are, once a day");
    Ok(())
}

/// They come a hundred times as often, and it is asked each second whether coin has come.
#[tokio::test]
async fn tokens_that_have_come_are_not_read_to_see_whether_coin_has() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let mut db = rig.pool.get().await?;
    books.queue_due(1_000_000).await?;
    books.set_head(HEAD + 20).await?;
    let payment = books.payment(Address::repeat_byte(1), "own", None).await?;
    db.execute(
        "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number,
             block_timestamp, transaction_index, token_address, sender, amount, credited, listed)
         SELECT 31337, sha256(n::text::bytea), sha256(n::text::bytea), 'log', 0, $1, 1001 + n % 20, 1, 0,
             decode(repeat('05', 20), 'hex'), decode(repeat('11', 20), 'hex'), 1, false, true
         FROM generate_series(1, 100000) AS n",
        &[&payment],
    )
    .await?;
    db.batch_execute("ANALYZE transfers").await?;
    let tx = db.transaction().await?;
    ensure!(!store::has_work(&tx, CHAIN, 1_000_001).await?);
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'transfers'";
    let read: i64 = tx.query_one(read, &[]).await?.get(0);
    ensure!(read < 100, "{read} transfers are read");
    tx.rollback().await?;
    books.pay(Some(payment), None, Paid::credited(HEAD + 1, 50 * COIN)).await?;
    ensure!(store::has_work(&db, CHAIN, 1_000_002).await?);
    Ok(())
}
