//! Payments are settled, once, by what final sweeps have moved.

mod backlog;
mod live;

use crate::books::{self, Books, CHAINS, X, X_LISTED, block, block_hash, chains, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use chain::Chains;
use confirmer::settle::{self, settle_some};
use e2e::{Stack, eventually};
use payments::store;
use payments::swept::{Swept, SweptAsset};
use payments::{DepositAddress, Settlement, Status};
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{Address, Amount, B256, BlockRef, ChainId, Kind, Matches, PaymentId, Source, Transfer, TransferId, U256};
use uuid::Uuid;

const CHAIN: ChainId = CHAINS[0];

/// A transaction that has moved so much of an asset out of an address, in all, in this block.
fn moved(address: Address, token: Option<Address>, total: u64, number: u64) -> (SweptAsset, Swept) {
    let settlement = Settlement {
        transaction: B256::left_padding_from(&total.to_be_bytes()),
        block: BlockRef { number, hash: block_hash(number) },
        timestamp: 2_000 + number,
        fee: Some(Amount::from(21_000)),
    };
    (SweptAsset { chain: CHAIN, address, token }, Swept { total: Amount::from(total), settlement })
}

impl Books {
    /// Reads what sweeps have moved.
    async fn sweep(&self, moved: &[(SweptAsset, Swept)]) -> Result<()> {
        Ok(store::save_swept(&self.pool.get().await?, moved).await?)
    }

    /// Settles until nothing waits; returns how many events that emitted.
    async fn settle(&self) -> Result<usize> {
        let mut events = 0;
        for _ in 0..1_000 {
            let settled = settle_some(&self.pool, CHAIN).await?;
            events += settled.events;
            if settled.addresses == 0 {
                // Above the head they wait.
                let left = "SELECT count(*) FROM to_settle JOIN chain_heads USING (chain_id)
                    WHERE due <= least(witnessed_number, finalized_number)";
                let left: i64 = self.pool.get().await?.query_one(left, &[]).await?.get(0);
                ensure!(left == 0, "{left} addresses wait");
                return Ok(events);
            }
        }
        anyhow::bail!("it comes to no end")
    }

    /// The totals with which deposits of this asset at this address were settled, by their amounts; 0 for those that were not.
    async fn settled(&self, at: &DepositAddress, token: Option<Address>) -> Result<BTreeMap<u64, u64>> {
        let deposits = self.all().await?.into_values().filter(|payment| {
            payment.deposit_address == Some(at.id) && payment.asset.token.as_ref().map(|token| token.address) == token
        });
        // `moved` has its total in the hash.
        let by = |settlement: Settlement| U256::from_be_bytes(settlement.transaction.0).to::<u64>();
        deposits
            .map(|deposit| {
                let (status, settlement) = (deposit.status(), deposit.settlement);
                ensure!((status == Status::Settled) == settlement.is_some(), "{status} {settlement:?}");
                Ok((deposit.amount.units().to::<u64>(), settlement.map_or(0, by)))
            })
            .collect()
    }
}

/// A transfer to an address in a block, of this sender and asset.
fn pays(number: u64, index: u32, to: Address, token: Option<Address>, amount: u64) -> Transfer {
    let paid = books::transfer(block_hash(number), index, to, amount);
    let source = if token.is_some() { Source::Log } else { Source::Trace };
    let from = Address::left_padding_from(&index.to_be_bytes());
    Transfer { id: TransferId { source, ..paid.id }, token, from, ..paid }
}

/// So many blocks, with fifty transfers of 10 each.
fn fifty_each(to: Address, blocks: u64) -> Vec<Matches> {
    let transfers = |number| (0..50).map(|index| pays(number, index, to, Some(X), 10)).collect();
    (1..=blocks).map(|number| at(number, transfers(number))).collect()
}

fn at(number: u64, transfers: Vec<Transfer>) -> Matches {
    Matches { timestamp: 1_000 + number, ..block(CHAIN, number, transfers) }
}

async fn open() -> Result<(Chains, Books, DepositAddress)> {
    let chains = chains(&X_LISTED.replace("decimals: 6", "decimals: 6, min_transfer: 0.000003")).await?;
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    Ok((chains, books, static_addresses().remove(0)))
}

#[tokio::test(flavor = "multi_thread")]
async fn deposits_are_settled_in_order_each_asset_by_itself_whenever_and_however_often_it_is_told() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    // What the second sweep has moved is read before the first, twice, and before anything is known to have arrived.
    let sweeps = [moved(to.address, Some(X), 10, 3), moved(to.address, Some(X), 47, 3)];
    books.sweep(&sweeps[1..]).await?;
    books.sweep(&sweeps[1..]).await?;
    ensure!(books.settle().await? == 0);
    // Below the minimum is 2, which leaves with the others; of the coin nothing has left.
    let coin = pays(2, 9, to.address, None, 11);
    books
        .apply(&chains, &[at(1, vec![x(1, 0, 10)]), at(2, vec![x(2, 0, 2), x(2, 1, 20), coin]), at(3, vec![x(3, 0, 15)])])
        .await?;
    ensure!(books.settle().await? == 3, "confirmed after it has left");
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 47), (20, 47), (15, 47)]));
    ensure!(books.settled(&to, None).await? == BTreeMap::from([(11, 0)]));
    books.sweep(&sweeps).await?;
    books.sweep(&[moved(to.address, None, 11, 3)]).await?;
    ensure!(books.settle().await? == 1, "nothing is told twice");
    ensure!(books.settled(&to, None).await? == BTreeMap::from([(11, 11)]));

    // 53 in all are there by now: two of these are covered, and the third by what comes later.
    books.apply(&chains, &[at(4, vec![x(4, 0, 4)]), at(5, vec![x(5, 0, 3)]), at(6, vec![x(6, 0, 5)])]).await?;
    books.sweep(&[moved(to.address, Some(X), 58, 6)]).await?;
    ensure!(books.settle().await? == 2);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 47), (20, 47), (15, 47), (4, 58), (3, 58), (5, 0)]));
    books.sweep(&[moved(to.address, Some(X), 59, 6)]).await?;
    ensure!(books.settle().await? == 1);
    let told = books.events().await?;
    let settled: Vec<&PaymentEvent> = told.iter().filter(|event| event.r#type == "deposit.settled").collect();
    ensure!(settled.len() == 7 && settled.iter().all(|event| event.status == "settled"), "{settled:?}");
    let last = settled.last().context("the last")?;
    let settlement = last.settlement.as_ref().context("a settlement")?;
    ensure!((settlement.block_number, settlement.fee.as_deref()) == (6, Some([0x52, 0x08].as_slice())), "{settlement:?}");
    ensure!((last.occurred_at, last.block.as_ref().map(|block| block.number)) == (2_006, Some(6)), "{last:?}");
    Ok(())
}

