//! Money is neither created nor lost: random chains with reorgs and replays go through the confirmer's fold into Postgres, and
//! its credits are those of the surviving chain.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::books::{Books, CHAINS, X, X_LISTED, block, block_hash, chains, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use chain::Chains;
use e2e::Stack;
use payments::{Payment, Policy, Status, deposit, store};
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom as _, IndexedRandom as _};
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, HashMap, HashSet};
use tokio_postgres::Row;
use topics::{Address, Amount, B256, BlockRef, ChainId, Kind, Matches, PaymentId, Source, Transfer, TransferId, wire};
use uuid::Uuid;

const WORLDS: usize = 8;
const STEPS: usize = 120;
/// Each costs as much again.
const WORLDS_PLAYED_SINGLY: usize = 2;
/// `min_transfer` of the token on the first chain.
const LEAST: u64 = 30;
const FAKE: Address = Address::repeat_byte(0x66);
const FILE: &str = r#"
- name: one
  chain_id: 1
  rpc_url: http://127.0.0.1:1
  confirmations: 2
  tiers: [{ from: 0.00000000000000007, confirmations: 4 }]
  tokens: [{ symbol: X, address: "0x7777777777777777777777777777777777777777", decimals: 6, min_transfer: 0.00003 }]
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
    /// The first block since the chain began, and the highest one that is witnessed, as the confirmer knows them.
    first: Option<u64>,
    witnessed: Option<u64>,
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
        let (gone, loose, past) = (Vec::new(), Vec::new(), Vec::new());
        Self { id, sequence: 0, blocks: Vec::new(), finalized: 0, first: None, witnessed: None, gone, loose, past }
    }

    /// Whether a block may come again with other content: too few endpoints have given it.
    fn is_in_doubt(&self, number: u64) -> bool {
        self.first.is_some_and(|first| number > self.witnessed.unwrap_or(first - 1))
    }

    fn push(&mut self, block: &Matches) {
        self.first.get_or_insert(block.block.number);
        self.witnessed = self.witnessed.max(block.witnessed);
        self.blocks.push(block.clone());
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
        if random.random_bool(0.05) {
            // Enough that a payment takes them as one, or so many that a static address does.
            let to = *[1, 3, 8, 200].choose(random).unwrap();
            let (count, amount) = (*[12, 107, 130].choose(random).unwrap(), *[20_u64, 40].choose(random).unwrap());
            transfers.extend((1_000..1_000 + count).map(|index| Transfer {
                id: TransferId { chain: self.id, block, transaction, source: Source::Log, index },
                token: Some(X),
                from: Address::ZERO,
                to: Address::with_last_byte(to),
                amount: Amount::from(amount),
                transaction_index: index,
            }));
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
            // The abandoned branch becomes canonical again. What no root proves may be other content now.
            let again = if random.random_bool(0.5) { with_other_content(random, again) } else { again };
            self.sequence += 1;
            let record = Matches { sequence: self.sequence, ..again };
            self.push(&record);
            return record;
        }
        self.gone.clear();
        // What is final stays, also where all blocks above it have left and none of it was ever read.
        let first = FIRST.max(self.finalized + 1);
        let (number, parent) = tip.map_or((first, B256::ZERO), |(block, _)| (block.number + 1, block.hash));
        // Some chains skip numbers.
        let number = number + if random.random_bool(0.2) { random.random_range(1..4) } else { 0 };
        let timestamp = tip.map_or(1_000, |(_, timestamp)| timestamp) + random.random_range(0..25);
        let hash = random_hash(random);
        let below = number.saturating_sub(random.random_range(2..12));
        let last_final =
            self.blocks.iter().rev().find(|block| block.block.number <= below).map_or(below, |block| block.block.number);
        self.finalized = self.finalized.max(last_final);
        self.sequence += 1;
        let record = Matches {
            chain: self.id,
            sequence: self.sequence,
            kind: Kind::Added,
            block: BlockRef { number, hash },
            parent,
            parent_number: None,
            timestamp,
            safe: random.random_bool(0.8).then(|| self.finalized + 1),
            finalized: random.random_bool(0.8).then_some(self.finalized),
            // A block may wait for its witnesses, and for a record that tells of them.
            witnessed: random.random_bool(0.7).then(|| number - random.random_range(0..3)),
            transfers: self.random_transfers(random, hash),
            part: 0,
            parts: 0,
        };
        self.push(&record);
        record
    }

    /// What is learned between two blocks: enough endpoints have given the head, and the tags.
    fn learn(&mut self) -> Option<Matches> {
        let tip = self.blocks.last()?.clone();
        self.sequence += 1;
        self.witnessed = self.first.and(Some(tip.block.number));
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
        let parent_number = self.blocks.last().map(|tip| tip.block.number);
        self.first = self.first.filter(|first| *first < tip.block.number);
        self.witnessed = self.witnessed.min(parent_number).filter(|_| self.first.is_some());
        Some(Matches { sequence: self.sequence, kind: Kind::Removed, parent_number, transfers: Vec::new(), ..tip })
    }

    /// The chain begins anew above its last final block, past records that nobody could apply.
    fn restart(&mut self, random: &mut StdRng) -> Matches {
        let stands = self.finalized;
        for _ in 0..random.random_range(0..4) {
            if random.random_bool(0.5) { drop(self.remove()) } else { drop(self.add(random)) }
        }
        self.finalized = stands;
        while let Some(lost) = self.blocks.pop_if(|block| block.block.number > stands) {
            self.loose.extend(lost.transfers);
        }
        // What a backfill had brought above it goes too: the one that the restart asks for brings it again.
        for lost in self.past.extract_if(.., |block| block.block.number > stands) {
            self.loose.extend(lost.transfers);
        }
        self.gone.clear();
        (self.first, self.witnessed) = (None, None);
        self.sequence += 1;
        let last = self.blocks.last().map_or(B256::ZERO, |block| block.block.hash);
        Matches {
            sequence: self.sequence,
            kind: Kind::Replayed,
            block: BlockRef { number: stands, hash: last },
            parent: B256::ZERO,
            witnessed: None,
            ..block(self.id, stands, Vec::new())
        }
    }

    /// Replays a final block, or one from before the first.
    fn replay(&mut self, random: &mut StdRng) -> Matches {
        let old = self.blocks.iter().filter(|block| block.block.number <= self.finalized).collect::<Vec<_>>();
        if let Some(block) = old.choose(random).filter(|_| random.random_bool(0.5)) {
            let block = (*block).clone();
            // What stands on the chain stays, whatever a replay says.
            let is_other = random.random_bool(0.3) && !self.is_in_doubt(block.block.number);
            let block = if is_other { with_other_content(random, block) } else { block };
            return Matches { sequence: 0, kind: Kind::Replayed, ..block };
        }
        let hash = random_hash(random);
        let number = self.past.iter().map(|block| block.block.number).min().unwrap_or(FIRST).saturating_sub(1);
        let transfers = self.random_transfers(random, hash);
        let block = Matches {
            sequence: 0,
            kind: Kind::Replayed,
            block: BlockRef { number, hash },
            parent: B256::ZERO,
            timestamp: 900,
            witnessed: None,
            ..block(self.id, number, transfers)
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

/// The same block and transfers, of which some say something else.
fn with_other_content(random: &mut StdRng, mut block: Matches) -> Matches {
    for transfer in &mut block.transfers {
        match random.random_range(0..8) {
            0 => transfer.to = Address::with_last_byte(*[2, 3, 4, 9, 200, 201].choose(random).unwrap()),
            1 => transfer.token = *[None, Some(X), Some(FAKE)].choose(random).unwrap(),
            2 => transfer.amount = Amount::from(*[20_u64, 40, 80, 100].choose(random).unwrap()),
            3 => transfer.from = Address::repeat_byte(0x99),
            _ => {}
        }
    }
    block.timestamp += random.random_range(0..3);
    block
}

fn random_hash(random: &mut StdRng) -> B256 {
    B256::from(random.random::<[u8; 32]>())
}

/// The ledger's result for a payment, without the way there.
fn verdict(payment: &Payment) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut transfers: Vec<_> = payment
        .transfers
        .iter()
        .map(|t| (format!("{:?} {:?}", t.id, t.from), t.amount, t.credited, t.listed, t.confirmed))
        .collect();
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
        let singly = world < WORLDS_PLAYED_SINGLY;
        live(&stack, &chains, &mut random, singly).await.with_context(|| format!("CTRIP_SEED={seed}, world {world}"))?;
    }
    Ok(())
}

