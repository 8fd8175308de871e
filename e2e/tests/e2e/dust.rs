//! Dust: what anyone sends, however much of it, costs its payment and nobody else.

use crate::books::{self, Books, CHAINS, X, X_LISTED, block_hash, chains, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use confirmer::orphans::OrphanLook;
use e2e::{Flood, Stack};
use payments::{DepositAddress, Payment, Policy, Status, Sums, Total, events, store};
use std::time::Duration;
use topics::{Address, Amount, B256, Kind, Matches, PaymentId, Source, Transfer, TransferId, U256};
use uuid::Uuid;

/// That the other merchant's payments are confirmed is part of the run. How soon is for `make bench BENCH=dust`, which has the whole
/// size too, and measures the same without dust.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_takes_little_memory_and_holds_nobody_up() -> Result<()> {
    let flood = Flood { blocks: 2, transfers: 10_000, block_time: Duration::from_secs(1) };
    let wet = flood.run().await?;
    ensure!(wet.peak_memory_mb < 300.0, "{wet:?}");
    // One for the first block of dust, which leaves it short, one for the second.
    ensure!(wet.events == 2, "{wet:?}");
    Ok(())
}

fn block(number: u64, kind: Kind, transfers: Vec<Transfer>) -> Matches {
    let with_block = |transfer: Transfer| Transfer { id: TransferId { block: block_hash(number), ..transfer.id }, ..transfer };
    let sequence = if kind == Kind::Replayed { 0 } else { number };
    Matches { sequence, kind, ..books::block(CHAINS[0], number, transfers.into_iter().map(with_block).collect()) }
}

/// Transfers of these amounts of X from one sender.
fn transfers(to: Address, sender: u8, amounts: &[Amount]) -> Vec<Transfer> {
    let transfer = |(amount, index): (&Amount, u32)| Transfer {
        id: TransferId {
            chain: CHAINS[0],
            block: B256::ZERO,
            transaction: B256::repeat_byte(sender),
            source: Source::Log,
            index,
        },
        token: Some(X),
        from: Address::repeat_byte(sender),
        to,
        amount: *amount,
        transaction_index: u32::from(sender),
    };
    amounts.iter().zip(0..).map(transfer).collect()
}

