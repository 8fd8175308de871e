//! The engine with a Postgres and a node of its own, Kafka as far as the engine knows it, and processes that are killed.

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use chain::{NodeUrl, Rpc};
use deadpool_postgres::{Client, Pool};
use e2e::{Lab, Lacks, Proxy, quantity};
use futures::future::{BoxFuture, FutureExt as _};
use runtime::{Failure, db};
use serde_json::json;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use sweeper::engine::content::Content;
use sweeper::engine::fold::{ChainEvent, apply_chain_event};
use sweeper::engine::history::SeenTransaction;
use sweeper::engine::node::Nodes;
use sweeper::engine::outgoing::{Kind, Pace};
use sweeper::engine::rows::LaneId;
use sweeper::engine::store::{NewOutgoing, Queued, Record, queue};
use sweeper::engine::work::{Engine, Keys, Records, Rule};
use sweeper::keys::{LocalKey, Signer};
use topics::{BlockRef, ChainId};
use uuid::Uuid;

pub(super) const CHAIN: ChainId = ChainId(31337);
pub(super) const PACE: Pace = Pace { max_fee: 500_000_000_000, raise: 100, resend_after: 10, stuck_after: 30, raise_after: 2 };
/// 20 gwei, where anvil begins with less than 1.
pub(super) const HIGH_BASE_FEE: &str = "0x4a817c800";
/// Confirmations until a block counts as final; reorgs are less deep.
pub(super) const DEPTH: u64 = 4;

/// A key for each sender.
#[derive(Debug)]
pub(super) struct OneKey(LocalKey);

impl Keys for OneKey {
    fn signer(&self, sender: Address) -> BoxFuture<'_, Option<Arc<dyn Signer>>> {
        let signer = (sender == self.0.address()).then(|| Arc::new(self.0.clone()) as Arc<dyn Signer>);
        futures::future::ready(signer).boxed()
    }
}

/// Anything may be signed: what may not is a test of the role.
#[derive(Debug)]
pub(super) struct Anything;

impl Rule for Anything {
    fn check(&self, _: Kind, _: &Content) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Kafka, as far as the engine knows it.
#[derive(Debug, Default)]
pub(super) struct Topic {
    pub(super) records: Mutex<BTreeSet<B256>>,
    pub(super) is_down: AtomicBool,
}

impl Topic {
    pub(super) fn records(&self) -> MutexGuard<'_, BTreeSet<B256>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for Topic {
    fn publish<'r>(&'r self, records: &'r [Record]) -> BoxFuture<'r, Vec<Result<(), Failure>>> {
        async move {
            // Between the record and its acknowledgement anything can happen.
            tokio::task::yield_now().await;
            if self.is_down.load(Ordering::Relaxed) {
                return records.iter().map(|_| Err(Failure::retry(std::io::Error::other("Kafka is down")))).collect();
            }
            self.records().extend(records.iter().map(|record| record.hash));
            tokio::task::yield_now().await;
            records.iter().map(|_| Ok(())).collect()
        }
        .boxed()
    }
}

/// Work that is dropped when it would be polled once more: a process that is killed at one of its waits.
pub(super) struct Killed<F> {
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
pub(super) struct Follower {
    pub(super) blocks: Vec<BlockRef>,
    pub(super) told_final: u64,
}

pub(super) struct Rig {
    pub(super) lab: Lab,
    pub(super) proxy: Proxy,
    pub(super) pool: Pool,
    pub(super) topic: Arc<Topic>,
    /// What came to the node before its record was in the topic.
    pub(super) unrecorded: Arc<Mutex<Vec<B256>>>,
    pub(super) key: LocalKey,
    pub(super) follower: Follower,
    pub(super) now: u64,
}

pub(super) fn recipient(place: u64) -> Address {
    Address::from_word(keccak256(place.to_be_bytes()))
}

/// Fails unless these are all of them, in this order.
pub(super) fn ensure_all(found: &[(String, i64)], expected: &[(&str, i64)]) -> Result<()> {
    let texts = found.iter().map(|(state, number)| (state.as_str(), *number));
    ensure!(texts.eq(expected.iter().copied()), "{found:?}");
    Ok(())
}

/// Applies what happened on the chain.
pub(super) async fn applied(pool: Pool, event: ChainEvent) -> Result<()> {
    let mut db = pool.get().await?;
    let tx = db.transaction().await?;
    apply_chain_event(&tx, CHAIN, &event, &PACE).await?;
    Ok(tx.commit().await?)
}

/// Whether anybody waits for a lock in this database.
pub(super) async fn somebody_waits(db: &Client) -> Result<bool> {
    let sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    Ok(!db.query(sql, &[]).await?.is_empty())
}

impl Rig {
    pub(super) async fn start() -> Result<Self> {
        let lab = Lab::without_topics().await?;
        let proxy = Proxy::start(&lab.node.url, Lacks::default()).await?;
        let pool = db::pool(&lab.env["DATABASE_URL"], 4)?;
        let key = LocalKey::new(&keccak256(b"sender").0)?;
        let coin = U256::from(10).pow(U256::from(21));
        lab.node.call("anvil_setBalance", json!([key.address(), coin])).await?;
        lab.node.call("evm_setAutomine", json!([false])).await?;
        let (topic, unrecorded) = (Arc::<Topic>::default(), Arc::<Mutex<Vec<B256>>>::default());
        let (known, early) = (topic.clone(), unrecorded.clone());
        proxy.watch(move |call| {
            if call["method"] == "eth_sendRawTransaction"
                && let Ok(raw) = serde_json::from_value::<Bytes>(call["params"][0].clone())
                && !known.records().contains(&keccak256(&raw))
            {
                early.lock().unwrap_or_else(PoisonError::into_inner).push(keccak256(&raw));
            }
        });
        let mut rig = Self { lab, proxy, pool, topic, unrecorded, key, follower: Follower::default(), now: 1_000 };
        rig.follow().await?;
        Ok(rig)
    }

