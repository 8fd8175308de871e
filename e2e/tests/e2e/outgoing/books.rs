//! Payments and transfers in Postgres, as the API and the confirmer write them, for what is planned from them.

use super::rig::{CHAIN, PACE, Rig};
use alloy::primitives::{Address, B256, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use chain::Rpc;
use deadpool_postgres::{Client, Pool};
use payments::Policy;
use std::collections::{BTreeMap, HashMap};
use sweeper::plan::rules::{Terms, Verdict};
use sweeper::plan::{Settings, Waits, balances, look, queue_due, to_drop};
use topics::{Amount, ChainId};
use uuid::Uuid;

pub(super) const COIN: u128 = 1_000_000_000_000_000_000;
pub(super) const TREASURY: Address = Address::repeat_byte(0x77);
/// Of the confirmer's head.
pub(super) const HEAD: i64 = 1000;
pub(super) const CONFIRMATIONS: i64 = 12;

pub(super) fn settings() -> Settings {
    Settings {
        treasury: Some(TREASURY),
        is_final_only: false,
        policies: vec![
            // As many as `CONFIRMATIONS`.
            (Amount::ZERO, Policy::Confirmations(12)),
            (Amount::new(U256::from(100 * COIN)), Policy::Finalized),
        ],
        terms: Terms { gas_limit: 26_250, max_fee: PACE.max_fee, l1_fee: U256::ZERO, minimum: None },
        knows_gas: true,
        price: Some(PACE.max_fee / 4),
        max_fee: PACE.max_fee,
        refused: None,
        accounts: vec!["own".to_owned()],
    }
}

/// What a turn of the planner has queued, what is to be dropped then, and what it waits for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) queued: usize,
    pub(super) to_drop: Vec<Uuid>,
    pub(super) waits: Option<Waits>,
}

pub(super) async fn plan_turn_with(
    db: &mut Client,
    settings: &Settings,
    balances: impl AsyncFn(&[Address], B256) -> HashMap<Address, U256>,
    now: u64,
) -> Result<Turn> {
    let planned = queue_due(db, CHAIN, settings, balances, now).await?;
    Ok(Turn { queued: planned.queued, to_drop: to_drop(db, CHAIN).await?, waits: planned.waits })
}

/// A turn that asks nodes what addresses have. The books' head is the node's, under a number of their own.
pub(super) async fn plan_turn_asking(rig: &Rig, rpc: &Rpc, settings: &Settings, now: u64) -> Result<Turn> {
    let mut db = rig.pool.get().await?;
    let head: B256 = rig.lab.node.head_hash().await?.parse()?;
    db.execute("UPDATE chain_heads SET hash = $1", &[&head.as_slice()]).await?;
    let ask = async |addresses: &[Address], block: B256| balances(rpc, addresses, block).await;
    plan_turn_with(&mut db, settings, ask, now).await
}

/// A transfer to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paid {
    pub(super) block: i64,
    pub(super) amount: u128,
    /// Counts for its payment, and whether that has it as confirmed.
    pub(super) credited: Option<bool>,
    pub(super) token: Option<Address>,
    pub(super) listed: bool,
    pub(super) below_minimum: bool,
    pub(super) removed: bool,
    pub(super) chain: ChainId,
}

impl Paid {
    pub(super) const fn credited(block: i64, amount: u128) -> Self {
        let (credited, token, listed, below_minimum, removed) = (Some(true), None, true, false, false);
        Self { block, amount, credited, token, listed, below_minimum, removed, chain: CHAIN }
    }
}

/// Payments and transfers as the API and the confirmer write them.
pub(super) struct Books {
    pub(super) pool: Pool,
    pub(super) merchant: Uuid,
}

/// A rig with so many sweeps that are planned and open, after one to the treasury that is over; their transactions.
pub(super) async fn planned(sweeps: u8) -> Result<(Rig, Books, Vec<Uuid>)> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    books.addresses(sweeps + 1).await?;
    let planned = books.proven(sweeps.into()).await?;
    Ok((rig, books, planned))
}