/// Kinds and sums of the events told since the payments were created.
async fn told(books: &Books) -> Result<Vec<(String, Option<u64>)>> {
    let told = books.events().await?.into_iter().filter(|event| event.r#type != "payment.created");
    Ok(told.map(|event| (event.r#type, event.summary.map(|summary| summary.count))).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_sender_the_transfers_beyond_the_hundredth_are_one_deposit() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let to = static_addresses().remove(0).address;
    let mut paid = transfers(to, 1, &[Amount::from(1); 250]);
    paid.extend(transfers(to, 2, &[Amount::from(5); 3]));
    let added = |sequence| Matches { sequence, ..block(1, Kind::Added, paid.clone()) };
    let removed = Matches { sequence: 2, kind: Kind::Removed, transfers: Vec::new(), ..added(2) };
    books.apply(&chains, &[added(1)]).await?;
    let deposits = |known: &std::collections::BTreeMap<_, payments::Payment>| {
        let mut sums: Vec<u64> = known
            .values()
            .filter(|payment| payment.deposit_address.is_some() && payment.status() == Status::Confirmed)
            .map(|payment| payment.received().to_string().parse().unwrap_or_default())
            .collect();
        sums.sort_unstable();
        sums
    };
    let expected = [vec![1; 100], vec![5; 3], vec![150]].concat();
    let known = books.all().await?;
    ensure!(deposits(&known) == expected, "{:?}", deposits(&known));
    ensure!(told(&books).await?.len() == 2 * expected.len());
    // Replayed, removed and brought again, it is the same deposits.
    books.apply(&chains, &[block(1, Kind::Replayed, paid.clone())]).await?;
    ensure!(told(&books).await?.len() == 2 * expected.len(), "a replay told something");
    books.apply(&chains, &[removed]).await?;
    ensure!(deposits(&books.all().await?).is_empty());
    books.apply(&chains, &[added(3)]).await?;
    let again = books.all().await?;
    ensure!(deposits(&again) == expected && again.keys().eq(known.keys()), "other deposits than before");
    let rest = told(&books).await?.into_iter().filter(|(_, count)| *count == Some(150)).map(|(kind, _)| kind);
    ensure!(rest.eq(["deposit.detected", "deposit.reverted", "deposit.detected"]), "{:?}", told(&books).await?);
    Ok(())
}

/// Whatever the minimum is when its block is replayed, what was decided about a transfer stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_below_the_minimum_is_kept_and_does_nothing() -> Result<()> {
    let raised = chains(&X_LISTED.replace("decimals: 6", "decimals: 6, min_transfer: 0.00005")).await?;
    let lowered = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let unexpected = payments().into_iter().find(|p| p.asset.token.is_none()).context("a payment in the coin")?;
    let customer = static_addresses().remove(0);
    let amounts = [49, 50].map(Amount::from);
    let of = |sender, to| transfers(to, sender, &amounts);
    let paid = [of(1, payment.address), of(2, unexpected.address), of(3, customer.address)].concat();
    for chains in [&raised, &lowered] {
        books.apply(chains, &[block(1, Kind::Replayed, paid.clone())]).await?;
    }
    books.apply(&lowered, &[block(1, Kind::Added, paid.clone())]).await?;
    let known = books.all().await?;
    ensure!(known[&payment.id].received() == amounts[1], "{:?}", known[&payment.id]);
    let deposits: Vec<_> = known.values().filter(|payment| payment.deposit_address.is_some()).collect();
    ensure!(deposits.len() == 1 && deposits[0].amount == amounts[1], "{deposits:?}");
    for id in [payment.id, unexpected.id] {
        let shown: Vec<(Amount, bool)> = known[&id].transfers.iter().map(|t| (t.amount, t.below_minimum)).collect();
        ensure!(shown == [(amounts[0], true), (amounts[1], false)], "{shown:?}");
    }
    let told: Vec<String> = told(&books).await?.into_iter().map(|(kind, _)| kind).collect();
    let expected = ["payment.underpaid", "payment.unexpected_transfer", "deposit.detected", "deposit.confirmed"];
    ensure!(told == expected, "{told:?}");
    Ok(())
}

/// A payment that was created before the minimum was raised asks for less.
#[tokio::test(flavor = "multi_thread")]
async fn what_pays_a_payment_alone_counts_below_the_minimum() -> Result<()> {
    let raised = chains(&X_LISTED.replace("decimals: 6", "decimals: 6, min_transfer: 1")).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    books.apply(&raised, &[block(1, Kind::Added, transfers(payment.address, 1, &[payment.amount]))]).await?;
    let paid = books.payment(payment.id).await?;
    ensure!(paid.received() == payment.amount && paid.transfers.iter().all(|t| !t.below_minimum), "{paid:?}");
    Ok(())
}

/// A listed token's contract may claim any amounts. The payment stops at the largest, and the chain goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_sum_beyond_256_bits_stops_nobody() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let most = Amount::new(U256::MAX);
    let huge = block(2, Kind::Added, transfers(payment.address, 1, &[most; 12]));
    let removed = Matches { sequence: 3, kind: Kind::Removed, transfers: Vec::new(), ..huge.clone() };
    books.apply(&chains, &[block(1, Kind::Added, transfers(payment.address, 2, &[Amount::from(40)])), huge]).await?;
    let paid = books.payment(payment.id).await?;
    let sum = (0..12).fold(Total::from(Amount::from(40)), |sum, _| sum.plus(most));
    ensure!(paid.received() == most && paid.sums.received == sum && paid.status() == Status::Confirmed, "{paid:?}");
    let last = books.events().await?.pop().context("an event")?;
    ensure!(last.amount_received_saturated && Amount::from_wire(&last.amount_received)? == most, "{last:?}");
    books.apply(&chains, &[removed]).await?;
    let paid = books.payment(payment.id).await?;
    ensure!(paid.received() == Amount::from(40), "a reorg takes it back: {paid:?}");
    Ok(())
}

/// A payment and a static address that are restored only after a flood has reached them.
#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_decided_about_and_summed_up_as_if_their_payment_had_been_there() -> Result<()> {
    let chains = chains(&X_LISTED.replace("decimals: 6", "decimals: 6, min_transfer: 0.000002")).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let payment =
        Payment { id: PaymentId(Uuid::from_u128(5_000)), address: Address::with_last_byte(210), address_index: 210, ..payment };
    let customer = DepositAddress {
        id: Uuid::from_u128(5_001),
        external_id: None,
        address: Address::with_last_byte(211),
        address_index: 211,
        ..static_addresses().remove(0)
    };
    let least = Amount::from(2);
    let [dust, flood, many, few] = [vec![Amount::from(1); 20], vec![least; 130], vec![least; 45], vec![least; 2]];
    let to_customer = [transfers(customer.address, 1, &flood), transfers(customer.address, 2, &dust)].concat();
    let to_payment = [transfers(payment.address, 3, &many), transfers(payment.address, 4, &dust)].concat();
    let paid = [to_customer, to_payment].concat();
    books.apply(&chains, &[block(1, Kind::Added, paid.clone())]).await?;
    books.apply(&chains, &[block(2, Kind::Added, transfers(payment.address, 5, &few))]).await?;
    ensure!(told(&books).await?.is_empty(), "nobody can be told yet");

    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    store::insert_payments(&transaction, &[(payment.clone(), events::created_event(&payment))]).await?;
    store::insert_addresses(&transaction, &[customer], Uuid::nil()).await?;
    transaction.commit().await?;
    // A block of the orphans is replayed before they are credited.
    let batch = [block(1, Kind::Replayed, paid.clone()), block(3, Kind::Added, Vec::new())];
    books.apply(&chains, &batch).await?;
    OrphanLook::default().credit_owned(&books.pool, &chains).await?;
    let deposits = |known: &std::collections::BTreeMap<_, Payment>| {
        let mut sums: Vec<(Amount, Status)> = known
            .values()
            .filter(|payment| payment.deposit_address.is_some())
            .map(|payment| (payment.received(), payment.status()))
            .collect();
        sums.sort_unstable_by_key(|(sum, _)| *sum);
        sums
    };
    let known = books.all().await?;
    let expected = [vec![(least, Status::Confirmed); 100], vec![(Amount::from(60), Status::Confirmed)]].concat();
    ensure!(deposits(&known) == expected, "{:?}", deposits(&known));
    let now = &known[&payment.id];
    ensure!((now.received(), now.status()) == (Amount::from(94), Status::Pending), "{now:?}");
    let count = async |condition: &str| -> Result<i64> {
        let sql = format!("SELECT count(*) FROM {condition}");
        Ok(client.query_one(&sql, &[]).await?.get(0))
    };
    ensure!(count("transfers WHERE below_minimum AND NOT credited").await? == 40, "what is below the minimum is kept");
    ensure!(count("transfers WHERE deposit_address IS NOT NULL AND payment_id IS NULL").await? == 20);
    ensure!(count("orphan_transfers").await? == 0);
    ensure!(count("payment_parts p JOIN payments o ON o.id = p.payment_id WHERE o.deposit_address IS NULL").await? == 2);
    let mut events = told(&books).await?;
    events.retain(|(kind, _)| kind.starts_with("payment."));
    let [one, two] = [Some(45), None].map(|count| ("payment.underpaid".to_owned(), count));
    ensure!(events == [one, two.clone(), two], "{events:?}");
    let all = told(&books).await?.len();
    books.apply(&chains, &[block(1, Kind::Replayed, paid)]).await?;
    ensure!(told(&books).await?.len() == all, "a replay told something");

    // What a reorg removes is taken back, each part of it.
    let removed = |sequence, number| Matches { sequence, ..block(number, Kind::Removed, Vec::new()) };
    books.apply(&chains, &[removed(4, 3), removed(5, 2), removed(6, 1)]).await?;
    let known = books.all().await?;
    ensure!(known[&payment.id].received() == Amount::ZERO, "{:?}", known[&payment.id]);
    ensure!(deposits(&known) == vec![(Amount::ZERO, Status::Pending); 101], "{:?}", deposits(&known));
    Ok(())
}

/// A chain begins anew, and a replay finds more in a block that is confirmed, before there is a head to confirm it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_of_a_part_is_confirmed_once() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let some = |amounts: &[u64]| transfers(payment.address, 1, &amounts.iter().map(|n| Amount::from(*n)).collect::<Vec<_>>());
    let anew = Matches { sequence: 2, ..block(1, Kind::Replayed, Vec::new()) };
    let next = Matches { sequence: 3, ..block(2, Kind::Added, Vec::new()) };
    let steps = [
        (block(1, Kind::Added, some(&[40])), 40, 40),
        (anew, 40, 40),
        (block(1, Kind::Replayed, some(&[40, 30])), 70, 40),
        (next, 70, 70),
    ];
    for (record, received, confirmed) in steps {
        books.apply(&chains, std::slice::from_ref(&record)).await?;
        let now = books.payment(payment.id).await?;
        let sums = [now.sums.received, now.sums.confirmed, now.sums.confirmed_in_time];
        let expected = [received, confirmed, confirmed].map(|sum| Total::from(Amount::from(sum)));
        ensure!(sums == expected && now.status() == Status::Pending, "{sums:?} after {record:?}");
    }
    Ok(())
}

