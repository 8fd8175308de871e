//! What the planner asks nodes before a sweep, and which answers count.

use super::books::{Books, COIN, Paid, TREASURY, Turn, plan_turn_asking, settings};
use super::rig::{CHAIN, Rig};
use super::unpaid::WANTS_SOMETHING;
use alloy::primitives::{Address, U256};
use anyhow::{Result, ensure};
use chain::{NodeUrl, Rpc};
use e2e::{Extent, Fault};
use sweeper::keys::Signer as _;
use sweeper::plan::settings::Refused;
use sweeper::plan::{Settings, Waits, estimate_gas, store};

/// Takes nothing.
pub(super) const REFUSES: &str = "0x60006000fd";
/// Takes less than one coin at a time.
const WANTS_LITTLE: &str = "0x670de0b6b3a76400003410601257600080fd5b00";

/// On a rollup whose fee for L1 nobody has set.
#[tokio::test]
async fn a_sweep_that_cost_a_wei_more_than_is_known_keeps_no_later_one_back() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (address, rpc) = (rig.key.address(), rig.rpc()?);
    let books = Books::open(&rig).await?;
    let (payment, _) = books.paid(address).await?;
    rig.set_balance(address, COIN).await?;
    ensure!(plan_turn_asking(&rig, &rpc, &settings(), 1_000_000).await?.queued == 1);
    rig.settle().await?;
    let left = rig.balance(address).await?.to::<u128>();
    let swept = rig.balance(TREASURY).await?;
    ensure!(left > 0 && !swept.is_zero());
    books.pay(Some(payment), None, Paid::credited(6, COIN)).await?;
    rig.set_balance(address, left - 1 + COIN).await?;
    store::look_at_all(&rig.pool.get().await?, None).await?;
    ensure!(plan_turn_asking(&rig, &rpc, &settings(), 1_000_100).await?.queued == 1, "it is missing for ever");
    rig.settle().await?;
    ensure!(rig.balance(TREASURY).await? > swept, "and is sent");
    Ok(())
}

/// The node does not have the payment's block yet.
#[tokio::test]
async fn a_node_that_is_behind_does_not_say_what_an_address_has() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let address = Address::repeat_byte(1);
    books.paid(address).await?;
    rig.lab.node.mine(2).await?;
    rig.set_balance(address, COIN).await?;
    rig.proxy.make(Fault::Behind(1), Extent::Always);
    let alone = rig.rpc()?;
    let turn = plan_turn_asking(&rig, &alone, &settings(), 1_000_000).await?;
    ensure!(turn == Turn::default() && store::missing(&rig.pool.get().await?, CHAIN).await?.is_empty(), "{turn:?}");
    let asked = rig.proxy.asked("eth_getBalance");
    ensure!(asked > 0);
    let urls = [&rig.proxy.url, &rig.lab.node.url].map(|url| url.parse::<NodeUrl>().map_err(anyhow::Error::msg));
    let both = Rpc::new("anvil", &urls.into_iter().collect::<Result<Vec<_>>>()?, Some(CHAIN));
    ensure!(plan_turn_asking(&rig, &both, &settings(), 1_000_040).await?.queued == 1, "another one is asked");
    ensure!(rig.proxy.asked("eth_getBalance") > asked);
    Ok(())
}

/// What a treasury does with what nobody sends says nothing; nor does a node that lends no coin, in whatever words.
#[tokio::test]
async fn a_treasury_is_refused_by_what_somebody_would_send_alone() -> Result<()> {
    let rig = Rig::start().await?;
    let (rpc, terms) = (rig.rpc()?, settings().terms);
    let [rich, some, dusty] = [1, 2, 3].map(Address::repeat_byte);
    for (address, amount) in [(rich, 5 * COIN), (some, COIN / 2), (dusty, 1)] {
        rig.set_balance(address, amount).await?;
    }
    let gas = async |payers: &[Address]| estimate_gas(&rpc, TREASURY, payers, &terms).await;
    for fault in [None, Some(Fault::NoOverride(-32602)), Some(Fault::NoOverride(3))] {
        rig.proxy.heal();
        if let Some(fault) = fault {
            rig.proxy.make(fault, Extent::Always);
        }
        rig.set_code(TREASURY, WANTS_SOMETHING).await?;
        let expected = if fault.is_none() { Some(60_000) } else { None };
        ensure!(gas(&[]).await? == expected && gas(&[dusty]).await? == expected, "{fault:?}");
        ensure!(gas(&[some]).await? == Some(60_000), "{fault:?}");
        rig.set_code(TREASURY, WANTS_LITTLE).await?;
        for payers in [&[some][..], &[rich, some], &[some, rich]] {
            ensure!(gas(payers).await? == Some(60_000), "{fault:?} {payers:?}");
        }
        ensure!(
            gas(&[]).await?.is_none() && gas(&[dusty]).await?.is_none(),
            "what it does with coin nobody has tried: {fault:?}"
        );
        let refused = gas(&[rich, dusty]).await;
        ensure!(matches!(refused, Err(Refused::Reverts { .. })), "{fault:?} {refused:?}");
        rig.set_code(TREASURY, REFUSES).await?;
        ensure!(gas(&[]).await?.is_none() && gas(&[dusty]).await?.is_none(), "{fault:?}");
        let refused = gas(&[dusty, some]).await;
        ensure!(matches!(refused, Err(Refused::Reverts { .. })), "{fault:?} {refused:?}");
    }
    Ok(())
}

/// Else nobody could be asked for who would be swept, where a node says nothing of others.
#[tokio::test]
async fn who_is_due_is_found_before_it_is_known_what_gas_a_sweep_takes() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let address = Address::repeat_byte(1);
    books.paid(address).await?;
    let db = rig.pool.get().await?;
    ensure!(sweeper::plan::payers(&db, CHAIN, 1_000_000).await?.is_empty());
    let unknown = Settings { knows_gas: false, ..settings() };
    for now in [1_000_000, 1_000_001] {
        let turn = books.turn(&unknown, now).await?;
        ensure!(turn == Turn { waits: Some(Waits::GasUnknown), ..Turn::default() }, "{turn:?}");
        ensure!(sweeper::plan::payers(&db, CHAIN, now).await? == [address]);
    }
    ensure!(books.queue_due(1_000_002).await?.queued == 1);
    ensure!(sweeper::plan::payers(&db, CHAIN, 1_000_003).await? == [address], "its sweep is open");
    ensure!(rig.balance(TREASURY).await? == U256::ZERO);
    Ok(())
}