    /// With so many transfers, which were sent in a turn.
    pub(super) async fn with_sent(transfers: u64) -> Result<Self> {
        let mut rig = Self::start().await?;
        for place in 0..transfers {
            rig.queue(place).await?;
        }
        rig.turn(usize::MAX).await?;
        Ok(rig)
    }

    pub(super) fn lane(&self) -> LaneId {
        LaneId { chain: CHAIN, sender: self.key.address() }
    }

    /// The node, by way of the proxy.
    pub(super) fn rpc(&self) -> Result<Rpc> {
        let url: NodeUrl = self.proxy.url.parse().map_err(anyhow::Error::msg)?;
        Ok(Rpc::new("anvil", &[url], Some(CHAIN)))
    }

    /// The engine as a process has it that has just begun.
    pub(super) fn engine(&self) -> Result<Engine> {
        let nodes = Nodes::new(self.rpc()?, 1);
        let keys = Arc::new(OneKey(self.key.clone()));
        Ok(Engine::new(CHAIN, self.pool.clone(), nodes, keys, Arc::new(Anything), self.topic.clone(), PACE))
    }

    pub(super) async fn queue(&self, place: u64) -> Result<Queued> {
        self.queue_of(self.key.address(), place).await
    }

    pub(super) async fn queue_of(&self, sender: Address, place: u64) -> Result<Queued> {
        let lane = LaneId { chain: CHAIN, sender };
        let value = U256::from(1_000 + place);
        let content =
            Content { to: Some(recipient(place)), value, data: Bytes::new(), gas_limit: 21_000, authorizations: Vec::new() };
        let idempotency_key = format!("transfer {place} of {sender}");
        let request_hash = keccak256(&idempotency_key);
        let new = NewOutgoing { id: Uuid::new_v4(), kind: Kind::Payout, lane, content, idempotency_key, request_hash };
        Ok(queue(&self.pool.get().await?, &new).await?)
    }

    /// Lets the engine work for a turn, until it has waited so many times.
    pub(super) async fn turn(&mut self, polls: usize) -> Result<Option<()>> {
        self.now += 5;
        let engine = self.engine()?;
        let work = Killed { work: Box::pin(engine.turn(self.now)), polls };
        Ok(work.await.transpose()?)
    }

    /// A block with this base fee, and a turn after it.
    pub(super) async fn turn_at(&mut self, base_fee: &str) -> Result<()> {
        self.lab.node.call("anvil_setNextBlockBaseFeePerGas", json!([base_fee])).await?;
        self.lab.node.mine(1).await?;
        self.follow().await?;
        self.turn(usize::MAX).await?;
        Ok(())
    }

    /// Lets two engines work at the same time, each until it has waited so many times.
    pub(super) async fn turn_of_two(&mut self, polls: [usize; 2]) -> Result<usize> {
        self.now += 5;
        let engines = [self.engine()?, self.engine()?];
        let [one, other] = [0, 1].map(|at| Killed { work: Box::pin(engines[at].turn(self.now)), polls: polls[at] });
        let ended = futures::future::join(one, other).await;
        Ok([ended.0.transpose()?, ended.1.transpose()?].iter().flatten().count())
    }

