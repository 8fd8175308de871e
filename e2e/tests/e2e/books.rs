//! The confirmer's fold on a database of its own, without Kafka and nodes: a merchant's payments, and blocks that a test makes up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::{Context as _, Result};
use chain::Chains;
use confirmer::fold::{self, Batch};
use deadpool_postgres::Pool;
use e2e::{Stack, root};
use payments::lifecycle::Input;
use payments::{Asset, DepositAddress, Payment, Policy, Sums, Terms, Token, events, store};
use prost::Message as _;
use runtime::{Failure, Span, db};
use std::collections::BTreeMap;
use topics::{Address, Amount, B256, BlockRef, ChainId, Kind, Matches, PaymentId, Source, Transfer, TransferId, wire};
use uuid::Uuid;

const MERCHANT: Uuid = Uuid::from_u128(7);
/// The token of most payments.
pub const X: Address = Address::repeat_byte(0x77);
/// Both chains, of which the first lists [`X`].
pub const X_LISTED: &str = r#"
- name: one
  chain_id: 1
  rpc_url: http://127.0.0.1:1
  confirmations: 1
  tokens: [{ symbol: X, address: "0x7777777777777777777777777777777777777777", decimals: 6 }]
- name: two
  chain_id: 2
  rpc_url: http://127.0.0.1:1
"#;
/// The chains of the payments, in turn.
pub const CHAINS: [ChainId; 2] = [ChainId(1), ChainId(2)];

/// The chains of a chains.yaml with this text.
pub async fn chains(text: &str) -> Result<Chains> {
    let dir = root().join("target/lab");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("books-{}.yaml", Uuid::new_v4()));
    std::fs::write(&file, text)?;
    Ok(Chains::load(&file)?.resolve().await?)
}

/// The hash of a chain's block of this height.
pub fn block_hash(number: u64) -> B256 {
    B256::left_padding_from(&number.to_be_bytes())
}

/// An added block of a chain that has one per sequence, witnessed.
pub fn block(chain: ChainId, number: u64, transfers: Vec<Transfer>) -> Matches {
    Matches {
        chain,
        sequence: number,
        kind: Kind::Added,
        block: BlockRef { number, hash: block_hash(number) },
        parent: block_hash(number.saturating_sub(1)),
        parent_number: None,
        timestamp: 1_000,
        safe: None,
        finalized: None,
        witnessed: Some(number),
        transfers,
        part: 0,
        parts: 0,
    }
}

/// A transfer of X in a block of the first chain.
pub fn transfer(block: B256, index: u32, to: Address, amount: u64) -> Transfer {
    let id = TransferId { chain: CHAINS[0], block, transaction: B256::ZERO, source: Source::Log, index };
    Transfer { id, token: Some(X), from: Address::ZERO, to, amount: Amount::from(amount), transaction_index: 0 }
}

/// A database with a merchant, payments of every kind and two static addresses.
pub struct Books {
    pub pool: Pool,
    /// The offset after the last record.
    pub next: i64,
    /// Most payments in memory at once.
    slice: usize,
}

pub fn payments() -> Vec<Payment> {
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
                settlement: None,
                sums: Sums::default(),
                parts: Vec::new(),
                transfers: Vec::new(),
                sequence: 1,
                updated_at: 0,
            });
        }
    }
    payments
}

pub fn static_addresses() -> Vec<DepositAddress> {
    let address = |number: u8| DepositAddress {
        id: Uuid::from_u128(2_000 + u128::from(number)),
        merchant: MERCHANT,
        external_id: Some(format!("customer {number}")),
        metadata: None,
        address: Address::with_last_byte(200 + number),
        xpub: "f".to_owned(),
        address_index: 200 + u32::from(number),
        created_at: 0,
        asked_by: None,
    };
    vec![address(0), address(1)]
}