impl Books {
    pub(super) async fn open(rig: &Rig) -> Result<Self> {
        let merchant = Uuid::now_v7();
        let db = rig.pool.get().await?;
        db.execute("INSERT INTO merchants (id, name) VALUES ($1, 'shop')", &[&merchant]).await?;
        let accounts = "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('own', $1, 's1'), ('theirs', NULL, 's2')";
        db.execute(accounts, &[&rig.lab.env["CTRIP_XPUB"]]).await?;
        db.batch_execute(
            "INSERT INTO chain_heads (chain_id, sequence, first_number, number, hash, block_timestamp, finalized_number,
                 witnessed_number, read_sequence, read_from, read_to)
             VALUES (31337, 1, 0, 1000, sha256('head'), 1, 900, 1000, 1, 1, 1)",
        )
        .await?;
        Ok(Self { pool: rig.pool.clone(), merchant })
    }

    pub(super) async fn set_head(&self, number: i64) -> Result<()> {
        let db = self.pool.get().await?;
        db.execute("UPDATE chain_heads SET number = $1, witnessed_number = $1", &[&number]).await?;
        Ok(())
    }

    pub(super) async fn payment(&self, address: Address, account: &str, of: Option<Uuid>) -> Result<Uuid> {
        let id = Uuid::now_v7();
        let sql = "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, deposit_address,
                       amount, confirmations_required, status, sequence, created_at, expires_at, updated_at)
                   VALUES ($1, $2, 31337, 'anvil', 18, $3, $4, (SELECT count(*) FROM payments), $5, 1, 1, 'pending', 1, 1, 2, 1)";
        let db = self.pool.get().await?;
        db.execute(sql, &[&id, &self.merchant, &address.as_slice(), &account, &of]).await?;
        Ok(id)
    }

    pub(super) async fn static_address(&self, address: Address, account: &str) -> Result<Uuid> {
        let id = Uuid::now_v7();
        let sql = "INSERT INTO deposit_addresses (id, merchant_id, address, xpub, address_index, created_at)
                   VALUES ($1, $2, $3, $4, 1000000 + (SELECT count(*) FROM deposit_addresses), 1)";
        let db = self.pool.get().await?;
        db.execute(sql, &[&id, &self.merchant, &address.as_slice(), &account]).await?;
        Ok(id)
    }

    /// Writes a transfer to a payment, or to a static address alone; returns its block's hash.
    pub(super) async fn pay(&self, payment: Option<Uuid>, of: Option<Uuid>, paid: Paid) -> Result<B256> {
        let db = self.pool.get().await?;
        let hash = keccak256(Uuid::now_v7().as_bytes());
        let chain = i64::try_from(paid.chain.0)?;
        let token = paid.token.as_ref().map(|token| token.as_slice());
        let amount = paid.amount.to_string();
        let sql = "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address,
                       block_number, block_timestamp, transaction_index, token_address, sender, amount, credited, listed,
                       below_minimum, removed)
                   VALUES ($1, $2, $2, 'transaction', 0, $3, $4, $5, 1, 0, $6, decode(repeat('11', 20), 'hex'), $7::text::numeric,
                       $8, $9, $10, $11)";
        let is_credited = paid.credited.is_some();
        db.execute(
            sql,
            &[
                &chain,
                &hash.as_slice(),
                &payment,
                &of,
                &paid.block,
                &token,
                &amount,
                &is_credited,
                &paid.listed,
                &paid.below_minimum,
                &paid.removed,
            ],
        )
        .await?;
        if let (Some(is_confirmed), Some(payment), false) = (paid.credited, payment, paid.removed) {
            let sql = "INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers,
                           credited, due, confirmed)
                       VALUES ($1, $2, $3, $4, 1, 1, $5::text::numeric, $4, CASE WHEN $6 THEN $5::text::numeric ELSE 0 END)";
            db.execute(sql, &[&payment, &chain, &hash.as_slice(), &paid.block, &amount, &is_confirmed]).await?;
        }
        Ok(hash)
    }

    /// Pays a coin, which is confirmed, to a payment of its own at this address; returns that, and the block's hash.
    pub(super) async fn paid(&self, address: Address) -> Result<(Uuid, B256)> {
        let payment = self.payment(address, "own", None).await?;
        Ok((payment, self.pay(Some(payment), None, Paid::credited(5, COIN)).await?))
    }

    /// Addresses with a coin each; returns the first one's payment.
    pub(super) async fn addresses(&self, count: u8) -> Result<Uuid> {
        let mut first = None;
        for place in 1..=count {
            let (payment, _) = self.paid(Address::repeat_byte(place)).await?;
            first.get_or_insert(payment);
        }
        first.context("no address")
    }

    /// Has the first sweep to the treasury over, as if it were final, and the others planned, whose transactions it returns.
    pub(super) async fn proven(&self, others: usize) -> Result<Vec<Uuid>> {
        ensure!(self.queue_due(1_000_000).await?.queued == 1);
        self.end_sweeps().await?;
        let turn = self.queue_due(1_000_040).await?;
        ensure!(turn.queued == others && turn.waits.is_none() && turn.to_drop.is_empty(), "{turn:?}");
        self.open_sweeps().await
    }

    /// A reorg takes all of a block.
    pub(super) async fn remove(&self, block: B256) -> Result<()> {
        let db = self.pool.get().await?;
        db.execute("UPDATE transfers SET removed = true WHERE block_hash = $1", &[&block.as_slice()]).await?;
        db.execute("DELETE FROM payment_parts WHERE block_hash = $1", &[&block.as_slice()]).await?;
        Ok(())
    }

    pub(super) async fn queue_due(&self, now: u64) -> Result<Turn> {
        self.turn(&settings(), now).await
    }

    /// A turn, where each address has all that it should have.
    pub(super) async fn turn(&self, settings: &Settings, now: u64) -> Result<Turn> {
        let rich = async |addresses: &[Address], _| addresses.iter().map(|address| (*address, U256::MAX)).collect();
        plan_turn_with(&mut self.pool.get().await?, settings, rich, now).await
    }

    pub(super) async fn verdicts(&self, settings: &Settings) -> Result<BTreeMap<Address, Verdict>> {
        let db = self.pool.get().await?;
        let looked = look(&db, CHAIN, settings).await?.context("a head")?;
        Ok(looked.into_iter().map(|(holding, verdict)| (holding.address, verdict)).collect())
    }

    pub(super) async fn sweeps(&self) -> Result<Vec<(String, bool)>> {
        let db = self.pool.get().await?;
        let rows = db.query("SELECT state, set_aside FROM sweeps ORDER BY created_at, id", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// As if what is under way were final.
    pub(super) async fn end_sweeps(&self) -> Result<()> {
        let db = self.pool.get().await?;
        db.execute("UPDATE sweeps SET state = 'final', ended_at = now() WHERE state = 'open'", &[]).await?;
        Ok(())
    }

    /// The open sweeps' transactions, in the order in which they were planned.
    pub(super) async fn open_sweeps(&self) -> Result<Vec<Uuid>> {
        let db = self.pool.get().await?;
        let rows = db.query("SELECT outgoing FROM sweeps WHERE state = 'open' ORDER BY id", &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub(super) async fn last(&self) -> Result<(Uuid, Uuid)> {
        let db = self.pool.get().await?;
        let row = db.query_one("SELECT id, outgoing FROM sweeps ORDER BY created_at DESC, id DESC LIMIT 1", &[]).await?;
        Ok((row.get(0), row.get(1)))
    }
}