/// A chain may have several blocks a second.
#[tokio::test(flavor = "multi_thread")]
async fn deposits_of_one_second_are_settled_in_the_order_of_their_blocks() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    // Of each block 10 and more, and 1 that is below the minimum.
    let blocks: Vec<Matches> =
        (1..=16).map(|number| block(CHAIN, number, vec![x(number, 0, 10 + number), x(number, 1, 1)])).collect();
    books.apply(&chains, &blocks).await?;
    let arrived = |number: u64| (1..=number).map(|number| 10 + number).sum::<u64>() + 16;
    for (last, total) in [(5, arrived(5)), (5, arrived(6) - 1), (11, arrived(11)), (16, arrived(16))] {
        books.sweep(&[moved(to.address, Some(X), total, 16)]).await?;
        books.settle().await?;
        let settled: Vec<u64> =
            books.settled(&to, Some(X)).await?.into_iter().filter(|(_, by)| *by > 0).map(|(of, _)| of - 10).collect();
        ensure!(settled == (1..=last).collect::<Vec<_>>(), "{total}: {settled:?}");
    }
    Ok(())
}

/// One that is not confirmed yet holds up none behind it, and is settled when it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_left_before_it_was_confirmed_is_settled_once_it_is() -> Result<()> {
    let (_, mut books, to) = open().await?;
    let chains = chains(&X_LISTED.replace("confirmations: 1", "confirmations: 3")).await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    books.apply(&chains, &[at(1, vec![x(1, 0, 10)]), at(2, vec![x(2, 0, 20)]), at(3, vec![])]).await?;
    books.sweep(&[moved(to.address, Some(X), 30, 3)]).await?;
    ensure!(books.settle().await? == 1);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 30), (20, 0)]));
    books.apply(&chains, &[at(4, vec![])]).await?;
    ensure!(books.settle().await? == 1);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 30), (20, 30)]));
    // It has left more than is known to have arrived: what arrives later has not left with it.
    books.sweep(&[moved(to.address, Some(X), 500, 5)]).await?;
    books.apply(&chains, &[at(5, vec![]), at(6, vec![x(6, 0, 40)]), at(7, vec![]), at(8, vec![])]).await?;
    ensure!(books.settle().await? == 0);
    ensure!(books.all().await?.into_values().all(|payment| payment.status() != Status::Detected), "it is confirmed");
    Ok(())
}