async fn live(stack: &Stack, chains: &Chains, random: &mut StdRng, singly: bool) -> Result<()> {
    let slice = *[3, 8, usize::MAX].choose(random).unwrap();
    let mut books = Books::open(stack, slice).await?;
    let mut forks = CHAINS.map(Fork::new);
    let mut cancelled = Vec::new();
    let mut played: Vec<Played> = Vec::new();
    let mut waiting: Vec<Matches> = Vec::new();
    let mut applied: Vec<Matches> = Vec::new();
    let (mut removed, mut replayed) = (0, 0);
    for _ in 0..STEPS {
        let fork = forks.choose_mut(random).unwrap();
        if random.random_bool(0.03) {
            waiting.push(fork.restart(random));
        }
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
            books.apply(chains, &waiting).await?;
            played.extend(as_applied(&waiting));
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
                    played.push(Played::Cancel(payment));
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
    books.apply(chains, &waiting).await?;
    played.extend(as_applied(&waiting));
    applied.append(&mut waiting);
    ensure!(removed > 0 && replayed > 0, "a dull world: {removed} removed, {replayed} replayed");

    let surviving: Vec<Matches> = forks.iter().flat_map(Fork::surviving).collect();
    let known = books.all().await?;
    check_ledger(&known, &surviving)?;
    check_rows(&books, &surviving).await?;
    check_counted_from(&books, &known, &surviving).await?;
    if singly {
        check_one_at_a_time(stack, chains, &played, &books).await?;
    }
    let events = books.events().await?;
    check_events(&known, &events)?;
    restored(stack, chains, random, &applied, (&known, &events)).await.context("a restored life")?;
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for payment in known.values() {
        let kind = if payment.deposit_address.is_some() { "deposit" } else { "payment" };
        *ends.entry(format!("{kind} {} {:?}", payment.status(), payment.exception())).or_default() += 1;
    }
    println!("{removed} blocks removed, {replayed} replayed: {ends:?}");
    check_straight(stack, chains, &surviving, &cancelled, &known).await
}

/// Payments end as they would if nothing but the surviving chain had ever been.
async fn check_straight(
    stack: &Stack,
    chains: &Chains,
    surviving: &[Matches],
    cancelled: &[PaymentId],
    known: &BTreeMap<PaymentId, Payment>,
) -> Result<()> {
    let mut straight = Books::open(stack, usize::MAX).await?;
    for payment in cancelled {
        ensure!(straight.cancel(*payment).await?, "a new payment can be cancelled");
    }
    for block in surviving {
        straight.apply(chains, std::slice::from_ref(block)).await?;
    }
    let expected = straight.all().await?;
    for (id, payment) in known {
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
    store::keep_told_events(&transaction, &by_id).await?;
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
        books.apply_by(random.random_range(1..20), chains, &records).await?;
    }
    let now = books.all().await?;
    for (id, payment) in known {
        let again = now.get(id).with_context(|| format!("{payment:?} is lost"))?;
        ensure!(verdict(again) == verdict(payment), "{:?}\nbefore:\n{:?}", verdict(again), verdict(payment));
    }
    let mut all = told;
    all.extend(books.events().await?);
    all.sort_by_key(|event| (event.payment_id.clone(), event.sequence));
    let place = |transfer: wire::payment_event::Transfer| (transfer.transaction_hash, transfer.index, transfer.amount);
    let said = |event: &wire::PaymentEvent| {
        let block = event.block.clone().map(|block| block.hash);
        let many = event.summary.clone().map(|many| (many.count, many.amount, many.first.map(place), many.last.map(place)));
        (event.payment_id.clone(), event.r#type.clone(), block, event.transfer.clone().map(place), many)
    };
    let (mut before, mut after): (Vec<_>, Vec<_>) = (events.iter().map(said).collect(), all.iter().map(said).collect());
    before.sort();
    after.sort();
    ensure!(
        before == after,
        "events that were told twice, or never: {} before, {} after; before alone: {:#?}; after alone: {:#?}",
        before.len(),
        after.len(),
        more(&before, after.clone()),
        more(&after, before.clone())
    );
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    for event in &all {
        let last = numbers.insert(&event.payment_id, event.sequence).unwrap_or(0);
        ensure!(event.sequence == last + 1, "{} after number {last}", event.id);
    }
    Ok(())
}

/// Those of `all` that are not among `others`, as often as they are not.
fn more<T: std::fmt::Debug + PartialEq>(all: &[T], mut others: Vec<T>) -> Vec<&T> {
    let is_more = |one: &&T| others.iter().position(|other| other == *one).map(|place| others.swap_remove(place)).is_none();
    all.iter().filter(is_more).collect()
}

/// What was applied, in order.
enum Played {
    Record(Box<Matches>),
    Cancel(PaymentId),
}

/// A batch in the order in which it is applied: one chain after the other.
fn as_applied(batch: &[Matches]) -> impl Iterator<Item = Played> {
    let mut chains: Vec<ChainId> = Vec::new();
    for record in batch {
        if !chains.contains(&record.chain) {
            chains.push(record.chain);
        }
    }
    let of = |chain| batch.iter().filter(move |record| record.chain == chain);
    chains.into_iter().flat_map(of).map(|record| Played::Record(Box::new(record.clone())))
}

/// Batches of any size, and slices, tell what the records tell one at a time, byte for byte.
async fn check_one_at_a_time(stack: &Stack, chains: &Chains, played: &[Played], batched: &Books) -> Result<()> {
    let mut single = Books::open(stack, usize::MAX).await?;
    for one in played {
        match one {
            Played::Record(record) => single.apply(chains, std::slice::from_ref(record)).await?,
            Played::Cancel(payment) => ensure!(single.cancel(*payment).await?, "it can be cancelled as before"),
        }
    }
    let told = |events: Vec<wire::PaymentEvent>| -> BTreeMap<String, wire::PaymentEvent> {
        events.into_iter().map(|event| (event.id.clone(), event)).collect()
    };
    let (batched, single) = (told(batched.events().await?), told(single.events().await?));
    for (id, event) in &batched {
        ensure!(single.get(id) == Some(event), "{event:?}\nand one at a time:\n{:?}", single.get(id));
    }
    ensure!(batched.len() == single.len(), "{} events, and {} one at a time", batched.len(), single.len());
    Ok(())
}

/// Confirmations count from the block that reached the amount, or the first that brought something.
async fn check_counted_from(books: &Books, known: &BTreeMap<PaymentId, Payment>, surviving: &[Matches]) -> Result<()> {
    let client = books.pool.get().await?;
    let all: Vec<Payment> = known.values().cloned().collect();
    let counted = store::counted_from(&client, &all).await?;
    for payment in payments() {
        let own = payment.asset.token.as_ref().map(|token| token.address);
        let mut parts: Vec<(u64, Amount)> = surviving
            .iter()
            .flat_map(|block| block.transfers.iter().map(move |t| (block.block.number, t)))
            .filter(|(_, t)| t.to == payment.address && t.id.chain == payment.chain && t.token == own && counts(&payment, t))
            .map(|(number, t)| (number, t.amount))
            .collect();
        parts.sort_unstable();
        let mut sum = Amount::ZERO;
        let reached = parts.iter().find(|(_, amount)| {
            sum = sum.checked_add(*amount).unwrap();
            sum >= payment.needed()
        });
        let expected = reached.or(parts.first()).map(|(number, _)| *number);
        ensure!(counted.get(&payment.id) == expected.as_ref(), "{payment:?}: {:?}, not {expected:?}", counted.get(&payment.id));
    }
    Ok(())
}

/// Whether a transfer is not below the minimum for a payment.
fn counts(payment: &Payment, transfer: &Transfer) -> bool {
    let own = payment.asset.token.as_ref().map(|token| token.address) == transfer.token && payment.chain == transfer.id.chain;
    is_large_enough(transfer) || (own && transfer.amount >= payment.needed())
}

fn is_large_enough(transfer: &Transfer) -> bool {
    transfer.id.chain != CHAINS[0] || transfer.token != Some(X) || transfer.amount >= Amount::from(LEAST)
}

/// Each payment has received the surviving chain's transfers of its asset, and each deposit its transfer, or those of a block beyond
/// the hundredth.
fn check_ledger(known: &BTreeMap<PaymentId, Payment>, surviving: &[Matches]) -> Result<()> {
    let sent = |to: Address| surviving.iter().flat_map(|block| &block.transfers).filter(move |t| t.to == to);
    for payment in payments() {
        let own = payment.asset.token.as_ref().map(|token| token.address);
        let sum: Option<Amount> = sent(payment.address)
            .filter(|t| t.id.chain == payment.chain && t.token == own && counts(&payment, t))
            .map(|t| t.amount)
            .sum();
        let now = &known[&payment.id];
        ensure!(Some(now.received()) == sum, "{}: {:?} is credited, {sum:?} is on the chain", payment.id, now.received());
    }
    let mut deposits: HashMap<PaymentId, (Uuid, Amount)> = HashMap::new();
    for (address, block) in static_addresses().iter().flat_map(|address| surviving.iter().map(move |block| (address, block))) {
        let mut of_sender: HashMap<deposit::Sender, Vec<&Transfer>> = HashMap::new();
        for transfer in block.transfers.iter().filter(|t| t.to == address.address && t.token != Some(FAKE)) {
            of_sender.entry(deposit::sender(transfer)).or_default().push(transfer);
        }
        for all in of_sender.into_values() {
            let counting: Vec<&Transfer> = all.iter().copied().filter(|t| is_large_enough(t)).collect();
            let (single, rest) = counting.split_at(counting.len().min(100));
            for one in single {
                deposits.insert(deposit::deposit_id([*one], block.timestamp), (address.id, one.amount));
            }
            if let Some(sum) = rest.iter().map(|t| t.amount).sum::<Option<Amount>>().filter(|_| !rest.is_empty()) {
                deposits.insert(deposit::deposit_id(all, block.timestamp), (address.id, sum));
            }
        }
    }
    for (id, (address, sum)) in &deposits {
        let deposit = known.get(id).context("a transfer without a deposit")?;
        ensure!(deposit.deposit_address == Some(*address) && deposit.amount == *sum, "{deposit:?}, not of {sum}");
        ensure!(deposit.received() == *sum, "{deposit:?}, not of {sum}");
    }
    for payment in known.values().filter(|p| p.deposit_address.is_some() && !deposits.contains_key(&p.id)) {
        ensure!(payment.received() == Amount::ZERO, "{payment:?}, and its transfer is not on the chain");
    }
    Ok(())
}

/// Every transfer of the surviving chain has one row that is not removed, transfers of fake tokens included.
async fn check_rows(books: &Books, surviving: &[Matches]) -> Result<()> {
    let client = books.pool.get().await?;
    let sql = "SELECT t.block_hash, t.transaction_hash, t.index, coalesce(p.address, d.address), coalesce(t.token_address, ''),
             t.sender, t.amount::text, t.block_timestamp
         FROM transfers t LEFT JOIN payments p ON p.id = t.payment_id LEFT JOIN deposit_addresses d ON d.id = t.deposit_address
         WHERE NOT t.removed";
    let rows = client.query(sql, &[]).await?;
    let bytes = |row: &Row, columns: [usize; 5]| columns.map(|column| row.get::<_, Vec<u8>>(column));
    let rows: Vec<([Vec<u8>; 5], i64, String, i64)> =
        rows.iter().map(|row| (bytes(row, [0, 1, 3, 4, 5]), row.get(2), row.get(6), row.get(7))).collect();
    let expected: HashSet<([Vec<u8>; 5], i64, String, i64)> = surviving
        .iter()
        .flat_map(|block| block.transfers.iter().map(|t| (t, i64::try_from(block.timestamp).unwrap())))
        .map(|(t, timestamp)| {
            let token = t.token.map(|token| token.to_vec()).unwrap_or_default();
            let hashes = [t.id.block.to_vec(), t.id.transaction.to_vec(), t.to.to_vec(), token, t.from.to_vec()];
            (hashes, i64::from(t.id.index), t.amount.to_string(), timestamp)
        })
        .collect();
    ensure!(rows.iter().all(|row| expected.contains(row)), "a transfer that is not on the chain");
    let missing: Vec<_> = expected.iter().filter(|transfer| !rows.contains(transfer)).collect();
    ensure!(missing.is_empty() && rows.len() == expected.len(), "{} rows of {}: no {missing:?}", rows.len(), expected.len());
    // The sums, which are kept step by step, are those of the parts, and these of the transfers.
    let wrong = "SELECT count(*) FROM payments p
         LEFT JOIN LATERAL (SELECT coalesce(sum(credited), 0) AS received, coalesce(sum(transfers), 0) AS transfers,
                 coalesce(sum(confirmed), 0) AS confirmed,
                 coalesce(sum(credited) FILTER (WHERE block_timestamp <= expires_at), 0) AS in_time,
                 coalesce(sum(confirmed) FILTER (WHERE block_timestamp <= expires_at), 0) AS confirmed_in_time
             FROM payment_parts WHERE payment_id = p.id) AS part ON true
         LEFT JOIN LATERAL (SELECT coalesce(sum(amount) FILTER (WHERE credited), 0) AS received, count(*) AS transfers
             FROM transfers WHERE payment_id = p.id AND listed AND NOT below_minimum AND NOT removed) AS transfer ON true
         WHERE (p.received, p.confirmed, p.in_time, p.confirmed_in_time)
             <> (part.received, part.confirmed, part.in_time, part.confirmed_in_time)
             OR (transfer.received, transfer.transfers) <> (part.received, part.transfers)";
    let wrong: i64 = client.query_one(wrong, &[]).await?.get(0);
    ensure!(wrong == 0, "{wrong} payments whose sums are not those of their transfers");
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
        let dust =
            |t: &wire::payment_event::Transfer| t.chain_id == 1 && t.token_address == X.as_slice() && t.amount.as_ref() == [20];
        // Twenty alone pay nothing that a payment here needs.
        ensure!(!event.transfers.iter().any(dust) && !event.transfer.as_ref().is_some_and(dust), "{} tells dust", event.id);
        ensure!(event.r#type.starts_with("deposit.") != event.deposit_address_id.is_empty(), "{}: {}", event.id, event.r#type);
    }
    for payment in known.values() {
        let id = payment.id.to_string();
        let told = last.get(id.as_str()).with_context(|| format!("nobody was told of {payment:?}"))?;
        let received = Amount::from_wire(&told.amount_received)?;
        let exception = payment.exception().map_or("", |exception| exception.as_str());
        ensure!(
            (told.status.as_str(), told.exception.as_str(), received)
                == (payment.status().as_str(), exception, payment.received()),
            "{payment:?}, last told as {told:?}"
        );
        ensure!(told.sequence == payment.sequence, "{payment:?}");
    }
    Ok(())
}

/// A block is removed and comes again in one batch, the second time without its traces. A backfill brings what was missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_comes_again_with_fewer_transfers_keeps_no_more() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let payment = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_none()).context("a payment")?;
    let [below, hash] = [1, 2].map(B256::repeat_byte);
    let transfer = |source| Transfer {
        id: TransferId { chain: CHAINS[0], block: hash, transaction: hash, source, index: u32::from(source == Source::Trace) },
        token: None,
        from: Address::ZERO,
        to: payment.address,
        amount: Amount::from(40),
        transaction_index: 0,
    };
    let block = |sequence, kind, sources: &[Source]| Matches {
        sequence,
        kind,
        block: BlockRef { number: FIRST + 1, hash },
        parent: below,
        witnessed: None,
        ..block(CHAINS[0], FIRST + 1, sources.iter().map(|source| transfer(*source)).collect())
    };
    let first = Matches { block: BlockRef { number: FIRST, hash: below }, ..block(1, Kind::Added, &[]) };
    let whole = [Source::Transaction, Source::Trace];
    for again in [&whole[..1], &[]] {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply(&chains, &[first.clone(), block(2, Kind::Added, &whole)]).await?;
        books.apply(&chains, &[block(3, Kind::Removed, &[]), block(4, Kind::Added, again)]).await?;
        check_rows(&books, &[block(4, Kind::Added, again)]).await?;
        books.apply(&chains, &[block(0, Kind::Replayed, &whole)]).await?;
        check_rows(&books, &[block(4, Kind::Added, &whole)]).await?;
        let received = books.all().await?[&payment.id].received();
        ensure!(received == Amount::from(80), "{received:?} after a backfill, and 80 are on the chain");
    }
    Ok(())
}

/// Where no root proves a block's content, a liar can give the true hash with other content. Then the block is removed and comes again
/// under the same hash; a replay may still have the lie.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_comes_again_under_its_hash_with_other_content_leaves_nothing_of_the_first() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let of_chain: Vec<Payment> = payments().into_iter().filter(|p| p.chain == CHAINS[0]).collect();
    let [one, other] = [0, 1].map(|place| static_addresses()[place].address);
    let pays = |to, index| Transfer {
        id: TransferId { chain: CHAINS[0], block: B256::ZERO, transaction: B256::repeat_byte(9), source: Source::Log, index },
        token: Some(X),
        from: Address::ZERO,
        to,
        amount: Amount::from(100),
        transaction_index: 0,
    };
    let mut cases: Vec<[(Vec<Transfer>, u64); 2]> = Vec::new();
    for (to, elsewhere) in [(of_chain[0].address, of_chain[1].address), (one, other), (of_chain[2].address, one)] {
        let truth = pays(to, 0);
        let lies = [
            (Transfer { to: elsewhere, ..truth.clone() }, 0),
            (Transfer { token: None, ..truth.clone() }, 0),
            (Transfer { token: Some(FAKE), ..truth.clone() }, 0),
            (Transfer { amount: Amount::from(40), ..truth.clone() }, 0),
            (Transfer { amount: Amount::from(20), ..truth.clone() }, 0),
            (Transfer { from: Address::repeat_byte(7), ..truth.clone() }, 0),
            (truth.clone(), 5_000),
        ];
        cases.extend(lies.map(|(lie, later)| [(vec![lie], later), (vec![truth.clone()], 0)]));
    }
    // Of so many the last are one deposit.
    let many: Vec<Transfer> = (0..103).map(|index| pays(one, index)).collect();
    let mut other_amount = many.clone();
    other_amount[102].amount = Amount::from(500);
    cases.extend([many[2..].to_vec(), many[..101].to_vec(), other_amount].map(|lie| [(lie, 0), (many.clone(), 0)]));
    cases.extend(cases.clone().into_iter().map(|[lie, truth]| [truth, lie]));

    let (mut records, mut surviving, mut sequence) = (Vec::new(), Vec::new(), 0);
    for ([lie, truth], number) in cases.into_iter().zip(FIRST..) {
        let mut record = |kind, (transfers, later): &(Vec<Transfer>, u64)| {
            let mut transfers = transfers.clone();
            transfers.iter_mut().for_each(|transfer| transfer.id.block = block_hash(number));
            sequence += u64::from(kind != Kind::Replayed);
            let sequence = if kind == Kind::Replayed { 0 } else { sequence };
            Matches { sequence, kind, timestamp: 1_000 + later, ..block(CHAINS[0], number, transfers) }
        };
        records.extend([record(Kind::Added, &lie), record(Kind::Removed, &(Vec::new(), lie.1)), record(Kind::Added, &truth)]);
        if lie.0.len() <= truth.0.len() {
            records.push(record(Kind::Replayed, &lie));
        }
        surviving.push(Matches { sequence: number, ..record(Kind::Added, &truth) });
        sequence -= 1;
    }
    // After each batch whoever reads the next one knows what the database has, and nothing else.
    let (first, rest) = records.split_at(1);
    for batch in [1, 2, 3, records.len()] {
        let mut books = Books::open(&stack, usize::MAX).await?;
        // A removal and what comes again are in one batch, the first time was in another, or both, or none.
        let outcome = async {
            books.apply(&chains, first).await?;
            books.apply_by(batch, &chains, rest).await
        };
        outcome.await.map_err(anyhow::Error::from).with_context(|| format!("{batch} records per batch"))?;
        let known = books.all().await?;
        check_ledger(&known, &surviving)?;
        check_rows(&books, &surviving).await?;
        let events = books.events().await?;
        check_events(&known, &events)?;
        check_straight(&stack, &chains, &surviving, &[], &known).await.with_context(|| format!("{batch} records per batch"))?;
        restored(&stack, &chains, &mut StdRng::seed_from_u64(7), &records, (&known, &events)).await?;
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
            sequence,
            kind,
            block: BlockRef { number, hash },
            parent: if number == FIRST { B256::ZERO } else { B256::repeat_byte(2) },
            safe,
            ..block(CHAINS[0], number, if pays { vec![transfer] } else { Vec::new() })
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
        books.apply(&chains, std::slice::from_ref(&record)).await?;
        let now = books.payment(payment.id).await?;
        ensure!(now.status().as_str() == status, "{} after {record:?}, expected {status}", now.status());
    }
    Ok(())
}