/// A part is confirmed, or taken back, in a batch that knows of it by its row alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_block_brought_too_late_stays_late_in_the_batches_after_it() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let is_meant = |p: &Payment| p.chain == CHAINS[0] && p.policy == Policy::Confirmations(3) && !p.terms.accept_late;
    let payment = payments().into_iter().find(is_meant).context("a payment")?;
    let token = payment.asset.token.as_ref().map(|token| token.address);
    let late = payment.expires_at + 1;
    // Both parts are above half of what is needed: with the late one it would be confirmed.
    let part = |number, timestamp, amount: u64| {
        let paid = transfers(payment.address, 1, &[Amount::from(amount)]);
        let paid = paid.into_iter().map(|transfer| Transfer { token, ..transfer }).collect();
        Matches { timestamp, ..block(number, Kind::Added, paid) }
    };
    let empty = |number| Matches { timestamp: late, ..block(number, Kind::Added, Vec::new()) };
    let removed = |sequence, number| Matches { sequence, timestamp: late, ..block(number, Kind::Removed, Vec::new()) };
    let steps = [
        (part(1, payment.expires_at, 50), [50, 50, 0, 0], Status::Pending),
        (part(2, late, 60), [110, 50, 0, 0], Status::Expired),
        (empty(3), [110, 50, 50, 50], Status::Expired),
        (empty(4), [110, 50, 110, 50], Status::Expired),
        // The head is too low now, first for one, then for both.
        (removed(5, 4), [110, 50, 50, 50], Status::Expired),
        (removed(6, 3), [110, 50, 0, 0], Status::Expired),
        (removed(7, 2), [50, 50, 0, 0], Status::Pending),
        (removed(8, 1), [0, 0, 0, 0], Status::Pending),
    ];
    for (record, sums, status) in steps {
        books.apply(&chains, std::slice::from_ref(&record)).await?;
        let now = books.payment(payment.id).await?;
        let Sums { received, in_time, confirmed, confirmed_in_time } = now.sums;
        let expected = sums.map(|sum| Total::from(Amount::from(sum)));
        ensure!([received, in_time, confirmed, confirmed_in_time] == expected, "{:?} after {record:?}", now.sums);
        ensure!(now.status() == status, "{} after {record:?}", now.status());
    }
    Ok(())
}

