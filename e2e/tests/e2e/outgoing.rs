//! The transaction engine on a real Postgres and a real node: transfers that are paid once each, whatever dies.

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use chain::{NodeUrl, Rpc};
use deadpool_postgres::Pool;
use e2e::{Extent, Fault, Lab, Lacks, Proxy};
use futures::future::{BoxFuture, FutureExt as _};
use runtime::{Failure, db};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use sweeper::engine::content::Content;
use sweeper::engine::fold::{ChainEvent, SeenTransaction, apply_chain_event};
use sweeper::engine::outgoing::{Kind, Pace};
use sweeper::engine::rows::LaneId;
use sweeper::engine::store::{NewOutgoing, Queued, Record, queue};
use sweeper::engine::work::{Engine, Keys, Records};
use sweeper::keys::{LocalKey, Signer};
use topics::{BlockRef, ChainId};
use uuid::Uuid;

const CHAIN: ChainId = ChainId(31337);
const PACE: Pace = Pace { max_fee: 500_000_000_000, raise: 100, resend_after: 10, stuck_after: 30, raise_after: 2 };
/// Confirmations until a block counts as final; reorgs are less deep.
const DEPTH: u64 = 4;
const TRANSFERS: u64 = 50;
/// 20 gwei, where anvil begins with less than 1.
const HIGH_BASE_FEE: &str = "0x4a817c800";

/// A key for each sender.
#[derive(Debug)]
struct OneKey(LocalKey);

impl Keys for OneKey {
    fn signer(&self, sender: Address) -> Option<Arc<dyn Signer>> {
        (sender == self.0.address()).then(|| Arc::new(self.0.clone()) as Arc<dyn Signer>)
    }
}

/// Kafka, as far as the engine knows it.
#[derive(Debug, Default)]
struct Topic(Mutex<BTreeSet<B256>>);

impl Records for Topic {
    fn publish<'r>(&'r self, records: &'r [Record]) -> BoxFuture<'r, Result<(), Failure>> {
        async move {
            // Between the record and its acknowledgement anything can happen.
            tokio::task::yield_now().await;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(records.iter().map(|record| record.hash));
            tokio::task::yield_now().await;
            Ok(())
        }
        .boxed()
    }
}

/// Work that is dropped when it would be polled once more: a process that is killed at one of its waits.
struct Killed<F> {
    work: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Killed<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.work.as_mut().poll(context).map(Some)
    }
}

/// Follows the node's chain as `chain.blocks` would tell it.
#[derive(Default)]
struct Follower {
    blocks: Vec<BlockRef>,
    told_final: u64,
}

struct Rig {
    lab: Lab,
    proxy: Proxy,
    pool: Pool,
    topic: Arc<Topic>,
    key: LocalKey,
    follower: Follower,
    now: u64,
}

fn number(value: &Value) -> Result<u64> {
    let text = value.as_str().with_context(|| format!("a quantity instead of {value}"))?;
    Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
}

fn recipient(place: u64) -> Address {
    Address::from_word(keccak256(place.to_be_bytes()))
}

impl Rig {
    async fn start() -> Result<Self> {
        let lab = Lab::without_topics().await?;
        let proxy = Proxy::start(&lab.node.url, Lacks::default()).await?;
        let pool = db::pool(&lab.env["DATABASE_URL"], 4)?;
        let key = LocalKey::new(&keccak256(b"sender").0)?;
        let coin = U256::from(10).pow(U256::from(21));
        lab.node.call("anvil_setBalance", json!([key.address(), coin])).await?;
        lab.node.call("evm_setAutomine", json!([false])).await?;
        Ok(Self { lab, proxy, pool, topic: Arc::default(), key, follower: Follower::default(), now: 1_000 })
    }

    /// The engine as a process has it that has just begun.
    fn engine(&self) -> Result<Engine> {
        let url: NodeUrl = self.proxy.url.parse().map_err(anyhow::Error::msg)?;
        let rpc = Rpc::new("anvil", &[url], Some(CHAIN));
        let keys = Arc::new(OneKey(self.key.clone()));
        Ok(Engine::new(CHAIN, self.pool.clone(), rpc, keys, self.topic.clone(), PACE))
    }

    async fn queue(&self, place: u64) -> Result<Queued> {
        let lane = LaneId { chain: CHAIN, sender: self.key.address() };
        let value = U256::from(1_000 + place);
        let content =
            Content { to: Some(recipient(place)), value, data: Bytes::new(), gas_limit: 21_000, authorizations: Vec::new() };
        let idempotency_key = format!("transfer {place}");
        let request_hash = keccak256(&idempotency_key);
        let new = NewOutgoing { id: Uuid::new_v4(), kind: Kind::Payout, lane, content, idempotency_key, request_hash };
        Ok(queue(&self.pool.get().await?, &new).await?)
    }