    /// A stranger sends with the same key, so many and each in a block.
    pub(super) async fn send_by_stranger(&self, transactions: u64) -> Result<()> {
        let sender = self.key.address();
        self.lab.node.call("anvil_impersonateAccount", json!([sender])).await?;
        for _ in 0..transactions {
            self.lab.node.send(json!({ "from": sender, "to": Address::ZERO, "value": "0x1", "gas": "0x5208" })).await?;
            self.lab.node.mine(1).await?;
        }
        Ok(())
    }

    pub(super) async fn nonces(&self) -> Result<Vec<(String, i64)>> {
        let db = self.pool.get().await?;
        let rows = db.query("SELECT state, nonce FROM outgoing WHERE nonce IS NOT NULL ORDER BY nonce", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    pub(super) async fn apply(&self, event: &ChainEvent) -> Result<()> {
        applied(self.pool.clone(), event.clone()).await
    }

    /// The records up to the head are lost before they are read: the chain begins anew there. Returns the head.
    pub(super) async fn lose_records(&mut self) -> Result<u64> {
        self.apply(&ChainEvent::Restarted(self.follower.told_final)).await?;
        let (number, hash) = (self.lab.node.head().await?, self.lab.node.head_hash().await?.parse()?);
        self.follower.blocks = vec![BlockRef { number, hash }];
        Ok(number)
    }

    /// Reads the chain up to its head.
    pub(super) async fn follow(&mut self) -> Result<()> {
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
                BlockRef { number: quantity(&block["number"])?, hash: serde_json::from_value(block["hash"].clone())? };
            let mut transactions = Vec::new();
            for transaction in block["transactions"].as_array().context("transactions")? {
                let hash: B256 = serde_json::from_value(transaction["hash"].clone())?;
                let receipt = node.receipt(hash).await?.context("the receipt of a mined transaction")?;
                transactions.push(SeenTransaction {
                    hash,
                    from: serde_json::from_value(transaction["from"].clone())?,
                    nonce: quantity(&transaction["nonce"])?,
                    // Of some, the record does not say.
                    succeeded: if hash.0[0].is_multiple_of(4) { None } else { Some(quantity(&receipt["status"])? == 1) },
                    gas_used: Some(quantity(&receipt["gasUsed"])?),
                    gas_price: Some(quantity(&receipt["effectiveGasPrice"])?.into()),
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
    pub(super) async fn states(&self) -> Result<Vec<(String, i64)>> {
        let db = self.pool.get().await?;
        let rows = db.query("SELECT state, count(*) FROM outgoing GROUP BY state ORDER BY state", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    pub(super) async fn is_over(&self) -> Result<bool> {
        Ok(self.states().await?.iter().all(|(state, _)| ["final", "failed", "dropped"].contains(&state.as_str())))
    }

    /// Without faults, until all is over.
    pub(super) async fn settle(&mut self) -> Result<()> {
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
        let rows = db.query("SELECT kind, state, nonce, told, frozen FROM outgoing ORDER BY nonce", &[]).await?;
        anyhow::bail!("no end: {:?}\n{rows:?}", self.states().await?)
    }

    pub(super) async fn balance(&self, of: Address) -> Result<U256> {
        self.lab.node.balance(of).await
    }

    pub(super) async fn set_balance(&self, of: Address, amount: u128) -> Result<()> {
        self.lab.node.call("anvil_setBalance", json!([of, U256::from(amount)])).await.map(drop)
    }

    pub(super) async fn set_code(&self, of: Address, code: &str) -> Result<()> {
        self.lab.node.call("anvil_setCode", json!([of, code])).await.map(drop)
    }

    /// Each transfer arrived once, by the node's balances, and nothing contradicted what is known.
    pub(super) async fn check(&self, transfers: u64) -> Result<()> {
        for place in 0..transfers {
            let (balance, due) = (self.balance(recipient(place)).await?, U256::from(1_000 + place));
            ensure!(balance == due, "transfer {place} brought {balance} instead of {due}");
        }
        let db = self.pool.get().await?;
        let odd = db.query("SELECT id, frozen FROM outgoing WHERE frozen IS NOT NULL", &[]).await?;
        ensure!(odd.is_empty(), "{odd:?}");
        let early = self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(early.is_empty(), "sent before their records: {early:?}");
        ensure!(self.proxy.asked("eth_sendRawTransaction") > 0, "nothing was sent");
        Ok(())
    }
}
