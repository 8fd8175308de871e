//! Long lists of deposits and of transactions that settle them, floods beside them, and those who wait meanwhile.

use super::{CHAIN, at, fifty_each, moved, open, pays};
use crate::books::{X, static_addresses};
use anyhow::{Context as _, Result, ensure};
use confirmer::settle::{self, Settled, settle_some};
use payments::store::{self, Reach};
use payments::swept::SweptAsset;
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::{Kind, Matches};

/// More than are read at a time, and each has moved one deposit.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_is_found_late_is_settled_however_many_transactions_have_moved_others() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    books.apply(&chains, &fifty_each(to.address, 24)).await?;
    let sweeps: Vec<_> = (1..=1_200).map(|count| moved(to.address, Some(X), 10 * count, 24)).collect();
    books.sweep(&sweeps).await?;
    ensure!(books.settle().await? == 1_200);
    // A backfill has the address looked through from the first one on.
    let found = |index, amount| Matches {
        sequence: 0,
        kind: Kind::Replayed,
        ..at(1, vec![pays(1, index, to.address, Some(X), amount)])
    };
    books.apply(&chains, &[found(100, 7)]).await?;
    books.sweep(&[moved(to.address, Some(X), 12_007, 24)]).await?;
    ensure!(books.settle().await? == 1, "the late one");
    ensure!(books.settled(&to, Some(X)).await?[&7] == 12_007);
    // Between what has left and what it needs are more than a page.
    books.apply(&chains, &[found(101, 5_000)]).await?;
    let sweeps: Vec<_> = (12_008..13_500).chain([17_007]).map(|total| moved(to.address, Some(X), total, 24)).collect();
    books.sweep(&sweeps).await?;
    ensure!(books.settle().await? == 1, "the large one");
    ensure!(books.settled(&to, Some(X)).await?[&5_000] == 17_007);
    Ok(())
}

/// What is looked at once more waits behind all that is due, and whoever has had no turn comes before it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_many_deposits_keeps_no_other_waiting_for_more_than_a_turn() -> Result<()> {
    let (chains, mut books, many) = open().await?;
    let other = static_addresses().remove(1);
    ensure!(many.address < other.address);
    let mut blocks = fifty_each(many.address, 40);
    blocks[0].transfers.extend([pays(1, 100, other.address, Some(X), 20), pays(1, 101, other.address, None, 30)]);
    books.apply_by(20, &chains, &blocks).await?;
    books.sweep(&[moved(many.address, Some(X), 20_000, 40), moved(other.address, Some(X), 20, 40)]).await?;
    ensure!(settle_some(&books.pool, CHAIN).await?.events == 500);
    ensure!(books.settled(&other, Some(X)).await? == BTreeMap::from([(20, 0)]), "it had no turn yet");
    // This one has been due for longer than that is which has more.
    books.sweep(&[moved(other.address, None, 30, 2)]).await?;
    ensure!(settle_some(&books.pool, CHAIN).await?.events == 500);
    ensure!(books.settled(&other, Some(X)).await? == BTreeMap::from([(20, 20)]));
    ensure!(books.settled(&other, None).await? == BTreeMap::from([(30, 30)]));
    ensure!(books.settle().await? == 1_002);
    Ok(())
}