/// A backfill may come before the first block, and a new beginning before that: what is taken back leaves the payment too.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_begins_anew_before_its_first_block_takes_back_what_a_backfill_brought() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let payment = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment")?;
    let hash = B256::repeat_byte(1);
    let transfer = Transfer {
        id: TransferId { chain: CHAINS[0], block: hash, transaction: hash, source: Source::Log, index: 0 },
        token: Some(X),
        from: Address::ZERO,
        to: payment.address,
        amount: payment.amount,
        transaction_index: 0,
    };
    let record = |sequence, number, transfers| Matches {
        sequence,
        kind: Kind::Replayed,
        block: BlockRef { number, hash },
        parent: B256::ZERO,
        timestamp: 900,
        witnessed: None,
        ..block(CHAINS[0], number, transfers)
    };
    let records = [record(0, FIRST - 1, vec![transfer]), record(1, FIRST - 2, Vec::new())];
    for batch in [1, 2] {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply_by(batch, &chains, &records).await?;
        let now = books.payment(payment.id).await?;
        ensure!(now.received() == Amount::ZERO, "{now:?}, {batch} records per batch");
        check_rows(&books, &[]).await?;
    }
    Ok(())
}

/// A payment in the first chain's coin that its third block confirms, and the transfer in this block that pays it.
fn paid_in(number: u64) -> Result<(Payment, Transfer)> {
    let is_meant = |p: &Payment| p.policy == Policy::Confirmations(3) && p.chain == CHAINS[0];
    let payment = payments().into_iter().find(is_meant).context("a payment")?;
    let (block, source) = (block_hash(number), Source::Transaction);
    let id = TransferId { chain: CHAINS[0], block, transaction: B256::ZERO, source, index: 0 };
    let (from, to, amount) = (Address::ZERO, payment.address, payment.amount);
    let pays = Transfer { id, token: None, from, to, amount, transaction_index: 0 };
    Ok((payment, pays))
}