/// However its parts are divided into batches, which is where a crash divides them.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_parts_is_credited_part_by_part_and_is_the_head_with_the_last() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let part = |part, kind, sender, amount: u64| {
        let sequence = if kind == Kind::Added { 2 } else { 0 };
        let paid = block(2, kind, transfers(payment.address, sender, &[Amount::from(amount)]));
        Matches { sequence, part, parts: 3, ..paid }
    };
    let of_kind = |kind| [part(1, kind, 1, 40), part(2, kind, 2, 50), part(3, kind, 3, 10)];
    let records = [&[block(1, Kind::Added, Vec::new())], &of_kind(Kind::Added)[..]].concat();
    for sizes in [&[1, 1, 1, 1][..], &[2, 2], &[3, 1], &[4]] {
        let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
        let mut rest = &records[..];
        for size in sizes {
            let (batch, later) = rest.split_at(*size);
            ensure!(books.all().await?[&payment.id].status() == Status::Pending, "paid before its last part, in {sizes:?}");
            books.apply(&chains, batch).await?;
            rest = later;
        }
        let paid = books.payment(payment.id).await?;
        ensure!((paid.status(), paid.received()) == (Status::Confirmed, Amount::from(100)), "{paid:?} in {sizes:?}");
        let events = told(&books).await?;
        books.apply(&chains, &of_kind(Kind::Replayed)).await?;
        ensure!(told(&books).await? == events, "a replay told something");
        let removed = Matches { sequence: 3, ..block(2, Kind::Removed, Vec::new()) };
        books.apply(&chains, &[removed]).await?;
        ensure!(books.all().await?[&payment.id].received().is_zero(), "a removed part counts");
    }
    let without_two = [records[0].clone(), records[1].clone(), records[3].clone()];
    for size in [3, 2, 1] {
        let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
        let mut batches = without_two.chunks(size);
        let failure = loop {
            let Some(batch) = batches.next() else { anyhow::bail!("applied without part 2, {size} records per batch") };
            match books.apply(&chains, batch).await {
                Ok(()) => {}
                Err(failure) => break failure,
            }
        };
        ensure!(failure.to_string().contains("part 3 of 3"), "{failure}");
    }
    Ok(())
}