    /// Lets the engine work for a turn, until it has waited so many times.
    async fn turn(&mut self, polls: usize) -> Result<Option<()>> {
        self.now += 5;
        let engine = self.engine()?;
        let work = Killed { work: Box::pin(engine.turn(self.now)), polls };
        Ok(work.await.transpose()?)
    }

    async fn apply(&self, event: &ChainEvent) -> Result<()> {
        let mut db = self.pool.get().await?;
        let tx = db.transaction().await?;
        apply_chain_event(&tx, CHAIN, event, &PACE).await?;
        Ok(tx.commit().await?)
    }

    /// Reads the chain up to its head.
    async fn follow(&mut self) -> Result<()> {
        let node = &self.lab.node;
        let head = node.head().await?;
        while let Some(block) = self.follower.blocks.last().copied() {
            let there = node.call("eth_getBlockByNumber", json!([format!("{:#x}", block.number), false])).await?;
            if there["hash"].as_str().is_some_and(|hash| hash == block.hash.to_string()) {
                break;
            }
            self.follower.blocks.pop();
            self.apply(&ChainEvent::Removed(block)).await?;
        }
        for at in self.follower.blocks.last().map_or(0, |block| block.number + 1)..=head {
            let at = json!([format!("{at:#x}"), true]);
            let block = node.call("eth_getBlockByNumber", at).await?;
            let reference =
                BlockRef { number: number(&block["number"])?, hash: serde_json::from_value(block["hash"].clone())? };
            let mut transactions = Vec::new();
            for transaction in block["transactions"].as_array().context("transactions")? {
                let hash = serde_json::from_value(transaction["hash"].clone())?;
                let receipt = node.receipt(hash).await?.context("the receipt of a mined transaction")?;
                transactions.push(SeenTransaction {
                    hash,
                    from: serde_json::from_value(transaction["from"].clone())?,
                    nonce: number(&transaction["nonce"])?,
                    succeeded: number(&receipt["status"])? == 1,
                    gas_used: number(&receipt["gasUsed"])?,
                    gas_price: number(&receipt["effectiveGasPrice"])?.into(),
                });
            }
            self.apply(&ChainEvent::Added { block: reference, transactions }).await?;
            self.follower.blocks.push(reference);
        }
        let finalized = head.saturating_sub(DEPTH);
        if finalized > self.follower.told_final {
            self.follower.told_final = finalized;
            self.apply(&ChainEvent::Final(finalized)).await?;
        }
        Ok(())
    }

