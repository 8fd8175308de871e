//! Addresses whose balance differs from the ledger, and sweeps that take more gas than a plain transfer.

use super::books::{Books, COIN, TREASURY, Turn, plan_turn_asking, plan_turn_with, planned, settings};
use super::rig::{CHAIN, PACE, Rig};
use alloy::primitives::Address;
use anyhow::{Context as _, Result, ensure};
use e2e::{Extent, Fault};
use serde_json::{Value, json};
use sweeper::engine::fold::drop_outgoing;
use sweeper::keys::Signer as _;
use sweeper::plan::rules::{Terms, Verdict};
use sweeper::plan::{Settings, Waits, admin, estimate_gas, moved, store};
use uuid::Uuid;

/// Adds what it gets to the word of the sender, and writes it to another word of theirs. Of nothing it notes nothing.
const NOTES: &str = "0x34600557005b3433540133553433195500";
/// Refuses what sends nothing.
pub(super) const WANTS_SOMETHING: &str = "0x34600857600080fd5b00";

/// A turn that asks the node what addresses have.
async fn asked(rig: &Rig, now: u64) -> Result<Turn> {
    plan_turn_asking(rig, &rig.rpc()?, &settings(), now).await
}

/// By hand, before anything was swept, or by whoever has the key.
#[tokio::test]
async fn an_address_that_was_emptied_is_named_and_not_swept_and_holds_up_no_other() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let (empty, first, second) = (Address::repeat_byte(1), Address::repeat_byte(2), Address::repeat_byte(3));
    for address in [empty, first, second] {
        books.paid(address).await?;
    }
    // To the last wei: half of what stays for gas is what the first attempt offers. And one of them has more.
    let half = settings().terms.reserve().to::<u128>() / 2;
    rig.set_balance(first, COIN - half).await?;
    rig.set_balance(second, COIN + 1).await?;
    rig.set_balance(empty, COIN - half - 1).await?;
    ensure!(asked(&rig, 1_000_000).await?.queued == 1);
    let db = rig.pool.get().await?;
    ensure!(store::missing(&db, CHAIN).await?.into_iter().eq([empty]));
    ensure!(books.verdicts(&settings()).await?[&empty] == Verdict::Missing);
    let status = rig.lab.ctrip(&["sweep", "status"])?;
    ensure!(status.contains("1 addresses have less") && status.contains(&empty.to_string()), "{status}");
    books.end_sweeps().await?;
    // A node may have been wrong: it is asked soon, and once more after an hour, or when a person says so.
    ensure!(status.contains("l1_fee"), "{status}");
    ensure!(asked(&rig, 1_000_040).await?.queued == 1, "the other");
    rig.set_balance(empty, COIN).await?;
    ensure!(asked(&rig, 1_003_000).await?.queued == 0, "it is put off");
    store::look_at_all(&db, Some(CHAIN)).await?;
    ensure!(asked(&rig, 1_003_001).await?.queued == 1);
    ensure!(store::missing(&db, CHAIN).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn nothing_is_planned_while_no_node_says_what_addresses_have() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.paid(Address::repeat_byte(1)).await?;
    rig.set_balance(Address::repeat_byte(1), COIN).await?;
    let nobody = async |_: &[Address], _| std::collections::HashMap::new();
    let turn = plan_turn_with(&mut rig.pool.get().await?, &settings(), nobody, 1_000_000).await?;
    ensure!(turn == Turn::default(), "{turn:?}");
    ensure!(store::missing(&rig.pool.get().await?, CHAIN).await?.is_empty());
    ensure!(asked(&rig, 1_000_040).await?.queued == 1);
    Ok(())
}

/// Signed, and then somebody else takes the coin: it can be neither sent nor cancelled.
#[tokio::test]
async fn a_sweep_that_its_address_cannot_pay_keeps_no_other_from_being_swept_and_is_set_aside_once_dropped() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (address, other) = (rig.key.address(), Address::repeat_byte(9));
    let books = Books::open(&rig).await?;
    books.paid(address).await?;
    rig.set_balance(address, COIN).await?;
    ensure!(asked(&rig, 1_000_000).await?.queued == 1);
    let (sweep, outgoing) = books.last().await?;
    books.paid(other).await?;
    rig.set_balance(other, COIN).await?;
    rig.set_balance(address, 0).await?;
    store::look_at_all(&rig.pool.get().await?, None).await?;
    let waits = asked(&rig, 1_000_030).await?.waits;
    ensure!(waits == Some(Waits::FirstUnderWay(sweep)), "{waits:?}");
    rig.turn(usize::MAX).await?;
    let status = rig.lab.ctrip(&["sweep", "status"])?;
    ensure!(status.contains("insufficient funds"), "{status}");
    let turn = asked(&rig, 1_000_060).await?;
    ensure!(turn.queued == 1 && turn.waits.is_none() && turn.to_drop.is_empty(), "{turn:?}");
    let (second, of_other) = books.last().await?;
    ensure!(second != sweep, "the other one");

    rig.lab.ctrip(&["sweep", "drop", &sweep.to_string()])?;
    let turn = asked(&rig, 1_000_090).await?;
    ensure!(turn.to_drop == [outgoing] && turn.waits == Some(Waits::FirstUnderWay(second)), "{turn:?}");
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    // The cancellation can't be paid either. It is tried, though rarely.
    let before = rig.proxy.asked("eth_sendRawTransaction");
    for _ in 0..120 {
        rig.turn(usize::MAX).await?;
    }
    let sent = rig.proxy.asked("eth_sendRawTransaction") - before;
    ensure!((2..14).contains(&sent), "{sent} in ten minutes, of which one may wait for ten seconds");
    drop_outgoing(&rig.pool, of_other, &PACE).await?;
    rig.set_balance(address, COIN / 10).await?;
    rig.settle().await?;
    let db = rig.pool.get().await?;
    let sql = "SELECT state, set_aside FROM sweeps WHERE id = $1";
    let row = db.query_one(sql, &[&sweep]).await?;
    ensure!(row.get::<_, &str>(0) == "dropped" && row.get::<_, bool>(1), "it is planned anew, and gets nowhere again");
    ensure!(rig.balance(TREASURY).await?.is_zero());
    Ok(())
}