/// `sweep.events` may be read far ahead of `chain.matches`.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_left_in_a_block_settles_once_that_is_there_and_witnessed_and_not_before() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    let beyond = moved(to.address, Some(X), 1_000, 1 << 62);
    books.sweep(&[moved(to.address, Some(X), 10, 3), beyond]).await?;
    books.apply(&chains, &[at(1, vec![x(1, 0, 10)]), at(2, vec![])]).await?;
    books.settle().await?;
    let unwitnessed = Matches { witnessed: Some(2), ..at(3, vec![]) };
    books.apply(&chains, &[unwitnessed]).await?;
    books.settle().await?;
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 0)]));
    books.apply(&chains, &[at(4, vec![x(4, 0, 7)])]).await?;
    ensure!(books.settle().await? == 1);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 10), (7, 0)]), "of the other no block is there");
    // One of this block has moved as much in all, as the one before its last deposit had.
    let (asset, mut later) = moved(to.address, Some(X), 17, 4);
    later.settlement.transaction = B256::left_padding_from(&[99]);
    books.sweep(&[moved(to.address, Some(X), 17, 3), (asset, later)]).await?;
    books.settle().await?;
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 10), (7, 99)]));
    Ok(())
}

/// While what it says is being written, what another said is taken out.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_is_read_while_its_address_is_looked_at_is_looked_at_as_well() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    books.apply(&chains, &[at(1, vec![x(1, 0, 10)]), at(2, vec![x(2, 0, 20)])]).await?;
    books.sweep(&[moved(to.address, Some(X), 10, 2)]).await?;
    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    store::save_swept(&transaction, &[moved(to.address, Some(X), 30, 2)]).await?;
    ensure!(books.settle().await? == 1);
    transaction.commit().await?;
    ensure!(books.settle().await? == 1);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 10), (20, 30)]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restarted_chain_takes_back_is_settled_no_more_until_it_is_there_again() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    let blocks = [at(1, vec![]), at(2, vec![x(2, 0, 10)]), at(3, vec![x(3, 0, 20)]), at(4, vec![])];
    books.apply(&chains, &blocks).await?;
    books.sweep(&[moved(to.address, Some(X), 30, 4)]).await?;
    ensure!(books.settle().await? == 2);
    let anew = Matches { sequence: 5, kind: Kind::Replayed, ..at(2, vec![]) };
    books.apply(&chains, &[anew]).await?;
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 30), (20, 0)]), "it is above where the chain stands");
    let again = |record: &Matches, sequence| Matches { sequence, ..record.clone() };
    books.apply(&chains, &[again(&blocks[2], 6), again(&blocks[3], 7)]).await?;
    ensure!(books.settle().await? == 1, "what has left stands, and nobody tells it again");
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 30), (20, 30)]));
    // A backfill brings one of before, which has not left yet: what had left by then was told to be the others.
    let found = Matches { sequence: 0, kind: Kind::Replayed, ..at(1, vec![x(1, 5, 7)]) };
    books.apply(&chains, &[found, again(&at(5, vec![]), 8), again(&at(6, vec![x(6, 0, 9)]), 9)]).await?;
    books.sweep(&[moved(to.address, Some(X), 36, 6)]).await?;
    ensure!(books.settle().await? == 0);
    books.sweep(&[moved(to.address, Some(X), 39, 6)]).await?;
    books.settle().await?;
    let settled = BTreeMap::from([(7, 39), (10, 30), (20, 30), (9, 0)]);
    ensure!(books.settled(&to, Some(X)).await? == settled, "{:?}", books.settled(&to, Some(X)).await?);
    books.sweep(&[moved(to.address, Some(X), 46, 6)]).await?;
    books.settle().await?;
    ensure!(books.settled(&to, Some(X)).await?[&9] == 46);
    let told = books.events().await?;
    let of = |amount: u8| told.iter().filter(move |event| event.amount.as_ref() == [amount]).map(|event| event.r#type.as_str());
    let life = ["deposit.detected", "deposit.confirmed", "deposit.settled"];
    ensure!(of(20).eq(life.iter().copied().chain(["deposit.reverted"]).chain(life)), "{:?}", of(20).collect::<Vec<_>>());
    ensure!(of(10).eq(life), "{:?}", of(10).collect::<Vec<_>>());
    Ok(())
}

