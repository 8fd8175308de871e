//! Money is neither created nor lost: random chains with reorgs and replays go through the confirmer's fold into Postgres, and
//! its credits are those of the surviving chain.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::books::{Books, CHAINS, X, chains, failed, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use chain::Chains;
use e2e::Stack;
use payments::{Payment, Policy, Status, deposit, store};
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom as _, IndexedRandom as _};
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, HashMap, HashSet};
use topics::{Address, Amount, B256, BlockRef, ChainId, Kind, Matches, PaymentId, Source, Transfer, TransferId, wire};
use uuid::Uuid;

const WORLDS: usize = 8;
const STEPS: usize = 120;
const FAKE: Address = Address::repeat_byte(0x66);
const FILE: &str = r#"
- name: one
  chain_id: 1
  rpc_url: http://127.0.0.1:1
  confirmations: 2
  tiers: [{ from: 0.00000000000000007, confirmations: 4 }]
  tokens: [{ symbol: X, address: "0x7777777777777777777777777777777777777777", decimals: 6 }]
- name: two
  chain_id: 2
  rpc_url: http://127.0.0.1:1
  finality: finalized
  tokens: [{ symbol: X, address: "0x7777777777777777777777777777777777777777", decimals: 6, tiers: [{ from: 0.00007, finality: safe }] }]
"#;

/// A chain that is made up on the way.
struct Fork {
    id: ChainId,
    sequence: u64,
    blocks: Vec<Matches>,
    finalized: u64,
    /// Removed blocks, the lowest last.
    gone: Vec<Matches>,
    /// Transfers of removed blocks, which may come again in another block, or with another amount.
    loose: Vec<Transfer>,
    /// Blocks from before the first one, which are only replayed.
    past: Vec<Matches>,
}

/// Height of the first added block.
const FIRST: u64 = 50;

impl Fork {
    fn new(id: ChainId) -> Self {
        Self { id, sequence: 0, blocks: Vec::new(), finalized: 0, gone: Vec::new(), loose: Vec::new(), past: Vec::new() }
    }

    fn random_transfers(&mut self, random: &mut StdRng, block: B256) -> Vec<Transfer> {
        let mut transfers = Vec::new();
        let mut transaction = random_hash(random);
        for index in 0..[0, 0, 1, 1, 2, 5][random.random_range(0..6)] {
            // Several transfers per transaction, or one each.
            if random.random_bool(0.6) {
                transaction = random_hash(random);
            }
            let to = match random.random_range(0..16_u8) {
                number @ 0..12 => number + 1,
                _ => 200 + random.random_range(0..2_u8),
            };
            transfers.push(Transfer {
                id: TransferId { chain: self.id, block, transaction, source: Source::Log, index },
                token: *[None, Some(X), Some(X), Some(FAKE)].choose(random).unwrap(),
                from: Address::ZERO,
                to: Address::with_last_byte(to),
                amount: Amount::from(*[20_u64, 40, 80, 100, 120].choose(random).unwrap()),
                transaction_index: index,
            });
        }
        if random.random_bool(0.5)
            && let Some(loose) = self.loose.pop()
        {
            let amount = if random.random_bool(0.3) { Amount::from(60) } else { loose.amount };
            transfers.push(Transfer { id: TransferId { block, index: 90, ..loose.id }, amount, ..loose });
        }
        transfers
    }

    fn add(&mut self, random: &mut StdRng) -> Matches {
        let tip = self.blocks.last().map(|tip| (tip.block, tip.timestamp));
        let again = self.gone.pop().filter(|gone| tip.is_some_and(|(block, _)| block.hash == gone.parent));
        if let Some(again) = again.filter(|_| random.random_bool(0.5)) {
            // The abandoned branch becomes canonical again.
            self.sequence += 1;
            let record = Matches { sequence: self.sequence, ..again };
            self.blocks.push(record.clone());
            return record;
        }
        self.gone.clear();
        let (number, parent) = tip.map_or((FIRST, B256::ZERO), |(block, _)| (block.number + 1, block.hash));
        let timestamp = tip.map_or(1_000, |(_, timestamp)| timestamp) + random.random_range(0..25);
        let hash = random_hash(random);
        self.finalized = self.finalized.max(number.saturating_sub(random.random_range(2..12)));
        self.sequence += 1;
        let record = Matches {
            chain: self.id,
            sequence: self.sequence,
            kind: Kind::Added,
            block: BlockRef { number, hash },
            parent,
            timestamp,
            safe: random.random_bool(0.8).then(|| self.finalized + 1),
            finalized: random.random_bool(0.8).then_some(self.finalized),
            // A block may wait for its witnesses, and for a record that tells of them.
            witnessed: random.random_bool(0.7).then(|| number - random.random_range(0..3)),
            transfers: self.random_transfers(random, hash),
        };
        self.blocks.push(record.clone());
        record
    }

