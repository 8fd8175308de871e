//! A token that chains.yaml lists only after it was received: the next replay credits it, and any further one changes nothing. One whose
//! decimals are in doubt: what arrives in it waits, and is credited once they are right.

use crate::books::{Books, CHAINS, X, X_LISTED, chains, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use chain::{Chain, Chains};
use confirmer::orphans::OrphanLook;
use e2e::Stack;
use payments::store::{self, WaitingOrphans};
use payments::{Payment, Policy, Status, deposit, events};
use topics::{Address, Amount, B256, BlockRef, Kind, Matches, PaymentId, Source, Transfer, TransferId};
use uuid::Uuid;

const NOTHING_LISTED: &str = "
- name: one
  chain_id: 1
  rpc_url: http://127.0.0.1:1
  confirmations: 1
- name: two
  chain_id: 2
  rpc_url: http://127.0.0.1:1
";
fn block(sequence: u64, kind: Kind, transfers: Vec<Transfer>) -> Matches {
    let hash = B256::left_padding_from(&sequence.to_be_bytes());
    Matches {
        chain: CHAINS[0],
        sequence: if kind == Kind::Replayed { 0 } else { sequence },
        kind,
        block: BlockRef { number: 50 + sequence, hash },
        parent: B256::left_padding_from(&(sequence - 1).to_be_bytes()),
        parent_number: None,
        timestamp: 1_000,
        safe: None,
        finalized: None,
        witnessed: Some(50 + sequence),
        transfers,
        part: 0,
        parts: 0,
    }
}

fn transfer(sequence: u64, index: u32, to: Address) -> Transfer {
    let block = B256::left_padding_from(&sequence.to_be_bytes());
    Transfer {
        id: TransferId { chain: CHAINS[0], block, transaction: B256::repeat_byte(9), source: Source::Log, index },
        token: Some(X),
        from: Address::ZERO,
        to,
        amount: Amount::from(70),
        transaction_index: 0,
    }
}

/// To a static address it is a deposit, to a payment in the coin something unexpected: each is told once, under one id.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_listed_later_is_credited_once_however_often_its_blocks_are_replayed() -> Result<()> {
    let (before, after) = (chains(NOTHING_LISTED).await?, chains(X_LISTED).await?);
    let coin = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_none()).context("a payment")?;
    let customer = static_addresses().remove(0);
    let paid = vec![transfer(1, 0, customer.address), transfer(1, 1, coin.address)];
    // The block is followed and then replayed, or replayed before the chain gets there.
    for first in [Kind::Added, Kind::Replayed] {
        let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
        books.apply(&before, &[block(1, first, paid.clone())]).await?;
        ensure!(books.events().await?.len() == payments().len(), "an unlisted token was told");
        let live = block(1, Kind::Added, paid.clone());
        let replay = block(1, Kind::Replayed, paid.clone());
        let mut records = vec![replay.clone()];
        if first == Kind::Replayed {
            records.push(live);
        }
        records.extend([replay.clone(), block(2, Kind::Added, Vec::new()), replay]);
        for record in records {
            books.apply(&after, &[record]).await?;
        }
        let known = books.all().await?;
        let deposit = known.get(&deposit::deposit_id(&paid[..1], 1_000)).context("the deposit")?;
        ensure!(deposit.policy == Policy::Confirmations(1), "{deposit:?}");
        ensure!((deposit.status(), deposit.received()) == (Status::Confirmed, paid[0].amount), "{deposit:?}");
        ensure!(deposit.transfers.len() == 1 && deposit.transfers[0].confirmed, "{deposit:?}");
        let unexpected = &known[&coin.id];
        ensure!(unexpected.transfers.len() == 1 && unexpected.transfers[0].listed, "{unexpected:?}");
        let told = books.events().await?;
        let told: Vec<&str> =
            told.iter().map(|event| event.r#type.as_str()).filter(|kind| *kind != "payment.created").collect();
        ensure!(told == ["deposit.detected", "payment.unexpected_transfer", "deposit.confirmed"], "{first:?}: {told:?}");
        let client = books.pool.get().await?;
        let ownerless = "SELECT count(*) FROM transfers WHERE payment_id IS NULL OR NOT listed";
        ensure!(client.query_one(ownerless, &[]).await?.get::<_, i64>(0) == 0, "a row without its payment");
    }
    Ok(())
}

/// The same chains, with the token in doubt: its decimals are wrong, and so is the minimum that is made with them.
fn doubted(chains: &Chains) -> Chains {
    let doubt = |chain: &Chain| {
        let doubts = chain.tokens.iter().map(|token| (token.address, "18 decimals".to_owned())).collect();
        let mut doubted = Chain { doubts, ..chain.clone() };
        for token in &mut doubted.tokens {
            (token.decimals, token.min_transfer) = (18, Amount::from(10_u64.pow(16)));
        }
        doubted
    };
    chains.iter().map(doubt).collect::<Vec<_>>().into()
}