    /// How many rows are in each state.
    async fn states(&self) -> Result<Vec<(String, i64)>> {
        let db = self.pool.get().await?;
        let rows = db.query("SELECT state, count(*) FROM outgoing GROUP BY state ORDER BY state", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn is_over(&self) -> Result<bool> {
        Ok(self.states().await?.iter().all(|(state, _)| ["final", "failed", "dropped"].contains(&state.as_str())))
    }

    /// Without faults, until all is over.
    async fn settle(&mut self) -> Result<()> {
        self.proxy.heal();
        for _ in 0..200 {
            self.turn(usize::MAX).await?;
            self.lab.node.mine(1).await?;
            self.follow().await?;
            if self.is_over().await? {
                return Ok(());
            }
        }
        let db = self.pool.get().await?;
        let rows = db.query("SELECT kind, state, nonce, told, contradiction FROM outgoing ORDER BY nonce", &[]).await?;
        anyhow::bail!("no end: {:?}\n{rows:?}", self.states().await?)
    }

    async fn balance(&self, of: Address) -> Result<U256> {
        Ok(serde_json::from_value(self.lab.node.call("eth_getBalance", json!([of, "latest"])).await?)?)
    }

    /// Each transfer arrived once, by the node's balances, and nothing contradicted what is known.
    async fn check(&self, transfers: u64) -> Result<()> {
        for place in 0..transfers {
            let (balance, due) = (self.balance(recipient(place)).await?, U256::from(1_000 + place));
            ensure!(balance == due, "transfer {place} brought {balance} instead of {due}");
        }
        let db = self.pool.get().await?;
        let odd = db.query("SELECT id, contradiction FROM outgoing WHERE contradiction IS NOT NULL", &[]).await?;
        ensure!(odd.is_empty(), "{odd:?}");
        // What was sent was recorded before.
        let rows = db.query("SELECT hash, acknowledged FROM outgoing_attempts WHERE last_sent IS NOT NULL", &[]).await?;
        let topic = self.topic.0.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let hash = B256::from_slice(row.get(0));
            ensure!(row.get::<_, bool>(1) && topic.contains(&hash), "{hash} was sent before its record");
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_transfer_is_paid_once_wherever_the_engine_is_killed() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.follow().await?;
    let (mut polls, mut finished, mut killed) = (1, 0, 0);
    for round in 0..400_u64 {
        if round.is_multiple_of(6) && round / 6 < TRANSFERS {
            rig.queue(round / 6).await?;
        }
        // Killed at its first wait, at its second, and so on, until a turn comes to its end before.
        match rig.turn(polls).await? {
            Some(()) => (polls, finished) = (1, finished + 1),
            None => (polls, killed) = (polls + 1 + polls / 8, killed + 1),
        }
        match round % 16 {
            2 => drop(rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?),
            // It takes the transaction, and cuts the connection.
            5 => rig.proxy.make(Fault::BreaksOff, Extent::Times(2)),
            9 => rig.proxy.make(Fault::ServerError, Extent::Times(2)),
            11 if rig.lab.node.head().await? > 3 * DEPTH => rig.lab.node.reorg(DEPTH - 1).await?,
            _ => {}
        }
        if round.is_multiple_of(2) {
            rig.lab.node.mine(1).await?;
        }
        if !round.is_multiple_of(5) {
            rig.follow().await?;
        }
    }
    ensure!(finished > 8 && killed > 200, "{finished} turns finished, {killed} were killed");
    for place in 0..TRANSFERS {
        // Whoever asks again gets the same one.
        let again = rig.queue(place).await?;
        ensure!(matches!(again, Queued::Before(_)), "transfer {place}: {again:?}");
    }
    rig.settle().await?;
    ensure!(rig.states().await?.contains(&("final".to_owned(), i64::try_from(TRANSFERS)?)), "{:?}", rig.states().await?);
    rig.check(TRANSFERS).await
}

/// The base fee rises twentyfold: what is in the pool is not mined until it is raised.
#[tokio::test]
async fn what_a_rise_of_the_base_fee_leaves_in_the_pool_is_raised_and_paid_once() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.follow().await?;
    for place in 0..3 {
        rig.queue(place).await?;
    }
    rig.turn(usize::MAX).await?;
    for _ in 0..12 {
        rig.lab.node.call("anvil_setNextBlockBaseFeePerGas", json!([HIGH_BASE_FEE])).await?;
        rig.lab.node.mine(1).await?;
        rig.follow().await?;
        rig.turn(usize::MAX).await?;
    }
    rig.settle().await?;
    let db = rig.pool.get().await?;
    let attempts: i64 = db.query_one("SELECT count(*) FROM outgoing_attempts", &[]).await?.get(0);
    ensure!(attempts > 3, "nothing was raised: {attempts} attempts");
    rig.check(3).await
}

/// Somebody uses a nonce of ours with the same key; a reorg takes it back, and it comes again.
#[tokio::test]
async fn a_nonce_that_a_stranger_used_is_signed_anew_once_that_is_final() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.follow().await?;
    let sender = rig.key.address();
    rig.lab.node.call("anvil_impersonateAccount", json!([sender])).await?;
    for place in 0..4 {
        rig.queue(place).await?;
    }
    rig.turn(usize::MAX).await?;
    // The pool forgets them, and a stranger comes first.
    rig.lab.node.call("anvil_dropAllTransactions", json!([])).await?;
    let foreign = json!({ "from": sender, "to": Address::ZERO, "value": "0x1", "gas": "0x5208" });
    rig.lab.node.send(foreign.clone()).await?;
    rig.lab.node.mine(1).await?;
    rig.follow().await?;
    let replaced = rig.states().await?;
    ensure!(replaced.contains(&("replaced".to_owned(), 1)), "{replaced:?}");
    rig.lab.node.reorg(1).await?;
    rig.follow().await?;
    let again = rig.states().await?;
    ensure!(!again.iter().any(|(state, _)| state == "replaced"), "its block has left the chain: {again:?}");
    rig.lab.node.send(foreign).await?;
    rig.lab.node.mine(1).await?;
    rig.settle().await?;
    rig.check(4).await?;
    // One nonce is the stranger's.
    let count = rig.lab.node.call("eth_getTransactionCount", json!([sender, "latest"])).await?;
    ensure!(number(&count)? == 5, "{count} transactions");
    Ok(())
}