    /// What is learned between two blocks: enough endpoints have given the head, and the tags.
    fn learn(&mut self) -> Option<Matches> {
        let tip = self.blocks.last()?.clone();
        self.sequence += 1;
        Some(Matches {
            sequence: self.sequence,
            kind: Kind::Tags,
            safe: Some(self.finalized + 1),
            finalized: Some(self.finalized),
            witnessed: Some(tip.block.number),
            transfers: Vec::new(),
            ..tip
        })
    }

    /// Removes the head; `None` when it is final.
    fn remove(&mut self) -> Option<Matches> {
        self.blocks.last().filter(|tip| tip.block.number > self.finalized)?;
        let tip = self.blocks.pop()?;
        self.sequence += 1;
        self.loose.extend(tip.transfers.iter().cloned());
        self.gone.push(tip.clone());
        Some(Matches { sequence: self.sequence, kind: Kind::Removed, transfers: Vec::new(), ..tip })
    }

    /// Replays a final block, or one from before the first.
    fn replay(&mut self, random: &mut StdRng) -> Matches {
        let old = self.blocks.iter().filter(|block| block.block.number <= self.finalized).collect::<Vec<_>>();
        if let Some(block) = old.choose(random).filter(|_| random.random_bool(0.5)) {
            return Matches { sequence: 0, kind: Kind::Replayed, ..(*block).clone() };
        }
        let hash = random_hash(random);
        let number = FIRST - 1 - u64::try_from(self.past.len()).unwrap().min(FIRST - 1);
        let block = Matches {
            chain: self.id,
            sequence: 0,
            kind: Kind::Replayed,
            block: BlockRef { number, hash },
            parent: B256::ZERO,
            timestamp: 900,
            safe: None,
            finalized: None,
            witnessed: None,
            transfers: self.random_transfers(random, hash),
        };
        self.past.push(block.clone());
        block
    }

    /// The surviving blocks as if nothing else had ever been: none removed, none replayed that was added.
    fn surviving(&self) -> Vec<Matches> {
        let past = self.past.iter().cloned();
        past.chain(self.blocks.iter().zip(1..).map(|(block, sequence)| Matches { sequence, ..block.clone() })).collect()
    }
}

fn random_hash(random: &mut StdRng) -> B256 {
    B256::from(random.random::<[u8; 32]>())
}