/// A backfill pays a payment in block FIRST - 3, which FIRST - 1 confirms, as far as the first block shows. Then a branch takes
/// its place that begins lower.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_begins_below_the_first_block_takes_back_what_it_replaces_and_what_that_had_confirmed() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let (payment, pays) = paid_in(FIRST - 3)?;
    let record = |sequence, number, transfers| Matches { sequence, ..block(CHAINS[0], number, transfers) };
    let replayed = Matches { kind: Kind::Replayed, ..record(0, FIRST - 3, vec![pays]) };
    let first = record(1, FIRST, Vec::new());
    let removed = Matches { sequence: 2, kind: Kind::Removed, parent_number: Some(FIRST - 1), ..first.clone() };
    let branch = |number| {
        let other = BlockRef { number, hash: B256::repeat_byte(9) };
        Matches { block: other, ..record(3, number, Vec::new()) }
    };
    for (lowest, status, received) in [
        (FIRST - 2, Status::Detected, payment.amount),
        (FIRST - 3, Status::Pending, Amount::ZERO),
        (FIRST - 5, Status::Pending, Amount::ZERO),
    ] {
        let records = [replayed.clone(), first.clone(), removed.clone(), branch(lowest)];
        for batch in 1..=4 {
            let mut books = Books::open(&stack, usize::MAX).await?;
            books.apply_by(batch, &chains, &records).await?;
            let now = books.payment(payment.id).await?;
            let context = format!("from block {lowest} on, {batch} records per batch");
            ensure!((now.status(), now.received()) == (status, received), "{now:?}, {context}");
            let told = books.told(payment.id).await?.split_off(1);
            ensure!(told == ["payment.detected", "payment.confirmed", "payment.reverted"], "{told:?}, {context}");
        }
    }
    Ok(())
}