/// The sweeper may be ahead of the confirmer: it told of a block that is final and that the confirmer had not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_was_told_before_its_chain_began_anew_below_it_settles_once_the_chain_is_back() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    books.apply(&chains, &[at(1, vec![]), at(2, vec![x(2, 0, 10)])]).await?;
    books.sweep(&[moved(to.address, Some(X), 30, 4)]).await?;
    let anew = Matches { sequence: 3, kind: Kind::Replayed, ..at(2, vec![]) };
    books.apply(&chains, &[anew, Matches { sequence: 4, ..at(3, vec![x(3, 0, 20)]) }]).await?;
    ensure!(books.settle().await? == 0, "its block is not there yet");
    books.apply(&chains, &[Matches { sequence: 5, ..at(4, vec![]) }]).await?;
    ensure!(books.settle().await? == 2);
    ensure!(books.settled(&to, Some(X)).await? == BTreeMap::from([(10, 30), (20, 30)]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_left_in_a_block_settles_once_that_is_final_where_nodes_call_blocks_so() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let final_at = |number, block: Matches| Matches { finalized: Some(number), ..block };
    let paid = pays(1, 0, to.address, Some(X), 10);
    books.apply(&chains, &[final_at(0, at(1, vec![paid])), final_at(1, at(2, vec![])), final_at(1, at(3, vec![]))]).await?;
    books.sweep(&[moved(to.address, Some(X), 10, 2)]).await?;
    ensure!(store::chains_to_settle(&books.pool.get().await?).await?.is_empty(), "nothing is due");
    ensure!(books.settle().await? == 0);
    books.apply(&chains, &[final_at(2, at(4, vec![]))]).await?;
    ensure!(store::chains_to_settle(&books.pool.get().await?).await? == [CHAIN]);
    ensure!(books.settle().await? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_settled_when_what_confirmed_it_has_left_and_others_are_not() -> Result<()> {
    let (chains, mut books, _) = open().await?;
    let own = |payment: &payments::Payment| payment.chain == CHAIN && payment.asset.token.is_some();
    let all: Vec<payments::Payment> = payments().into_iter().filter(own).collect();
    let confirming = |payment: &&payments::Payment| payment.policy == payments::Policy::Confirmations(1);
    let paid = all.iter().find(confirming).context("a payment")?;
    let other = all.iter().find(|payment| payment.id != paid.id).context("another payment")?;
    let x = |number, index, to, amount| pays(number, index, to, Some(X), amount);
    let coin = pays(1, 7, paid.address, None, 50);
    books
        .apply(
            &chains,
            &[at(1, vec![x(1, 0, paid.address, 2), x(1, 1, paid.address, 60), coin]), at(2, vec![x(2, 0, paid.address, 40)])],
        )
        .await?;
    books.apply(&chains, &[at(3, vec![x(3, 0, paid.address, 8), x(3, 1, other.address, 40)])]).await?;
    let status = async |books: &Books, id: PaymentId| Ok::<_, anyhow::Error>(books.payment(id).await?.status());
    ensure!(status(&books, paid.id).await? == Status::Confirmed);
    // Another asset, less than all, and what is in the balance beside it, in turn.
    for (token, total) in [(None, 1_000), (Some(X), 100), (Some(X), 101)] {
        books.sweep(&[moved(paid.address, token, total, 3)]).await?;
        ensure!(books.settle().await? == 0 && status(&books, paid.id).await? == Status::Confirmed, "{total} of {token:?}");
    }
    books.sweep(&[moved(paid.address, Some(X), 102, 3), moved(other.address, Some(X), 40, 3)]).await?;
    ensure!(books.settle().await? == 1, "what has come on top may be there still");
    ensure!(status(&books, paid.id).await? == Status::Settled);
    ensure!(status(&books, other.id).await? != Status::Settled, "it was not paid in full");
    books.apply(&chains, &[at(4, vec![x(4, 0, paid.address, 5)])]).await?;
    books.sweep(&[moved(paid.address, Some(X), 115, 4), moved(Address::repeat_byte(0x99), Some(X), 5, 4)]).await?;
    ensure!(books.settle().await? == 0 && status(&books, paid.id).await? == Status::Settled);
    let told = books.told(paid.id).await?;
    ensure!(
        told.iter().filter(|kind| *kind == "payment.settled").count() == 1
            && told.last().is_some_and(|kind| kind == "payment.overpaid")
    );
    Ok(())
}

/// A long list of deposits is gone through once: each look begins where all before is settled.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_many_deposits_is_settled_some_at_a_time_and_looked_through_once() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    books.apply_by(20, &chains, &fifty_each(to.address, 60)).await?;
    books.sweep(&[moved(to.address, Some(X), 25_000, 60)]).await?;
    let first = settle_some(&books.pool, CHAIN).await?;
    ensure!(first.events == 500, "{first:?}");
    ensure!(books.settle().await? == 2_000);
    let client = books.pool.get().await?;
    let row = client.query_one("SELECT arrived::text, block_number FROM settled_up_to", &[]).await?;
    ensure!((row.get::<_, &str>(0), row.get::<_, i64>(1)) == ("25000", 50));
    // Behind it the plan reads what it needs alone.
    client.batch_execute("ANALYZE payments; SET enable_seqscan = off").await?;
    let plan = "EXPLAIN SELECT id FROM payments WHERE deposit_address = '00000000-0000-0000-0000-0000000007d0' AND chain_id = 1
                    AND token_address = '\\x7777777777777777777777777777777777777777'
                    AND created_at >= 1050 ORDER BY created_at FETCH FIRST 10 ROWS WITH TIES";
    let plan: Vec<String> = client.query(plan, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(
        plan.iter().any(|line| line.contains("payments_of_swept_token")) && !plan.iter().any(|line| line.contains("Sort")),
        "{plan:#?}"
    );
    drop(client);
    books.sweep(&[moved(to.address, Some(X), 30_000, 60)]).await?;
    ensure!(books.settle().await? == 500);
    let statuses = books.all().await?.into_values().filter(|payment| payment.deposit_address.is_some());
    ensure!(statuses.filter(|deposit| deposit.status() == Status::Settled).count() == 3_000);
    Ok(())
}

/// The address that has waited longest is that of the broken one.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_can_not_be_read_keeps_no_other_from_being_settled() -> Result<()> {
    let (chains, mut books, broken) = open().await?;
    let other = static_addresses().remove(1);
    let paid = [pays(1, 0, broken.address, Some(X), 10), pays(1, 1, other.address, Some(X), 20)];
    books.apply(&chains, &[at(1, paid.to_vec()), at(2, vec![])]).await?;
    let client = books.pool.get().await?;
    let spoil = "UPDATE payments SET amount = repeat('9', 78)::numeric WHERE deposit_address = $1";
    client.execute(spoil, &[&broken.id]).await?;
    for (address, total) in [(broken.address, 10), (other.address, 20)] {
        books.sweep(&[moved(address, Some(X), total, 2)]).await?;
    }
    let (stop, pool, handle) = (CancellationToken::new(), books.pool.clone(), Handle::current());
    let (wake, _woken) = channel();
    let stopped = stop.clone();
    let settling = tokio::task::spawn_blocking(move || settle::run(&pool, &handle, &wake, &stopped));
    eventually("the other to be settled", async || {
        let row = client.query_one("SELECT status FROM payments WHERE deposit_address = $1", &[&other.id]).await?;
        Ok((row.get::<_, &str>(0) == "settled").then_some(()))
    })
    .await?;
    stop.cancel();
    settling.await??;
    let left: i64 = client.query_one("SELECT count(*) FROM to_settle", &[]).await?.get(0);
    ensure!(left == 1, "the broken one waits");
    Ok(())
}

/// `payment.events` brings it back, whether or not `sweep.events` is read that far.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_went_back_has_what_was_settled_and_tells_nothing_twice() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let x = |number, index, amount| pays(number, index, to.address, Some(X), amount);
    let blocks = [at(1, vec![x(1, 0, 10)]), at(2, vec![x(2, 0, 20)]), at(3, vec![])];
    books.apply(&chains, &blocks).await?;
    for total in [10, 30] {
        books.sweep(&[moved(to.address, Some(X), total, 3)]).await?;
        books.settle().await?;
    }
    let told: Vec<(Uuid, PaymentEvent)> =
        books.events().await?.into_iter().map(|event| Ok((event.payment_id.parse()?, event))).collect::<Result<_>>()?;
    let lived = books.settled(&to, Some(X)).await?;
    ensure!(lived == BTreeMap::from([(10, 10), (20, 30)]));
    for known in 0..=3 {
        // It has the first blocks, and the others come again; the later sweep alone is read, or none.
        for sweeps in [&[moved(to.address, Some(X), 30, 3)][..], &[]] {
            let (chains, mut books, _) = open().await?;
            books.apply(&chains, &blocks[..known]).await?;
            let before = books.events().await?.len();
            let mut client = books.pool.get().await?;
            let transaction = client.transaction().await?;
            runtime::db::lock::begin_comparison(&transaction).await?;
            store::keep_told_events(&transaction, &told).await?;
            transaction.commit().await?;
            drop(client);
            books.sweep(sweeps).await?;
            books.settle().await?;
            books.apply(&chains, &blocks[known..]).await?;
            books.settle().await?;
            ensure!(books.settled(&to, Some(X)).await? == lived, "with {known} blocks and {} sweeps", sweeps.len());
            ensure!(books.events().await?.len() <= before, "something is told again, with {known} blocks");
            let left: i64 = books.pool.get().await?.query_one("SELECT count(*) FROM told_events", &[]).await?.get(0);
            ensure!(left == 0, "{left} told events were not made again");
        }
    }
    Ok(())
}