/// The ledger's result for a payment, without the way there.
fn verdict(payment: &Payment) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut transfers: Vec<_> =
        payment.transfers.iter().map(|t| (format!("{:?}", t.id), t.amount, t.credited, t.listed, t.confirmed)).collect();
    transfers.sort();
    // The block that expired it is on the chain as well.
    let expired_by = payment.expired_by.filter(|_| payment.status() == Status::Expired);
    (payment.status(), payment.exception(), payment.received(), payment.cancelled, expired_by, transfers)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_credited_is_what_stands_on_the_surviving_chain() -> Result<()> {
    let seed = std::env::var("CTRIP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("CTRIP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let stack = Stack::attach()?;
    let chains = chains(FILE).await?;
    for world in 0..WORLDS {
        live(&stack, &chains, &mut random).await.with_context(|| format!("CTRIP_SEED={seed}, world {world}"))?;
    }
    Ok(())
}

async fn live(stack: &Stack, chains: &Chains, random: &mut StdRng) -> Result<()> {
    let slice = *[3, 8, usize::MAX].choose(random).unwrap();
    let mut books = Books::open(stack, slice).await?;
    let mut forks = CHAINS.map(Fork::new);
    let mut cancelled = Vec::new();
    let mut waiting: Vec<Matches> = Vec::new();
    let mut applied: Vec<Matches> = Vec::new();
    let (mut removed, mut replayed) = (0, 0);
    for _ in 0..STEPS {
        let fork = forks.choose_mut(random).unwrap();
        match random.random_range(0..10) {
            0 => {
                for _ in 0..random.random_range(1..6) {
                    let record = fork.remove();
                    removed += usize::from(record.is_some());
                    waiting.extend(record);
                }
            }
            1 => {
                waiting.push(fork.replay(random));
                replayed += 1;
            }
            3 => waiting.extend(fork.learn()),
            2 => {
                // The past is replayed up to the head before the chain gets there.
                let added = fork.add(random);
                let final_now = added.block.number;
                fork.finalized = fork.finalized.max(final_now);
                waiting.push(Matches { sequence: 0, kind: Kind::Replayed, safe: None, finalized: None, ..added.clone() });
                waiting.push(added);
            }
            _ => waiting.push(fork.add(random)),
        }
        if random.random_bool(0.3) {
            books.apply(chains, &waiting).await.map_err(failed)?;
            if random.random_bool(0.2) {
                let from = books.next;
                books.next = from - i64::try_from(waiting.len())?;
                let again = if waiting.is_empty() { None } else { Some(books.apply(chains, &waiting).await) };
                ensure!(!matches!(again, Some(Ok(()))), "records were applied twice");
                books.next = from;
            }
            applied.append(&mut waiting);
            if random.random_bool(0.05) {
                let payment = payments().choose(random).map(|payment| payment.id).unwrap();
                if books.cancel(payment).await? {
                    cancelled.push(payment);
                }
            }
        }
    }
    // The last tags cover no less than those of removed blocks, and the last block is witnessed.
    for fork in &mut forks {
        let last = fork.add(random);
        let number = last.block.number;
        let last = Matches { safe: Some(fork.finalized + 1), finalized: Some(fork.finalized), witnessed: Some(number), ..last };
        *fork.blocks.last_mut().unwrap() = last.clone();
        waiting.push(last);
    }
    books.apply(chains, &waiting).await.map_err(failed)?;
    applied.append(&mut waiting);
    ensure!(removed > 0 && replayed > 0, "a dull world: {removed} removed, {replayed} replayed");

    let surviving: Vec<Matches> = forks.iter().flat_map(Fork::surviving).collect();
    let known = books.all().await?;
    check_ledger(&known, &surviving)?;
    check_rows(&books, &surviving).await?;
    let events = books.events().await?;
    check_events(&known, &events)?;
    restored(stack, chains, random, &applied, (&known, &events)).await.context("a restored life")?;
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for payment in known.values() {
        let kind = if payment.deposit_address.is_some() { "deposit" } else { "payment" };
        *ends.entry(format!("{kind} {} {:?}", payment.status(), payment.exception())).or_default() += 1;
    }
    println!("{removed} blocks removed, {replayed} replayed: {ends:?}");

    let mut straight = Books::open(stack, usize::MAX).await?;
    for payment in &cancelled {
        ensure!(straight.cancel(*payment).await?, "a new payment can be cancelled");
    }
    for block in &surviving {
        straight.apply(chains, std::slice::from_ref(block)).await.map_err(failed)?;
    }
    let expected = straight.all().await?;
    for (id, payment) in &known {
        match expected.get(id) {
            Some(expected) => ensure!(
                verdict(payment) == verdict(expected),
                "{:?}\nin a straight life:\n{:?}",
                verdict(payment),
                verdict(expected)
            ),
            None => ensure!(
                payment.deposit_address.is_some() && payment.transfers.is_empty(),
                "{payment:?} is there, and not in a straight life"
            ),
        }
    }
    ensure!(expected.keys().all(|id| known.contains_key(id)), "a deposit is missing");
    Ok(())
}

/// A database as it was before the first block, restored when Kafka has some of the events or all, ends as the one that was lost. The
/// records of the two chains come in another order than they did; nothing is told twice, under another number, or not at all.
async fn restored(
    stack: &Stack,
    chains: &Chains,
    random: &mut StdRng,
    applied: &[Matches],
    (known, events): (&BTreeMap<PaymentId, Payment>, &[wire::PaymentEvent]),
) -> Result<()> {
    let mut books = Books::open(stack, usize::MAX).await?;
    let told = events.split_at(random.random_range(events.len() / 2..=events.len())).0;
    let told: Vec<_> = told.iter().filter(|event| event.r#type != "payment.created").cloned().collect();
    let by_id: Vec<(Uuid, wire::PaymentEvent)> =
        told.iter().map(|event| Ok((event.payment_id.parse()?, event.clone()))).collect::<Result<_>>()?;
    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    store::keep_told_events(&transaction, &by_id).await.map_err(failed)?;
    transaction.commit().await?;
    drop(client);
    let cancelled: Vec<_> = events.iter().filter(|event| event.r#type == "payment.cancelled").collect();
    let untold = |event: &&wire::PaymentEvent| !told.iter().any(|told| told.id == event.id);
    // What was never told is a request that its merchant repeats, or not: here the order of the two does not matter.
    if cancelled.iter().any(untold) {
        return Ok(());
    }
    for chain in CHAINS {
        let records: Vec<Matches> = applied.iter().filter(|record| record.chain == chain).cloned().collect();
        for batch in records.chunks(random.random_range(1..20)) {
            books.apply(chains, batch).await.map_err(failed)?;
        }
    }
    let now = books.all().await?;
    for (id, payment) in known {
        let again = now.get(id).with_context(|| format!("{payment:?} is lost"))?;
        ensure!(verdict(again) == verdict(payment), "{:?}\nbefore:\n{:?}", verdict(again), verdict(payment));
    }
    let mut all = told;
    all.extend(books.events().await?);
    all.sort_by_key(|event| (event.payment_id.clone(), event.sequence));
    // Which of a removed block's transfers a reverted event names depends on how the batches were cut.
    let transfer = |event: &wire::PaymentEvent| {
        let transfer = event.transfer.clone().filter(|_| !event.r#type.ends_with(".reverted"));
        transfer.map(|transfer| (transfer.transaction_hash, transfer.index))
    };
    let said = |event: &wire::PaymentEvent| {
        let block = event.block.clone().map(|block| block.hash);
        (event.payment_id.clone(), event.r#type.clone(), block, transfer(event))
    };
    let (mut before, mut after): (Vec<_>, Vec<_>) = (events.iter().map(said).collect(), all.iter().map(said).collect());
    before.sort();
    after.sort();
    ensure!(before == after, "events that were told twice, or never: {} before, {} after", before.len(), after.len());
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    for event in &all {
        let last = numbers.insert(&event.payment_id, event.sequence).unwrap_or(0);
        ensure!(event.sequence == last + 1, "{} after number {last}", event.id);
    }
    Ok(())
}

/// Each payment has received the surviving chain's transfers of its asset, and each deposit its transfer.
fn check_ledger(known: &BTreeMap<PaymentId, Payment>, surviving: &[Matches]) -> Result<()> {
    let sent = |to: Address| surviving.iter().flat_map(|block| &block.transfers).filter(move |t| t.to == to);
    for payment in payments() {
        let own = payment.asset.token.as_ref().map(|token| token.address);
        let sum: Option<Amount> =
            sent(payment.address).filter(|t| t.id.chain == payment.chain && t.token == own).map(|t| t.amount).sum();
        let now = &known[&payment.id];
        ensure!(now.received() == sum, "{}: {:?} is credited, {sum:?} is on the chain", payment.id, now.received());
    }
    let mut deposits = HashMap::new();
    for address in static_addresses() {
        for transfer in sent(address.address).filter(|t| t.token != Some(FAKE)) {
            let deposit = known.get(&deposit::deposit_id(&transfer.id)).context("a transfer without a deposit")?;
            ensure!(deposit.deposit_address == Some(address.id) && deposit.amount == transfer.amount, "{deposit:?}");
            ensure!(deposit.received() == Some(transfer.amount), "{deposit:?} is of {transfer:?}");
            deposits.insert(deposit.id, ());
        }
    }
    for payment in known.values().filter(|p| p.deposit_address.is_some() && !deposits.contains_key(&p.id)) {
        ensure!(payment.received() == Some(Amount::ZERO), "{payment:?}, and its transfer is not on the chain");
    }
    Ok(())
}

/// Every transfer of the surviving chain has one row that is not removed, transfers of fake tokens included.
async fn check_rows(books: &Books, surviving: &[Matches]) -> Result<()> {
    let client = books.pool.get().await?;
    let rows = client.query("SELECT block_hash, transaction_hash, index FROM transfers WHERE NOT removed", &[]).await?;
    let rows: Vec<(Vec<u8>, Vec<u8>, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let expected: HashSet<(Vec<u8>, Vec<u8>, i64)> = surviving
        .iter()
        .flat_map(|block| &block.transfers)
        .map(|t| (t.id.block.to_vec(), t.id.transaction.to_vec(), i64::from(t.id.index)))
        .collect();
    ensure!(rows.len() == expected.len(), "{} rows of {} transfers", rows.len(), expected.len());
    ensure!(rows.iter().all(|row| expected.contains(row)), "a transfer that is not on the chain");
    Ok(())
}

/// Sequences of events have no gaps, no event has a fake token, and the last event of each payment agrees with the ledger.
fn check_events(known: &BTreeMap<PaymentId, Payment>, events: &[wire::PaymentEvent]) -> Result<()> {
    let mut last: HashMap<&str, &wire::PaymentEvent> = HashMap::new();
    for event in events {
        let before = last.insert(&event.payment_id, event).map_or(0, |before| before.sequence);
        ensure!(event.sequence == before + 1, "{} after number {before}", event.id);
        let fake = |t: &wire::payment_event::Transfer| t.token_address == FAKE.as_slice();
        ensure!(!event.transfers.iter().any(fake) && !event.transfer.as_ref().is_some_and(fake), "{} tells a fake", event.id);
        ensure!(event.r#type.starts_with("deposit.") != event.deposit_address_id.is_empty(), "{}: {}", event.id, event.r#type);
    }
    for payment in known.values() {
        let id = payment.id.to_string();
        let told = last.get(id.as_str()).with_context(|| format!("nobody was told of {payment:?}"))?;
        let received = Amount::from_wire(&told.amount_received)?;
        let exception = payment.exception().map_or("", |exception| exception.as_str());
        ensure!(
            (told.status.as_str(), told.exception.as_str(), Some(received))
                == (payment.status().as_str(), exception, payment.received()),
            "{payment:?}, last told as {told:?}"
        );
        ensure!(told.sequence == payment.sequence, "{payment:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tag_said_of_a_removed_block_confirms_nothing_in_the_one_that_takes_its_place() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let mut books = Books::open(&stack, usize::MAX).await?;
    let payment = payments().into_iter().find(|p| p.policy == Policy::Safe && p.chain == CHAINS[0]).context("a payment")?;
    let block = |sequence, number: u64, hash, kind, safe: Option<u64>, pays: bool| {
        let transfer = Transfer {
            id: TransferId { chain: CHAINS[0], block: hash, transaction: hash, source: Source::Log, index: 0 },
            token: payment.asset.token.as_ref().map(|token| token.address),
            from: Address::ZERO,
            to: payment.address,
            amount: payment.amount,
            transaction_index: 0,
        };
        Matches {
            chain: CHAINS[0],
            sequence,
            kind,
            block: BlockRef { number, hash },
            parent: if number == FIRST { B256::ZERO } else { B256::repeat_byte(2) },
            timestamp: 1_000,
            safe,
            finalized: None,
            witnessed: Some(number),
            transfers: if pays { vec![transfer] } else { Vec::new() },
        }
    };
    let [one, two, three] = [1, 2, 3].map(B256::repeat_byte);
    let steps = [
        (block(1, FIRST, one, Kind::Added, Some(FIRST), true), "confirmed"),
        (block(2, FIRST, one, Kind::Removed, None, false), "pending"),
        // The endpoint does not know the tags for a while, as after any deep reorg.
        (block(3, FIRST, two, Kind::Added, None, true), "detected"),
        (block(4, FIRST + 1, three, Kind::Added, Some(FIRST), false), "confirmed"),
    ];
    for (record, status) in steps {
        books.apply(&chains, std::slice::from_ref(&record)).await.map_err(failed)?;
        let now = books.all().await?.remove(&payment.id).context("the payment")?;
        ensure!(now.status().as_str() == status, "{} after {record:?}, expected {status}", now.status());
    }
    Ok(())
}