/// `ctrip chain restart` of a chain with a `start_block` below what is final.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_begins_anew_and_goes_through_blocks_once_more_that_stand_takes_nothing_back() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let (payment, pays) = paid_in(FIRST)?;
    let blocks = |first: u64| {
        let block = |number, transfers| Matches { sequence: first + number - FIRST, ..block(CHAINS[0], number, transfers) };
        [block(FIRST, vec![pays.clone()]), block(FIRST + 1, Vec::new()), block(FIRST + 2, Vec::new())]
    };
    let anew = Matches { kind: Kind::Replayed, sequence: 4, witnessed: None, ..block(CHAINS[0], FIRST + 2, Vec::new()) };
    let records = [&blocks(1)[..], &[anew], &blocks(5)[..]].concat();
    for batch in 1..=records.len() {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply_by(batch, &chains, &records).await?;
        let told = books.told(payment.id).await?.split_off(1);
        ensure!(told == ["payment.detected", "payment.confirmed"], "{told:?}, {batch} records per batch");
    }
    Ok(())
}

/// Blocks FIRST, FIRST + 1 and FIRST + 3: a payment in the first one is confirmed at the number that the chain skips.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_a_block_above_a_hole_confirmed_is_taken_back_with_that_block() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let (payment, pays) = paid_in(FIRST)?;
    let added = |sequence, number, transfers| Matches { sequence, ..block(CHAINS[0], number, transfers) };
    let above = Matches { parent: block_hash(FIRST + 1), ..added(3, FIRST + 3, Vec::new()) };
    let removed = |parent| Matches { sequence: 4, kind: Kind::Removed, parent_number: Some(parent), ..above.clone() };
    let records = [added(1, FIRST, vec![pays]), added(2, FIRST + 1, Vec::new()), above.clone(), removed(FIRST + 1)];
    for batch in [1, 2, 4] {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply_by(batch, &chains, &records).await?;
        let now = books.payment(payment.id).await?;
        ensure!(now.status() == Status::Detected, "{} with two confirmations, {batch} records per batch", now.status());
        let told = books.told(payment.id).await?.split_off(1);
        ensure!(told == ["payment.detected", "payment.confirmed", "payment.reverted"], "{told:?}, {batch} records per batch");
    }
    // No block stands on another by so much.
    for parent in [FIRST + 3, u64::MAX] {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply(&chains, &records[..3]).await?;
        ensure!(books.apply(&chains, &[removed(parent)]).await.is_err(), "parent {parent}");
    }
    Ok(())
}