/// Its decimals would make amounts and minimums that nobody meant. A payment in it was asked for when they were right.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_in_a_token_in_doubt_waits_and_is_credited_once() -> Result<()> {
    let right = chains(X_LISTED).await?;
    let wrong = doubted(&right);
    let find = |token| payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some() == token);
    let (coin, asked) = (find(false).context("a payment")?, find(true).context("a payment")?);
    let customer = static_addresses().remove(0);
    let lost = [transfer(2, 0, customer.address), transfer(2, 1, coin.address)];
    let paid = vec![
        transfer(1, 0, customer.address),
        transfer(1, 1, coin.address),
        transfer(1, 2, asked.address),
        transfer(1, 3, asked.address),
    ];
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let removed = block(2, Kind::Added, lost.to_vec());
    let removal = Matches { sequence: 3, kind: Kind::Removed, transfers: Vec::new(), ..removed.clone() };
    for record in [block(1, Kind::Added, paid.clone()), block(1, Kind::Replayed, paid.clone()), removed, removal] {
        books.apply(&wrong, &[record]).await?;
    }
    let told = async |books: &Books| -> Result<Vec<String>> {
        Ok(books.events().await?.into_iter().map(|event| event.r#type).filter(|kind| kind != "payment.created").collect())
    };
    let before = told(&books).await?;
    ensure!(
        !before.is_empty() && before.iter().all(|kind| !kind.contains("deposit") && !kind.contains("unexpected")),
        "{before:?}"
    );
    let paid_in_parts = &books.all().await?[&asked.id];
    ensure!(
        paid_in_parts.received() == Amount::from(140),
        "a payment in the token is paid as it was asked for: {paid_in_parts:?}"
    );
    ensure!(paid_in_parts.transfers.iter().all(|transfer| transfer.label.decimals == Some(6)), "{paid_in_parts:?}");
    // Whoever does not list the token has nothing to say about it either.
    for others in [&wrong, &chains(NOTHING_LISTED).await?] {
        OrphanLook::default().credit_owned(&books.pool, others).await?;
        ensure!(books.orphans().await? == 2, "{}", books.orphans().await?);
    }

    OrphanLook::default().credit_owned(&books.pool, &right).await?;
    ensure!(books.orphans().await? == 0, "{}", books.orphans().await?);
    books.apply(&right, &[block(1, Kind::Replayed, paid.clone())]).await?;
    let known = books.all().await?;
    let deposit = known.get(&deposit::deposit_id(&paid[..1], 1_000)).context("the deposit")?;
    ensure!(
        (deposit.status(), deposit.received(), deposit.asset.decimals) == (Status::Confirmed, paid[0].amount, 6),
        "{deposit:?}"
    );
    let after = told(&books).await?;
    let told = after.get(before.len()..).unwrap_or_default();
    ensure!(told == ["deposit.detected", "payment.unexpected_transfer", "deposit.confirmed"], "{told:?}");
    Ok(())
}

/// Two payments that a restore has lost: the token is in doubt for the one that does not ask for it alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_in_a_token_in_doubt_for_a_payment_that_is_lost_waits_for_the_payment() -> Result<()> {
    let right = chains(X_LISTED).await?;
    let wrong = doubted(&right);
    let lost = |token, index: u8| {
        let of_chain = |p: &Payment| p.chain == CHAINS[0] && p.asset.token.is_some() == token;
        let payment = payments().into_iter().find(of_chain).context("a payment")?;
        let (id, address) = (PaymentId(Uuid::from_u128(5_000 + u128::from(index))), Address::with_last_byte(index));
        Ok::<_, anyhow::Error>(Payment { id, address, address_index: index.into(), ..payment })
    };
    let (asks, other) = (lost(true, 210)?, lost(false, 211)?);
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    books.apply(&wrong, &[block(1, Kind::Added, vec![transfer(1, 0, asks.address), transfer(1, 1, other.address)])]).await?;
    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    let new: Vec<_> = [&asks, &other].map(|payment| (payment.clone(), events::created_event(payment))).into();
    store::insert_payments(&transaction, &new).await?;
    transaction.commit().await?;
    let credited = async |books: &Books, chains: &Chains| -> Result<[usize; 2]> {
        OrphanLook::default().credit_owned(&books.pool, chains).await?;
        let known = books.all().await?;
        Ok([asks.id, other.id].map(|id| known[&id].transfers.len()))
    };
    for chains in [&wrong, &wrong, &chains(NOTHING_LISTED).await?] {
        ensure!(credited(&books, chains).await? == [1, 0]);
    }
    ensure!(credited(&books, &right).await? == [1, 1]);
    Ok(())
}

/// As for any other token, a replay credits it should it be listed after all.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_token_that_an_operator_gives_up_is_kept_as_unlisted() -> Result<()> {
    let (right, unlisted) = (chains(X_LISTED).await?, chains(NOTHING_LISTED).await?);
    let customer = static_addresses().remove(0);
    let paid = vec![transfer(1, 0, customer.address)];
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    books.apply(&doubted(&right), &[block(1, Kind::Added, paid.clone())]).await?;
    let client = books.pool.get().await?;
    let waiting = store::orphans_by_token(&client).await?;
    let expected = WaitingOrphans { chain: CHAINS[0], token: Some(X), in_doubt: true, count: 1 };
    ensure!(waiting == [expected], "{waiting:?}");

    ensure!(store::give_token_up(&client, CHAINS[1], X).await? == 0);
    ensure!(store::give_token_up(&client, CHAINS[0], X).await? == 1);
    // One whose file lists it nevertheless makes it wait again.
    OrphanLook::default().credit_owned(&books.pool, &doubted(&right)).await?;
    ensure!(store::give_token_up(&client, CHAINS[0], X).await? == 1, "it waits no more");
    OrphanLook::default().credit_owned(&books.pool, &unlisted).await?;
    ensure!(store::orphans_by_token(&client).await? == []);
    ensure!(books.events().await?.len() == payments().len(), "an unlisted token was told");
    ensure!(client.query_one("SELECT count(*) FROM transfers WHERE NOT listed", &[]).await?.get::<_, i64>(0) == 1);

    books.apply(&right, &[block(1, Kind::Replayed, paid.clone())]).await?;
    let known = books.all().await?;
    let deposit = known.get(&deposit::deposit_id(&paid, 1_000)).context("the deposit")?;
    ensure!(deposit.received() == paid[0].amount, "{deposit:?}");
    Ok(())
}