/// Its transfers are told part by part, also when their payment comes after them.
#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_a_block_in_parts_are_told_as_if_their_payment_had_been_there() -> Result<()> {
    let chains = chains(X_LISTED).await?;
    let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let payment =
        payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment in the token")?;
    let late = Payment {
        id: PaymentId(Uuid::from_u128(5_000)),
        address: Address::with_last_byte(210),
        address_index: 210,
        ..payment.clone()
    };
    let to_both = |part: u8| {
        let amounts = vec![Amount::from(1); 20];
        let sent = [transfers(payment.address, part, &amounts), transfers(late.address, 10 + part, &amounts)];
        Matches { part: part.into(), parts: 2, ..block(1, Kind::Added, sent.concat()) }
    };
    books.apply(&chains, &[to_both(1), to_both(2)]).await?;
    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    store::insert_payments(&transaction, &[(late.clone(), events::created_event(&late))]).await?;
    transaction.commit().await?;
    OrphanLook::default().credit_owned(&books.pool, &chains).await?;
    let mut of_payment: std::collections::BTreeMap<String, Vec<_>> = std::collections::BTreeMap::new();
    for event in books.events().await?.into_iter().filter(|event| event.r#type != "payment.created") {
        of_payment.entry(event.payment_id).or_default().push((event.r#type, event.summary.map(|many| many.count)));
    }
    let told: Vec<_> = [&payment, &late].iter().map(|payment| of_payment.remove(&payment.id.to_string())).collect();
    ensure!(told[0].is_some() && told[0] == told[1], "{told:?}");
    Ok(())
}