/// Kafka has lost the end of a topic, and what was applied is written, or read, again.
#[tokio::test]
async fn records_that_were_applied_before_are_passed_over_and_a_chain_that_is_numbered_anew_is_not() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(FILE).await?);
    let mut books = Books::open(&stack, usize::MAX).await?;
    let later = |number: u64| Matches { timestamp: 1_000 + number, ..block(CHAINS[0], number, Vec::new()) };
    let records: Vec<Matches> = (1..=4).map(later).collect();
    books.apply(&chains, &records[..3]).await?;
    books.apply(&chains, &records[1..]).await?;
    books.apply(&chains, &records[..2]).await?;
    let heads = store::head_numbers(&books.pool.get().await?, &[CHAINS[0]]).await?;
    ensure!(heads.get(&CHAINS[0]) == Some(&4), "{heads:?}");
    // What comes after them still has to stand on the head, and another block of the head's height is no news.
    let other = Matches { parent: B256::repeat_byte(7), ..later(5) };
    ensure!(books.apply(&chains, &[records[3].clone(), other]).await.is_err(), "another branch");
    let anew = |other: Matches| Matches { sequence: 1, parent: B256::repeat_byte(7), ..other };
    ensure!(books.apply(&chains, &[anew(later(5))]).await.is_err(), "a block beyond the head under an old sequence");
    // On the head it is the next one, and so is what comes after it: fewer records told of tags than before.
    let renumbered: Vec<Matches> = (5..=7).map(|number| Matches { sequence: number - 3, ..later(number) }).collect();
    books.apply(&chains, &renumbered).await?;
    let heads = store::head_numbers(&books.pool.get().await?, &[CHAINS[0]]).await?;
    ensure!(heads.get(&CHAINS[0]) == Some(&7), "{heads:?}");
    // A branch that was left, and that lies beyond the head.
    let mut books = Books::open(&stack, usize::MAX).await?;
    let removed = |sequence, number| Matches { sequence, kind: Kind::Removed, ..later(number) };
    let other = Matches { sequence: 6, block: BlockRef { number: 2, hash: B256::repeat_byte(9) }, ..later(2) };
    let reorg = [later(1), later(2), later(3), removed(4, 3), removed(5, 2), other.clone()];
    books.apply(&chains, &reorg).await?;
    books.apply(&chains, &reorg[1..]).await?;
    let next = Matches { sequence: 7, parent: other.block.hash, ..later(3) };
    books.apply(&chains, &[next]).await?;
    Ok(())
}

