//! Money is neither created nor lost: random chains with reorgs and replays go through the confirmer's fold into Postgres, and
//! its credits are those of the surviving chain.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::{Context as _, Result, ensure};
use chain::Chains;
use confirmer::fold::{self, Batch};
use deadpool_postgres::Pool;
use e2e::{Stack, root};
use payments::lifecycle::{Input, step};
use payments::{Asset, DepositAddress, Payment, Policy, Status, Terms, Token, deposit, events, store};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom as _, IndexedRandom as _};
use rand::{Rng as _, SeedableRng as _};
use runtime::{Failure, Span, db};
use std::collections::{BTreeMap, HashMap, HashSet};
use topics::{Address, Amount, B256, BlockRef, ChainId, Kind, Matches, PaymentId, Source, Transfer, TransferId, wire};
use uuid::Uuid;

const WORLDS: usize = 8;
const STEPS: usize = 120;
const MERCHANT: Uuid = Uuid::from_u128(7);
const X: Address = Address::repeat_byte(0x77);
const FAKE: Address = Address::repeat_byte(0x66);
const CHAINS: [ChainId; 2] = [ChainId(1), ChainId(2)];
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

/// A database with a merchant, payments of every kind and two static addresses.
struct Books {
    pool: Pool,
    next: i64,
    /// Most payments in memory at once.
    slice: usize,
}

fn payments() -> Vec<Payment> {
    let terms = |under: u64, over: u64, accept_late| Terms {
        underpaid_tolerance: Amount::from(under),
        overpaid_tolerance: Amount::from(over),
        accept_late,
    };
    let policies = [Policy::Confirmations(1), Policy::Confirmations(3), Policy::Safe, Policy::Finalized];
    let terms = [terms(0, 0, false), terms(20, 20, false), terms(0, 0, true)];
    let mut payments = Vec::new();
    for (index, policy) in policies.into_iter().enumerate() {
        for (place, terms) in terms.into_iter().enumerate() {
            let number = u32::try_from(index * 3 + place).unwrap();
            let chain = CHAINS[(index + place) % 2];
            let token = (place != 1).then(|| Token { symbol: "X".to_owned(), address: X });
            payments.push(Payment {
                id: PaymentId(Uuid::from_u128(1_000 + u128::from(number))),
                merchant: MERCHANT,
                external_id: None,
                metadata: None,
                chain,
                chain_name: String::new(),
                asset: Asset { token, decimals: 6 },
                address: Address::with_last_byte(u8::try_from(number + 1).unwrap()),
                xpub: "f".to_owned(),
                address_index: number,
                amount: Amount::from(100),
                terms,
                policy,
                created_at: 0,
                // Spread over the duration of a world.
                expires_at: 1_050 + 40 * u64::from(number),
                deposit_address: None,
                cancelled: false,
                expired_by: None,
                transfers: Vec::new(),
                sequence: 1,
                updated_at: 0,
            });
        }
    }
    payments
}

fn static_addresses() -> Vec<DepositAddress> {
    let address = |number: u8| DepositAddress {
        id: Uuid::from_u128(2_000 + u128::from(number)),
        merchant: MERCHANT,
        external_id: Some(format!("customer {number}")),
        metadata: None,
        address: Address::with_last_byte(200 + number),
        xpub: "f".to_owned(),
        address_index: 200 + u32::from(number),
        created_at: 0,
    };
    vec![address(0), address(1)]
}

impl Books {
    async fn open(stack: &Stack, slice: usize) -> Result<Self> {
        let name = format!("books_{}", Uuid::new_v4().simple());
        let url = stack.create_database(&name).await?;
        db::migrate(&url).await?;
        let pool = db::pool(&url, 2)?;
        let mut client = pool.get().await?;
        let transaction = client.transaction().await?;
        transaction.execute("INSERT INTO merchants (id, name) VALUES ($1, 'shop')", &[&MERCHANT]).await?;
        transaction.batch_execute("INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('f', 'x', 's')").await?;
        let new: Vec<_> = payments().into_iter().map(|p| (p.clone(), events::created_event(&p))).collect();
        store::insert_payments(&transaction, &new).await.map_err(failed)?;
        store::insert_addresses(&transaction, &static_addresses()).await.map_err(failed)?;
        transaction.commit().await?;
        Ok(Self { pool, next: 0, slice })
    }

    async fn apply(&mut self, chains: &Chains, records: &[Matches]) -> Result<(), Failure> {
        let next = self.next + i64::try_from(records.len()).unwrap();
        let batch = Batch { span: Span { partition: 0, from: self.next, next }, records: records.to_vec() };
        fold::apply_in_slices(&self.pool, chains, &batch, self.slice).await?;
        self.next = next;
        Ok(())
    }

    /// Cancels a payment as the API does; returns whether its state allowed it.
    async fn cancel(&self, id: PaymentId) -> Result<bool> {
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        let payment = store::lock_payments(&transaction, &[id.0]).await.map_err(failed)?.pop().context("no such payment")?;
        let Ok(step) = step(&payment, &Input::Cancel { at: 1 }) else {
            return Ok(false);
        };
        store::save_payments(&transaction, &[&step.next]).await.map_err(failed)?;
        store::record_events(&transaction, step.events.iter().map(|event| (&step.next, event))).await.map_err(failed)?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn all(&self) -> Result<BTreeMap<PaymentId, Payment>> {
        let client = self.pool.get().await?;
        let ids: Vec<Uuid> = client.query("SELECT id FROM payments", &[]).await?.iter().map(|row| row.get(0)).collect();
        Ok(store::load_payments(&client, &ids).await.map_err(failed)?.into_iter().map(|p| (p.id, p)).collect())
    }

    async fn events(&self) -> Result<Vec<wire::PaymentEvent>> {
        let client = self.pool.get().await?;
        let rows = client.query("SELECT event FROM outbox ORDER BY id", &[]).await?;
        Ok(rows.iter().map(|row| wire::PaymentEvent::decode(row.get::<_, &[u8]>(0))).collect::<Result<_, _>>()?)
    }
}

fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

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
            transfers: self.random_transfers(random, hash),
        };
        self.blocks.push(record.clone());
        record
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

async fn chains() -> Result<Chains> {
    let dir = root().join("target/lab");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("conservation-{}.yaml", Uuid::new_v4()));
    std::fs::write(&file, FILE)?;
    Ok(Chains::load(&file)?.resolve().await?)
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
    let chains = chains().await?;
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
            waiting.clear();
            if random.random_bool(0.05) {
                let payment = payments().choose(random).map(|payment| payment.id).unwrap();
                if books.cancel(payment).await? {
                    cancelled.push(payment);
                }
            }
        }
    }
    // The last tags cover no less than those of removed blocks.
    for fork in &mut forks {
        let last = fork.add(random);
        let last = Matches { safe: Some(fork.finalized + 1), finalized: Some(fork.finalized), ..last };
        *fork.blocks.last_mut().unwrap() = last.clone();
        waiting.push(last);
    }
    books.apply(chains, &waiting).await.map_err(failed)?;
    ensure!(removed > 0 && replayed > 0, "a dull world: {removed} removed, {replayed} replayed");

    let surviving: Vec<Matches> = forks.iter().flat_map(Fork::surviving).collect();
    let known = books.all().await?;
    check_ledger(&known, &surviving)?;
    check_rows(&books, &surviving).await?;
    check_events(&known, &books.events().await?)?;
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
    let (stack, chains) = (Stack::attach()?, chains().await?);
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