/// Anyone can make a token, and any number of transfers of it.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_of_tokens_that_are_not_listed_are_not_read_to_settle_a_payment_or_a_deposit() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    let paid = crate::books::payments().into_iter().find(|payment| payment.chain == CHAIN).context("a payment")?;
    let x = |number, index, to, amount| pays(number, index, to, Some(X), amount);
    books.apply(&chains, &[at(1, vec![x(1, 0, to.address, 2), x(1, 1, paid.address, 2), x(1, 2, paid.address, 100)])]).await?;
    books.apply(&chains, &[at(2, vec![x(2, 0, to.address, 10)])]).await?;
    let mut client = books.pool.get().await?;
    let spam = "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address,
                    block_number, block_timestamp, transaction_index, token_address, sender, amount, credited, listed)
                SELECT 1, t.block_hash, t.transaction_hash, 'log', 10000 * (1 + t.index) + n, t.payment_id, t.deposit_address,
                    1, 1001, 0, decode(repeat('99', 20), 'hex'), t.sender, 1, false, false
                FROM transfers t, generate_series(1, 5000) AS n WHERE t.below_minimum";
    ensure!(client.execute(spam, &[]).await? == 10_000);
    // Of a chain with many payments few transfers are of these.
    let others = "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number,
                      block_timestamp, transaction_index, token_address, sender, amount, credited, listed)
                  SELECT 1, t.block_hash, t.transaction_hash, 'log', 100000 + n, p.id, n / 100, 1001, 0, t.token_address,
                      t.sender, 1, true, true
                  FROM transfers t, generate_series(1, 20000) AS n, payments p
                  WHERE t.payment_id = $1 AND t.below_minimum AND t.listed AND p.id = $2";
    let other = crate::books::payments().into_iter().find(|payment| payment.id != paid.id).context("another payment")?;
    ensure!(client.execute(others, &[&paid.id.0, &other.id.0]).await? == 20_000);
    client.batch_execute("ANALYZE transfers").await?;
    books.sweep(&[moved(to.address, Some(X), 12, 2), moved(paid.address, Some(X), 102, 2)]).await?;
    let transaction = client.transaction().await?;
    let read = async || -> Result<i64> {
        let sql = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'transfers'";
        Ok(transaction.query_one(sql, &[]).await?.get(0))
    };
    let before = read().await?;
    let asset = |address| SweptAsset { chain: CHAIN, address, token: Some(X) };
    let payments = store::covered_payments(&transaction, CHAIN, &[asset(paid.address)], 2).await?;
    let deposits = store::covered_deposits(&transaction, to.id, &asset(to.address), &mut Reach::new(2, 10)).await?;
    let read = read().await? - before;
    ensure!(payments.len() == 1 && deposits.covered.len() == 1, "{payments:?} {deposits:?}");
    ensure!(read < 100, "{read} transfers were read");
    Ok(())
}

/// A fold of several chains may keep a payment of this one, to which something came on another, and wait for this one's head.
#[tokio::test(flavor = "multi_thread")]
async fn who_settles_gives_way_to_a_fold_that_keeps_one_of_its_payments() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    books.apply(&chains, &[at(1, vec![pays(1, 0, to.address, Some(X), 10)]), at(2, vec![])]).await?;
    books.sweep(&[moved(to.address, Some(X), 10, 2)]).await?;
    let deposit = books.all().await?.into_values().find(|payment| payment.deposit_address.is_some()).context("a deposit")?;
    let mut client = books.pool.get().await?;
    let fold = client.transaction().await?;
    store::lock_payments(&fold, &[deposit.id.0]).await?;
    let settled = tokio::time::timeout(Duration::from_secs(20), settle_some(&books.pool, CHAIN)).await;
    ensure!(settled.context("it waits for the fold")?? == Settled::default());
    ensure!(store::lock_head(&fold, CHAIN).await?.is_some());
    fold.commit().await?;
    ensure!(books.settle().await? == 1, "it is looked at again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_which_only_a_kept_payment_is_left_to_settle_has_its_head_free() -> Result<()> {
    let (chains, mut books, to) = open().await?;
    books.apply(&chains, &[at(1, vec![pays(1, 0, to.address, Some(X), 10)]), at(2, vec![])]).await?;
    books.sweep(&[moved(to.address, Some(X), 10, 2)]).await?;
    let deposit = books.all().await?.into_values().find(|payment| payment.deposit_address.is_some()).context("a deposit")?;
    let mut client = books.pool.get().await?;
    let mut fold = client.transaction().await?;
    store::lock_payments(&fold, &[deposit.id.0]).await?;
    let (stop, pool, handle) = (CancellationToken::new(), books.pool.clone(), Handle::current());
    let (wake, _woken) = channel();
    let stopped = stop.clone();
    let settling = tokio::task::spawn_blocking(move || settle::run(&pool, &handle, &wake, &stopped));
    let mut free = 0;
    for _ in 0..100 {
        let look = fold.transaction().await?;
        let head = "SELECT FROM chain_heads WHERE chain_id = $1 FOR UPDATE SKIP LOCKED";
        free += look.query(head, &[&i64::try_from(CHAIN.0)?]).await?.len();
        look.rollback().await?;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    stop.cancel();
    fold.commit().await?;
    settling.await??;
    ensure!((60..100).contains(&free), "free at {free} of 100 looks, of which some came as it was tried");
    Ok(())
}