/// Kafka has lost the end of a topic, in which a block was that one endpoint alone had given. Ingest writes it again with what others
/// say by now, and no removal.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_not_confirmed_by_a_block_that_is_written_again_without_it() -> Result<()> {
    let (stack, chains) = (Stack::attach()?, chains(X_LISTED).await?);
    let payment = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment")?;
    let paying = |to, token, amount: u64| Transfer {
        id: TransferId {
            chain: CHAINS[0],
            block: block_hash(2),
            transaction: B256::ZERO,
            source: Source::Log,
            index: amount.try_into().unwrap(),
        },
        token,
        from: Address::ZERO,
        to,
        amount: Amount::from(amount),
        transaction_index: 0,
    };
    let added = |sequence, number, transfers| Matches { sequence, witnessed: None, ..block(CHAINS[0], number, transfers) };
    let (lie, truth) = (vec![paying(payment.address, Some(X), 100)], Vec::new());
    let tags = |sequence| Matches { kind: Kind::Tags, ..added(sequence, 2, Vec::new()) };
    let removed = |sequence| Matches { kind: Kind::Removed, ..added(sequence, 2, Vec::new()) };
    let witnessed = |sequence, number| Matches { witnessed: Some(number), ..added(sequence, number, Vec::new()) };
    let head = [added(1, 1, Vec::new()), added(2, 2, lie.clone()), tags(3)];
    let below = [head.as_slice(), &[added(4, 3, Vec::new()), added(5, 4, Vec::new())]].concat();
    let with_truth = |sequence| [added(sequence, 2, truth.clone()), witnessed(sequence + 1, 3), witnessed(sequence + 2, 4)];
    let removal = [added(2, 2, lie.clone()), removed(3), added(4, 2, truth.clone()), witnessed(5, 3), witnessed(6, 4)];
    let cases: [(&[Matches], &[Matches], bool); 6] = [
        (&head, &with_truth(2), false),
        (&head, &with_truth(9), false),
        (&head, &removal, true),
        (&below, &with_truth(2), false),
        (&below, &with_truth(9), false),
        (&below, &removal, false),
    ];
    for (index, (applied, again, goes_on)) in cases.into_iter().enumerate() {
        for size in 1..=again.len() {
            let mut books = Books::open(&stack, usize::MAX).await?;
            books.apply(&chains, applied).await?;
            let outcome = books.apply_by(size, &chains, again).await;
            let refused = outcome.as_ref().err().map(ToString::to_string);
            ensure!(index > 1 || refused.as_ref().is_some_and(|refused| refused.contains("other content")), "{refused:?}");
            ensure!(
                outcome.is_ok() == goes_on,
                "case {index}: {:?}, {size} records per batch",
                outcome.err().map(anyhow::Error::from)
            );
            let now = books.payment(payment.id).await?;
            let expected = if goes_on { Status::Pending } else { Status::Detected };
            ensure!(now.status() == expected, "case {index}: {}, {size} records per batch", now.status());
        }
    }

    // All of an honest chain is known again, whatever became of its transfers.
    let of_each_kind = vec![
        paying(payment.address, Some(X), 60),
        paying(payment.address, Some(FAKE), 61),
        paying(payment.address, None, 62),
        paying(static_addresses()[0].address, Some(X), 63),
        paying(static_addresses()[1].address, Some(FAKE), 64),
        paying(Address::with_last_byte(99), Some(X), 65),
    ];
    let honest = [added(1, 1, Vec::new()), added(2, 2, of_each_kind), tags(3), removed(4), witnessed(5, 2), witnessed(6, 3)];
    for applied in 1..=honest.len() {
        let mut books = Books::open(&stack, usize::MAX).await?;
        books.apply(&chains, &honest[..applied]).await?;
        let told = books.events().await?.len();
        for from in 0..applied {
            for size in [1, 2, honest.len()] {
                let outcome = books.apply_by(size, &chains, &honest[from..applied]).await;
                outcome.map_err(anyhow::Error::from).with_context(|| format!("{from}..{applied} by {size}"))?;
            }
        }
        ensure!(books.events().await?.len() == told, "events are told again");
    }
    Ok(())
}