/// By whoever has their keys: the treasury took whatever came.
#[tokio::test]
async fn addresses_that_could_not_pay_for_their_sweeps_do_not_stop_their_chain() -> Result<()> {
    let (rig, books, planned) = planned(5).await?;
    let db = rig.pool.get().await?;
    for outgoing in &planned[..3] {
        let sweep: Uuid = db.query_one("SELECT id FROM sweeps WHERE outgoing = $1", &[outgoing]).await?.get(0);
        db.execute("UPDATE outgoing SET told = 'insufficient funds' WHERE id = $1", &[outgoing]).await?;
        ensure!(admin::drop_sweep(&db, sweep).await?);
        drop_outgoing(&rig.pool, *outgoing, &PACE).await?;
    }
    let ended = books.sweeps().await?;
    ensure!(ended.iter().filter(|sweep| **sweep == ("dropped".to_owned(), true)).count() == 3, "{ended:?}");
    books.paid(Address::repeat_byte(9)).await?;
    store::look_at_all(&db, None).await?;
    let turn = books.queue_due(1_000_100).await?;
    ensure!(turn == Turn { queued: 1, ..Turn::default() }, "the others are swept: {turn:?}");
    Ok(())
}

/// Two new words for each sender, and nothing where it gets nothing: as a plain call of 0 it takes a fifth of that.
#[tokio::test]
async fn a_treasury_that_notes_what_it_gets_of_whom_gets_enough_gas() -> Result<()> {
    let mut rig = Rig::start().await?;
    let address = rig.key.address();
    rig.set_balance(address, COIN).await?;
    let rpc = rig.rpc()?;
    let terms = settings().terms;
    ensure!(estimate_gas(&rpc, TREASURY, &[], &terms).await? == Some(26_250));
    rig.set_code(TREASURY, NOTES).await?;
    for payers in [&[][..], &[address], &[Address::repeat_byte(5)]] {
        let gas = estimate_gas(&rpc, TREASURY, payers, &terms).await?.context("gas")?;
        ensure!((100_000..130_000).contains(&gas), "{gas}");
    }
    // A node that lends no coin, and nobody who has some: of nothing it notes nothing.
    rig.proxy.make(Fault::NoOverride(3), Extent::Always);
    for payers in [&[][..], &[Address::repeat_byte(5)]] {
        ensure!(estimate_gas(&rpc, TREASURY, payers, &terms).await?.is_none(), "it takes less than it needs");
    }
    rig.proxy.heal();
    let gas_limit = estimate_gas(&rpc, TREASURY, &[address], &terms).await?.context("gas")?;
    let books = Books::open(&rig).await?;
    books.paid(address).await?;
    let dearer = Settings { terms: Terms { gas_limit, ..terms }, ..settings() };
    ensure!(plan_turn_asking(&rig, &rpc, &dearer, 1_000_000).await?.queued == 1);
    let (_, outgoing) = books.last().await?;
    rig.settle().await?;
    let moved = moved(&rig.pool.get().await?, outgoing).await?;
    ensure!(moved.len() == 1 && rig.balance(TREASURY).await? == moved[0].amount, "{moved:?}: {:?}", rig.states().await?);
    // One that wants something takes nothing of 0, and is none that refuses.
    rig.set_code(TREASURY, WANTS_SOMETHING).await?;
    let gas = estimate_gas(&rpc, TREASURY, &[], &settings().terms).await?;
    ensure!(gas == Some(60_000), "what a contract does is not believed to take less: {gas:?}");
    Ok(())
}

/// Between what pays may offer and `max_fee`, which what cancels it may.
#[tokio::test]
async fn what_the_engine_would_not_sign_is_not_planned() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.paid(rig.key.address()).await?;
    let db = rig.pool.get().await?;
    db.execute("INSERT INTO installation (id, own_account) VALUES (gen_random_uuid(), 'own')", &[]).await?;
    let chains = std::fs::read_to_string(&rig.lab.env["CHAINS_FILE"])?;
    let swept = format!("  treasury: \"{TREASURY}\"\n  max_fee: 100\n  l1_fee: 0.0000007\n  tokens:");
    rig.lab.write_chains(&chains.replace("  tokens:", &swept))?;
    let shown = |rig: &Rig| -> Result<Value> { Ok(serde_json::from_str(&rig.lab.ctrip(&["sweep", "plan", "--json"])?)?) };
    ensure!(shown(&rig)?[0]["waits"].is_null() && shown(&rig)?[0]["fee_reserved_for_l1"] == "700000000000", "{}", shown(&rig)?);
    // The block after that is idle, and an eighth cheaper.
    rig.lab.node.call("anvil_setNextBlockBaseFeePerGas", json!(["0x199c82cc00"])).await?;
    rig.lab.node.mine(1).await?;
    let waits = shown(&rig)?[0]["waits"].clone();
    ensure!(waits.as_str().is_some_and(|waits| waits.contains("what pays may offer 88888888888")), "{waits}");
    Ok(())
}