impl Books {
    pub async fn open(stack: &Stack, slice: usize) -> Result<Self> {
        let name = format!("books_{}", Uuid::new_v4().simple());
        let url = stack.create_migrated(&name).await?;
        let pool = db::pool(&url, 2)?;
        let mut client = pool.get().await?;
        let transaction = client.transaction().await?;
        transaction.execute("INSERT INTO merchants (id, name) VALUES ($1, 'shop')", &[&MERCHANT]).await?;
        transaction.batch_execute("INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('f', 'x', 's')").await?;
        let new: Vec<_> = payments().into_iter().map(|p| (p.clone(), events::created_event(&p))).collect();
        store::insert_payments(&transaction, &new).await?;
        store::insert_addresses(&transaction, &static_addresses(), Uuid::nil()).await?;
        transaction.commit().await?;
        Ok(Self { pool, next: 0, slice })
    }

    pub async fn apply(&mut self, chains: &Chains, records: &[Matches]) -> Result<(), Failure> {
        let next = self.next + i64::try_from(records.len()).unwrap();
        let batch = Batch { span: Span { from: self.next, next, ..Span::default() }, records: records.to_vec() };
        fold::apply_in_slices(&self.pool, chains, &batch, self.slice).await?;
        self.next = next;
        Ok(())
    }

    /// Applies records in batches of this size, up to the first batch that is refused.
    pub async fn apply_by(&mut self, size: usize, chains: &Chains, records: &[Matches]) -> Result<(), Failure> {
        for batch in records.chunks(size) {
            self.apply(chains, batch).await?;
        }
        Ok(())
    }

    /// Cancels a payment as the API does; returns whether its state allowed it.
    pub async fn cancel(&self, id: PaymentId) -> Result<bool> {
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        let payment = store::lock_payments(&transaction, &[id.0]).await?.pop().context("no such payment")?;
        let mut told = store::told_events(&transaction, &[id.0]).await?;
        let Ok(step) = told.entry(id).or_default().step(&payment, &Input::Cancel { at: 1 }) else {
            return Ok(false);
        };
        store::save_payments(&transaction, &[&step.next]).await?;
        store::record_events(&transaction, step.events.iter().map(|event| (&step.next, event))).await?;
        store::forget_told_events(&transaction, told.iter()).await?;
        transaction.commit().await?;
        Ok(true)
    }

    pub async fn all(&self) -> Result<BTreeMap<PaymentId, Payment>> {
        let client = self.pool.get().await?;
        let ids: Vec<Uuid> = client.query("SELECT id FROM payments", &[]).await?.iter().map(|row| row.get(0)).collect();
        Ok(store::load_payments(&client, &ids).await?.into_iter().map(|p| (p.id, p)).collect())
    }

    pub async fn payment(&self, id: PaymentId) -> Result<Payment> {
        self.all().await?.remove(&id).context("the payment")
    }

    /// The kinds of a payment's events, in order.
    pub async fn told(&self, payment: PaymentId) -> Result<Vec<String>> {
        let events = self.events().await?.into_iter().filter(|event| event.payment_id == payment.to_string());
        Ok(events.map(|event| event.r#type).collect())
    }

    /// How many transfers wait for their payment.
    pub async fn orphans(&self) -> Result<i64> {
        Ok(self.pool.get().await?.query_one("SELECT count(*) FROM orphan_transfers", &[]).await?.get(0))
    }

    /// The stage's offset goes back, to nobody knows where.
    pub async fn go_back(&self, chain: ChainId) -> Result<()> {
        self.pool.get().await?.execute(store::ON_RETURN.note, &[&vec![chain.to_string()]]).await?;
        Ok(())
    }

    pub async fn events(&self) -> Result<Vec<wire::PaymentEvent>> {
        let client = self.pool.get().await?;
        let rows = client.query("SELECT event FROM outbox ORDER BY id", &[]).await?;
        Ok(rows.iter().map(|row| wire::PaymentEvent::decode(row.get::<_, &[u8]>(0))).collect::<Result<_, _>>()?)
    }
}
